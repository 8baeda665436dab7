"""One partition of Kafka through commits that fail, rebalances and crashes: nothing is passed over.

What was removed on purpose is below; each is found: a commit of what came last, a failed commit
that counts, a commit without what is done behind a gap, one that forgets what others had done.
"""

import logging
import os
import random
from types import SimpleNamespace

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from reliable_mq.adapters.kafka.commits import Commits
from reliable_mq.adapters.kafka.metadata import decode
from reliable_mq.adapters.kafka.partition import KafkaLease, Partition
from reliable_mq.adapters.kafka.position import Position
from reliable_mq.ordering.tracker import OffsetTracker

EXAMPLES = 1_500 if os.environ.get("RELIABLE_MQ_LONG") else 150
SEEDS = st.integers(0, 9_999)
FIRST = 100
#: Small, so that it fills.
WINDOW = 12


@pytest.fixture(autouse=True)
def silence(caplog):
    """Commits fail all the time."""
    caplog.set_level(logging.CRITICAL, logger="reliable_mq.kafka")


class Broker:
    """A log with gaps, and what the group has committed of it; it is the members' consumer, too."""

    def __init__(self):
        self.log = []
        self.end = FIRST
        self.offset, self.text = None, ""
        #: Commits that are on their way.
        self.flight = []
        #: How the next one that is waited for ends: (it is stored, it is answered).
        self.sync = (True, True)

    def commit(self, *, offsets, asynchronous):
        """As confluent_kafka has it."""
        if asynchronous:
            self.flight.append(offsets)
            return None
        stored, answered = self.sync
        if stored:
            self.store(offsets)
        if not answered:
            raise KafkaException(KafkaError(KafkaError.REBALANCE_IN_PROGRESS))
        return offsets

    def store(self, offsets):
        """It is kept."""
        (one,) = offsets
        self.offset, self.text = one.offset, one.metadata

    def passed(self):
        """What a member that begins now would not run."""
        if self.offset is None:
            return set()
        said = decode(self.offset, self.text)
        return {one for one in self.log if one < self.offset or one in said.done}


