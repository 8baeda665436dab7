"""F03: SIGTERM under load. What runs ends, what waits stays, and the exit code tells the truth."""

import signal
import time

import pytest

from integration.faults import LONG, brokers, promises, until
from reliable_mq.testing.history import Numbered

pytestmark = brokers()


def id_of(key, seq):
    """The id of a message of the workload."""
    return Numbered("run", "p", key, seq).id


def terminated(run, drain, *, in_hand="", **plan):
    """SIGTERM a consumer that has begun, and has this; its exit code, and how long it took."""
    consumer = run.spawn("consumer", until="signal", drain=drain, **plan)
    consumer.comes_to(8, "deliver")
    until(
        lambda: not in_hand or in_hand in [one.id for one in consumer.entries("deliver")],
        f"{in_hand} is in hand",
    )
    began = time.monotonic()
    consumer.signal(signal.SIGTERM)
    code = consumer.ends(drain + 20.0)
    return consumer, code, time.monotonic() - began


@pytest.mark.parametrize("handler", ["def", "async def"])
def test_what_runs_ends_and_what_waits_stays(run, handler):
    """No handler is cut, nothing comes twice, exit code 0, long before the budget is over."""
    run.publish(keys=[f"k{number}" for number in range(20)], count=15, how="submit")
    for _ in range(5 if LONG else 1):
        consumer, code, took = terminated(run, 5.0, handler=handler, work=0.05)
        assert code == 0, consumer.said()
        assert took < 5.0
        delivered = {entry.id for entry in consumer.entries("deliver")}
        assert delivered == {entry.id for entry in consumer.entries("effect")}
        assert len(delivered) < 300

    verdict = run.verdict(drained=run.drain(), duplicates=0)
    assert verdict.broken == ()
    assert verdict.duplicate_deliveries == {}


@pytest.mark.parametrize("handler", ["def", "async def"])
def test_a_handler_that_never_ends_is_abandoned_and_told(run, handler):
    """Exit code 1 when the budget is over, the message by its id, and it comes again."""
    run.publish(keys=["a", "b", "c"], count=10, orders={"b/2": "hang"})

    consumer, code, took = terminated(run, 1.0, in_hand=id_of("b", 2), handler=handler)

    hung = id_of("b", 2)
    assert code == 1
    assert 1.0 <= took < 1.0 + 3.0
    assert f"1 handlers abandoned ['{hung}']" in consumer.said()
    verdict = run.verdict(drained=run.drain(cured=True))
    assert verdict.broken == ()
    # What a thread did of the same key just before is acked when it hands the key back: never.
    assert {hung} <= set(verdict.duplicate_deliveries) <= {id_of("b", seq) for seq in range(3)}
    assert hung not in verdict.duplicate_effects


def test_a_second_signal_ends_the_wait(run):
    """Whoever presses Ctrl-C twice means it; the leases run out by themselves."""
    run.publish(keys=["a"], count=3, orders={"a/1": "hang"})
    consumer = run.spawn("consumer", until="signal", drain=60.0, lease_timeout=1.0)
    consumer.comes_to(2, "deliver")
    consumer.signal(signal.SIGINT)
    # It says so before it drains: a signal before that would be the first.
    consumer.comes_to_say("draining")

    consumer.signal(signal.SIGINT)

    assert consumer.ends(20.0) != 0
    assert run.verdict(drained=run.drain(cured=True, lease_timeout=1.0)).broken == ()


def test_what_was_acked_before_its_handler_ended_is_lost_with_it(run):
    """Control: acks before the handler."""
    run.publish(keys=["a", "b", "c"], count=10, orders={"b/2": "hang"})

    _, code, _ = terminated(run, 0.5, in_hand=id_of("b", 2), remove="ack-first")

    assert code == 1
    assert promises([run.verdict(drained=run.drain(cured=True))]) == {"lost"}
