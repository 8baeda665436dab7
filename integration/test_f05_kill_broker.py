"""F05: the broker dies by kill -9, alone or as the leader of three; what was confirmed is there."""

import time

import pytest

from integration.faults import LONG, promises, until

KEYS = [f"k{number}" for number in range(8)]


@pytest.fixture
def at_work(run):
    """A queue that a kill leaves alone."""
    run.publish(keys=["z"], count=1)
    if hasattr(run.place.broker, "flush"):
        # RabbitMQ 3.10 forgets a queue that was declared less than two seconds before a kill.
        run.place.broker.flush()
    return run


def killed(run, make_kill, *, count, **plan):
    """Kill the broker under load; the seconds until something took effect again, and a verdict."""
    plan = {"count": count, "publish_timeout": 60.0, **plan}
    plans = [
        {"producer": "one", "keys": [*KEYS, None], "how": "submit", **plan},
        {"producer": "two", "keys": ["a", None], "how": "submit", **plan},
    ]
    producers = [run.spawn("producer", wait_for="go", **one) for one in plans]
    consumers = [run.spawn("consumer", until="signal", lease_timeout=2.0) for _ in range(2)]
    kill = make_kill(run)
    for consumer in consumers:
        until(lambda one=consumer: one.state().get("ready") and one.state()["consumers"], "joined")
    for producer in producers:
        producer.comes_to_say("waits for")
    (run.folder / "go").touch()
    until(lambda: run.verdict().effects >= 40, "consumers are at work")
    heal = kill()
    began, before = time.monotonic(), run.verdict()
    if plan.get("end") != "kill":
        heal()
        assert before.effects < 11 * count, "it was killed under load"
        until(lambda: run.verdict().effects > before.effects, "it goes on", 60.0)
    took = time.monotonic() - began
    for producer in producers:
        assert producer.ends(60.0) in (0, -9), producer.said()
    heal()
    if "remove" not in plan:  # what ended as unknown is resolved
        for producer, one in zip(producers, plans, strict=True):
            run.publish(**one, earlier=[str(producer.history)])
    for consumer in consumers:
        assert consumer.ends_well() == 0, consumer.said()
    return took, run.verdict(drained=run.drain())


def the_only_node(run):
    """Kill it, and start it again."""

    def kill():
        run.place.broker.kill()
        return run.place.broker.start

    return kill


def the_leader(run):
    """Kill the node that leads the queue, or a partition; the two others go on."""
    node = run.place.leader()

    def kill():
        node.kill()
        return lambda: None

    return kill


@pytest.mark.parametrize(
    ("run", "kill", "timeout"),
    [
        ("rabbitmq", the_only_node, 60.0),
        # Who was connected to the leader may be refused for ever on its next connection (RabbitMQ
        # 3.10 nacks all of it): publishes end in time, and are published again on another one.
        ("rabbitmq_cluster", the_leader, 5.0),
        ("kafka", the_only_node, 60.0),
        ("kafka_cluster", the_leader, 60.0),
    ],
    indirect=["run"],
    ids=["the only node", "the leader of three", "Kafka, alone", "Kafka, the leader of three"],
)
def test_what_was_confirmed_survives_the_death_of_the_broker(
    at_work, kill, timeout, record_property
):
    """What had no answer is published again, in its order, and in the end all is confirmed."""
    count = 600 if LONG else 100

    took, verdict = killed(at_work, kill, count=count, publish_timeout=timeout)

    record_property("seconds until work went on", took)
    assert verdict.broken == ()
    assert verdict.confirmed == verdict.invoked == verdict.effects == 1 + count * 11


@pytest.mark.parametrize(
    ("run", "plan"),
    [
        ("rabbitmq", {"remove": "confirms", "count": 300}),
        ("rabbitmq", {"remove": "settle-first", "end": "kill", "count": 100}),
        ("kafka", {"remove": "acks", "count": 1_500}),
        ("kafka", {"remove": "settle-first", "end": "kill", "count": 100}),
    ],
    indirect=["run"],
    ids=["no answer is yes", "receipt at once", "Kafka, acks=0", "Kafka, receipt at once"],
)
def test_without_confirms_the_death_of_the_broker_loses(at_work, plan):
    """Controls: what was on its way counts as stored; a Receipt before the confirm."""
    _, verdict = killed(at_work, the_only_node, **plan)

    assert "lost" in promises([verdict])
