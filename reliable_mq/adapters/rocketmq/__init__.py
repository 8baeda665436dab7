"""RocketMQ 5, by its gRPC proxy: FIFO message groups, native delays, invisible times.

ordered      by queue: the broker gives out a queue of a FIFO topic to one member at a time, and no
             more of it while one is unacked, so that as much runs at once as there are queues
members      any number; what a dead one had comes again after `lease_timeout`
delays       of RetryCopy and `not_before`: DELAY topics, durable; of `nack`: durable, too
retains      yes, as long as the topic does (with `namesrv`)
starts       earliest, latest, time (with `namesrv`)
revokes      no: a member keeps what it has as long as it polls
durable      a Receipt means what the broker's flush and replication settings say
max_body     4 MiB - 32 KiB
redelivered  the broker's count, which also counts what was given back cleanly; on ordered topics it
             may be too low: a message that comes again beside a new one counts as new
dead letters browse, discard (marked), with `namesrv`; the broker's own, %DLQ%group, lies behind
foreign      any program may publish; the message id is the id, the message group the key
optional     DeadLetterStore, Lag (with `namesrv`)
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final

from reliable_mq.adapters.base import Capabilities
from reliable_mq.adapters.rocketmq import dead_letters
from reliable_mq.adapters.rocketmq.admin import Admin
from reliable_mq.adapters.rocketmq.client import Client
from reliable_mq.adapters.rocketmq.config import parse
from reliable_mq.adapters.rocketmq.io import the_io
from reliable_mq.adapters.rocketmq.joining import Joining
from reliable_mq.adapters.rocketmq.mailbox import Mailbox
from reliable_mq.adapters.rocketmq.names import delayed, retries
from reliable_mq.adapters.rocketmq.publisher import RocketPublisher
from reliable_mq.adapters.rocketmq.subscription import RocketSubscription
from reliable_mq.adapters.rocketmq.topology import Topics
from reliable_mq.clock import SYSTEM_CLOCK

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from reliable_mq.adapters.base import OnRevoke, StoredMessage, Subscribe, Topology
    from reliable_mq.clock import Clock
    from reliable_mq.confirmation import Confirmation
    from reliable_mq.message import Destination, Message

__all__ = ["RocketTransport"]

#: Seconds that a copy of a nacked message may take, and that closing waits for it.
COPY_WITHIN: Final = 10.0
LAST_SECOND: Final = 1.0


class RocketTransport:
    """Transport, DeadLetterStore and Lag. Any thread; constructing it opens nothing.

    Args:
        url: rocketmq://, see `config`.
        clock: What leases, delays and deadlines are measured with.
    """

    def __init__(self, url: str, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._config = parse(url)
        self._clock = clock
        self._admin = Admin(self._config)
        options = self._config.options
        self._topics = Topics(self._admin, options.queues)
        self._joining = Joining(self._config, clock, self._admin, self._topics)
        self._made: set[str] = set()
        self._gate = threading.Lock()
        self._own_publisher: RocketPublisher | None = None
        managed = self._admin.is_there
        self.capabilities = Capabilities(
            name="rocketmq",
            key_order="partition",
            durable_delay=True,
            retains=managed,
            starts=frozenset({"earliest", "latest", "time"} if managed else ()),
            lease_timeout=options.lease_timeout,
            max_body=options.max_body,
            counts_redeliveries=False,
            clean_returns=False,
        )

    def ensure(self, topology: Topology) -> None:
        """See Transport.ensure."""
        names = self._topics.ensure(topology)
        self._made.update(names)
        self._joining.wait_known(names)

    def publisher(self) -> RocketPublisher:
        """See Transport.publisher."""
        return RocketPublisher(self._config, self._clock, self._made)

    def subscribe(self, subscribe: Subscribe, on_revoke: OnRevoke) -> RocketSubscription:
        """See Transport.subscribe; `on_revoke` is never called."""
        io = the_io()
        sources = self._joining.sources(subscribe)
        options = self._config.options
        mailbox = Mailbox(self._clock.monotonic, options.lease_timeout, subscribe.credit)
        groups = dict.fromkeys(source.group for source in sources)

        async def connect() -> dict[str, Client]:
            made = {
                group: Client(
                    io,
                    self._config,
                    self._clock,
                    group=group,
                    topics=tuple(one.topic for one in sources if one.group == group),
                )
                for group in groups
            }
            for client in made.values():
                client.access()
            return made

        clients: Any = io.run(connect(), options.connect_timeout)
        return RocketSubscription(
            io,
            self._config,
            clients=clients,
            sources=sources,
            mailbox=mailbox,
            clock=self._clock,
            group=subscribe.group,
            pass_on=self._pass_on,
        )

    def close(self) -> None:
        """See Transport.close."""
        with self._gate:
            publisher, self._own_publisher = self._own_publisher, None
        if publisher is not None:
            publisher.close(LAST_SECOND)
        self._joining.close()

    def lag(self, topic: str, group: str) -> int:
        """See Lag.lag: also of what is delayed or waits for a retry.

        Of topics without order, what is in hand does not count: the broker has moved on.
        """
        self._admin.need("the lag", f"consumerProgress -n NAMESRV -g {group}")
        free = self._topics.free_group_of(group)
        behind = self._admin.lag(topic, group)
        return behind + sum(
            self._admin.lag(name, free) for name in (delayed(topic), retries(topic, group))
        )

    def browse(self, topic: str, group: str, limit: int) -> Iterator[StoredMessage]:
        """See DeadLetterStore.browse."""
        self._admin.need("reading dead letters", f"printMsg -n NAMESRV -t {topic}%{group}%dlq")
        yield from dead_letters.browse(self._admin, topic, group, limit)

    def discard(self, topic: str, group: str, positions: Sequence[int | str]) -> int:
        """See DeadLetterStore.discard."""
        self._admin.need("discarding dead letters", f"printMsg -n NAMESRV -t {topic}%{group}%dlq")
        return dead_letters.discard(self._admin, self._pass_on, topic, group, positions)

    def _pass_on(self, message: Message, to: Destination) -> Confirmation:
        with self._gate:
            if self._own_publisher is None:
                self._own_publisher = self.publisher()
            publisher = self._own_publisher
        deadline = self._clock.monotonic() + COPY_WITHIN
        return publisher.submit(message, to, deadline=deadline)
