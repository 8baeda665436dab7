"""The transport contract's harness for RabbitMQ, on whatever broker it is given."""

from __future__ import annotations

import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pika

from integration.victims import Order, kill_after
from reliable_mq.adapters.base import Subscribe, Topology
from reliable_mq.adapters.rabbitmq import RabbitTransport
from reliable_mq.adapters.rabbitmq.publisher import RabbitPublisher
from reliable_mq.errors import PublishError
from reliable_mq.message import Message, Topic
from reliable_mq.testing.brokers.proxy import Proxy
from reliable_mq.testing.contracts import Harness

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from reliable_mq.adapters.base import Polled, Subscription

#: Short, so that tests need not wait for long.
OPTIONS = "lease_timeout=1.5&consumer_timeout=7&max_body=1048576&heartbeat=4&connect_timeout=4"


class Apart(RabbitTransport):
    """A transport whose publishers have a way of their own to the broker."""

    def __init__(self, url: str, publish_url: str) -> None:
        super().__init__(url)
        self._to_publish = RabbitTransport(publish_url)
        self._ready: RabbitPublisher | None = None

    def ensure(self, topology: Topology) -> None:
        """See Transport.ensure; both ways know then what is there."""
        super().ensure(topology)
        self._to_publish.ensure(topology)

    def publisher(self) -> RabbitPublisher:
        """See Transport.publisher: the one that is connected, or a new one."""
        ready, self._ready = self._ready, None
        return ready or self._to_publish.publisher()

    def warm_up(self) -> None:
        """Connect the first publisher."""
        self._ready = self._to_publish.publisher()
        with suppress(PublishError):
            self._ready.submit(Message("warm-up", "no-such-topic"), Topic()).result(10.0)

    def close(self) -> None:
        """See Transport.close; also of a publisher that no test asked for."""
        if self._ready is not None:
            self._ready.close(0.0)
        self._to_publish.close()
        super().close()


class RabbitHarness(Harness):
    """A running broker, and two proxies in front of it: one for publishers, one for members."""

    faults = frozenset(
        {"kill", "foreign", "block", "disconnect", "hold-answers", "lose-answers", "max-hold"}
    )
    must = faults
    quiet = 0.3
    delay = 1.0
    patience = 12.0

    def __init__(self, broker: Any) -> None:
        self.broker = broker
        self.used = False
        self.publishing, self.consuming = Proxy(broker.url), Proxy(broker.url)
        self.capabilities = RabbitTransport(self._url(broker.url)).capabilities
        if broker.controlled:
            self.faults |= {"refuse", "restart"}

    def transport(self) -> Apart:
        """The first one is to publish; its publisher is connected before any fault comes."""
        transport = Apart(self._url(self.consuming.url), self._url(self.publishing.url))
        if not self.used:
            self.used = True
            transport.warm_up()
        return transport

    def poll(self, subscription: Subscription, limit: int) -> Polled:
        """Poll once; a member that stands by costs a moment, and there are many such polls."""
        return subscription.poll(limit, 0.01)

    def close(self) -> None:
        """End the proxies, and with them all connections."""
        self.publishing.close()
        self.consuming.close()

    # -- faults --------------------------------------------------------------------------------

    def kill_after(
        self,
        subscribe: Subscribe,
        take: int,
        *,
        ack: Sequence[int] = (),
        nack: Mapping[int, float] | None = None,
    ) -> list[str]:
        """See Harness.kill_after."""
        order = Order(self._url(self.broker.url), subscribe, take, list(ack), dict(nack or {}))
        return kill_after(order)

    def publish_foreign(self, topic: str, body: bytes) -> None:
        """By plain pika, with no property at all."""
        with self._plain() as channel:
            channel.basic_publish(topic, "anything", body)

    @contextmanager
    def blocked(self) -> Iterator[None]:
        """Nothing gets to the broker, and nothing comes back."""
        self.publishing.hold()
        try:
            yield
        finally:
            self.publishing.restore()

    @contextmanager
    def answers_held(self) -> Iterator[None]:
        """What comes back is kept for the end."""
        self.publishing.down.held = True
        try:
            yield
        finally:
            self.publishing.restore()

    def lose_answers(self, times: int) -> None:
        """For a while nothing comes back."""
        self.publishing.down.held = True
        timer = threading.Timer(2 * self.delay, self.publishing.restore)
        timer.daemon = True
        timer.start()

    @contextmanager
    def disconnected(self) -> Iterator[None]:
        """Every connection is reset, and new ones are refused."""
        self.publishing.cut()
        self.consuming.cut()
        try:
            yield
        finally:
            self.publishing.restore()
            self.consuming.restore()

    def refuse_publishes(self, times: int) -> None:
        """For a while each queue refuses more messages, however few it has."""
        self._limit(1)
        timer = threading.Timer(0.5, self._limit, (1_000_000,))
        timer.daemon = True
        timer.start()

    def _limit(self, length: int) -> None:
        # Not `clear_policy`: quorum queues of 3.10 stay full for ever after that.
        definition = f'{{"max-length":{length},"overflow":"reject-publish"}}'
        self.broker.ctl("set_policy", "full", "^contract", definition, "--apply-to", "queues")

    def restart(self) -> None:
        """End it gracefully, and start it again."""
        self.broker.stop()
        self.broker.start()

    # -- parts ---------------------------------------------------------------------------------

    @contextmanager
    def _plain(self) -> Iterator[Any]:
        connection = pika.BlockingConnection(pika.URLParameters(self.broker.url))
        try:
            yield connection.channel()
        finally:
            connection.close()

    def _url(self, url: str) -> str:
        return f"{url}?{OPTIONS}"
