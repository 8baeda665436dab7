"""What is fetched ahead: records into the inboxes of their partitions, and when not to fetch.

While there is enough, the consumer is left alone, so that librdkafka keeps what it has fetched; a
pause would throw that away. It is polled now and then all the same, as that is where rebalances
and the answers to commits come from, and what comes with it is taken. Only when that has added up
are all partitions paused. One whose window is full, or whose next record is not due, is paused by
itself, and the others go on; when what such ones keep has added up, the next forgets what it has.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from confluent_kafka import KafkaError, KafkaException

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from reliable_mq.adapters.kafka.partition import Partition

__all__ = ["Intake"]

#: Records of one call. More take longer each.
FETCH: Final = 500
#: Records, and bytes, in the inboxes beyond which no more are fetched. librdkafka hands out what it
#: has of one partition before what it has of the next, and keys of all are to run side by side.
ENOUGH: Final = 10_000
ENOUGH_BYTES: Final = 8 * 1024 * 1024
#: Records of one partition below which it is short of them.
SHORT: Final = 200
#: How many times `ENOUGH` are fetched while one is short; and pause all, and let them go on.
HUNGRY, TOO_MUCH, LITTLE = 3.0, 4.0, 0.5
#: How many times that those keep which are paused by themselves, all together.
KEPT: Final = 4.0
#: Seconds for which the consumer may be left alone.
ALONE: Final = 0.1


class Intake:
    """Of one consumer. The owner thread only."""

    def __init__(
        self,
        consumer: Any,
        partitions: Mapping[tuple[str, int], Partition],
        monotonic: Callable[[], float],
    ) -> None:
        self._consumer = consumer
        self._partitions = partitions
        self._monotonic = monotonic
        self._polled_at = self._look_at = 0.0
        self._all_paused = False
        self._errors: list[Any] = []
        #: Assigned during this call: what the call returns may be of an earlier assignment.
        self._came: list[Partition] = []
        #: Whether a partition could not be put back to where it began: join again.
        self.confused = False

    def ready(self) -> int:
        """Records that are waiting and may be handed out."""
        return sum(
            [len(one.inbox) for one in self._partitions.values() if not one.paused and one.inbox]
        )

    def patience(self, now: float) -> float:
        """Seconds for which the consumer may be left alone from now on."""
        return max(0.0, self._polled_at + ALONE - now)

    def top_up(self, limit: int) -> None:
        """Fetch without waiting, if there is not enough or the consumer was alone for long."""
        if self.ready() < limit or self._one_is_short() or not self.patience(self._monotonic()):
            self.wait(0.0)

    def wait(self, seconds: float) -> None:
        """Serve the callbacks and take what there is: one wait, then a batch without."""
        self._came.clear()
        self._pause_or_go_on(self._fullness())
        try:
            record = self._consumer.poll(seconds)
            if record is not None:
                self._put([record])
            while record is not None and self._wants_more():
                records = self._consumer.consume(FETCH, 0.0)
                self._put(records)
                if len(records) < FETCH or not self._one_is_short():
                    break
        finally:
            self._polled_at = self._monotonic()
        if self._polled_at >= self._look_at:
            self._look_at = self._polled_at + ALONE
            self._look_at_ends()

    def _look_at_ends(self) -> None:
        """What the last fetches told of how far the partitions go."""
        for one in self._partitions.values():
            with suppress(KafkaException):  # nothing was fetched yet
                _, one.end = self._consumer.get_watermark_offsets(one.place, cached=True)

    def came(self, partitions: Sequence[Partition]) -> None:
        """They have just been assigned."""
        self._came += partitions
        places = [one.place for one in partitions]
        # librdkafka remembers a pause of an earlier assignment.
        (self._consumer.pause if self._all_paused else self._consumer.resume)(places)

    def errors(self) -> list[Any]:
        """Records that are errors, once."""
        if not self._errors:
            return []
        errors, self._errors = self._errors, []
        return errors

    def mind(self, partition: Partition, now: float) -> None:
        """Pause it if none of its records can be handed out; go on if they can again."""
        stalled = partition.is_stalled(now)
        if stalled and not partition.paused and partition.inbox:
            self._consumer.pause([partition.place])
            partition.paused = True
            if self._fullness(paused=True) > KEPT:
                partition.drop()
        elif partition.paused and not stalled:
            partition.paused = False
            if partition.dropped:
                partition.dropped = False
                self._seek(partition)
            if not self._all_paused:
                self._consumer.resume([partition.place])

    def _put(self, records: list[Any]) -> None:
        partitions = self._partitions
        came = {(one.topic, one.number) for one in self._came}
        dropped: set[Partition] = set()
        for record in records:
            error = record.error()
            if error is not None and error.code() != KafkaError._PARTITION_EOF:
                self._errors.append(record)
                continue
            key = (record.topic(), record.partition())
            partition = partitions.get(key)
            if partition is None or partition.dropped:
                continue
            if came and key in came:
                dropped.add(partition)
                continue
            if error is not None:
                partition.reach(record.offset())
                continue
            offset = record.offset()
            if offset >= partition.fetched:  # what was fetched before a seek is not
                partition.fetched = offset + 1
                partition.inbox.append(record)
                partition.inbox_bytes += len(record)
        for partition in dropped:
            # What came in one call with its assignment may be of the one before.
            self._seek(partition)

    def _seek(self, partition: Partition) -> None:
        """Fetch again what we do not have."""
        place = partition.place
        place.offset = partition.fetched
        try:
            self._consumer.seek(place)
        except KafkaException:
            self.confused = True

    def _wants_more(self) -> bool:
        return self._fullness() < (HUNGRY if self._one_is_short() else 1.0)

    def _one_is_short(self) -> bool:
        """Whether a partition has next to nothing here, and may have more there."""
        for one in self._partitions.values():
            here = len(one.inbox)
            if here < SHORT and (not here or one.left > here):
                return True
        return False

    def _fullness(self, *, paused: bool = False) -> float:
        """1.0 is enough, of those that go on; or of those that are paused by themselves."""
        partitions = [one for one in self._partitions.values() if one.paused is paused]
        records = sum([len(one.inbox) for one in partitions])
        size = sum([one.inbox_bytes for one in partitions])
        return max(records / ENOUGH, size / ENOUGH_BYTES)

    def _pause_or_go_on(self, fullness: float) -> None:
        if not self._all_paused and fullness >= TOO_MUCH:
            self._consumer.pause([one.place for one in self._partitions.values()])
            self._all_paused = True
        elif self._all_paused and fullness < LITTLE:
            self._consumer.resume(
                [one.place for one in self._partitions.values() if not one.paused]
            )
            self._all_paused = False
