"""The contract of groups: who gets what, who waits for whom, and what a lease is worth."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

from reliable_mq.testing.rig import Deadline, by_key, ids

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from reliable_mq.message import Delivery, Lease
    from reliable_mq.testing.harness import Harness
    from reliable_mq.testing.rig import Member, Rig

__all__ = ["MembersContract"]

ORDERED = ("key", "partition")


class MembersContract:
    """Several members and groups, and leases that end."""

    # -- who gets what -------------------------------------------------------------------------

    def test_two_groups_each_get_all(self, rig: Rig) -> None:
        """Every group gets every message; what one acks is not gone for the other."""
        topic, *groups = rig.declare(groups=2)
        sent = rig.messages(topic, 5, b"k")
        rig.send(*sent)

        for group in groups:
            member = rig.join(topic, group)
            taken = member.take(5)
            member.ack(*taken)
            assert sorted(one.id for one in sent) == sorted(ids(taken))

    def test_two_members_share(self, rig: Rig) -> None:
        """Members of one group get every message between them, each settled once."""
        rig.need(members=True)
        topic, group = rig.declare()
        members = [rig.join(topic, group), rig.join(topic, group)]
        sent = rig.messages(topic, 40, *(b"%d" % key for key in range(20)))
        rig.send(*sent)

        settled: list[str] = []
        deadline = Deadline(rig.harness)
        while len(settled) < 40 and deadline.is_ahead():
            for member in members:
                taken = member.take_some(1, beside=members)
                member.ack(*taken, beside=members)
                settled += ids(taken)

        assert sorted(one.id for one in sent) == sorted(settled)

    def test_a_busy_member_holds_only_its_own(self, rig: Rig) -> None:
        """While one member keeps a message, another one gets the other keys."""
        rig.need(members=True, key_order=("key", "none"))
        topic, group = rig.declare()
        busy, other = rig.join(topic, group), rig.join(topic, group)
        sent = rig.messages(topic, 6, b"a", b"b", b"c")
        rig.send(*sent)

        (kept,) = busy.take(1)
        taken = other.take(4, beside=[busy])

        assert kept.message.key not in {one.message.key for one in taken}

    def test_a_key_is_never_at_two_members(self, rig: Rig) -> None:
        """While a lease of a key is live at one member, no other gets a message of that key."""
        rig.need(members=True, key_order=ORDERED)
        topic, group = rig.declare()
        members = [rig.join(topic, group) for _ in range(3)]
        sent = rig.messages(topic, 90, *(b"%d" % key for key in range(6)))
        rig.send(*sent)
        draw = random.Random(7)

        first_runs: list[Delivery] = []
        in_hand: dict[int, list[Delivery]] = {at: [] for at in range(3)}
        settled: set[str] = set()
        deadline = Deadline(rig.harness)
        while len(settled) < 90 and deadline.is_ahead():
            at = draw.randrange(3)
            arrived = members[at].take_some(draw.randint(1, 4), beside=members)
            first_runs += arrived
            in_hand[at] += arrived
            _one_holder_per_key(in_hand)
            if in_hand[at] and draw.random() < 0.7:
                done = in_hand[at].pop(draw.randrange(len(in_hand[at])))
                members[at].subscription.ack([done])
                settled.add(done.message.id)

        assert by_key(sent) == by_key(one.message for one in first_runs)

    def test_what_comes_back_goes_before_what_waits(self, rig: Rig) -> None:
        """Of a key that a member gives back, others get it before what they had to wait for."""
        rig.need(members=True, key_order=ORDERED)
        topic, group = rig.declare()
        members = [rig.join(topic, group) for _ in range(2)]
        sent = rig.messages(topic, 6, b"k")
        rig.send(*sent)
        held: list[list[Delivery]] = [[], []]
        deadline = Deadline(rig.harness)
        while len(held[0] + held[1]) < 2 and deadline.is_ahead():
            for at in (0, 1):
                held[at] += members[at].take_some(2 - len(held[at]), beside=members)
        holder = 0 if held[0] else 1
        assert members[1 - holder].take_some(5, beside=members) == []

        members[holder].subscription.close()

        assert ids(members[1 - holder].take(6)) == [one.id for one in sent]

    def test_first_runs_keep_order_when_a_member_is_killed(
        self, rig: Rig, harness: Harness
    ) -> None:
        """Over the death of a member, the first runs of each key follow its order."""
        rig.need(fault="kill", members=True, key_order=ORDERED)
        topic, group = rig.declare()
        sent = rig.messages(topic, 60, *(b"%d" % key for key in range(5)))
        rig.send(*sent)
        runs: list[str] = []
        survivor = None
        if rig.capabilities.key_order == "key":  # else whoever is there first has it all
            survivor = rig.join(topic, group)
            runs += ids(survivor.take(3))

        asks = rig.asks(topic, group)
        alive = [survivor] if survivor else []
        runs += _beside(alive, lambda: harness.kill_after(asks, 10, ack=(0, 1, 4)))
        survivor = survivor or rig.join(topic, group)
        runs += ids(survivor.take_up_to(sent[-1]))
        deadline = Deadline(harness)
        while len(set(runs)) < 60 and deadline.is_ahead():
            runs += ids(survivor.take(1))

        by_id = {one.id: one for one in sent}
        assert by_key(sent) == by_key(by_id[run] for run in runs)

    def test_partition_order_has_one_active_member(self, rig: Rig) -> None:
        """Under order "partition" one member has all of a partition, and the next takes over."""
        rig.need(members=True, key_order=ORDERED)
        topic, group = rig.declare()
        members = [rig.join(topic, group, order="partition") for _ in range(2)]
        sent = rig.messages(topic, 12, b"a", b"b", b"c")
        rig.send(*sent)

        in_hand: dict[int, list[Delivery]] = {0: [], 1: []}
        deadline = Deadline(rig.harness)
        while len(in_hand[0] + in_hand[1]) < 12 and deadline.is_ahead():
            for at in (0, 1):
                in_hand[at] += members[at].take_some(2, beside=members)
        partitions = [{one.partition for one in held} for held in in_hand.values()]
        active = 0 if in_hand[0] else 1
        if not in_hand[1 - active]:
            while not members[1 - active].subscription.standby and deadline.is_ahead():
                members[1 - active].take_some(0, beside=members)
            assert not members[active].subscription.standby
        members[active].subscription.close()
        taken_over = members[1 - active].take(len(in_hand[active]))

        assert partitions[0] & partitions[1] == set()
        assert not members[1 - active].subscription.standby
        assert _by_partition(in_hand[active]) == _by_partition(taken_over)
        assert by_key(sent) == by_key(one.message for held in in_hand.values() for one in held)

    # -- leases --------------------------------------------------------------------------------

    def test_a_lease_lives_as_long_as_it_is_polled(self, rig: Rig, harness: Harness) -> None:
        """Polled with limit 0, a delivery stays in hand for 3 times the time others would wait."""
        topic, group = rig.declare()
        rig.send(*rig.messages(topic, 2, b"k"))
        member = rig.join(topic, group)
        (held,) = member.take(1)
        rivals = [rig.join(topic, group)] if rig.capabilities.members else []

        long = min(3 * rig.capabilities.lease_timeout, 0.8 * (rig.capabilities.max_hold or 1e9))
        end = harness.now() + long
        while harness.now() < end:
            harness.elapse(min(1.0, rig.capabilities.lease_timeout / 20))
            member.poll(0)
            for rival in rivals:
                assert held.message.id not in ids(rival.poll(5))
        member.ack(held, beside=rivals)

        assert (member.lost, held.lease.lost) == ([], False)

    def test_a_lease_is_lost_when_it_is_not_polled(self, rig: Rig, harness: Harness) -> None:
        """Who does not poll for `lease_timeout` loses its leases, and learns it from its next poll.

        The ack that comes too late changes nothing: the message stays the other member's.
        """
        rig.need(members=True)
        topic, group = rig.declare()
        sent = rig.message(topic, key=b"k")
        rig.send(sent)
        sleeper = rig.join(topic, group)
        (late,) = sleeper.take(1)
        harness.elapse(1.1 * rig.capabilities.lease_timeout)
        other = rig.join(topic, group)
        (again,) = other.take(1)

        sleeper.subscription.ack([late])
        deadline = Deadline(harness)
        while late.lease not in sleeper.lost and deadline.is_ahead():
            sleeper.take_some(0, beside=[other])
        other.subscription.close()
        sleeper.subscription.close()
        (third,) = rig.join(topic, group).take(1)

        assert late.lease.lost
        assert sleeper.settled == []
        assert ids([again, third]) == [sent.id, sent.id]

    def test_a_lease_is_lost_without_rivals_too(self, rig: Rig, harness: Harness) -> None:
        """Who is alone in the group and does not poll for `lease_timeout` is told the same."""
        topic, group = rig.declare()
        sent = rig.messages(topic, 2, b"k")
        rig.send(*sent)
        sleeper = rig.join(topic, group)
        late = sleeper.take(2)

        harness.elapse(1.1 * rig.capabilities.lease_timeout)
        again = sleeper.take(2)

        assert {one.lease for one in late} == set(sleeper.lost)
        assert [one.lease.lost for one in (*late, *again)] == [True, True, False, False]
        assert sorted(one.id for one in sent) == sorted(ids(again))

    def test_a_lease_ends_at_max_hold(self, rig: Rig, harness: Harness) -> None:
        """Where the broker ends leases that are polled, their messages come again, in order.

        The later ones of the key that are in hand end with the first.
        """
        max_hold = rig.capabilities.max_hold or 0.0
        if not max_hold:
            rig.need(max_hold="a number of seconds")
        rig.need(fault="max-hold")
        topic, group = rig.declare()
        sent = rig.messages(topic, 3, b"k")
        rig.send(*sent)
        member = rig.join(topic, group)
        held = member.take(1)

        end = harness.now() + 0.9 * max_hold
        while harness.now() < end:
            assert (member.poll(0), member.lost) == ([], [])
            harness.elapse(min(1.0, rig.capabilities.lease_timeout / 20))
        held += member.take(2)
        again = member.take(3)

        assert {one.lease for one in held} == set(member.lost)
        assert ids(held) == ids(again)

    def test_revocation(self, rig: Rig, harness: Harness) -> None:
        """A revocation calls `on_revoke` on the polling thread.

        What is acked in there is settled, all else is lost and comes again.
        """
        rig.need(fault="revoke", revokes=True)
        topic, group = rig.declare()
        rig.send(*rig.messages(topic, 3, b"k"))
        calls: list[tuple[Sequence[Lease], float, int]] = []

        def on_revoke(leases: Sequence[Lease], deadline: float) -> None:
            calls.append((leases, deadline - harness.now(), threading.get_ident()))
            member.subscription.ack(held[:1])

        member = rig.join(topic, group, on_revoke=on_revoke)
        held = member.take(3)
        other = rig.join(topic, group)
        harness.revoke(member.subscription)
        again: list[Delivery] = []
        deadline = Deadline(harness)
        while not calls and deadline.is_ahead():
            member.take_some(0, beside=[other])
        while len(again) < 2 and deadline.is_ahead():
            again += member.take_some(2, beside=[other]) + other.take_some(2, beside=[member])

        ((leases, left, thread),) = calls
        assert set(leases) == {one.lease for one in held}
        assert left > 0
        assert thread == threading.get_ident()
        assert held[0].lease in member.settled
        assert set(member.lost) == {one.lease for one in held[1:]}
        assert sorted(ids(held[1:])) == sorted(ids(again))


def _by_partition(deliveries: Sequence[Delivery]) -> dict[int, list[str]]:
    partitions: dict[int, list[str]] = {}
    for one in deliveries:
        partitions.setdefault(one.partition, []).append(one.message.id)
    return partitions


def _one_holder_per_key(in_hand: dict[int, list[Delivery]]) -> None:
    holders: dict[bytes | None, set[int]] = {}
    for at, held in in_hand.items():
        for one in held:
            if not one.lease.lost:
                holders.setdefault(one.message.key, set()).add(at)
    shared = {key: members for key, members in holders.items() if len(members) > 1}
    assert shared == {}


def _beside(members: Sequence[Member], work: Callable[[], list[str]]) -> list[str]:
    """Run `work` on a thread of its own while these members are kept alive."""
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(work)
        while wait([result], timeout=0.01).not_done:
            for member in members:
                member.beat()
    return result.result()
