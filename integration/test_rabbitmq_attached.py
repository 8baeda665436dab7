"""A topology that is there already: attached to, compared, never altered."""

from contextlib import contextmanager
from uuid import uuid4

import pika
import pytest

from integration.faults import until
from reliable_mq import ConfigurationError, ReliableMQ, Unroutable
from reliable_mq.adapters.base import GroupSpec, TopicSpec, Topology
from reliable_mq.adapters.rabbitmq import RabbitTransport
from reliable_mq.rabbitmq import Exchange, Queue

SINGLE = {"x-queue-type": "quorum", "x-single-active-consumer": True}


@contextmanager
def plain(broker):
    """A channel of a program that has never heard of this library."""
    connection = pika.BlockingConnection(pika.URLParameters(broker.url))
    try:
        yield connection.channel()
    finally:
        connection.close()


@pytest.fixture
def names():
    """A queue and an exchange that no other test has."""
    return f"attached-q-{uuid4().hex[:8]}", f"attached-x-{uuid4().hex[:8]}"


def test_an_existing_queue_is_consumed_and_published_to(rabbitmq, names):
    """Its messages arrive, in the order of the queue; nothing but our dead letters is declared."""
    queue, _ = names
    with plain(rabbitmq) as channel:
        channel.queue_declare(queue, durable=True, arguments=SINGLE)
        channel.basic_publish("", queue, b'{"n": 1}', pika.BasicProperties(message_id="first"))
    got = attach(rabbitmq, queue_of=queue, publish={"n": 2}, expect=2)
    assert got == [{"n": 1}, {"n": 2}]


def attach(broker, *, queue_of, publish, expect):
    """Run an app on an existing queue until so many have come."""
    mq = ReliableMQ(broker.url)
    there = Queue(queue_of)
    got = []

    @mq.consumer(there, group="billing")
    def bill(order: dict) -> None:
        got.append(order)

    with mq:
        mq.publish(there, publish)
        until(lambda: len(got) == expect, f"{expect} messages")
    return got


def test_a_failure_of_an_existing_queue_becomes_a_dead_letter(rabbitmq, names):
    """With its whole story, in a queue of ours beside it; replay brings it back to that queue."""
    queue, _ = names
    with plain(rabbitmq) as channel:
        channel.queue_declare(queue, durable=True, arguments=SINGLE)
    mq = ReliableMQ(rabbitmq.url)
    there = Queue(queue)
    healthy = []

    @mq.consumer(there, group="billing", retry=None)
    def bill(order: dict) -> None:
        if not healthy:
            msg = "no rates"
            raise OSError(msg)
        healthy.append(order)

    with mq:
        mq.publish(there, {"n": 1}, id="one")
        letters = mq.dead_letters(there, "billing")
        until(lambda: [one.message.id for one in letters] == ["one"], "the dead letter")
        (letter,) = letters
        assert letter.error is not None
        healthy.append("from now on")
        letters.replay()
        until(lambda: {"n": 1} in healthy, "the replayed message")


