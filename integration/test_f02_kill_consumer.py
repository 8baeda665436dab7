"""F02: a consumer dies by kill -9 at any moment; nothing is lost, and each key keeps its order."""

import time

import pytest

from integration.faults import LONG, brokers, promises, until
from reliable_mq.testing.history import Numbered

#: What some of the messages tell their handler to do.
ORDERS = {
    "a/0": "flaky",  # a retry in place, its key waits
    "a/1": "reject",  # a dead letter
    "b/1": "raise",  # retries, then a dead letter
    "None/0": "flaky",  # a retry by nack
    "None/1": "later",  # a retry copy
    "None/2": "raise",
}
POISON = {
    Numbered("run", "p", "a", 1).id: "rejected",
    Numbered("run", "p", "b", 1).id: "retries-exhausted",
    Numbered("run", "p", None, 2).id: "retries-exhausted",
}


LATER = Numbered("run", "p", None, 1).id


def swept(run, stride, **plan):
    """Twelve messages; kill the consumer at each boundary; let another one do the rest."""
    plan = {"fast_since": time.time(), **plan}
    return run.sweep(
        ("producer", {"keys": ["a", "b", None], "count": 4, "orders": ORDERS}),
        ("consumer", plan),
        ("consumer", {**plan, "remove": "", "boot": "the next"}),
        killed=1,
        stride=stride,
    )


@brokers()
@pytest.mark.parametrize(("handler", "stride"), [("def", 13), ("async def", 19)])
def test_nothing_is_lost_by_a_kill_at_each_boundary(run, handler, stride):
    """Twelve messages: all handled or, the poison, dead letters; at most one rerun of each."""
    stride = stride // 2 if run.place.sparse else stride
    results = swept(run, 1 if LONG else stride, handler=handler)

    assert len(results) > 10
    assert [0, 0, 0] in [killed.codes for killed in results]
    verdicts = [killed.verdict(poison=POISON) for killed in results]
    for killed, verdict in zip(results, verdicts, strict=True):
        assert verdict.broken == (), (killed, str(verdict))
        # Where the broker's clock cannot be turned, its copy still waits: it was seen to be there.
        assert verdict.effects == 9 - (LATER in killed.ids("kept")), killed
        again = dict(verdict.duplicate_effects)
        # Its copy, due at once by this clock, may have run before the ack of what it is a copy of.
        assert again.pop(LATER, 0) <= 2, killed
        assert set(again.values()) <= {1}, killed
        assert set(verdict.dead_letters.values()) <= {1, 2}, killed
    assert any(verdict.duplicate_effects for verdict in verdicts)


@brokers()
@pytest.mark.parametrize(
    ("removed", "broken"),
    [
        ({"remove": "ack-first"}, {"lost"}),
        ({"remove": "dead-letters"}, {"lost", "dead letters"}),
        ({"order_by": "none"}, {"inversion"}),
    ],
    ids=["ack first", "dead letters not stored", "no order by key"],
)
def test_without_a_safety_the_checker_sees_it(run, removed, broken):
    """Controls: acks before the handler, dead letters not confirmed, keys not kept apart."""
    results = swept(run, 1 if LONG else 23, **removed)

    assert broken <= promises(killed.verdict(poison=POISON) for killed in results)


def under_load(run, kills, **plan):
    """Two members of a group while messages come; one of them is killed now and then."""
    plan = {"until": "signal", "lease_timeout": 1.0, "work": 0.01, **plan}
    keys = [f"k{number}" for number in range(10)]
    producer = run.spawn(
        "producer", keys=keys, count=30 * kills, how="submit", orders={"k3/7": "reject"}
    )
    members = [run.spawn("consumer", **plan) for _ in range(2)]
    for number in range(kills):
        effects = 50 + 200 * number
        until(lambda effects=effects: run.verdict().effects >= effects, f"{effects} effects")
        busiest = max(members, key=lambda one: len(one.entries("deliver")))
        members.remove(busiest)
        busiest.kill()
        members.append(run.spawn("consumer", **plan))
    assert producer.ends() == 0
    for member in members:
        member.kill()
    return run.verdict(
        drained=run.drain(lease_timeout=1.0),
        poison={Numbered("run", "p", "k3", 7).id: "rejected"},
    )


@brokers()
def test_members_are_killed_under_load(run):
    """Whoever takes a dead member's keys over goes on in order."""
    kills = 12 if LONG else 3

    verdict = under_load(run, kills)

    assert verdict.broken == ()
    assert verdict.effects == 300 * kills - 1
    # Each of four threads may have done up to 16 of a key that were not acked yet, and acks wait
    # for the next poll; at the end both members die.
    assert sum(verdict.duplicate_effects.values()) <= (kills + 2) * 2 * 4 * 16


@brokers()
def test_members_that_ack_first_lose_messages_under_load(run):
    """Control: acks before the handler."""
    assert "lost" in promises([under_load(run, 1, remove="ack-first")])
