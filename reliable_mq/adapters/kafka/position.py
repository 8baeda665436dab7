"""Where a member begins with a partition: its group's commit, else where the consumer asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from confluent_kafka import KafkaException, TopicPartition

from reliable_mq.adapters.kafka.metadata import decode
from reliable_mq.errors import ConnectionFailed, TransportError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reliable_mq.adapters.base import Start, Subscribe

__all__ = ["Positions", "resolve"]

#: Seconds that each question to the broker may take.
ASKING: Final = 10.0


class Positions:
    """Of one consumer. The owner thread, inside its poll."""

    def __init__(self, consumer: Any, subscribe: Subscribe, on_out_of_range: str) -> None:
        self._consumer = consumer
        self._asks = subscribe
        self._on_out_of_range = on_out_of_range

    def of(
        self, partitions: Sequence[TopicPartition]
    ) -> list[tuple[TopicPartition, frozenset[int], bool]]:
        """Each with its offset, what is done above, and whether the group had no position there.

        Raises: ConnectionFailed when the broker does not answer; TransportError when a committed
            offset is not there any more.
        """
        try:
            committed = self._consumer.committed(list(partitions), timeout=ASKING)
            return [self._one(one) for one in committed]
        except KafkaException as error:
            text = f"group {self._asks.group!r}: its offsets cannot be had: {error}"
            raise ConnectionFailed(text) from error

    def _one(self, one: TopicPartition) -> tuple[TopicPartition, frozenset[int], bool]:
        start = self._asks.start if one.topic in self._asks.topics else "earliest"
        if one.offset < 0:
            offset = resolve(self._consumer, one.topic, one.partition, start)
            return TopicPartition(one.topic, one.partition, offset), frozenset(), start is not None
        low, high = self._consumer.get_watermark_offsets(
            TopicPartition(one.topic, one.partition), timeout=ASKING, cached=False
        )
        offset = one.offset
        if not low <= offset <= high:
            offset = self._moved(one, low, high)
        finished = decode(one.offset, one.metadata) if offset == one.offset else frozenset()
        return TopicPartition(one.topic, one.partition, offset), finished, False

    def _moved(self, one: TopicPartition, low: int, high: int) -> int:
        where = f"offset {one.offset} of {one.topic!r}, partition {one.partition}"
        if self._on_out_of_range == "error":
            text = (
                f"group {self._asks.group!r} has committed {where}, and the broker has {low} to "
                f"{high}: retention was faster, or the topic was made again. Say "
                "on_out_of_range=earliest or latest in the URL, or reset the group"
            )
            raise TransportError(text)
        return low if self._on_out_of_range == "earliest" else high

    def out_of_range(self, record: Any) -> TransportError:
        """The error for an offset that went away while it was read."""
        text = (
            f"group {self._asks.group!r}: offset {record.offset()} of {record.topic()!r}, "
            f"partition {record.partition()}, is not there any more: {record.error()}"
        )
        return TransportError(text)


def resolve(consumer: Any, topic: str, partition: int, start: Start) -> int:
    """The offset that a start means."""
    place = TopicPartition(topic, partition)
    low, high = consumer.get_watermark_offsets(place, timeout=ASKING, cached=False)
    if start is None or start == "earliest":
        return int(low)
    if start == "latest":
        return int(high)
    if isinstance(start, int) and not isinstance(start, bool):
        return max(int(low), min(start, int(high)))
    place.offset = int(float(start) * 1000)
    (found,) = consumer.offsets_for_times([place], timeout=ASKING)
    return int(found.offset) if found.offset >= 0 else int(high)
