"""The contract of Publisher: three endings, each of them true, and the order of a key in all."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from reliable_mq.errors import (
    Backpressure,
    PublishRejected,
    PublishUnknown,
    TooLarge,
    Unroutable,
)
from reliable_mq.message import DeadLetter, Receipt, RetryCopy, Topic
from reliable_mq.testing.rig import Deadline, by_key, ids

if TYPE_CHECKING:
    from reliable_mq.confirmation import Confirmation
    from reliable_mq.testing.harness import Harness
    from reliable_mq.testing.rig import Rig

__all__ = ["PublishContract"]

ORDERED = ("key", "partition")


class PublishContract:
    """Stored, refused for good, or unknown; and what a broker in trouble makes of it."""

    # -- stored --------------------------------------------------------------------------------

    def test_a_receipt_names_what_was_stored(self, rig: Rig) -> None:
        """Each Receipt has the id, the topic and a position of its own."""
        topic, _ = rig.declare()
        sent = rig.messages(topic, 5, b"k")

        receipts = rig.send(*sent)

        assert [one.id for one in sent] == [one.id for one in receipts]
        assert {(topic, "broker")} == {(one.topic, one.stored) for one in receipts}
        assert len({(one.partition, one.position) for one in receipts}) == 5

    def test_what_is_confirmed_is_delivered(self, rig: Rig) -> None:
        """Each message with a Receipt can be polled, by a member that comes later, too."""
        topic, group = rig.declare()
        sent = rig.messages(topic, 200, None, b"a", b"b")
        rig.send(*sent)

        taken = rig.join(topic, group).take(200)

        assert sorted(one.id for one in sent) == sorted(ids(taken))

    def test_confirmed_only_after_it_is_stored(self, rig: Rig, harness: Harness) -> None:
        """While the broker takes nothing there is no Receipt; afterwards the message arrives."""
        rig.need(fault="block")
        topic, group = rig.declare()
        member = rig.join(topic, group)
        rig.send(rig.message(topic))
        member.ack(*member.take(1))  # it is at its place now
        sent = rig.message(topic)
        with harness.blocked():
            confirmation = rig.submit(sent)
            member.nothing_comes()
            assert not confirmation.done()

        rig.receipt(confirmation)

        assert sent.id in ids(member.take(1))

    def test_a_confirmation_waits_for_the_answer(self, rig: Rig, harness: Harness) -> None:
        """A message that is stored but not confirmed has no ending until the answer comes."""
        rig.need(fault="hold-answers")
        topic, group = rig.declare()
        member = rig.join(topic, group)
        sent = rig.message(topic)
        with harness.answers_held():
            confirmation = rig.submit(sent)
            taken = member.take(1)
            assert not confirmation.done()

        assert rig.receipt(confirmation).id == sent.id
        assert ids(taken) == [sent.id]

    def test_sixteen_threads_lose_nothing(self, rig: Rig) -> None:
        """Sixteen threads submit at once: every message is stored once, each thread's in order."""
        topic, group = rig.declare()
        batches = [rig.messages(topic, 40, b"thread-%d" % at) for at in range(16)]
        publisher, start = rig.publisher, threading.Barrier(16)
        confirmations: list[list[Confirmation]] = [[] for _ in range(16)]

        def submit(at: int) -> None:
            start.wait()
            confirmations[at] = [publisher.submit(one, Topic()) for one in batches[at]]

        threads = [threading.Thread(target=submit, args=(at,)) for at in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for batch in confirmations:
            for confirmation in batch:
                rig.receipt(confirmation)
        taken = rig.join(topic, group).take(640)

        sent = [one for batch in batches for one in batch]
        assert sorted(one.id for one in sent) == sorted(ids(taken))
        if rig.capabilities.key_order in ORDERED:
            assert by_key(sent) == by_key(one.message for one in taken)

    def test_a_broker_that_restarts_keeps_what_it_confirmed(
        self, rig: Rig, harness: Harness
    ) -> None:
        """What has a Receipt is there after the broker came back."""
        rig.need(durable=True, fault="restart")
        topic, group = rig.declare()
        sent = rig.messages(topic, 50, b"a", b"b")
        rig.send(*sent)

        harness.restart()

        taken = rig.join(topic, group).take(50)
        assert sorted(one.id for one in sent) == sorted(ids(taken))

    # -- refused for good ----------------------------------------------------------------------

    def test_a_missing_topic_is_a_rejection(self, rig: Rig) -> None:
        """A topic that does not exist is Unroutable, definite, and does not come into being."""
        sent = rig.message(rig.harness.topic())

        for _ in range(2):
            outcome = rig.ending(rig.submit(sent))
            assert isinstance(outcome, Unroutable)
            assert outcome.message is sent

    @pytest.mark.parametrize("kind", [RetryCopy, DeadLetter])
    def test_a_missing_group_is_a_rejection(
        self, rig: Rig, kind: type[RetryCopy | DeadLetter]
    ) -> None:
        """What is meant for a group that nobody declared is a definite rejection."""
        topic, _ = rig.declare()
        to = kind(topic, rig.harness.group())

        outcome = rig.ending(rig.publisher.submit(rig.message(topic), to))

        assert isinstance(outcome, PublishRejected)

    def test_too_large_is_a_rejection(self, rig: Rig) -> None:
        """A body over `max_body` is TooLarge; what follows it goes its way."""
        topic, group = rig.declare()
        large = rig.message(topic, bytes(rig.capabilities.max_body + 1), key=b"k")
        small = rig.message(topic, key=b"k")

        refused, stored = rig.submit(large), rig.submit(small)

        assert isinstance(rig.ending(refused), TooLarge)
        assert rig.receipt(stored).id == small.id
        assert ids(rig.join(topic, group).take(1)) == [small.id]

    def test_a_rejection_does_not_hold_the_key(self, rig: Rig, harness: Harness) -> None:
        """One message refused for good: those behind it go on, in order."""
        rig.need(fault="reject")
        topic, group = rig.declare()
        before, refused, *behind = rig.messages(topic, 5, b"k")
        rig.send(before)
        harness.reject_publishes(1)
        confirmations = [rig.submit(one) for one in (refused, *behind)]

        outcomes = [rig.ending(one) for one in confirmations]

        assert isinstance(outcomes[0], PublishRejected)
        assert all(isinstance(one, Receipt) for one in outcomes[1:])
        taken = rig.join(topic, group).take(4)
        assert ids(taken) == [one.id for one in (before, *behind)]

    # -- trouble -------------------------------------------------------------------------------

    def test_a_nack_lets_nothing_of_its_key_overtake(self, rig: Rig, harness: Harness) -> None:
        """A nack in the middle of a burst: the last copies of each key are in order.

        Later messages may be stored before the one that was nacked, but then again behind it.
        """
        rig.need(fault="refuse", key_order=ORDERED)
        topic, group = rig.declare()
        sent = rig.messages(topic, 40, b"a", b"b")
        rig.send(*sent[:6])
        harness.refuse_publishes(2)

        rig.send(*sent[6:])

        last = [rig.message(topic, key=key) for key in (b"a", b"b")]
        rig.send(*last)
        member = rig.join(topic, group)
        taken = member.take_up_to(last[0])
        if last[1].id not in ids(taken):
            taken += member.take_up_to(last[1])
        copies = by_key(one.message for one in reversed(taken))
        assert by_key((*sent, *last)) == {key: of_key[::-1] for key, of_key in copies.items()}

    def test_a_lost_answer_is_unknown(self, rig: Rig, harness: Harness) -> None:
        """Without an answer by the deadline it is PublishUnknown; the same id may be sent again."""
        rig.need(fault="lose-answers")
        topic, group = rig.declare()
        sent = rig.message(topic)
        harness.lose_answers(1)

        outcome = rig.ending(rig.submit(sent, within=harness.delay))
        rig.send(sent)

        assert isinstance(outcome, PublishUnknown)
        assert outcome.message is sent
        last = rig.message(topic)
        rig.send(last)
        member = rig.join(topic, group)
        taken = {*ids(member.take_up_to(last))}
        deadline = Deadline(harness)
        while sent.id not in taken and deadline.is_ahead():  # without a key there is no order
            taken |= {*ids(member.poll(10))}
        assert taken == {sent.id, last.id}

    def test_a_blocked_broker_is_no_hang(self, rig: Rig, harness: Harness) -> None:
        """Blocked: `submit` returns, and by its deadline it is Backpressure or PublishUnknown."""
        rig.need(fault="block")
        topic, group = rig.declare()
        sent = rig.messages(topic, 3, b"k")
        rig.send(sent[0])
        with harness.blocked():
            began = harness.now()
            confirmation = rig.submit(sent[1], within=harness.delay)
            outcome = rig.ending(confirmation)
            took = harness.now() - began

        assert isinstance(outcome, (Backpressure, PublishUnknown))
        assert took < harness.patience
        rig.send(sent[2])
        taken = ids(rig.join(topic, group).take_up_to(sent[2]))
        assert taken[0] == sent[0].id
        assert isinstance(outcome, PublishUnknown) or sent[1].id not in taken

    def test_a_full_window_is_backpressure(self, rig: Rig, harness: Harness) -> None:
        """A publisher that cannot send keeps a limited number, and then says so at once."""
        rig.need(fault="block")
        topic, _ = rig.declare()
        publisher = rig.publisher
        with harness.blocked():
            outcome = None
            for number in range(1_000_000):
                message = rig.message(topic, b"x", id=f"w{number}")
                confirmation = publisher.submit(message, Topic(), deadline=harness.now() + 60)
                if confirmation.done():
                    outcome = confirmation.outcome
                    break
            rest = publisher.close(0.0)

        assert isinstance(outcome, Backpressure)
        assert len(rest) == number

    # -- the end -------------------------------------------------------------------------------

    def test_close_waits_for_confirms(self, rig: Rig) -> None:
        """`close` returns nothing when all was confirmed in time; a second call does no harm."""
        topic, _ = rig.declare()
        confirmations = [rig.submit(one) for one in rig.messages(topic, 20, b"a", b"b")]

        assert rig.publisher.close(rig.harness.patience) == []
        assert rig.publisher.close(rig.harness.patience) == []
        assert all(isinstance(one.outcome, Receipt) for one in confirmations)

    def test_close_returns_what_is_not_confirmed(self, rig: Rig, harness: Harness) -> None:
        """What has no Receipt when the time is over is returned, and has ended."""
        rig.need(fault="block")
        topic, _ = rig.declare()
        sent = rig.messages(topic, 3, b"k")
        with harness.blocked():
            confirmations = [rig.submit(one) for one in sent]
            rest = rig.publisher.close(0.1)

        assert sorted(one.id for one in sent) == sorted(one.id for one in rest)
        for confirmation in confirmations:
            assert isinstance(confirmation.outcome, (Backpressure, PublishUnknown))

    def test_a_closed_publisher_takes_nothing(self, rig: Rig, harness: Harness) -> None:
        """After `close` a submit ends without a Receipt, and nothing hangs."""
        topic, _ = rig.declare()
        rig.publisher.close(harness.patience)

        confirmation = rig.submit(rig.message(topic), within=harness.delay)

        assert isinstance(rig.ending(confirmation), Backpressure)

    def test_a_broker_that_cannot_be_reached(self, rig: Rig, harness: Harness) -> None:
        """Polls raise ConnectionFailed; afterwards both sides go on, and nothing is missing."""
        rig.need(fault="disconnect")
        topic, group = rig.declare()
        member = rig.join(topic, group)
        sent = rig.messages(topic, 2, b"k")
        rig.send(sent[0])
        with harness.disconnected():
            confirmation = rig.submit(sent[1])
            deadline = Deadline(harness)
            while not member.is_cut_off() and deadline.is_ahead():
                pass

        rig.receipt(confirmation)
        while member.is_cut_off() and deadline.is_ahead():
            pass

        assert set(ids(member.take_up_to(sent[1]))) == {one.id for one in sent}
