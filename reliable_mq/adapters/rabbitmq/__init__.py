"""RabbitMQ, by pika: quorum queues, confirms with many on their way, manual acks.

ordered      by queue: one member of a group has all of it (single active consumer), others stand
by; within the member by key
members      any number; a dead connection is noticed by heartbeats (`heartbeat`, 10 s)
delays       of RetryCopy and `not_before`: a ladder of queues, durable, rounded up to a power of
two; of `nack`: held in hand, forgotten if the member dies
retains      no: a group gets what is published after its declaration
revokes      no: a member keeps its queue as long as it polls
durable      a Receipt means that a quorum of nodes has it on disk
max_body     15 MiB (the broker's own limit is 16 MiB from 4.0 on); max_hold: four fifths of
`consumer_timeout`, the broker's
redelivered  the broker's count, which also counts what was given back cleanly
dead letters browse, discard: taken and given back
foreign      any program may publish to the exchange; `message_id` is the id, without one the id
is weak
optional     DeadLetterStore
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from reliable_mq.adapters.base import Capabilities
from reliable_mq.adapters.rabbitmq import dead_letters
from reliable_mq.adapters.rabbitmq.names import Route, place_of
from reliable_mq.adapters.rabbitmq.parameters import parse
from reliable_mq.adapters.rabbitmq.publisher import RabbitPublisher
from reliable_mq.adapters.rabbitmq.session import session
from reliable_mq.adapters.rabbitmq.subscription import RabbitSubscription
from reliable_mq.adapters.rabbitmq.topology import check_subscribe, ensure
from reliable_mq.clock import SYSTEM_CLOCK
from reliable_mq.errors import ConfigurationError
from reliable_mq.message import RetryCopy

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from reliable_mq.adapters.base import OnRevoke, StoredMessage, Subscribe, Topology
    from reliable_mq.clock import Clock
    from reliable_mq.confirmation import Confirmation
    from reliable_mq.message import Destination, Message

__all__ = ["RabbitTransport"]

#: Fetched ahead where nobody says how much may be in hand.
PREFETCH: Final = 1_000
#: The most that AMQP can say.
LARGEST_PREFETCH: Final = 65_535
#: Seconds that passing a delayed message on may take, and that closing waits for it.
PASS_ON_WITHIN: Final = 30.0
LAST_SECOND: Final = 1.0
#: Share of the broker's consumer timeout for which something is kept in hand.
MARGIN: Final = 0.8


class RabbitTransport:
    """Transport and DeadLetterStore. Any thread; constructing it opens nothing.

    Args:
        url: amqp:// or amqps://, see `parameters`.
        clock: What leases, delays and deadlines are measured with.
    """

    def __init__(self, url: str, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._parameters = parse(url)
        self._clock = clock
        self._declared: set[Route] = set()
        self._gate = threading.Lock()
        self._own_publisher: RabbitPublisher | None = None
        options = self._parameters.options
        self.capabilities = Capabilities(
            name="rabbitmq",
            key_order="partition",
            lease_timeout=options.lease_timeout,
            max_hold=options.consumer_timeout * MARGIN,
            max_body=options.max_body,
            clean_returns=False,
        )

    def ensure(self, topology: Topology) -> None:
        """See Transport.ensure."""
        with session(self._parameters) as opened:
            ensure(opened, topology)
        self._declared |= {Route(place_of(topic.name).address) for topic in topology.topics}

    def publisher(self) -> RabbitPublisher:
        """See Transport.publisher."""
        return RabbitPublisher(self._parameters, self._clock, self._declared)

    def subscribe(self, subscribe: Subscribe, on_revoke: OnRevoke) -> RabbitSubscription:
        """See Transport.subscribe; `on_revoke` is called when a channel has ended."""
        if subscribe.start is not None:
            text = f"RabbitMQ keeps nothing to start from {subscribe.start!r}; leave it out"
            raise ConfigurationError(text)
        with session(self._parameters) as opened:
            queues = check_subscribe(opened, subscribe)
        options = self._parameters.options
        prefetch = PREFETCH if subscribe.credit is None else subscribe.credit
        return RabbitSubscription(
            self._parameters,
            queues,
            on_revoke,
            self._clock,
            prefetch=max(1, min(prefetch // len(queues), LARGEST_PREFETCH)),
            max_hold=options.consumer_timeout * MARGIN,
            one_at_a_time=subscribe.order != "none",
            pass_on=lambda message, queue, due: self._pass_on(
                message, RetryCopy(queues[queue], subscribe.group), due
            ),
        )

    def close(self) -> None:
        """Close what passed delayed messages on; all else has connections of its own."""
        with self._gate:
            publisher, self._own_publisher = self._own_publisher, None
        if publisher is not None:
            publisher.close(LAST_SECOND)

    def _pass_on(self, message: Message, to: Destination, due: float) -> Confirmation:
        with self._gate:
            if self._own_publisher is None:
                self._own_publisher = self.publisher()
            publisher = self._own_publisher
        deadline = self._clock.monotonic() + PASS_ON_WITHIN
        return publisher.submit(message, to, not_before=due, deadline=deadline)

    def browse(self, topic: str, group: str, limit: int) -> Iterator[StoredMessage]:
        """See DeadLetterStore.browse."""
        with session(self._parameters) as opened:
            found = dead_letters.browse(opened, topic, group, limit)
        yield from found

    def discard(self, topic: str, group: str, positions: Sequence[int | str]) -> int:
        """See DeadLetterStore.discard."""
        with session(self._parameters) as opened:
            return dead_letters.discard(opened, topic, group, positions)
