"""Where a member begins with a partition: its group's commit, else where the consumer asks for."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, Final

from confluent_kafka import KafkaError, KafkaException, TopicPartition
from msgspec import Struct

from reliable_mq.adapters.kafka.metadata import decode
from reliable_mq.errors import ConnectionFailed, TransportError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from reliable_mq.adapters.base import Start, Subscribe

__all__ = ["MOVING", "Position", "Positions"]

#: A partition has no leader for the moment, or our client, or the broker, does not know it yet.
MOVING: Final = frozenset(
    {
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.UNKNOWN_LEADER_EPOCH,
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError._DESTROY_BROKER,
    }
)
nap: Final = threading.Event()  # never set: something to wait on


class Position(Struct, frozen=True):
    """Where to begin with a partition.

    done: what is done behind the offset. is_new: the group had no position there. end: the offset
    behind the last record.
    """

    topic: str
    partition: int
    offset: int
    topic_id: str = ""
    done: frozenset[int] = frozenset()
    is_new: bool = False
    end: int = 0


class Positions:
    """Of one consumer. The owner thread, inside its poll.

    Args:
        topic_id: Tells a topic from another one of the same name, within so many seconds.
        patience: Seconds that all questions of one assignment may take together. A poll that takes
            longer than `max.poll.interval.ms` would have the member evicted.
    """

    def __init__(
        self,
        consumer: Any,
        subscribe: Subscribe,
        on_out_of_range: str,
        topic_id: Callable[[str, float], str],
        patience: float,
    ) -> None:
        self._consumer = consumer
        self._asks = subscribe
        self._on_out_of_range = on_out_of_range
        self._topic_id = topic_id
        self._patience = patience
        self._end = 0.0

    def of(self, partitions: Sequence[TopicPartition]) -> list[Position]:
        """Where to begin with each.

        Raises: ConnectionFailed when the broker does not answer; TransportError when a committed
            offset is not there any more, or was one of another topic of that name.
        """
        self._end = time.monotonic() + self._patience
        try:
            committed = self._consumer.committed(list(partitions), timeout=self._left())
            topics = {one.topic for one in committed}
            ids = {topic: self._topic_id(topic, self._left()) for topic in topics}
            starts = {topic: self._start_of(topic) for topic in topics}
            return [self._one(one, ids[one.topic], starts[one.topic]) for one in committed]
        except KafkaException as error:
            text = f"group {self._asks.group!r}: its offsets cannot be had: {error}"
            raise ConnectionFailed(text) from error

    def _left(self) -> float:
        return max(0.05, self._end - time.monotonic())

    def _start_of(self, topic: str) -> Start:
        """Where it begins with partitions that its group has no position in."""
        start = self._asks.start
        if topic not in self._asks.topics or start in (None, "earliest"):
            return "earliest" if start is not None else None
        found = self._consumer.list_topics(topic, timeout=self._left()).topics[topic]
        places = [TopicPartition(topic, number) for number in found.partitions]
        known = self._consumer.committed(places, timeout=self._left())
        # It has begun already: a partition without a position was added since, and is all new.
        return "earliest" if any(one.offset >= 0 for one in known) else start

    def _one(self, one: TopicPartition, topic_id: str, start: Start) -> Position:
        if one.error is not None:
            raise KafkaException(one.error)
        topic, number, offset = one.topic, one.partition, one.offset
        place = TopicPartition(topic, number)
        low, high = self._ends(place)
        if offset < 0:
            begin = self._resolve(place, start, low, high)
            return Position(topic, number, begin, topic_id, is_new=start is not None, end=high)
        said = decode(offset, one.metadata)
        if said.topic_id and topic_id and said.topic_id != topic_id:
            why = "the topic was deleted and made again since"
        elif not low <= offset <= high:
            why = f"the broker has {low} to {high}: retention was faster, or it lost its data"
        else:
            return Position(topic, number, offset, topic_id, said.done, end=high)
        if self._on_out_of_range == "error":
            text = (
                f"group {self._asks.group!r} has committed offset {offset} of {topic!r}, partition "
                f"{number}, and {why}. Say on_out_of_range=earliest or latest in the URL, or reset "
                "the group"
            )
            raise TransportError(text)
        moved = low if self._on_out_of_range == "earliest" else high
        return Position(topic, number, moved, topic_id, is_new=True, end=high)

    def _ends(self, place: TopicPartition) -> tuple[int, int]:
        """Its first offset and the next one. A new leader may not know yet that it leads."""
        while True:
            left = self._left()
            try:
                low, high = self._consumer.get_watermark_offsets(place, timeout=left, cached=False)
            except KafkaException as error:
                if error.args[0].code() not in MOVING or time.monotonic() > self._end:
                    raise
                nap.wait(0.05)
            else:
                return int(low), int(high)

    def _resolve(self, place: TopicPartition, start: Start, low: int, high: int) -> int:
        """The offset that a start means."""
        if start is None or start == "earliest":
            return low
        if start == "latest":
            return high
        if isinstance(start, int) and not isinstance(start, bool):
            return max(low, min(start, high))
        place.offset = int(float(start) * 1000)
        (found,) = self._consumer.offsets_for_times([place], timeout=self._left())
        return int(found.offset) if found.offset >= 0 else high

    def out_of_range(self, record: Any) -> TransportError:
        """The error for an offset that went away while it was read."""
        text = (
            f"group {self._asks.group!r}: offset {record.offset()} of {record.topic()!r}, "
            f"partition {record.partition()}, is not there any more: {record.error()}"
        )
        return TransportError(text)
