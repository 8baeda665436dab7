"""Commits: one on its way at a time, from the owner thread; its answer comes out of a poll."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from confluent_kafka import KafkaException

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from confluent_kafka import TopicPartition

    from reliable_mq.adapters.kafka.partition import KafkaLease, Partition
    from reliable_mq.message import Lease

__all__ = ["Commits"]

log = logging.getLogger("reliable_mq.kafka")


class Commits:
    """Of one consumer, which is given before the first use. The owner thread only.

    settled: what the broker knows to be done since the last look.
    """

    def __init__(self, group: str, interval: float) -> None:
        self.consumer: Any = None
        self.settled: list[Lease] = []
        self._group = group
        self._interval = interval
        self._due = 0.0
        self._asked: list[tuple[Partition, list[KafkaLease]]] | None = None

    @property
    def waits(self) -> bool:
        """Whether one is on its way."""
        return self._asked is not None

    def look(self, now: float, partitions: Collection[Partition]) -> None:
        """Commit what has changed, if it is time and the last one has been answered."""
        if now >= self._due and self._asked is None and self.begin(partitions):
            self._due = now + self._interval

    def begin(self, partitions: Collection[Partition]) -> bool:
        """Commit what has changed, if anything has; `answered` tells what became of it."""
        dirty = [one for one in partitions if one.dirty]
        if not dirty:
            return False
        offsets = [one.to_commit() for one in dirty]
        self._asked = [(one, one.take_said()) for one in dirty]
        for one in dirty:
            one.dirty = False
        try:
            self.consumer.commit(offsets=offsets, asynchronous=True)
        except KafkaException as error:
            self._failed(error)
        return True

    def answered(self, error: Any, partitions: Sequence[TopicPartition]) -> None:
        """Called from inside a poll."""
        if self._asked is None:
            return
        if error is not None:
            self._failed(error)
            return
        failed = {(one.topic, one.partition) for one in partitions if one.error is not None}
        asked, self._asked = self._asked, None
        for partition, leases in asked:
            if (partition.topic, partition.number) in failed:
                _put_back(partition, leases)
            else:
                self._settle(leases)

    def finish(self, partitions: Collection[Partition]) -> None:
        """Commit these, and wait for the answer: a rebalance takes them away."""
        if self._asked is not None:
            self._failed("overtaken by one that is waited for")
        dirty = [one for one in partitions if one.dirty]
        if not dirty:
            return
        try:
            offsets = [one.to_commit() for one in dirty]
            answer = self.consumer.commit(offsets=offsets, asynchronous=False)
        except KafkaException as error:
            log.warning("group %s: the last commit failed: %s", self._group, error)
            return
        failed = {(one.topic, one.partition) for one in answer or () if one.error is not None}
        for one in dirty:
            if (one.topic, one.number) not in failed:
                self._settle(one.take_said())
                one.dirty = False

    def forget(self, partitions: Collection[Partition]) -> None:
        """These are somebody else's: what is on its way for them is not waited for."""
        for partition, leases in self._asked or ():
            if partition in partitions:
                partition.unsettled = [*leases, *partition.unsettled]
        self._asked = [pair for pair in self._asked or () if pair[0] not in partitions] or None

    def _settle(self, leases: list[KafkaLease]) -> None:
        self.settled += [lease for lease in leases if not lease.lost]

    def _failed(self, why: object) -> None:
        log.debug("group %s: a commit failed: %s; it is tried again", self._group, why)
        asked, self._asked = self._asked or [], None
        for partition, leases in asked:
            _put_back(partition, leases)


def _put_back(partition: Partition, leases: list[KafkaLease]) -> None:
    partition.unsettled = [*leases, *partition.unsettled]
    partition.dirty = True
