"""F06: the broker does not answer. On SQLite: SIGSTOP hits a process that holds the write lock."""

import time

import pytest

from integration.faults import LONG, brokers, until

#: A publish may take this much longer than its timeout says, on a machine with much to do.
GRACE = 1.5
#: So many publishes of a second each go by before the broker goes on.
SECONDS = 30 if LONG else 5


class Holder:
    """SQLite: a process that stands in the middle of a transaction."""

    #: What it publishes when it goes on.
    messages = 5

    def __init__(self, run):
        self.holder = run.spawn("producer", keys=["h"], count=5, stop_at="INSERT INTO mq_message")
        self.holder.stands()

    def go_on(self):
        """SIGCONT."""
        self.holder.go_on()
        assert self.holder.ends() == 0


class Paused:
    """A broker that is stopped itself, with all its connections open."""

    messages = 0

    def __init__(self, run):
        self.broker = run.place.broker
        self.broker.pause()

    def go_on(self):
        """All connections are still there, unless somebody gave them up."""
        self.broker.resume()


@pytest.fixture
def at_work(run):
    """A run with two consumers at work."""
    run.publish(keys=["a", "b"], count=10)
    run.consumers = [run.spawn("consumer", until="signal") for _ in range(2)]
    until(lambda: run.verdict().effects == 20, "the consumers are at work")
    run.stop = lambda: Paused(run) if hasattr(run.place, "broker") else Holder(run)
    return run


@brokers()
def test_every_publish_ends_by_its_deadline(at_work):
    """As Backpressure or unknown; nothing hangs; when the broker goes on, so does everything."""
    run = at_work
    producers = [
        {"keys": ["c", None], "count": 50, "how": "submit", "publish_timeout": 1.0},
        {"keys": ["d"], "count": SECONDS, "publish_timeout": 1.0},
    ]
    waiting = [run.spawn("producer", wait_for="go", **plan) for plan in producers]
    for child in waiting:
        child.comes_to_say("waits for")
    stopped = run.stop()
    (run.folder / "go").touch()
    for child in waiting:
        assert child.ends(SECONDS * (1.0 + GRACE) + 20.0) == 0
    endings = {entry.kind for child in waiting for entry in child.entries()} - {"invoke"}
    assert endings <= {"failed", "unknown"}

    stopped.go_on()

    for consumer in run.consumers:
        assert consumer.process.poll() is None, consumer.said()
        until(lambda consumer=consumer: consumer.state()["ready"], "the consumer is well")
    for child, plan in zip(waiting, producers, strict=True):
        run.publish(**{**plan, "publish_timeout": 10.0}, earlier=[str(child.history)])
    total = 20 + stopped.messages + 100 + SECONDS
    until(lambda: run.verdict().effects == total, "the consumers have it all")
    for consumer in run.consumers:
        consumer.kill()
    assert run.verdict(drained=run.drain(boot="the next")).broken == ()
    assert run.verdict(of=waiting, deadline=1.0 + GRACE).liveness


@brokers()
def test_a_publish_that_waits_as_long_as_it_likes_is_seen(at_work):
    """Control: SQLite's own timeout, a minute, or none at all, in place of our deadline."""
    run = at_work
    patient = run.spawn(
        "producer",
        keys=["c"],
        how="submit",
        publish_timeout=1.0,
        remove="deadline",
        wait_for="go",
    )
    timer = run.spawn("producer", keys=["d"], count=4, publish_timeout=1.0, wait_for="go")
    for child in (patient, timer):
        child.comes_to_say("waits for")
    stopped = run.stop()
    (run.folder / "go").touch()
    patient.comes_to(1, "invoke")
    assert timer.ends() == 0

    stopped.go_on()

    assert patient.ends() == 0
    assert not run.verdict(of=[patient], deadline=1.0 + GRACE).liveness


def outlasting(run, **plan):
    """Handlers that run while the broker stands still and their connection is given up."""
    run.publish(keys=["a", "b", None], count=4)
    gate = run.folder / "gate"
    consumer = run.spawn("consumer", until="signal", lease_timeout=2.0, hold=str(gate), **plan)
    consumer.comes_to(3, "deliver")
    broker = run.place.broker
    broker.pause()
    # Two heartbeats for the broker; pika adds five seconds.
    until(lambda: state_of(consumer) == "disconnected", "the connection is given up")
    if LONG:
        until(lambda: time.monotonic() > consumer.entries("deliver")[0].at + 120.0, "more", 150.0)
    broker.resume()
    until(lambda: state_of(consumer) == "running", "it is connected again")
    until(lambda: run.lag() == 0, "all came again")
    gate.touch()
    until(lambda: run.verdict(of=run.children).effects == 12, "it does all")
    assert consumer.ends_well() == 0
    return run.verdict(drained=run.drain())


def state_of(consumer):
    """What its health says."""
    return consumer.state()["consumers"][0]["state"]


@brokers("rabbitmq")
def test_what_runs_while_the_broker_stands_still_takes_effect_once(run):
    """After the reconnect its copy waits for the end of the run, and is then acked, not run."""
    verdict = outlasting(run)

    assert verdict.broken == ()
    assert verdict.effects == 12
    assert verdict.duplicate_effects == {}


@brokers("rabbitmq")
def test_what_is_forgotten_with_its_connection_runs_twice(run):
    """Control: nobody remembers what still runs."""
    assert len(outlasting(run, remove="adrift").duplicate_effects) >= 3
