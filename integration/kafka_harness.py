"""The transport contract's harness for Kafka, on whatever broker it is given."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import confluent_kafka

from integration.kafka_proxy import Answers
from integration.victims import Order, kill_after
from reliable_mq.adapters.base import Subscribe
from reliable_mq.adapters.kafka import KafkaTransport
from reliable_mq.adapters.kafka.publisher import KafkaPublisher
from reliable_mq.testing.contracts import Harness

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from reliable_mq.adapters.base import Subscription

#: Short, so that tests need not wait for long.
OPTIONS = "lease_timeout=3&session_timeout=2&commit_interval=0.05&partitions=3&max_body=262144"


class Apart(KafkaTransport):
    """A transport whose publishers have a way of their own to the broker."""

    def __init__(self, url: str, publish_url: str) -> None:
        super().__init__(url)
        self._to_publish = KafkaTransport(publish_url)

    def publisher(self) -> KafkaPublisher:
        """See Transport.publisher."""
        return self._to_publish.publisher()

    def close(self) -> None:
        """See Transport.close."""
        self._to_publish.close()
        super().close()


class KafkaHarness(Harness):
    """A running broker, and where it has a listener for that, a proxy between it and publishers.

    Members reach it directly: nobody can cut them off but by ending the broker.

    Args:
        assignment: How the members of a group share partitions. "cooperative-sticky" never takes
            all that a living member has; "range" takes it whenever somebody joins.
    """

    quiet = 0.5
    delay = 2.0
    patience = 20.0

    def __init__(self, broker: Any, *, assignment: str = "cooperative-sticky") -> None:
        self.broker = broker
        self.options = f"{OPTIONS}&assignment={assignment}"
        self.capabilities = KafkaTransport(self._url(broker.url)).capabilities
        self.faults = frozenset({"kill", "foreign", "revoke"})
        if broker.controlled:
            self.faults |= {"block", "disconnect", "restart"}
        self.publishing: Answers | None = None
        if hasattr(broker, "proxy"):
            self.faults |= {"hold-answers", "lose-answers"}
            self.publishing = Answers(broker)
        self.must = self.faults

    def transport(self) -> Apart:
        """Publishers go through the proxy."""
        publishing = self.publishing or self.broker
        return Apart(self._url(self.broker.url), self._url(publishing.url))

    def close(self) -> None:
        """End the proxy, and with it all connections of publishers."""
        if self.publishing is not None:
            self.publishing.close()

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

    def revoke(self, subscription: Subscription) -> None:
        """Has been done by whoever joined beside it: "range" takes all from all, and deals anew."""
        assert subscription._config.options.assignment == "range"  # type: ignore[attr-defined]

    def publish_foreign(self, topic: str, body: bytes) -> None:
        """By plain confluent-kafka, with no header at all."""
        producer = confluent_kafka.Producer({"bootstrap.servers": self.broker.bootstrap})
        producer.produce(topic, body)
        assert producer.flush(10.0) == 0

    @contextmanager
    def blocked(self) -> Iterator[None]:
        """Nothing gets to the broker, and nothing comes back; without a proxy it stands still."""
        if self.publishing is None:
            self.broker.pause()
        else:
            self.publishing.hold()
        try:
            yield
        finally:
            if self.publishing is None:
                self.broker.resume()
            else:
                self.publishing.restore()

    @contextmanager
    def answers_held(self) -> Iterator[None]:
        """From the next message on, what comes back is kept for the end."""
        assert self.publishing is not None
        self.publishing.hold_from_next_message()
        try:
            yield
        finally:
            self.publishing.restore()

    def lose_answers(self, times: int) -> None:
        """From the next message on nothing comes back, and in the end the connection is reset."""
        assert self.publishing is not None
        self.publishing.lose_from_next_message()
        timer = threading.Timer(2 * self.delay, self._reset)
        timer.daemon = True
        timer.start()

    def _reset(self) -> None:
        assert self.publishing is not None
        self.publishing.cut(refuse=False)
        self.publishing.restore()

    @contextmanager
    def disconnected(self) -> Iterator[None]:
        """It is dead, so that every connection is reset and new ones are refused."""
        self.broker.kill()
        try:
            yield
        finally:
            self.broker.start()

    def restart(self) -> None:
        """End it gracefully, and start it again."""
        self.broker.stop()
        self.broker.start()

    # -- parts ---------------------------------------------------------------------------------

    def _url(self, url: str) -> str:
        return f"{url}?{self.options}"


def harness_for(broker: Any, request: Any) -> Iterator[KafkaHarness]:
    """For one test. Members share as they do by default, but where all of one is taken away."""
    revoked = request.node.originalname == "test_revocation"
    harness = KafkaHarness(broker, assignment="range" if revoked else "cooperative-sticky")
    yield harness
    harness.close()