class PartitionMachine(RuleBasedStateMachine):
    """A group whose members come and go, one at a time."""

    partitions = Partition
    commits_of = Commits

    def __init__(self):
        super().__init__()
        self.broker = Broker()
        self.leases = []
        self.finished = set()
        self.settled = set()
        self.begin()

    # ---- the log

    @rule(gaps=st.lists(st.sampled_from([1, 1, 1, 2, 7]), min_size=3, max_size=6))
    def publish(self, gaps):
        """More comes; offsets need not be neighbours."""
        for gap in gaps:
            self.broker.end += gap
            self.broker.log.append(self.broker.end - 1)

    @precondition(lambda self: len(self.broker.log) > 6)
    @rule(seed=SEEDS)
    def compact(self, seed):
        """A record goes, finished or not: a later one has its key."""
        self.broker.log.remove(random.Random(seed).choice(self.broker.log))

    # ---- a member

    def begin(self):
        """It is assigned to somebody."""
        broker = self.broker
        at = FIRST if broker.offset is None else broker.offset
        said = decode(at, broker.text)
        position = Position("t", 0, at, "id", said.done, is_new=broker.offset is None)
        self.partition = self.partitions(position, "t")
        self.partition.tracker = OffsetTracker(WINDOW)
        self.commits = self.commits_of("g", 0.0, 1e9)
        self.commits.consumer = broker
        self.at, self.known = at, broker.passed()

    @rule(limit=st.sampled_from([1, 2, 5]))
    def receive(self, limit):
        """What is next, as far as the window goes."""
        for offset in [one for one in self.broker.log if one >= self.at][:limit]:
            if self.partition.is_stalled(0.0):
                return
            self.at = offset + 1
            slot = self.partition.receive(offset)
            if slot is None:
                assert offset in self.finished, "passed over"
                continue
            assert offset not in self.known, "again, though the commit said that it was done"
            assert offset not in self.settled, "again, though it was settled"
            lease = KafkaLease(self.partition, slot)
            self.partition.in_hand.add(lease)
            self.leases.append(lease)

    @precondition(lambda self: self.leases)
    @rule(seed=SEEDS, count=st.integers(1, 2))
    def finish(self, seed, count):
        """Some end, in any order; also late ones, of assignments that are over."""
        for lease in random.Random(seed).sample(self.leases, min(count, len(self.leases))):
            self.leases.remove(lease)
            if lease in lease.partition.in_hand:
                lease.partition.finish(lease)
                self.finished.add(lease.slot.offset)

    @precondition(lambda self: not self.commits.waits)
    @rule()
    def commit(self):
        """It is on its way."""
        self.commits.begin([self.partition])

    @precondition(lambda self: self.broker.flight)
    @rule(answer=st.sampled_from(["yes", "no", "unknown", "not this partition"]))
    def answer(self, answer):
        """The broker keeps it or does not; where nobody knows, it has kept it."""
        (one,) = offsets = self.broker.flight.pop(0)
        error = KafkaError(KafkaError.NOT_COORDINATOR)
        if answer in ("yes", "unknown"):
            self.broker.store(offsets)
        if answer == "not this partition":
            failed = SimpleNamespace(
                topic=one.topic, partition=one.partition, offset=one.offset, error=error
            )
            self.commits.answered(None, [failed])
        else:
            self.commits.answered(None if answer == "yes" else error, offsets)
        self.hear()

    @precondition(lambda self: self.partition.in_hand)
    @rule(seed=SEEDS)
    def settle(self, seed):
        """One ends, and all goes well."""
        mine = [one for one in self.leases if one in self.partition.in_hand]
        self.leases.remove(lease := random.Random(seed).choice(mine))
        self.partition.finish(lease)
        self.finished.add(lease.slot.offset)
        while self.broker.flight:
            self.answer("yes")
        self.commit()
        self.answer("yes")

    def hear(self):
        """What the member says is settled."""
        self.settled |= {lease.slot.offset for lease in self.commits.settled}
        self.commits.settled.clear()

    @rule(
        how=st.sampled_from(["revoked", "lost", "crashed"]),
        came=st.booleans(),
        sync=st.sampled_from([(True, True), (True, False), (False, False)]),
    )
    def move(self, how, came, sync):
        """Another one has it; what was on its way came to the broker, or did not."""
        if came and self.broker.flight:
            self.broker.store(self.broker.flight[0])
        self.broker.flight.clear()
        self.broker.sync = sync
        if how == "revoked":
            self.commits.finish([self.partition])
        elif how == "lost":
            self.commits.forget([self.partition])
        else:
            self.leases = [one for one in self.leases if one.partition is not self.partition]
        self.hear()
        self.partition.lose()
        self.begin()

    # ---- what always holds

    @invariant()
    def nothing_is_passed_over(self):
        """What the next member would not run has been done."""
        assert self.broker.passed() <= self.finished

    @invariant()
    def what_is_settled_does_not_come_again(self):
        """The commit says so, whoever reads it."""
        assert self.settled & set(self.broker.log) <= self.broker.passed()

    def teardown(self):
        """In the end, all that is there is done and committed."""
        for _ in range(200):
            self.receive(5)
            if self.leases:
                self.finish(0, len(self.leases))
            if not self.commits.waits:
                self.commit()
            while self.broker.flight:
                self.answer("yes")
        assert self.broker.passed() == set(self.broker.log), "never finished"
        assert not self.partition.dirty


PartitionMachine.TestCase.settings = settings(
    max_examples=EXAMPLES, stateful_step_count=30, deadline=None, report_multiple_bugs=False
)
TestPartition = PartitionMachine.TestCase


# ---- negative controls


class LastCame(Partition):
    """It commits what came last."""

    def to_commit(self):
        """Not enough."""
        return TopicPartition(self.topic, self.number, self._next)


class NoGaps(Partition):
    """It does not say what is done behind one that is not."""

    def to_commit(self):
        """Not enough."""
        one = super().to_commit()
        return TopicPartition(one.topic, one.partition, one.offset)


class OwnOnly(Partition):
    """It says only what came to itself."""

    def to_commit(self):
        """Not enough."""
        finished, self._finished = self._finished, frozenset()
        try:
            return super().to_commit()
        finally:
            self._finished = finished


class Careless(Commits):
    """What was on its way is settled, whatever the answer."""

    def _failed(self, why):
        asked, self._asked = self._asked or [], None
        for _, leases in asked:
            self._settle(leases)


@pytest.mark.parametrize("broken", [LastCame, NoGaps, OwnOnly, Careless])
def test_a_partition_without_a_safety_is_caught(broken):
    """The machine notices each safety that is removed."""
    made = "commits_of" if issubclass(broken, Commits) else "partitions"
    machine = type("Broken", (PartitionMachine,), {made: broken})
    find = settings(
        max_examples=1_000,
        stateful_step_count=30,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        report_multiple_bugs=False,
    )
    with pytest.raises(AssertionError):
        run_state_machine_as_test(machine, settings=find)
