"""A connection that is lost under running handlers: they go on, and nothing of them runs twice."""

import threading
from uuid import uuid4

import pika
import pytest

from integration.faults import until
from reliable_mq import ReliableMQ
from reliable_mq.adapters.rabbitmq.subscription import RabbitSubscription
from reliable_mq.testing.brokers.proxy import Proxy


class Shop:
    """An app behind a proxy, whose handlers of key "slow" wait until they are let go."""

    def __init__(self, broker):
        self.broker = broker
        self.proxy = Proxy(broker.url)
        self.topic = f"reconnect-{uuid4().hex[:8]}"
        self.queue = f"{self.topic}.billing"
        self.mq = ReliableMQ(f"{self.proxy.url}?heartbeat=4")
        self.began, self.billed = [], []
        self.go_on = threading.Event()
        self.mq.topic(self.topic, groups=("billing",))

        @self.mq.consumer(self.topic, group="billing", concurrency=4)
        def bill(order: dict) -> None:
            self.began.append(order["n"])
            if order.get("slow"):
                self.go_on.wait(30)
            self.billed.append(order["n"])

    def publish(self, number, key, *, slow=False):
        """One order."""
        self.mq.publish(self.topic, {"n": number, "slow": slow}, key=key)

    def lose_the_connection(self):
        """Cut it, and wait until the app knows."""
        self.proxy.cut()
        until(lambda: self.state() == "disconnected", "the consumer to notice")

    def come_back(self):
        """Let it connect again."""
        self.proxy.restore()
        until(lambda: self.state() == "running", "the consumer to come back")

    def state(self):
        """Of the one consumer."""
        return self.mq.health().consumers[0].state

    def left(self):
        """Messages in the queue that nobody has in hand."""
        connection = pika.BlockingConnection(pika.URLParameters(self.broker.url))
        try:
            return connection.channel().queue_declare(self.queue, passive=True).method.message_count
        finally:
            connection.close()

    def close(self):
        """Stop, and see that nothing is left over."""
        self.go_on.set()
        self.mq.stop(10)
        self.proxy.close()


@pytest.fixture
def shop(rabbitmq):
    """Started, and stopped at the end."""
    shop = Shop(rabbitmq)
    shop.mq.start()
    yield shop
    shop.close()


def test_a_run_goes_on_and_its_copy_is_not_run(shop):
    """Its end settles the copy; what had not started runs once, behind it, in order."""
    shop.publish(1, "a", slow=True)
    until(lambda: shop.began == [1], "the slow run")
    shop.publish(2, "a")
    shop.publish(3, "b")
    until(lambda: 3 in shop.billed, "the other key")
    shop.lose_the_connection()
    shop.come_back()
    shop.publish(4, "c")
    until(lambda: 4 in shop.billed, "what came after the reconnect, so the copy has come, too")
    assert 2 not in shop.began
    shop.go_on.set()
    until(lambda: set(shop.billed) >= {1, 2}, "the rest of the slow key")
    assert shop.began.count(1) == 1
    assert [one for one in shop.billed if one in (1, 2)] == [1, 2]
    shop.mq.stop(10)
    assert shop.left() == 0


def test_a_run_that_ends_without_a_connection_is_not_run_again(shop):
    """Its copy is acked when it comes."""
    shop.publish(1, "a", slow=True)
    until(lambda: shop.began == [1], "the slow run")
    shop.lose_the_connection()
    shop.go_on.set()
    until(lambda: shop.billed == [1], "its end")
    shop.come_back()
    shop.publish(2, "a")
    until(lambda: 2 in shop.billed, "the next of its key")
    assert shop.began == [1, 2]
    shop.mq.stop(10)
    assert shop.left() == 0


def test_without_the_memory_of_what_runs_it_runs_twice(rabbitmq, monkeypatch):
    """Negative control: if all is lost with the connection, the copy is run beside the first."""
    monkeypatch.setattr(
        RabbitSubscription, "_let_go", lambda self, generation, _: forget(self, generation)
    )

    def forget(subscription, generation):
        subscription._known = generation
        subscription._lose_all()

    shop = Shop(rabbitmq)
    shop.mq.start()
    try:
        shop.publish(1, "a", slow=True)
        until(lambda: shop.began == [1], "the slow run")
        shop.lose_the_connection()
        shop.come_back()
        shop.go_on.set()
        until(lambda: shop.began == [1, 1], "the second run")
    finally:
        shop.close()
