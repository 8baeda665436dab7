"""F16, F17: members come and go without end, and one of them does not poll for too long.

In the apps of this process each client's rebalances and commits are recorded, as the broker
answered them.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from contextlib import suppress

import confluent_kafka
import pytest
from confluent_kafka import KafkaException, TopicPartition
from msgspec import Struct

from integration.children.on_kafka import fetched
from integration.children.removed import Around
from integration.faults import LONG, promises, until
from integration.kafka_traffic import CREDIT, SKIP, Traffic
from reliable_mq.adapters.kafka import KafkaTransport
from reliable_mq.adapters.kafka.metadata import decode
from reliable_mq.adapters.kafka.partition import Partition
from reliable_mq.events import LeasesLost

PROTOCOLS = {
    "cooperative-sticky": "assignment=cooperative-sticky",
    "range": "assignment=range",
    "consumer": "group_protocol=consumer",
}
#: Java's murmur2 spreads these evenly over four partitions.
KEYS = [f"m{number}" for number in range(8)]
#: Members at most, and seconds between two changes.
MOST, EVERY = 8, 2.0


class Told(Struct, frozen=True):
    """What happened to a client: assigned, revoked, lost or committed these partitions."""

    client: int
    what: str
    partitions: tuple[tuple[str, int], ...]
    at: float


class Recording(confluent_kafka.Consumer):
    """A consumer that writes down what the broker tells it."""

    told: list[Told] = []  # noqa: RUF012 - of all: the fixture makes a new one

    def __init__(self, config):
        if "on_commit" in config:
            config = {**config, "on_commit": self._answered(config["on_commit"])}
        super().__init__(config)

    def subscribe(self, topics, **callbacks):
        """See confluent_kafka."""
        super().subscribe(
            topics, **{name: self._told(name, one) for name, one in callbacks.items()}
        )

    def commit(self, *, offsets, asynchronous=True):
        """See confluent_kafka."""
        answer = super().commit(offsets=offsets, asynchronous=asynchronous)
        if not asynchronous:
            self._note("committed", [one for one in answer if one.error is None])
        return answer

    def _answered(self, call):
        def answered(error, partitions):
            if error is None:
                self._note("committed", [one for one in partitions if one.error is None])
            call(error, partitions)

        return answered

    def _told(self, name, call):
        def told(consumer, partitions):
            if name != "on_assign":
                self._note(name, partitions)
            call(consumer, partitions)
            if name == "on_assign":
                self._note(name, partitions)

        return told

    def _note(self, what, partitions):
        places = tuple((one.topic, one.partition) for one in partitions)
        self.told.append(Told(id(self), what, places, time.monotonic()))


@pytest.fixture
def told(monkeypatch):
    """What was told to the clients of this test."""
    told = []
    monkeypatch.setattr(Recording, "told", told)
    monkeypatch.setattr(confluent_kafka, "Consumer", Recording)
    return told


def not_its_own(told):
    """Commits that the broker took of partitions that the client knew not to be its own."""
    mine, wrong = {}, []
    for one in told:
        own = mine.setdefault(one.client, set())
        if one.what == "on_assign":
            own |= set(one.partitions)
        elif one.what == "on_lost":
            own -= set(one.partitions)
        elif one.what == "committed" and not set(one.partitions) <= own:
            wrong.append(one)  # `revoked` may commit inside its callback, so it takes nothing here
    return wrong


# -- F16: a storm of rebalances ----------------------------------------------------------------


def storm(traffic, seconds, *, seed=1):
    """Members join and leave while keyed messages come; returns how often."""
    rng = random.Random(seed)
    for _ in range(3):
        traffic.join()
    flood = threading.Thread(
        target=traffic.publish_for, args=(seconds,), kwargs={"pause": 0.1, "keys": KEYS}
    )
    flood.start()
    changes, tick = 0, threading.Event()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        due = time.monotonic() + EVERY
        if len(traffic.members) >= MOST or (len(traffic.members) > 2 and rng.random() < 0.5):
            traffic.leave(rng.choice(traffic.members))
        else:
            traffic.join()
        changes += 1
        tick.wait(max(0.0, due - time.monotonic()))
    flood.join()
    return changes


def quiet(told, seconds=2.0):
    """Whether nobody is assigned anything in so many seconds."""
    before = len([one for one in told if one.what == "on_assign"])
    threading.Event().wait(seconds)
    return before == len([one for one in told if one.what == "on_assign"])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_storm_of_rebalances_loses_nothing_and_keeps_the_order(kafka, told, protocol):
    """The lag drains, hardly anything runs twice, and nobody joins again and again."""
    seconds = 180.0 if LONG else 20.0 if protocol == "cooperative-sticky" else 6.0
    with Traffic(kafka, options=PROTOCOLS[protocol], partitions=6, work=0.005) as traffic:
        changes = storm(traffic, seconds)

        until(lambda: quiet(told), "nobody joins again")
        verdict = traffic.finish()
        assert verdict.broken == (), str(verdict)
        assert verdict.effects == verdict.invoked
        # What runs when a member leaves, or a partition moves, ends and is committed first.
        assert sum(verdict.duplicate_effects.values()) <= changes
        assert not_its_own(told) == []
        # Two rounds for each change, of all members, and a few for latecomers.
        assigned = sum(one.what == "on_assign" for one in told)
        assert assigned <= 3 * (changes + 3) * MOST, Counter(one.what for one in told)


def test_what_is_committed_before_it_is_done_is_lost_in_a_storm(kafka, monkeypatch):
    """Control: commits say up to what was fetched."""
    monkeypatch.setattr(Partition, "to_commit", fetched)
    with Traffic(kafka, partitions=6, work=0.05) as traffic:
        traffic.burst(150, KEYS)
        storm(traffic, 6.0)
        verdict = traffic.finish(within=3.0)

        assert "lost" in promises([verdict]), str(verdict)


def test_without_an_order_by_key_the_checker_sees_inversions(kafka):
    """Control: what runs is not kept apart by key."""
    with Traffic(kafka, partitions=6, work=0.005, order_by="none") as traffic:
        storm(traffic, 6.0)
        verdict = traffic.finish()

        assert "inversion" in promises([verdict]), str(verdict)


# -- F17: a member that does not poll ----------------------------------------------------------

#: A member that is stuck is noticed after so many seconds, half of one less.
STUCK = "session_timeout=2&lease_timeout=4"


def stuck(kafka, options, told, *, taken_over=True):
    """One of two members does not poll, with messages in hand, and comes back when it is late."""
    with Traffic(kafka, options=f"{STUCK}&{options}", partitions=4, work=0.02) as traffic:
        member = traffic.join()
        traffic.stored(2, KEYS)
        traffic.comes_to(16, "effect")
        traffic.join()
        until(lambda: both_have_some(told), "both have some")
        has_begun = threading.Event()
        traffic.handling = lambda *_: has_begun.wait(60.0)
        traffic.burst(15, KEYS)
        until(lambda: member.health().consumers[0].in_hand, "it has some in hand")
        go_on = traffic.block(member)
        has_begun.set()
        traffic.stored(5, KEYS)
        if taken_over:
            everything = traffic.notes.ids("ok")
            until(lambda: everything <= traffic.ids("effect"), "the other one does all", 15.0)
        else:
            threading.Event().wait(5.0)  # longer than it may be silent

        go_on.set()

        until(lambda: [one for one in told if one.what == "on_lost"], "it is told of the loss")
        traffic.burst(5, KEYS)
        return traffic, traffic.finish()


def assigned(told):
    """What each client has, in the order in which they were first told of something."""
    mine = {}
    for one in tuple(told):
        own = mine.setdefault(one.client, set())
        if one.what == "on_assign":
            own |= set(one.partitions)
        elif one.what in ("on_revoke", "on_lost"):
            own -= set(one.partitions)
    return mine


def both_have_some(told):
    """Whether each of two clients has partitions."""
    return len([own for own in assigned(told).values() if own]) == 2


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_member_that_does_not_poll_is_told_of_the_loss(kafka, told, protocol):
    """It commits nothing of what it had afterwards; the others go on, in order."""
    taken_over = protocol != "consumer"
    traffic, verdict = stuck(kafka, PROTOCOLS[protocol], told, taken_over=taken_over)

    assert verdict.broken == (), str(verdict)
    assert verdict.effects == verdict.invoked
    assert traffic.happened(LeasesLost)
    assert not_its_own(told) == []
    assert sum(verdict.duplicate_effects.values()) <= 2 * CREDIT


@pytest.mark.xfail(reason="librdkafka 2.16 leaves a KIP-848 group only when it is polled again")
def test_others_take_over_in_the_new_protocol(kafka, told):
    """What a member has in hand that does not poll for its lease goes to others."""
    stuck(kafka, PROTOCOLS["consumer"], told)


@pytest.mark.parametrize("protocol", ["range", "cooperative-sticky"])
def test_a_drain_that_lasts_longer_than_the_lease(kafka, told, protocol):
    """Handlers are stuck while their partitions are taken away: others do what they have."""
    options = f"{STUCK}&drain_timeout=8&{PROTOCOLS[protocol]}"
    with Traffic(kafka, options=options, partitions=4) as traffic:
        go_on, stuck_with = threading.Event(), set()

        def handling(one, _):
            """The first run of each of the first messages is stuck."""
            if one.seq == 0 and one.id not in stuck_with:
                stuck_with.add(one.id)
                go_on.wait(60.0)

        traffic.handling = handling
        traffic.join()
        traffic.stored(1, KEYS[:4])
        until(lambda: len(stuck_with) == 4, "all of its threads are stuck")

        traffic.join()
        traffic.stored(5, KEYS)

        def others_do_theirs():
            """All of it would be too much: who was late for the drain joins again, as it is."""
            theirs = traffic.stored_in(set().union(*list(assigned(told).values())[1:]))
            return stuck_with & theirs and theirs <= traffic.ids("effect")

        until(others_do_theirs, "others do it", 40.0)
        go_on.set()
        verdict = traffic.finish()
        assert verdict.broken == (), str(verdict)
        assert not_its_own(told) == []


class Unfenced(Around):
    """A transport whose member commits what it is told of a lost lease, in its next name."""

    def subscribe(self, *arguments):
        """See Transport."""
        return _Unfenced(self.inner.subscribe(*arguments))


class _Unfenced(Around):
    late = ()

    def ack(self, deliveries):
        self.inner.ack(deliveries)
        lost = [one for one in deliveries if one.lease.lost]
        places = [
            TopicPartition(one.message.topic, one.partition, one.position + 1) for one in lost
        ]
        self.late = [*self.late, *places]

    def poll(self, limit, timeout):
        polled = self.inner.poll(limit, timeout)
        if self.late:
            with suppress(KafkaException):  # it has not joined again yet
                self.inner._consumer.commit(offsets=self.late, asynchronous=False)
                self.late = ()
        return polled


def late_ack(kafka, tmp_path, fenced):
    """The one that was stuck acks what another one has in hand, and has not done when it dies."""
    with Traffic(kafka, options=STUCK, partitions=1) as traffic:
        traffic.handling = lambda _one, ctx: until(ctx.lost, "the loss", 60.0) and SKIP
        kind = KafkaTransport if fenced else lambda url: Unfenced(KafkaTransport(url))
        member = traffic.join(to_consume=kind)
        traffic.burst(2, ["a"])
        traffic.comes_to(1, "deliver")
        go_on = traffic.block(member)
        child = traffic.spawn(tmp_path, hold=["a/0"])
        child.comes_to(1, "deliver", seconds=40.0)

        go_on.set()

        until(lambda: traffic.happened(LeasesLost), "it is told of the loss")
        until(lambda: traffic.state() == "standby", "it has joined again")
        if not fenced:
            until(lambda: traffic.committed()[0][0] > 0, "a commit")
        traffic.leave(member)  # with its acks flushed
        committed = traffic.committed()[0]
        child.kill()
        traffic.handling = lambda *_: None
        traffic.join()
        return committed, traffic.finish(within=40.0 if fenced else 10.0)


def test_the_ack_of_a_lost_lease_is_not_committed(kafka, tmp_path):
    """Neither as an offset nor in the metadata: it comes again after all."""
    (offset, metadata), verdict = late_ack(kafka, tmp_path, fenced=True)

    assert max(0, offset) == 0
    assert not decode(0, metadata).done
    assert verdict.broken == (), str(verdict)
    assert verdict.effects == 2


def test_an_ack_that_is_not_fenced_loses_the_message(kafka, tmp_path):
    """Control: the broker asks who commits, and not whose it is."""
    _, verdict = late_ack(kafka, tmp_path, fenced=False)

    assert "lost" in promises([verdict]), str(verdict)


# -- what is done above a gap ------------------------------------------------------------------


def test_what_is_done_above_a_gap_moves_along_in_a_rebalance(kafka, told):
    """The same where both live: another one joins and gets the partition, or does not."""
    with Traffic(kafka, options="assignment=range&drain_timeout=0.5", partitions=2) as traffic:
        go_on = threading.Event()
        traffic.handling = lambda one, _: one.key == "stuck" and go_on.wait(60.0)
        traffic.credit = 400
        traffic.join()
        traffic.burst(1, ["stuck"])
        traffic.comes_to(1, "deliver")
        others = traffic.burst(30, KEYS)
        traffic.comes_to(len(others), "effect")

        traffic.join()

        until(lambda: both_have_some(told), "both have some")
        go_on.set()
        verdict = traffic.finish()
        assert verdict.broken == (), str(verdict)
        assert sum(verdict.duplicate_effects.values()) <= 1
