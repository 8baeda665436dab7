"""Reading the dead letters of a group, and marking some as dealt with.

Kafka cannot remove one record. What is discarded is marked done in the offsets of a group that
nobody joins, and is removed when all before it is discarded, too.
"""

from __future__ import annotations

import heapq
import logging
import time
from itertools import islice
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from reliable_mq.adapters.base import StoredMessage
from reliable_mq.adapters.kafka.metadata import SPAN, decode, encode
from reliable_mq.adapters.kafka.wire import from_record
from reliable_mq.errors import ConfigurationError, ConnectionFailed
from reliable_mq.message import dead_letter_topic

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reliable_mq.adapters.kafka.admin import Admin
    from reliable_mq.adapters.kafka.config import Config

__all__ = ["browse", "discard"]

log = logging.getLogger("reliable_mq.kafka")

#: Seconds without any record, while there are some.
ASKING: Final = 15.0


def browse(config: Config, admin: Admin, topic: str, group: str, limit: int) -> list[StoredMessage]:
    """See DeadLetterStore.browse."""
    name = dead_letter_topic(topic, group)
    if name not in admin.topics():
        text = f"there are no dead letters of group {group!r} of {topic!r}"
        raise ConfigurationError(text)
    topic_id = admin.topic_id(name)
    # By time over all partitions; within one in its own order, whatever clocks say.
    found: dict[int, list[tuple[int, StoredMessage]]] = {}
    for record in _records(config, admin, name, limit):
        message = from_record(topic, topic_id, record)
        position = f"{record.partition()}/{record.offset()}"
        pair = (record.timestamp()[1], StoredMessage(message, position))
        found.setdefault(record.partition(), []).append(pair)
    merged = heapq.merge(*found.values(), key=itemgetter(0))
    return [stored for _, stored in islice(merged, limit)]


def discard(admin: Admin, topic: str, group: str, positions: Sequence[int | str]) -> int:
    """See DeadLetterStore.discard."""
    name = dead_letter_topic(topic, group)
    done, ends = _done(admin, name), admin.ends(name)
    marked: dict[int, set[int]] = {}
    count = 0
    for position in positions:
        number, offset = (int(part) for part in str(position).split("/"))
        first, above = done.get(number, (0, frozenset()))
        known = marked.setdefault(number, set(above))
        if offset >= first + SPAN:
            log.warning(
                "dead letter %s of %s is too far behind: discard those before it", position, name
            )
        elif first <= offset < ends.get(number, 0) and offset not in known:
            known.add(offset)
            count += 1
    places = []
    for number, offsets in marked.items():
        first = done.get(number, (0, frozenset()))[0]
        while first in offsets:
            offsets.discard(first)
            first += 1
        places.append(TopicPartition(name, number, first, encode(first, offsets)))
    if places:
        admin.commit(name, places)
        admin.remove_before([one for one in places if one.offset > 0])
    return count


def _done(admin: Admin, name: str) -> dict[int, tuple[int, frozenset[int]]]:
    committed = admin.committed(name, name)
    return {
        number: (max(0, offset), decode(max(0, offset), metadata).done)
        for number, (offset, metadata) in committed.items()
    }


def _records(config: Config, admin: Admin, name: str, limit: int) -> list[Any]:
    """The first that are not done, so many of each partition at most."""
    done, begins, ends = _done(admin, name), admin.begins(name), admin.ends(name)
    wanted = {number: limit for number, end in ends.items() if end > begins[number]}
    found: list[Any] = []
    consumer = confluent_kafka.Consumer(config.consumer(f"{name}-browse-{uuid4().hex}"))
    try:
        consumer.assign([TopicPartition(name, number, begins[number]) for number in wanted])
        patience = time.monotonic() + ASKING
        while wanted:
            for record in _fetched(consumer):
                patience = time.monotonic() + ASKING
                number, offset = record.partition(), record.offset()
                if number not in wanted:
                    continue
                first, above = done.get(number, (0, frozenset()))
                if record.error() is None and offset >= first and offset not in above:
                    found.append(record)
                    wanted[number] -= 1
                if wanted[number] <= 0 or offset + 1 >= ends[number]:
                    del wanted[number]
                    consumer.pause([TopicPartition(name, number)])
            if time.monotonic() > patience:
                text = f"{config}: some dead letters of {name!r} did not come within {ASKING} s"
                raise ConnectionFailed(text)
    except KafkaException as error:
        text = f"{config}: the dead letters of {name!r} cannot be read: {error}"
        raise ConnectionFailed(text) from error
    finally:
        consumer.close()
    return found


def _fetched(consumer: Any) -> list[Any]:
    """Records, and the ends of partitions; raises what else comes in place of a record."""
    records: list[Any] = consumer.consume(500, 0.1)
    for record in records:
        error = record.error()
        if error is not None and error.code() != KafkaError._PARTITION_EOF:
            raise KafkaException(error)
    return records
