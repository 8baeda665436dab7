"""Reading the dead letters of a group, and marking some as dealt with.

Kafka cannot remove one record. What is discarded is marked done in the offsets of a group that
nobody joins, and is removed when all before it is discarded, too.
"""

from __future__ import annotations

import heapq
import logging
from itertools import islice
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import confluent_kafka
from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition

from reliable_mq.adapters.base import StoredMessage
from reliable_mq.adapters.kafka.metadata import SPAN, decode, encode
from reliable_mq.adapters.kafka.wire import from_record
from reliable_mq.errors import ConfigurationError
from reliable_mq.message import dead_letter_topic

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reliable_mq.adapters.kafka.admin import Admin
    from reliable_mq.adapters.kafka.config import Config

__all__ = ["browse", "discard"]

log = logging.getLogger("reliable_mq.kafka")

ASKING: Final = 15.0


def browse(config: Config, admin: Admin, topic: str, group: str, limit: int) -> list[StoredMessage]:
    """See DeadLetterStore.browse."""
    name = dead_letter_topic(topic, group)
    partitions = admin.topics().get(name)
    if partitions is None:
        text = f"there are no dead letters of group {group!r} of {topic!r}"
        raise ConfigurationError(text)
    done = _done(admin, name)
    # By time over all partitions; within one in its own order, whatever clocks say.
    found: dict[int, list[tuple[int, StoredMessage]]] = {}
    topic_id = admin.topic_id(name)
    for record in _records(config, name, partitions):
        offset, above = done.get(record.partition(), (0, frozenset()))
        if record.offset() < offset or record.offset() in above:
            continue
        message = from_record(topic, topic_id, record)
        position = f"{record.partition()}/{record.offset()}"
        pair = (record.timestamp()[1], StoredMessage(message, position))
        found.setdefault(record.partition(), []).append(pair)
    merged = heapq.merge(*found.values(), key=itemgetter(0))
    return [stored for _, stored in islice(merged, limit)]


def discard(admin: Admin, topic: str, group: str, positions: Sequence[int | str]) -> int:
    """See DeadLetterStore.discard."""
    name = dead_letter_topic(topic, group)
    done = _done(admin, name)
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
        elif offset >= first and offset not in known:
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
        asked = [ConsumerGroupTopicPartitions(name, places)]
        admin.client.alter_consumer_group_offsets(asked)[name].result(ASKING)
        admin.remove_before([one for one in places if one.offset > 0])
    return count


def _done(admin: Admin, name: str) -> dict[int, tuple[int, frozenset[int]]]:
    committed = admin.committed(name, name)
    return {
        number: (max(0, offset), decode(max(0, offset), metadata).done)
        for number, (offset, metadata) in committed.items()
    }


def _records(config: Config, name: str, partitions: int) -> list[Any]:
    consumer = confluent_kafka.Consumer(config.consumer(f"{name}-browse-{uuid4().hex}"))
    try:
        ends: dict[int, int] = {}
        places = []
        for number in range(partitions):
            place = TopicPartition(name, number)
            low, high = consumer.get_watermark_offsets(place, timeout=ASKING, cached=False)
            if high > low:
                ends[number] = high
                places.append(TopicPartition(name, number, low))
        consumer.assign(places)
        found: list[Any] = []
        silent = 0
        while ends and silent < 100:  # noqa: PLR2004 - ten seconds without any record
            records = consumer.consume(500, 0.1)
            silent = 0 if records else silent + 1
            found += [record for record in records if record.error() is None]
            for place in consumer.position(places):
                if place.offset >= ends.get(place.partition, 1 << 62):
                    del ends[place.partition]
        return found
    finally:
        consumer.close()
