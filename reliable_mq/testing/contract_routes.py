"""The contract of destinations and topology: who is reached, from when on, and what must exist."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from reliable_mq.adapters.base import DeadLetterStore, GroupSpec, Lag, Start, TopicSpec, Topology
from reliable_mq.errors import ConfigurationError
from reliable_mq.message import DeadLetter, RetryCopy, Topic
from reliable_mq.testing.rig import Deadline, ids

if TYPE_CHECKING:
    from reliable_mq.testing.harness import Harness
    from reliable_mq.testing.rig import Rig

__all__ = ["RoutesContract"]

#: What the headers of a dead letter may need beside its body.
DEAD_LETTER_HEADERS = 8 * 1024


class RoutesContract:
    """One group or all, now or later, from the beginning or from here."""

    # -- one group -----------------------------------------------------------------------------

    def test_a_retry_copy_reaches_its_group_only(self, rig: Rig, harness: Harness) -> None:
        """A retry copy comes to its group, never early, as a message of the original topic."""
        topic, mine, other = rig.declare(groups=2)
        sent = rig.message(topic)
        began = harness.now()
        rig.send(rig.for_group(sent, mine), to=RetryCopy(topic, mine, harness.delay))

        (copy,) = rig.join(topic, mine).take(1)

        assert harness.now() - began >= harness.delay
        assert (copy.message.id, copy.message.topic) == (sent.id, topic)
        last = rig.message(topic)
        rig.send(last)
        bystander = rig.join(topic, other)
        assert ids(bystander.take_up_to(last)) == [last.id]
        bystander.nothing_comes()

    def test_a_retry_copy_without_delay(self, rig: Rig) -> None:
        """A retry copy with no delay comes at once, and is settled by its ack."""
        topic, group = rig.declare()
        sent = rig.message(topic)
        rig.send(rig.for_group(sent, group), to=RetryCopy(topic, group))
        member = rig.join(topic, group)

        taken = member.take(1)
        member.ack(*taken)

        assert ids(taken) == [sent.id]
        member.nothing_comes()

    def test_a_dead_letter_reaches_no_consumer(self, rig: Rig) -> None:
        """A dead letter comes to no group of the topic."""
        topic, *groups = rig.declare(groups=2)
        dead = rig.message(topic, key=b"k")
        rig.send(rig.for_group(dead, groups[0]), to=DeadLetter(topic, groups[0]))
        last = rig.message(topic, key=b"k")
        rig.send(last)

        for group in groups:
            member = rig.join(topic, group)
            assert ids(member.take_up_to(last)) == [last.id]
            member.nothing_comes()

    def test_dead_letters_can_be_read_and_discarded(self, rig: Rig) -> None:
        """`browse` shows a group its own dead letters, oldest first; `discard` removes some."""
        store = rig.transport
        if not isinstance(store, DeadLetterStore):
            pytest.skip(f"{rig.capabilities.name} has no DeadLetterStore")
        topic, mine, other = rig.declare(groups=2)
        dead = [rig.message(topic, b"%d" % at, key=b"k") for at in range(3)]
        rig.send(*(rig.for_group(one, mine) for one in dead), to=DeadLetter(topic, mine))

        seen = list(store.browse(topic, mine, 2))
        again = list(store.browse(topic, mine, 10))

        assert [one.id for one in dead] == [one.message.id for one in again]
        assert again[:2] == seen
        assert {topic} == {one.message.topic for one in again}
        assert list(store.browse(topic, other, 10)) == []
        positions = [again[0].position, again[2].position]
        assert [store.discard(topic, mine, positions) for _ in range(2)] == [2, 0]
        assert [dead[1].id] == [one.message.id for one in store.browse(topic, mine, 10)]

    def test_a_dead_letter_may_be_larger(self, rig: Rig) -> None:
        """A message of `max_body` still fits as a dead letter, with all its headers."""
        topic, group = rig.declare()
        dead = rig.message(
            topic,
            bytes(rig.capabilities.max_body),
            headers=(("rmq-history", "x" * DEAD_LETTER_HEADERS),),
        )

        (receipt,) = rig.send(dead, to=DeadLetter(topic, group))

        assert receipt.id == dead.id

    # -- later ---------------------------------------------------------------------------------

    def test_not_before(self, rig: Rig, harness: Harness) -> None:
        """A message with `not_before` comes to every group, never early; others pass it."""
        topic, *groups = rig.declare(groups=2)
        members = [rig.join(topic, group) for group in groups]
        rig.send(rig.message(topic))
        for member in members:  # each is at its place now, which may take as long as the delay
            member.ack(*member.take(1, beside=members), beside=members)
        late, prompt = rig.messages(topic, 2)
        due = harness.epoch() + harness.delay
        rig.send(late, not_before=due)
        rig.send(prompt)

        for member in members:
            assert ids(member.take(1, beside=members)) == [prompt.id]
        for member in members:
            assert ids(member.take(1, beside=members)) == [late.id]
            assert harness.epoch() >= due

    # -- from where ----------------------------------------------------------------------------

    def test_a_new_group_gets_what_is_retained(self, rig: Rig) -> None:
        """A group that is declared after the messages gets them all."""
        rig.need(retains=True)
        topic, sent = self._older(rig)

        group = rig.harness.group()
        rig.ensure(topic, group)

        assert ids(rig.join(topic, group).take(4)) == sent

    def test_start_earliest(self, rig: Rig) -> None:
        """Start "earliest" begins with the oldest message there is."""
        self._needs_start(rig, "earliest")
        topic, sent = self._older(rig)

        assert self._from(rig, topic, "earliest", 4) == sent

    def test_start_latest(self, rig: Rig) -> None:
        """Start "latest" passes over all there is."""
        self._needs_start(rig, "latest")
        topic, older = self._older(rig)
        group = rig.harness.group()
        rig.ensure(topic, group)
        member = rig.join(topic, group, start="latest")

        taken: list[str] = []
        deadline = Deadline(rig.harness)
        while not taken and deadline.is_ahead():
            rig.send(rig.message(topic, key=b"k"))
            taken += ids(member.poll(10))

        assert set(taken) & set(older) == set()

    def test_a_declared_start(self, rig: Rig) -> None:
        """A group declared with a start has its position from then on, before anybody joins."""
        self._needs_start(rig, "latest")
        topic, _ = self._older(rig)
        group = rig.harness.group()
        spec = TopicSpec(topic, groups=(GroupSpec(group, start="latest"),))
        rig.transport.ensure(Topology((spec,)))
        newer = rig.messages(topic, 2, b"k")
        rig.send(*newer)

        assert ids(rig.join(topic, group).take(2)) == [one.id for one in newer]

    def test_start_at_a_time(self, rig: Rig, harness: Harness) -> None:
        """A time begins with the first message created at or after it."""
        self._needs_start(rig, "time")
        topic, _ = self._older(rig)
        harness.elapse(harness.delay)
        since = harness.epoch()
        newer = rig.messages(topic, 2, b"k")
        rig.send(*newer)

        assert self._from(rig, topic, since, 2) == [one.id for one in newer]

    def test_start_at_an_offset(self, rig: Rig) -> None:
        """An offset begins with the message that has it."""
        self._needs_start(rig, "offset")
        topic, older = self._older(rig)
        newer = rig.messages(topic, 2, b"k")
        position = rig.send(*newer)[0].position
        assert isinstance(position, int)

        assert self._from(rig, topic, 0, 6) == older + [one.id for one in newer]
        assert self._from(rig, topic, position, 2) == [one.id for one in newer]

    def test_a_group_keeps_its_position(self, rig: Rig) -> None:
        """`start` is for groups without a position: another member changes nothing."""
        self._needs_start(rig, "earliest")
        self._needs_start(rig, "latest")
        topic, sent = self._older(rig)
        group = rig.harness.group()
        rig.ensure(topic, group)
        first = rig.join(topic, group, start="earliest")
        first.ack(*first.take(2))
        first.subscription.close()

        taken = rig.join(topic, group, start="latest").take(2)

        assert ids(taken) == sent[2:]

    # -- what must exist -----------------------------------------------------------------------

    def test_create_is_idempotent(self, rig: Rig) -> None:
        """Declaring again what is there changes nothing: not what is acked, nor what is in hand."""
        topic, group = rig.declare()
        sent = rig.messages(topic, 2, b"k")
        rig.send(*sent)
        first = rig.join(topic, group)
        done, _ = first.take(2)
        first.ack(done)

        rig.ensure(topic, group)
        rig.ensure(topic, group)

        if rig.capabilities.members:
            assert rig.join(topic, group).take_some(5, beside=[first]) == []
        first.subscription.close()
        assert ids(rig.join(topic, group).take(1)) == [sent[1].id]

    def test_check_lists_every_difference(self, rig: Rig) -> None:
        """Mode "check" creates nothing and names all that is missing, in one error."""
        topic, group = rig.declare()
        missing = [rig.harness.topic(), rig.harness.topic()]
        wanted = [TopicSpec(name, groups=(GroupSpec("g"),)) for name in missing]
        there = TopicSpec(topic, groups=(GroupSpec(group),))
        rig.transport.ensure(Topology((there,), mode="check"))

        for _ in range(2):
            with pytest.raises(ConfigurationError) as raised:
                rig.transport.ensure(Topology((there, *wanted), mode="check"))
            assert [name in str(raised.value) for name in missing] == [True, True]
            assert topic not in str(raised.value)

    def test_subscribing_to_a_missing_topic(self, rig: Rig) -> None:
        """Nobody subscribes to what does not exist: ConfigurationError, at once or when polled."""
        topic = rig.harness.topic()
        with pytest.raises(ConfigurationError) as raised:
            rig.join(topic, rig.harness.group()).take(1)
        assert topic in str(raised.value)

    def test_lag_counts_what_is_not_finished(self, rig: Rig) -> None:
        """The lag is the number of messages without an ack, in hand or not."""
        transport = rig.transport
        if not isinstance(transport, Lag):
            pytest.skip(f"{rig.capabilities.name} has no Lag")
        topic, group = rig.declare()
        lags = [transport.lag(topic, group)]
        rig.send(*rig.messages(topic, 5, b"k"))
        member = rig.join(topic, group)
        first, *_ = member.take(3)
        lags.append(transport.lag(topic, group))
        member.ack(first)
        lags.append(transport.lag(topic, group))

        assert lags == [0, 5, 4]

    # -- helpers -------------------------------------------------------------------------------

    def _needs_start(self, rig: Rig, name: str) -> None:
        if name not in rig.capabilities.starts:
            pytest.skip(f"{rig.capabilities.name} does not claim start {name!r}")

    def _older(self, rig: Rig) -> tuple[str, list[str]]:
        """A topic with four messages of one key and no group."""
        (topic,) = rig.declare(groups=0)
        sent = rig.messages(topic, 4, b"k")
        rig.send(*sent, to=Topic())
        return topic, [one.id for one in sent]

    def _from(self, rig: Rig, topic: str, start: Start, amount: int) -> list[str]:
        """What a new group that begins there gets."""
        group = rig.harness.group()
        rig.ensure(topic, group)
        return ids(rig.join(topic, group, start=start).take(amount))
