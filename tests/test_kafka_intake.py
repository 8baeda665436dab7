"""What one fetch brings, and in which order it is looked at."""

import time
from types import SimpleNamespace

from confluent_kafka import KafkaError

from reliable_mq.adapters.kafka import partition, position
from reliable_mq.adapters.kafka.intake import Intake


class Arriving:
    """A consumer whose one call brings the end of a partition behind records of before."""

    def __init__(self, records):
        self.records, self.sought = records, []

    def poll(self, timeout):
        """The first."""
        return self.records.pop(0) if self.records else None

    def consume(self, count, timeout):
        """The rest."""
        records, self.records = self.records, []
        return records

    def seek(self, place):
        """Again from there."""
        self.sought.append(place.offset)

    def pause(self, places):
        """Nothing to do."""

    resume = pause


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
    intake = Intake(consumer, {("t", 0): here}, time.monotonic)
    wait = consumer.poll
    consumer.poll = lambda timeout: intake.came([here]) or wait(timeout)
    intake.wait(0.0)
    assert (set(consumer.sought), here.dirty, here.to_commit().offset) == ({10}, False, 10)
