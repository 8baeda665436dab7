"""What one fetch brings, and in which order it is looked at."""

import time
from types import SimpleNamespace

from confluent_kafka import KafkaError

from reliable_mq.adapters.kafka import intake, partition, position


class Arriving:
    """A consumer whose one call brings the end of a partition behind records of before."""

    def __init__(self, records):
        self.records, self.sought, self.paused = records, [], False

    def poll(self, timeout):
        """The first."""
        return self.records.pop(0) if self.records else None

    def consume(self, count, timeout):
        """The rest."""
        records, self.records = self.records, []
        return records

    def get_watermark_offsets(self, place, cached):
        """As the last fetch told."""
        return 0, 20

    def seek(self, place):
        """Again from there."""
        self.sought.append(place.offset)

    def pause(self, places):
        """Nothing comes of them."""
        self.paused = True

    def resume(self, places):
        """It does."""
        self.paused = False


class Arrived:
    """A record, or the end."""

    def __init__(self, offset, code=None):
        self._offset, self._code = offset, code

    def error(self):
        """The end is one."""
        return self._code and SimpleNamespace(code=lambda: self._code)

    def topic(self):
        """Always the same."""
        return "t"

    def partition(self):
        """As well."""
        return 0

    def offset(self):
        """Where."""
        return self._offset

    def __len__(self):
        return 1


def test_the_end_that_comes_with_what_is_dropped_is_not_committed():
    """All of a call in which the partition was assigned is fetched again, its end as well."""
    end = Arrived(12, KafkaError._PARTITION_EOF)
    consumer = Arriving([Arrived(10), Arrived(11), end])
    here = partition.Partition(position.Position("t", 0, 10), "t")
    fetching = intake.Intake(consumer, {("t", 0): here}, time.monotonic)
    wait = consumer.poll
    consumer.poll = lambda timeout: fetching.came([here]) or wait(timeout)
    fetching.wait(0.0)
    assert (set(consumer.sought), here.dirty, here.to_commit().offset) == ({10}, False, 10)


def test_what_stalled_partitions_keep_is_bounded(monkeypatch):
    """Beyond that it is forgotten, fetched again when they go on, and never said to be done."""
    monkeypatch.setattr(intake, "KEPT", 0.0)
    end = Arrived(17, KafkaError._PARTITION_EOF)
    consumer = Arriving([Arrived(one) for one in range(10, 17)] + [end])
    here = partition.Partition(position.Position("t", 0, 10), "t")
    fetching = intake.Intake(consumer, {("t", 0): here}, time.monotonic)
    fetching.wait(0.0)
    here.rests_until = 5.0
    fetching.mind(here, 4.0)
    assert (consumer.paused, list(here.inbox), here.inbox_bytes) == (True, [], 0)

    consumer.records = [Arrived(17)]  # was on its way
    fetching.wait(0.0)
    assert (list(here.inbox), here.to_commit().offset) == ([], 10)

    fetching.mind(here, 6.0)
    assert (consumer.paused, consumer.sought) == (False, [10])
    consumer.records = [Arrived(10), Arrived(11)]
    fetching.wait(0.0)
    assert [one.offset() for one in here.inbox] == [10, 11]
    assert not here.dirty
