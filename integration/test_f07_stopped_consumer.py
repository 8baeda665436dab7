"""F07: a consumer stands still beyond its lease; another one takes over; the first comes back."""

import pytest

from integration.faults import LONG, brokers, promises

LEASE = 1.5
KEYS = ["a", "b", "c"]


def zombie(run, count=3, **plan):
    """A consumer that is stopped in the middle of its first handlers."""
    plan = {"until": "signal", "lease_timeout": LEASE, "work": 0.5, **plan}
    stopped = run.spawn("consumer", **plan)
    stopped.comes_to(count, "deliver")
    stopped.stop()
    return stopped


@brokers()
@pytest.mark.parametrize("handler", ["def", "async def"])
def test_who_comes_back_late_breaks_no_order(run, handler):
    """Both run for a while; what the late one still acks is not its own any more."""
    for _ in range(4 if LONG else 1):
        run.forget()
        run.publish(keys=KEYS, count=12)
        stopped = zombie(run, handler=handler)
        other = run.spawn("consumer", until="signal", lease_timeout=LEASE, work=0.02)
        other.comes_to(10, "effect")

        stopped.go_on()

        stopped.comes_to(3, "effect")
        stopped.comes_to_say("lost")
        run.end()
        drained = run.drain(lease_timeout=LEASE)
        verdict = run.verdict(drained=drained)
        assert verdict.broken == ()
        assert verdict.effects == 36
        assert len(verdict.duplicate_effects) <= 36


def taken_over(run, **plan):
    """The late one acks what the other has in hand and has not done, and then the other dies."""
    # One partition, where there are any: it stays with the other when the late one is there again.
    run.publish(keys=["a"], count=3, partitions=1)
    stopped = run.spawn(
        "consumer", until="signal", lease_timeout=LEASE, heed_loss=True, work=0.5, **plan
    )
    stopped.comes_to(1, "deliver")
    stopped.stop()
    other = run.spawn("consumer", until="signal", lease_timeout=LEASE, work=60.0)
    other.comes_to(1, "deliver")

    stopped.go_on()

    [entry] = stopped.comes_to(1, "retry")
    assert entry.why == "lost"
    assert stopped.ends_well() == 0  # with its acks flushed
    assert other.entries("effect") == []
    other.kill()
    return run.verdict(drained=run.drain(lease_timeout=LEASE))


@brokers("sqlite", "kafka")
def test_the_ack_of_a_lost_lease_changes_nothing(run):
    """Its context says lost(), it does nothing, and the message comes again after all."""
    verdict = taken_over(run)

    assert verdict.broken == ()
    assert verdict.effects == 3


@brokers("sqlite", "kafka")
def test_an_ack_that_is_not_fenced_loses_the_message(run):
    """Control: an ack counts whoever sends it."""
    assert "lost" in promises([taken_over(run, remove="fence")])


@pytest.mark.parametrize(
    ("run", "plan", "broken"),
    [
        ("sqlite", {}, set()),
        ("rabbitmq", {}, set()),
        ("kafka", {}, set()),
        ("sqlite", {"order_by": "none", "ordered": False}, {"inversion"}),
        ("rabbitmq", {"order_by": "none", "ordered": False}, {"inversion"}),
        # On Kafka a partition is one member's, whoever asks for what order.
    ],
    indirect=["run"],
)
def test_while_one_has_the_first_of_a_key_nobody_gets_the_second(run, plan, broken):
    """And the control: members that do not ask for the order of keys."""
    run.publish(keys=["a"], count=6, ordered=plan.get("ordered", True))
    stopped = zombie(run, count=1, concurrency=1, credit=1, **plan)
    other = run.spawn("consumer", until="signal", lease_timeout=LEASE, **plan)
    other.comes_to(5, "effect")
    stopped.go_on()
    stopped.comes_to(1, "effect")
    run.end()

    drained = run.drain(lease_timeout=LEASE, **plan)

    assert promises([run.verdict(drained=drained)]) == broken


@brokers()
def test_without_the_end_of_its_lease_nobody_takes_over(run):
    """Control: a lease of ten minutes."""
    run.publish(keys=KEYS, count=2)
    zombie(run, lease_timeout=600.0)

    assert "liveness" in promises([run.verdict(drained=run.drain(within=LEASE + 2.0))])
