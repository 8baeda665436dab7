"""F06: the broker does not answer. On SQLite: SIGSTOP hits a process that holds the write lock."""

import pytest

from integration.faults import LONG, until

#: A publish may take this much longer than its timeout says, on a machine with much to do.
GRACE = 1.5
#: So many publishes of a second each go by before the process goes on.
SECONDS = 30 if LONG else 5


@pytest.fixture
def stopped(run):
    """A process that stands in the middle of a transaction; two consumers at work."""
    run.publish(keys=["a", "b"], count=10)
    run.consumers = [run.spawn("consumer", until="signal") for _ in range(2)]
    until(lambda: run.verdict().effects == 20, "the consumers are at work")
    holder = run.spawn("producer", keys=["h"], count=5, stop_at="INSERT INTO mq_message")
    holder.stands()
    return holder


def test_every_publish_ends_by_its_deadline(run, stopped):
    """As Backpressure or unknown; nothing hangs; when the process goes on, so does everything."""
    burst = run.spawn("producer", keys=["c", None], count=50, how="submit", publish_timeout=1.0)
    one_by_one = run.spawn("producer", keys=["d"], count=SECONDS, publish_timeout=1.0)
    assert one_by_one.ends(SECONDS * (1.0 + GRACE)) == 0
    assert burst.ends() == 0
    endings = {entry.kind for entry in burst.entries() + one_by_one.entries()} - {"invoke"}
    assert endings <= {"failed", "unknown"}

    stopped.go_on()

    assert stopped.ends() == 0
    for consumer in run.consumers:
        assert consumer.process.poll() is None, consumer.said()
        until(lambda consumer=consumer: consumer.state()["ready"], "the consumer is well")
    for child, plan in ((burst, {"keys": ["c", None], "count": 50}), (one_by_one, {"keys": ["d"]})):
        plan.setdefault("count", SECONDS)
        run.publish(**plan, earlier=[str(child.history)])
    until(lambda: run.verdict().effects == 20 + 5 + 100 + SECONDS, "the consumers have it all")
    for consumer in run.consumers:
        consumer.kill()
    assert run.verdict(drained=run.drain(boot="the next")).broken == ()
    assert run.verdict(of=[burst, one_by_one], deadline=1.0 + GRACE).liveness


def test_a_publish_that_waits_for_the_lock_as_long_as_it_likes_is_seen(run, stopped):
    """Control: SQLite's own timeout, a minute, in place of our deadline."""
    patient = run.spawn(
        "producer", keys=["c"], how="submit", publish_timeout=1.0, remove="deadline"
    )
    patient.comes_to(1, "invoke")
    timer = run.spawn("producer", keys=["d"], count=4, publish_timeout=1.0)
    assert timer.ends() == 0

    stopped.go_on()

    assert patient.ends() == 0
    assert not run.verdict(of=[patient], deadline=1.0 + GRACE).liveness
