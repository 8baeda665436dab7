"""Members of a group are stopped cleanly and killed while keyed work runs: one queue, in order."""

import random

import pytest

from integration.faults import LONG, brokers, promises, until

KEYS = [f"k{number}" for number in range(6)]
CHANGES = 12 if LONG else 4
#: What a member has got, at least, before it ends.
SHARE = 20


def churn(run, endings, *, seed=1, **plan):
    """Many members; again and again the one that works ends, in one of these ways."""
    rng = random.Random(seed)
    count = 4 * SHARE * (CHANGES + 2) // len(KEYS)
    plan = {"until": "signal", "lease_timeout": 2.0, "work": 0.02, **plan}
    ordered = plan.get("ordered", True)
    run.publish(keys=["z"], count=1, ordered=ordered)
    members = [run.spawn("consumer", **plan) for _ in range(CHANGES + 1)]
    for member in members:
        joined(member)
    producer = run.spawn("producer", keys=KEYS, count=count, how="submit", ordered=ordered)
    for _ in range(CHANGES):
        until(lambda: busiest(members)[1] >= SHARE, "one is at work")
        ending, _ = busiest(members)
        members.remove(ending)
        if rng.choice(endings) == "stop":
            assert ending.ends_well() == 0, ending.said()
        else:
            ending.kill()
    assert producer.ends() == 0
    for member in members:
        assert member.ends_well() == 0, member.said()
    options = {name: plan[name] for name in ("order_by", "ordered") if name in plan}
    return run.verdict(drained=run.drain(lease_timeout=2.0, **options)), 1 + count * len(KEYS)


def joined(member):
    """Wait until it is a member."""
    until(lambda: member.state().get("ready") and member.state()["consumers"], "it has joined")


def busiest(members):
    """Who has got the most, and how much that is."""
    got = {member: len(member.entries("deliver")) for member in members}
    return max(got.items(), key=lambda pair: pair[1])


@brokers()
@pytest.mark.parametrize("endings", [["stop"], ["stop", "kill"]], ids=["stopped", "and killed"])
def test_keys_stay_in_order_and_nothing_is_lost(run, endings):
    """Whoever takes over begins where the last one has ended; a clean stop makes nothing twice."""
    verdict, total = churn(run, endings)

    assert verdict.broken == ()
    assert verdict.effects == total
    if "kill" not in endings:
        assert verdict.duplicate_effects == {}


def killed_too_late(run, **plan):
    """Once the broker takes for done what is not, whoever has that is killed."""
    member = run.spawn("consumer", until="signal", lease_timeout=2.0, work=0.2, **plan)
    joined(member)
    run.publish(keys=KEYS, count=20)

    def too_much():
        behind = run.lag()  # on RabbitMQ without what it has in hand, so there it is the count
        said = behind + run.verdict().effects < 20 * len(KEYS)
        return said and len(member.entries("deliver")) >= SHARE

    until(too_much, "the broker takes something for done")
    member.kill()
    return run.verdict(drained=run.drain(lease_timeout=2.0))


@pytest.mark.parametrize(
    ("run", "removed", "broken"),
    [
        ("rabbitmq", {"remove": "cancel-first"}, "inversion"),
        ("rabbitmq", {"order_by": "none", "ordered": False}, "inversion"),
        ("rabbitmq", {"remove": "ack-first"}, "lost"),
        ("kafka", {"remove": "commits"}, "lost"),
        ("kafka", {"order_by": "none", "ordered": False}, "inversion"),
        ("kafka", {"remove": "ack-first"}, "lost"),
    ],
    indirect=["run"],
    ids=[
        "cancelled before it closes",
        "several active consumers",
        "ack first",
        "Kafka, what was fetched is committed",
        "Kafka, no order",
        "Kafka, ack first",
    ],
)
def test_without_a_safety_the_checker_sees_it(run, removed, broken):
    """Controls: what keeps the order, and what keeps the messages."""
    if broken == "lost":
        verdict = killed_too_late(run, **removed)
    else:
        verdict, _ = churn(run, ["stop"], **removed)

    assert broken in promises([verdict])
