"""Commits: one on its way at a time, from the owner thread; its answer comes out of a poll."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from confluent_kafka import KafkaError, KafkaException

from reliable_mq.errors import ConnectionFailed

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from confluent_kafka import TopicPartition

    from reliable_mq.adapters.kafka.partition import KafkaLease, Partition
    from reliable_mq.message import Lease

__all__ = ["Commits"]

#: The group deals anew.
REBALANCING: Final = frozenset(
    {
        KafkaError.ILLEGAL_GENERATION,
        KafkaError.UNKNOWN_MEMBER_ID,
        KafkaError.REBALANCE_IN_PROGRESS,
        KafkaError.STALE_MEMBER_EPOCH,
    }
)
log = logging.getLogger("reliable_mq.kafka")


class Commits:
    """Of one consumer, which is given before the first use. The owner thread only.

    settled: what the broker knows to be done since the last look.

    Args:
        patience: Seconds for which commits may fail before nothing new is begun.
    """

    def __init__(self, group: str, interval: float, patience: float) -> None:
        self.consumer: Any = None
        self._patience = patience
        self.settled: list[Lease] = []
        self._group = group
        self._interval = interval
        self._due = 0.0
        self._asked: list[tuple[Partition, list[KafkaLease]]] | None = None
        #: What the last one said: an answer to another one is not taken for its own.
        self._offsets: dict[tuple[str, int], int] = {}
        self._begun = 0.0
        self._failing_since: float | None = None
        self._why = ""

    @property
    def waits(self) -> bool:
        """Whether one is on its way."""
        return self._asked is not None

    def look(self, now: float, partitions: Collection[Partition]) -> None:
        """Commit what has changed, if it is time and the last one has been answered.

        Raises: ConnectionFailed while all fail, and have for `patience`: another member may have
            the work by now.
        """
        if self._asked is not None and now - self._begun > self._patience:
            self._failed("no answer")
        if now >= self._due and self._asked is None and self.begin(partitions):
            self._begun, self._due = now, now + self._interval
        if self._failing_since is None:
            return
        if self._asked is None and not any(one.dirty for one in partitions):
            self._failing_since = None  # what it was about is gone: no commit will come to end it
        elif now - self._failing_since > self._patience:
            text = f"group {self._group!r}: nothing can be committed: {self._why}; tried again"
            raise ConnectionFailed(text)

    def begin(self, partitions: Collection[Partition]) -> bool:
        """Commit what has changed, if anything has; `answered` tells what became of it."""
        dirty = [one for one in partitions if one.dirty]
        if not dirty:
            return False
        offsets = [one.to_commit() for one in dirty]
        self._offsets = {(one.topic, one.partition): one.offset for one in offsets}
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
        told = [((one.topic, one.partition), one.offset) for one in partitions]
        if self._asked is None or any(self._offsets.get(place) != at for place, at in told):
            return  # it was overtaken
        if error is not None:
            self._failed(error)
            return
        failed = {(one.topic, one.partition): one.error for one in partitions if one.error}
        self._note(next(iter(failed.values()), None))
        asked, self._asked = self._asked, None
        for partition, leases in asked:
            if (partition.topic, partition.number) in failed:
                _put_back(partition, leases)
            else:
                self._settle(leases)

    def finish(self, partitions: Collection[Partition]) -> None:
        """Commit these, and wait for the answer: a rebalance takes them away."""
        if self._asked is not None:
            self._take_back()  # the one below says the same and more
        dirty = [one for one in partitions if one.dirty]
        if not dirty:
            return
        try:
            offsets = [one.to_commit() for one in dirty]
            answer = self.consumer.commit(offsets=offsets, asynchronous=False)
        except KafkaException as error:
            log.warning("group %s: the last commit failed: %s", self._group, error)
            return
        failed = {(one.topic, one.partition) for one in answer or () if one.error}
        if not failed:
            self._failing_since = None
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

    def _note(self, why: object) -> None:
        """What became of a commit: why it failed; None: it did not."""
        if why is None:
            self._failing_since = None
            return
        log.debug("group %s: a commit failed: %s; it is tried again", self._group, why)
        self._why = str(why)
        if isinstance(why, KafkaError) and why.code() in REBALANCING:
            return  # a callback will tell what is lost
        if self._failing_since is None:
            self._failing_since = self._begun

    def _failed(self, why: object) -> None:
        self._note(why)
        self._take_back()

    def _take_back(self) -> None:
        asked, self._asked = self._asked or [], None
        for partition, leases in asked:
            _put_back(partition, leases)


def _put_back(partition: Partition, leases: list[KafkaLease]) -> None:
    partition.unsettled = [*leases, *partition.unsettled]
    partition.dirty = True
