"""Kafka, as tests are given it, does what the fault interface says, wherever it runs."""

from __future__ import annotations

import time
from itertools import count

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from integration.faults import until
from reliable_mq.testing.brokers import Missing, unavailable

pytestmark = pytest.mark.timeout(300)  # three nodes on a busy machine take their time to start

numbers = count(1)


@pytest.fixture(params=["kafka", "kafka_container"])
def broker(request):
    """Each way to have one that can be hurt."""
    return controlled(request.getfixturevalue(request.param))


@pytest.fixture
def node(kafka):
    """The one of the test run."""
    return controlled(kafka)


def controlled(broker):
    """This broker, or a skip where somebody else runs it."""
    if not broker.controlled:
        unavailable(Missing("the broker of RELIABLE_MQ_KAFKA_URL is not ours to hurt: unset it"))
    return broker


def new_topic(broker) -> str:
    """A new topic with one partition."""
    name = f"brokers-{next(numbers)}"
    broker.create_topic(name)
    return name


def client(broker, **more):
    """Settings of a client that says nothing when its broker is gone."""
    bootstrap = broker.url.removeprefix("kafka://")
    return {"bootstrap.servers": bootstrap, "log_level": 0, **more}


class Publisher:
    """A producer; each message is waited for."""

    def __init__(self, broker, within=30.0) -> None:
        self._producer = Producer(
            client(broker, acks="all", **{"message.timeout.ms": int(within * 1000)})
        )

    def publish(self, topic, body) -> KafkaError | None:
        """What became of it, in the words of its delivery report."""
        reports = []
        self._producer.produce(topic, body, on_delivery=lambda error, _: reports.append(error))
        self._producer.flush()
        return reports[0]


def read(broker, topic) -> list[bytes]:
    """What the topic has, as soon as it has something."""
    consumer = Consumer(client(broker, **{"group.id": "brokers", "enable.auto.commit": False}))
    bodies = []

    def look() -> bool:
        messages = consumer.consume(100, 0.5)
        bodies.extend(message.value() for message in messages if message.error() is None)
        return bool(bodies)

    try:
        consumer.assign([TopicPartition(topic, 0, 0)])
        until(look, f"{topic} has something")
    finally:
        consumer.close()
    return bodies


# -- the fault interface -----------------------------------------------------------------------


def test_what_was_confirmed_survives_a_kill(broker) -> None:
    """Kill -9, also of what stands still: nobody is served; healed it has address and message."""
    topic = new_topic(broker)
    assert Publisher(broker).publish(topic, b"kept") is None

    broker.pause()
    broker.kill()

    assert not broker.is_up()
    broker.ensure_up()
    assert read(broker, topic) == [b"kept"]


def test_what_was_confirmed_survives_a_stop(node) -> None:
    """A graceful end and a new start; both may be asked twice."""
    topic = new_topic(node)
    assert Publisher(node).publish(topic, b"kept") is None

    node.stop()
    node.stop()

    assert not node.is_up()
    node.start()
    node.start()
    assert read(node, topic) == [b"kept"]


def test_a_pause_is_silence(node) -> None:
    """Nothing is refused and nothing answered; resumed it takes messages of the same producer."""
    topic = new_topic(node)
    patient, hasty = Publisher(node), Publisher(node, within=1.0)
    assert patient.publish(topic, b"before") is None
    node.pause()
    began = time.monotonic()
    error = hasty.publish(topic, b"lost")
    assert error is not None
    assert error.code() == KafkaError._MSG_TIMED_OUT
    assert time.monotonic() - began >= 0.9

    node.resume()

    assert patient.publish(topic, b"after") is None
    assert read(node, topic)[-1] == b"after"


def test_nobody_gets_around_its_proxy(node) -> None:
    """Clients that came by the proxy are told it again: a cut hits them, and the node is well."""
    topic = new_topic(node)
    with node.proxy() as proxy:
        patient = Publisher(proxy)
        assert patient.publish(topic, b"before") is None

        proxy.cut()

        assert Publisher(proxy, within=1.0).publish(topic, b"never sent") is not None
        assert node.is_up()
        proxy.restore()
        assert patient.publish(topic, b"after") is None
    assert read(node, topic) == [b"before", b"after"]


# -- topics ------------------------------------------------------------------------------------


def test_topics_are_made_and_removed(node) -> None:
    """Each partition is led when it is made; none comes by itself; a second one is refused."""
    name = f"brokers-{next(numbers)}"
    node.create_topic(name, partitions=3, settings={"cleanup.policy": "compact"})

    assert [node.leader(name, partition) for partition in range(3)] == [1, 1, 1]
    with pytest.raises(KafkaException, match="already exists"):
        node.create_topic(name)

    node.delete_topic(name)
    with pytest.raises(LookupError, match="is led by nobody"):
        node.leader(name)


# -- a cluster ---------------------------------------------------------------------------------


def test_the_leader_of_three_is_killed(kafka_cluster) -> None:
    """Another leads, with every message, and takes new ones; the killed one comes back."""
    topic = new_topic(kafka_cluster)
    publisher = Publisher(kafka_cluster)
    assert publisher.publish(topic, b"by three") is None

    killed = kafka_cluster.kill_leader(topic)
    leader = kafka_cluster.leader_node(topic, other_than=killed.name)

    assert publisher.publish(topic, b"by two") is None
    assert read(leader, topic) == [b"by three", b"by two"]
    assert sum(node.alive() for node in kafka_cluster.nodes) == 2
    killed.start()
    until(kafka_cluster.is_whole, "all three have all of it")


def test_two_of_three_stand_still(kafka_cluster) -> None:
    """What only one has is not confirmed, until a second one goes on."""
    topic = new_topic(kafka_cluster)
    leader = kafka_cluster.leader_node(topic)
    others = [node for node in kafka_cluster.nodes if node is not leader]
    for other in others:
        other.pause()

    assert Publisher(kafka_cluster, within=2.0).publish(topic, b"by one") is not None
    for other in others:
        other.resume()

    assert Publisher(kafka_cluster).publish(topic, b"by all") is None
