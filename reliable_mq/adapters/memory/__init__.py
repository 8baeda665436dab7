"""The broker inside the process: for tests, for prototypes, and as the reference of the port.

    ordered      by key: a key with anything in hand is given to nobody else
    members      threads of one process; a killed one loses its leases at once
    delays       kept by the broker: RetryCopy, `not_before` and `nack`, attempts too
    retains      yes: a topic without a group keeps everything for the groups to come
    starts       earliest, latest, time (by `created_at`), offset
    revokes      when told to: `broker.faults.revoke(member)`
    durable      no: it ends with the process
    max_body     4 MiB; max_hold: none; lease_timeout: 30 s (all three can be set)
    dead letters browse, discard; they are a topic like any other, too
    optional     DeadLetterStore, Lag

`MemoryBroker` is the state that transports share, and `broker.faults` lets it fail on demand.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from reliable_mq.adapters.base import StoredMessage
from reliable_mq.adapters.memory.broker import CAPABILITIES, MemoryBroker
from reliable_mq.adapters.memory.faults import UNSAFE, Faults
from reliable_mq.adapters.memory.publisher import MemoryPublisher
from reliable_mq.adapters.memory.subscription import MemorySubscription
from reliable_mq.message import dead_letter_topic

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from reliable_mq.adapters.base import OnRevoke, Subscribe, Topology

__all__ = [
    "CAPABILITIES",
    "UNSAFE",
    "Faults",
    "MemoryBroker",
    "MemoryPublisher",
    "MemorySubscription",
    "MemoryTransport",
]


class MemoryTransport:
    """A client of a MemoryBroker: Transport, DeadLetterStore and Lag. Any thread."""

    def __init__(self, broker: MemoryBroker | None = None) -> None:
        self.broker = MemoryBroker() if broker is None else broker
        self.capabilities = self.broker.capabilities

    def ensure(self, topology: Topology) -> None:
        """See Transport.ensure."""
        self.broker.ensure(topology)

    def publisher(self) -> MemoryPublisher:
        """See Transport.publisher."""
        return MemoryPublisher(self.broker)

    def subscribe(self, subscribe: Subscribe, on_revoke: OnRevoke) -> MemorySubscription:
        """See Transport.subscribe."""
        return MemorySubscription(self.broker, subscribe, on_revoke)

    def close(self) -> None:
        """Nothing is shared but the broker, and that outlives its clients."""

    def browse(self, topic: str, group: str, limit: int) -> Iterator[StoredMessage]:
        """See DeadLetterStore.browse."""
        with self.broker.lock:
            log = self.broker.find(dead_letter_topic(topic, group))
            oldest = list(islice(log.messages.items(), limit))
        return iter([StoredMessage(message, position) for position, message in oldest])

    def discard(self, topic: str, group: str, positions: Sequence[int | str]) -> int:
        """See DeadLetterStore.discard."""
        with self.broker.lock:
            return self.broker.find(dead_letter_topic(topic, group)).discard(positions)

    def lag(self, topic: str, group: str) -> int:
        """See Lag.lag."""
        with self.broker.lock:
            return self.broker.find_group(topic, group).lag