def test_an_existing_exchange_is_published_to_and_consumed(rabbitmq, names):
    """With its routing key: our group gets a queue of its own, others what they are bound to."""
    queue, exchange = names
    with plain(rabbitmq) as channel:
        channel.exchange_declare(exchange, exchange_type="direct", durable=True)
        channel.queue_declare(queue, durable=True)
        channel.queue_bind(queue, exchange, "order.paid")
    mq = ReliableMQ(rabbitmq.url)
    paid = Exchange(exchange, routing_key="order.paid")
    nowhere = Exchange(exchange, routing_key="order.lost")
    got = []

    @mq.consumer(paid, group="billing")
    def bill(order: dict) -> None:
        got.append(order)

    with mq:
        mq.publish(paid, {"n": 1})
        with pytest.raises(Unroutable):
            mq.publish(nowhere, {"n": 2})
        until(lambda: got == [{"n": 1}], "the message")
    with plain(rabbitmq) as channel:
        _, _, body = channel.basic_get(queue, auto_ack=True)
        assert body == b'{"n":1}'


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({}, "single active consumer"),
        ({**SINGLE, "x-max-length": 5}, "x-max-length without x-overflow=reject-publish"),
        ({**SINGLE, "x-message-ttl": 1000}, "x-message-ttl without a dead letter exchange"),
        ({**SINGLE, "x-delivery-limit": 3}, "x-delivery-limit without a dead letter exchange"),
    ],
)
def test_an_unsafe_queue_is_refused_with_the_remedy(rabbitmq, names, arguments, text):
    """What cannot keep the order, or may drop messages, is no queue for a keyed consumer."""
    queue, _ = names
    with plain(rabbitmq) as channel:
        channel.queue_declare(queue, durable=True, arguments=arguments)
    mq = ReliableMQ(rabbitmq.url)

    @mq.consumer(Queue(queue), group="billing")
    def bill(order: dict) -> None: ...

    with pytest.raises(ConfigurationError, match=text):
        mq.start()
    mq.stop()


def test_long_names_and_shared_queues(rabbitmq, names):
    """A name of 200 characters is consumed; two groups whose queue would be one are refused."""
    _, topic = names
    long = topic + "x" * 150
    mq = ReliableMQ(rabbitmq.url)
    got = []

    @mq.consumer(long, group="billing")
    def bill(order: dict) -> None:
        got.append(order)

    with mq:
        mq.publish(long, {"n": 1})
        until(lambda: got == [{"n": 1}], "the message")
    both = (
        TopicSpec(topic, groups=(GroupSpec("b.c"),)),
        TopicSpec(f"{topic}.b", groups=(GroupSpec("c"),)),
    )
    with pytest.raises(ConfigurationError, match="would belong to"):
        RabbitTransport(rabbitmq.url).ensure(Topology(both))


def test_who_may_not_configure_consumes_what_is_there(rabbitmq, names):
    """Such a user checks what he can see, and publishes and consumes."""
    if not rabbitmq.controlled:
        pytest.skip("NOT TESTED: users of this broker cannot be made")
    _, topic = names
    spec = TopicSpec(topic, groups=(GroupSpec("billing"),))
    RabbitTransport(rabbitmq.url).ensure(Topology((spec,)))
    user = f"least-{topic}"
    rabbitmq.ctl("add_user", user, "word")
    rabbitmq.ctl("set_permissions", "-p", "/", user, "", ".*", ".*")
    mq = ReliableMQ(rabbitmq.url.replace("guest:guest", f"{user}:word"), topology="check")
    got = []
    mq.topic(topic, groups=("billing",))

    @mq.consumer(topic, group="billing")
    def bill(order: dict) -> None:
        got.append(order)

    with mq:
        mq.publish(topic, {"n": 1})
        until(lambda: got == [{"n": 1}], "the message")


def test_differences_are_listed_and_nothing_is_altered(rabbitmq, names):
    """Each argument that is not as declared, with both values; "check" makes nothing."""
    _, topic = names
    with plain(rabbitmq) as channel:
        channel.exchange_declare(topic, exchange_type="topic", durable=True)
        channel.queue_declare(f"{topic}.g", durable=True, arguments={"x-max-length": 7})
    transport = RabbitTransport(rabbitmq.url)
    declared = (TopicSpec(topic, groups=(GroupSpec("g"), GroupSpec("other"))),)
    for mode in ("check", "create"):
        with pytest.raises(ConfigurationError) as refused:
            transport.ensure(Topology(declared, mode))
        text = str(refused.value)
        assert "x-max-length=7 in place of None" in text
        assert "x-queue-type=None in place of 'quorum'" in text
        assert "x-single-active-consumer=None in place of True" in text
        assert (f"{topic}.other' is missing" in text) == (mode == "check")
