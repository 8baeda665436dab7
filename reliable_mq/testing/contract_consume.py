"""The contract of Subscription: what arrives, what an ack and a nack do, what comes again."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
from msgspec import structs

from reliable_mq.clock import SYSTEM_CLOCK
from reliable_mq.message import without_ours
from reliable_mq.testing.rig import by_key, ids

if TYPE_CHECKING:
    from reliable_mq.message import Delivery
    from reliable_mq.testing.harness import Harness
    from reliable_mq.testing.rig import Rig

__all__ = ["ConsumeContract"]

ORDERED = ("key", "partition")


class ConsumeContract:
    """One member of a group, alive or dying."""

    # -- what arrives --------------------------------------------------------------------------

    def test_order_within_a_key(self, rig: Rig) -> None:
        """Messages of one key arrive in the order they were published."""
        rig.need(key_order=ORDERED)
        topic, group = rig.declare()
        sent = rig.messages(topic, 60, b"a", b"b", b"c")
        rig.send(*sent)

        taken = rig.join(topic, group).take(60)

        assert by_key(sent) == by_key(one.message for one in taken)

    def test_never_more_than_the_limit(self, rig: Rig) -> None:
        """A poll brings at most `limit` deliveries, however many wait."""
        topic, group = rig.declare()
        rig.send(*rig.messages(topic, 12))
        member = rig.join(topic, group)

        taken: list[Delivery] = []
        for limit in (1, 2, 3, 1, 5):
            wanted = len(taken) + limit
            while len(taken) < wanted:
                taken += member.poll(min(limit, wanted - len(taken)))  # asserts the limit

        assert len(set(ids(taken))) == 12

    def test_a_limit_of_zero_brings_nothing(self, rig: Rig) -> None:
        """A poll with limit 0 is a heartbeat and nothing else."""
        topic, group = rig.declare()
        sent = rig.message(topic)
        rig.send(sent)
        member = rig.join(topic, group)

        assert [member.poll(0) for _ in range(5)] == [[]] * 5
        assert ids(member.take(1)) == [sent.id]

    def test_a_heartbeat_waits_its_time(self, rig: Rig) -> None:
        """A poll with limit 0 waits, too: whoever may take nothing does not run in circles."""
        topic, group = rig.declare()
        rig.send(rig.message(topic))
        member = rig.join(topic, group)
        member.poll(0)
        began = SYSTEM_CLOCK.monotonic()

        polled = member.subscription.poll(0, 0.1)

        assert polled.deliveries == ()
        assert SYSTEM_CLOCK.monotonic() - began >= 0.09

    def test_wake_ends_a_waiting_poll(self, rig: Rig, harness: Harness) -> None:
        """`wake`, from another thread, ends a poll that would wait much longer."""
        topic, group = rig.declare()
        member = rig.join(topic, group)
        member.poll()
        began = SYSTEM_CLOCK.monotonic()
        other = threading.Timer(0.05, member.subscription.wake)
        other.start()

        member.subscription.poll(1, 3 * harness.patience)

        other.join()
        assert SYSTEM_CLOCK.monotonic() - began < harness.patience

    def test_wake_before_a_poll_ends_the_next(self, rig: Rig, harness: Harness) -> None:
        """A `wake` that nobody waited for is not forgotten."""
        topic, group = rig.declare()
        member = rig.join(topic, group)
        member.poll()
        began = SYSTEM_CLOCK.monotonic()

        member.subscription.wake()
        member.subscription.poll(1, 3 * harness.patience)

        assert SYSTEM_CLOCK.monotonic() - began < harness.patience

    def test_several_topics_in_one_subscription(self, rig: Rig) -> None:
        """A member gets the messages of every topic that it subscribed to."""
        topic, group = rig.declare()
        other = rig.harness.topic()
        rig.ensure(other, group)
        sent = [rig.message(topic), rig.message(other), rig.message(topic), rig.message(other)]
        rig.send(*sent)
        asks = structs.replace(rig.asks(topic, group), topics=(topic, other))

        taken = rig.join_as(asks).take(4)

        assert sorted(one.id for one in sent) == sorted(ids(taken))

    def test_foreign_messages(self, rig: Rig, harness: Harness) -> None:
        """A message without our headers has its body, and an id that every arrival repeats.

        Two messages with equal bodies have different ids, or the ids are marked as weak.
        """
        rig.need(fault="foreign")
        topic, group = rig.declare()
        harness.publish_foreign(topic, b"\x00 theirs")
        harness.publish_foreign(topic, b"\x00 theirs")

        first = rig.join(topic, group)
        before = first.take(2)
        first.subscription.close()
        again = rig.join(topic, group).take(2)

        assert {one.message.body for one in before} == {b"\x00 theirs"}
        assert {without_ours(one.message.headers) for one in before} == {()}
        assert all(ids(before))
        assert sorted(ids(before)) == sorted(ids(again))
        assert len(set(ids(before))) == 2 or all(one.weak_id for one in before)

    # -- ack -----------------------------------------------------------------------------------

    def test_an_ack_is_reported_as_settled(self, rig: Rig) -> None:
        """A poll after `ack` reports the leases, once, and their messages do not come again."""
        topic, group = rig.declare()
        rig.send(*rig.messages(topic, 5, b"k"))
        member = rig.join(topic, group)
        taken = member.take(5)

        member.subscription.ack(taken[3:])
        member.ack(*taken[:3])
        last = rig.message(topic, key=b"k")
        rig.send(last)
        rest = member.take_up_to(last)

        assert ids(rest) == [last.id]
        assert sorted(map(id, member.settled)) == sorted(id(one.lease) for one in taken)
        assert member.lost == []
        assert not any(one.lease.lost for one in taken)

    def test_what_was_acked_stays_acked(self, rig: Rig) -> None:
        """`close` flushes the acks: the next member gets only what came later."""
        topic, group = rig.declare()
        rig.send(*rig.messages(topic, 3, b"k"))
        member = rig.join(topic, group)
        member.subscription.ack(member.take(3))
        member.subscription.close()
        member.subscription.close()

        last = rig.message(topic, key=b"k")
        rig.send(last)

        assert ids(rig.join(topic, group).take_up_to(last)) == [last.id]

    def test_redelivery_after_close(self, rig: Rig) -> None:
        """What was not acked when its member closed comes again, in order, not as redelivered."""
        topic, group = rig.declare()
        sent = rig.messages(topic, 6, b"k")
        rig.send(*sent)
        for amount in (4, 2):
            member = rig.join(topic, group)
            held = member.take(amount)
            member.subscription.close()
            assert all(one.lease.lost for one in held)

        taken = rig.join(topic, group).take(6)

        assert sorted(one.id for one in sent) == sorted(ids(taken))
        if rig.capabilities.clean_returns:
            assert {one.redelivered for one in taken} == {0}
        if rig.capabilities.key_order in ORDERED:
            assert [one.id for one in sent] == ids(taken)

    def test_redelivery_after_kill(self, rig: Rig, harness: Harness) -> None:
        """What a killed member had in hand comes to the others, counted, and nothing is missing."""
        rig.need(fault="kill")
        topic, group = rig.declare()
        sent = rig.messages(topic, 6, b"k")
        rig.send(*sent)

        held = harness.kill_after(rig.asks(topic, group), 4)
        taken = rig.join(topic, group).take(6)

        assert len(held) == 4
        assert sorted(one.id for one in sent) == sorted(ids(taken))
        counted = {one.message.id for one in taken if one.redelivered}
        if rig.capabilities.counts_redeliveries:  # of what it had fetched and not taken, too
            assert set(held) <= counted
        else:
            assert not counted

    @pytest.mark.parametrize("ending", ["close", "kill"])
    def test_acks_out_of_order(self, rig: Rig, harness: Harness, ending: str) -> None:
        """Of 0, 1, 2 with 0 and 2 acked, 1 comes again, perhaps 2, and never 0."""
        if ending == "kill":
            rig.need(fault="kill")
        topic, group = rig.declare()
        sent = rig.messages(topic, 4, b"k")
        rig.send(*sent)
        if ending == "kill":
            harness.kill_after(rig.asks(topic, group), 3, ack=(0, 2))
        else:
            member = rig.join(topic, group)
            taken = member.take(3)
            member.ack(taken[2], taken[0])
            member.subscription.close()

        again = ids(rig.join(topic, group).take_up_to(sent[3]))

        assert sent[1].id in again
        assert sent[0].id not in again

    def test_a_second_ack_changes_nothing(self, rig: Rig) -> None:
        """The same delivery acked twice is settled once, and others are not touched."""
        topic, group = rig.declare()
        sent = rig.messages(topic, 2, b"k")
        rig.send(*sent)
        member = rig.join(topic, group)
        first, _ = member.take(2)

        member.subscription.ack([first, first])
        member.ack(first)
        member.subscription.ack([first])
        member.subscription.close()

        assert ids(rig.join(topic, group).take(1)) == [sent[1].id]

    # -- nack ----------------------------------------------------------------------------------

    def test_nack_with_delay(self, rig: Rig, harness: Harness) -> None:
        """A nacked message comes again with its attempt, never early; others pass it meanwhile."""
        topic, group = rig.declare()
        first, second = rig.messages(topic, 2)
        rig.send(first)
        member = rig.join(topic, group)
        (held,) = member.take(1)
        began = harness.now()

        member.subscription.nack(structs.replace(held, attempt=2), harness.delay)
        rig.send(second)
        (passing,) = member.take(1)
        member.ack(passing)
        (again,) = member.take(1)

        assert passing.message.id == second.id
        assert harness.now() - began >= harness.delay
        assert (again.message.id, again.attempt, again.redelivered) == (first.id, 2, 0)
        assert again.lease is not held.lease

    def test_nack_without_delay(self, rig: Rig) -> None:
        """A nack with no delay brings the message again; its lease is over and acks nothing."""
        topic, group = rig.declare()
        sent = rig.message(topic)
        rig.send(sent)
        member = rig.join(topic, group)
        (held,) = member.take(1)

        member.subscription.nack(structs.replace(held, attempt=3), 0.0)
        member.subscription.ack([held])
        (again,) = member.take(1)
        member.subscription.close()
        (at_another,) = rig.join(topic, group).take(1)

        assert (again.message.id, again.attempt) == (sent.id, 3)
        assert at_another.message.id == sent.id

    def test_nack_then_crash(self, rig: Rig, harness: Harness) -> None:
        """A message nacked by a member that dies comes again, with what the broker keeps of it."""
        rig.need(fault="kill")
        topic, group = rig.declare()
        sent = rig.message(topic)
        rig.send(sent)
        began = harness.now()

        harness.kill_after(rig.asks(topic, group), 1, nack={0: harness.delay})
        (again,) = rig.join(topic, group).take(1)

        assert again.message.id == sent.id
        if rig.capabilities.durable_delay:
            assert harness.now() - began >= harness.delay
        if rig.capabilities.durable_attempts:
            assert again.attempt == 2
