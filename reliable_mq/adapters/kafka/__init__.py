"""Kafka, by confluent-kafka: acks=all, commits that pass nothing over, key order in a partition.

ordered      by partition: one member has all of it; within the member by key
members      any number; a dead one is noticed after `session_timeout`, one that does not poll
             after `lease_timeout`
delays       of RetryCopy: topics of their own, durable; of `not_before` and `nack`: held in hand
retains      yes, as long as the topic does
starts       earliest, latest, time, offset
revokes      yes: rebalances move partitions between members that live
durable      a Receipt means that all in-sync replicas have it
max_body     900 KiB (`max_body`); topics that we make take that and what a dead letter needs
redelivered  always 0: Kafka does not count
dead letters browse, discard (marked, and removed when all before it is)
foreign      any program may produce; ids are topic id, partition and offset
optional     DeadLetterStore, Lag
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from reliable_mq.adapters.base import Capabilities
from reliable_mq.adapters.kafka import dead_letters
from reliable_mq.adapters.kafka.admin import Admin
from reliable_mq.adapters.kafka.config import parse
from reliable_mq.adapters.kafka.names import is_retry_of
from reliable_mq.adapters.kafka.publisher import KafkaPublisher
from reliable_mq.adapters.kafka.subscription import KafkaSubscription
from reliable_mq.adapters.kafka.topology import Topics
from reliable_mq.clock import SYSTEM_CLOCK
from reliable_mq.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from reliable_mq.adapters.base import OnRevoke, StoredMessage, Subscribe, Topology
    from reliable_mq.clock import Clock

__all__ = ["KafkaTransport"]


class KafkaTransport:
    """Transport, DeadLetterStore and Lag. Any thread; constructing it opens nothing."""

    def __init__(self, url: str, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._config = parse(url)
        self._clock = clock
        self._admin = Admin(self._config)
        self._topics = Topics(self._config, self._admin)
        options = self._config.options
        self.capabilities = Capabilities(
            name="kafka",
            key_order="partition",
            retains=True,
            revokes=True,
            starts=frozenset({"earliest", "latest", "time", "offset"}),
            lease_timeout=options.lease_timeout,
            max_body=options.max_body,
            counts_redeliveries=False,
        )

    def ensure(self, topology: Topology) -> None:
        """See Transport.ensure."""
        self._topics.ensure(topology)

    def publisher(self) -> KafkaPublisher:
        """See Transport.publisher."""
        return KafkaPublisher(self._config, self._clock, self._topics.make_retry_topic)

    def subscribe(self, subscribe: Subscribe, on_revoke: OnRevoke) -> KafkaSubscription:
        """See Transport.subscribe."""
        missing = self._admin.missing(subscribe.topics)
        if missing:
            text = f"topics {', '.join(map(repr, missing))} are missing: declare them, mq.topic(…)"
            raise ConfigurationError(text)
        if subscribe.start not in (None, "earliest"):
            for topic in subscribe.topics:  # of all partitions at once, whoever gets which
                self._admin.place(topic, subscribe.group, subscribe.start)
        return KafkaSubscription(self._config, subscribe, on_revoke, self._clock, self._admin)

    def close(self) -> None:
        """See Transport.close."""
        self._admin.close()

    def browse(self, topic: str, group: str, limit: int) -> Iterator[StoredMessage]:
        """See DeadLetterStore.browse."""
        yield from dead_letters.browse(self._config, self._admin, topic, group, limit)

    def discard(self, topic: str, group: str, positions: Sequence[int | str]) -> int:
        """See DeadLetterStore.discard."""
        return dead_letters.discard(self._admin, topic, group, positions)

    def lag(self, topic: str, group: str) -> int:
        """See Lag.lag: also of what waits in its retry topics."""
        names = [topic]
        names += [one for one in self._admin.topics() if is_retry_of(one, topic, group)]
        return sum(sum(self._admin.lags(name, group).values()) for name in names)

    def lags(self, topic: str, group: str) -> dict[int, int]:
        """The lag of each partition of the topic."""
        return self._admin.lags(topic, group)
