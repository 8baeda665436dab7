"""One member's place in its group. Only the owner thread touches the Consumer.

    poll ──> records into the inbox of their partition ──> deliveries, up to the limit
    ack  ──> the slot of its offset is done ──> commit: up to where all is done, and what is above

A rebalance happens inside poll, in callbacks on the same thread: what is taken away is drained and
committed there, what is lost is only forgotten.
"""

from __future__ import annotations

import heapq
import logging
import threading
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, Any, Final

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException, TopicPartition
from msgspec.structs import replace

from reliable_mq.adapters.base import Polled
from reliable_mq.adapters.kafka.commits import Commits
from reliable_mq.adapters.kafka.intake import Intake
from reliable_mq.adapters.kafka.names import owner_of, retry_pattern
from reliable_mq.adapters.kafka.partition import KafkaLease, Partition
from reliable_mq.adapters.kafka.position import Positions
from reliable_mq.adapters.kafka.reach import Reach, close
from reliable_mq.adapters.kafka.shares import share
from reliable_mq.adapters.kafka.topic_watch import TopicWatch
from reliable_mq.adapters.kafka.wire import from_record, seconds_early
from reliable_mq.errors import ConfigurationError, ConnectionFailed, ReliableMQError, TransportError
from reliable_mq.message import Delivery

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reliable_mq.adapters.base import OnRevoke, Subscribe
    from reliable_mq.adapters.kafka.admin import Admin
    from reliable_mq.adapters.kafka.config import Config
    from reliable_mq.clock import Clock
    from reliable_mq.message import Lease

__all__ = ["KafkaSubscription"]

log = logging.getLogger("reliable_mq.kafka")

NOTHING: Final = Polled()
#: Messages that are held in hand because they are not due; behind so many, their partition waits.
HELD: Final = 1_000
#: Seconds of one wait for records, which nothing can interrupt: with work in hand, and without.
BUSY, IDLE = 0.01, 0.1
#: Seconds that the first connection may take, and the last commit.
CONNECTS, LAST_COMMIT = 5.0, 5.0
#: Seconds for leaving the group.
LAST_WORDS: Final = 10.0
#: Seconds at most in which the broker is to tell where a member begins.
POSITIONS: Final = 10.0
BEGINNING: Final = confluent_kafka.OFFSET_BEGINNING

GONE: Final = frozenset({KafkaError._UNKNOWN_TOPIC, KafkaError.UNKNOWN_TOPIC_OR_PART})
FORBIDDEN: Final = frozenset(
    {KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED}
)


class KafkaSubscription:
    """The owner thread polls, acks, nacks and closes; `wake` any thread."""

    def __init__(
        self,
        config: Config,
        subscribe: Subscribe,
        on_revoke: OnRevoke,
        clock: Clock,
        admin: Admin,
    ) -> None:
        self._config = config
        self._asks = subscribe
        self._on_revoke = on_revoke
        self._clock = clock
        self._partitions: dict[tuple[str, int], Partition] = {}
        self._later: list[tuple[float, int, Delivery]] = []
        self._tickets = count()
        self._lost: list[Lease] = []
        self._bell = threading.Event()
        self._closed = False
        self._error: ReliableMQError | None = None
        self._join_again = False
        options = config.options
        self._incremental = (
            options.group_protocol == "consumer" or options.assignment == "cooperative-sticky"
        )
        self._moves_on = options.on_out_of_range != "error"
        self._topics = TopicWatch(admin, subscribe.topics, moves_on=self._moves_on)
        self._topic_id = admin.topic_id
        self._connect()

    # -- the port ------------------------------------------------------------------------------

    @property
    def standby(self) -> bool:
        """See Subscription.standby."""
        return not self._partitions

    def poll(self, limit: int, timeout: float) -> Polled:
        """See Subscription.poll."""
        try:
            return self._poll(limit, self._clock.monotonic() + timeout)
        except KafkaException as error:
            said = error.args[0]
            if isinstance(said, KafkaError) and said.fatal():
                raise self._out_for_good(said) from error
            text = f"{self._config}: {said}; it is tried again"
            raise ConnectionFailed(text) from error

    def _poll(self, limit: int, end: float) -> Polled:
        if self._reach.given_up:
            self._connect_again()
        if self._join_again:
            self._consumer.unsubscribe()
            self._join()
        while True:
            self._wait_and_fetch(limit, end)
            now = self._clock.monotonic()
            self._raise_what_went_wrong(now)
            self._commits.look(now, self._partitions.values())
            polled = self._collect(limit, now)
            if polled is not NOTHING:
                return polled
            if self._bell.is_set():
                self._bell.clear()
                return NOTHING
            if now >= end or self._join_again:
                self._reach.ask(now, self._consumer)
                return NOTHING

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        """See Subscription.ack."""
        for delivery in deliveries:
            lease: Any = delivery.lease
            partition = lease.partition
            if lease in partition.in_hand:
                partition.finish(lease)

    def nack(self, delivery: Delivery, delay: float) -> None:
        """See Subscription.nack: it is kept here until it is due."""
        lease: Any = delivery.lease
        partition = lease.partition
        if lease not in partition.in_hand:
            return
        partition.in_hand.discard(lease)
        again = KafkaLease(partition, lease.slot)
        partition.in_hand.add(again)
        self._hold(replace(delivery, lease=again, redelivered=0), delay)

    def wake(self) -> None:
        """See Subscription.wake."""
        self._bell.set()

    def close(self) -> None:
        """See Subscription.close."""
        if self._closed:
            return
        self._closed = True
        try:
            end = self._clock.monotonic() + LAST_COMMIT
            while self._clock.monotonic() < end:
                if not self._commits.waits:
                    if not any(one.dirty for one in self._partitions.values()):
                        break
                    self._commits.begin(self._partitions.values())
                self._consumer.poll(BUSY)
        finally:
            for partition in self._partitions.values():
                partition.lose()
            self._partitions.clear()
            close(self._consumer, LAST_WORDS)

    def _connect(self) -> None:
        """Make a client, and all that belongs to it, and join."""
        asks, options = self._asks, self._config.options
        commits = Commits(asks.group, options.commit_interval, options.session_timeout)
        reach = Reach(str(self._config), self._config.patience)
        told = {
            "on_commit": commits.answered,
            "error_cb": reach.heard,
            "stats_cb": reach.said,
            "logger": log,
        }
        try:
            consumer = confluent_kafka.Consumer(self._config.consumer(asks.group) | told)
        except KafkaException as error:  # an option that librdkafka does not know
            text = f"{self._config}: {error.args[0].str()}"
            raise ConfigurationError(text) from error
        commits.consumer = consumer
        self._consumer, self._commits, self._reach = consumer, commits, reach
        self._intake = Intake(consumer, self._partitions, self._clock.monotonic)
        self._positions = Positions(
            consumer,
            asks,
            options.on_out_of_range,
            self._topic_id,
            min(POSITIONS, options.lease_timeout / 2),
        )
        # With a connection it joins at once; without, librdkafka looks again after two seconds. If
        # there is none, the first poll tells.
        with suppress(KafkaException):
            consumer.list_topics(asks.topics[0], timeout=CONNECTS)
        self._join()

    def _connect_again(self) -> None:
        """With another client: this one will never reach a broker again."""
        log.warning("group %s: its client tries no broker any more; another one", self._asks.group)
        old = self._consumer
        self._forget(list(self._partitions.values()))
        settled = self._commits.settled
        self._connect()
        self._commits.settled = settled
        close(old, 0.0)  # it waits for a coordinator that it will not find

    def _join(self) -> None:
        self._join_again = self._intake.confused = False
        topics = [*self._asks.topics]
        topics += [retry_pattern(topic, self._asks.group) for topic in self._asks.topics]
        self._consumer.subscribe(
            topics, on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._taken
        )

    # -- one round -----------------------------------------------------------------------------

    def _wait_and_fetch(self, limit: int, end: float) -> None:
        now = self._clock.monotonic()
        ready = self._intake.ready()
        left = 0.0 if self._bell.is_set() else max(0.0, end - now)
        if limit == 0 or ready:
            if limit == 0:  # whoever makes room for more rings
                self._bell.wait(min(left, self._intake.patience(now)))
            self._intake.top_up(limit)
        else:
            if self._later:
                left = min(left, max(0.0, self._later[0][0] - now))
            held = [one for one in self._partitions.values() if one.in_hand or one.dirty]
            busy = held or self._commits.waits
            self._intake.wait(min(left, BUSY if busy else IDLE))
        for record in self._intake.errors():
            self._hear_of(record, record.error())
        self._join_again = self._join_again or self._intake.confused

    def _collect(self, limit: int, now: float) -> Polled:
        deliveries: list[Delivery] = []
        while len(deliveries) < limit and self._later and self._later[0][0] <= now:
            due = heapq.heappop(self._later)[2]
            if not due.lease.lost:
                deliveries.append(due)
        partitions = [one for one in self._partitions.values() if one.inbox or one.paused]
        if partitions and len(deliveries) < limit:
            ready = [one for one in partitions if one.inbox and not one.is_stalled(now)]
            for partition, amount in share(ready, limit - len(deliveries)) if ready else ():
                self._hand_out(partition, len(deliveries) + amount, now, deliveries)
            for partition in partitions:
                self._intake.mind(partition, now)
        settled, self._commits.settled = self._commits.settled, []
        lost, self._lost = self._lost, []
        if not (deliveries or settled or lost):
            return NOTHING
        return Polled(deliveries, settled, lost)

    def _hand_out(
        self, partition: Partition, limit: int, now: float, deliveries: list[Delivery]
    ) -> None:
        inbox, tracker, in_hand = partition.inbox, partition.tracker, partition.in_hand
        owner, number, topic_id = partition.owner, partition.number, partition.topic_id
        epoch = self._clock.now()
        while inbox and len(deliveries) < limit and not tracker.full:
            record = inbox[0]
            offset = record.offset()
            message = from_record(owner, topic_id, record)
            early = seconds_early(message, epoch)
            if early and (partition.topic != owner or len(self._later) >= HELD):
                partition.rests_until = now + early  # what is behind it is due later, or waits
                return
            inbox.popleft()
            partition.inbox_bytes -= len(record)
            slot = partition.receive(offset)
            if slot is None:
                continue
            lease = KafkaLease(partition, slot)
            in_hand.add(lease)
            delivery = Delivery(message, lease, 1, 0, number, offset, False, now)  # noqa: FBT003
            if early:
                self._hold(delivery, early)
            else:
                deliveries.append(delivery)

    def _hold(self, delivery: Delivery, seconds: float) -> None:
        due = self._clock.monotonic() + seconds
        heapq.heappush(self._later, (due, next(self._tickets), delivery))

    # -- rebalances, called from inside poll; of a client that was given up, from its close -------

    def _assigned(self, consumer: Any, partitions: list[TopicPartition]) -> None:
        if self._closed or consumer is not self._consumer:
            # librdkafka makes an unassign of it; it would answer no question now.
            self._take_up(consumer, partitions)
            return
        group = self._asks.group
        try:
            found = self._positions.of(partitions)
        except ReliableMQError as error:
            # Without their positions they cannot be assigned, and nobody would offer them again.
            self._error, self._join_again = error, True
            # Until then they are ours, and nothing is read: without a call, confluent-kafka would
            # assign them by itself, at no offset.
            places = [TopicPartition(one.topic, one.partition, BEGINNING) for one in partitions]
            self._take_up(consumer, places)
            consumer.pause(places)
            return
        came = [Partition(one, owner_of(one.topic, self._asks.topics, group)) for one in found]
        self._partitions.update({(one.topic, one.number): one for one in came})
        places = [TopicPartition(one.topic, one.partition, one.offset) for one in found]
        self._take_up(consumer, places)
        self._intake.came(came)

    def _revoked(self, consumer: Any, partitions: list[TopicPartition]) -> None:
        """Finish what runs of these, commit it, and let go."""
        if consumer is not self._consumer:
            self._let_go(consumer, partitions)
            return
        mine = self._of(partitions)
        leases: list[Lease] = [lease for one in mine for lease in one.in_hand]
        if leases and not self._closed:
            deadline = self._clock.monotonic() + self._config.options.drain_timeout
            self._on_revoke(leases, deadline)
        self._commits.finish(mine)
        self._forget(mine)
        self._let_go(consumer, partitions)

    def _taken(self, consumer: Any, partitions: list[TopicPartition]) -> None:
        """They are somebody else's already: nothing is committed."""
        if consumer is self._consumer:
            mine = self._of(partitions)
            self._commits.forget(mine)
            self._forget(mine)
        self._let_go(consumer, partitions)

    def _of(self, partitions: list[TopicPartition]) -> list[Partition]:
        keys = [(one.topic, one.partition) for one in partitions]
        return [self._partitions[key] for key in keys if key in self._partitions]

    def _forget(self, mine: list[Partition]) -> None:
        for one in mine:
            self._lost += one.lose()
            del self._partitions[one.topic, one.number]
        self._later = [one for one in self._later if not one[2].lease.lost]
        heapq.heapify(self._later)

    def _take_up(self, consumer: Any, places: list[TopicPartition]) -> None:
        (consumer.incremental_assign if self._incremental else consumer.assign)(places)

    def _let_go(self, consumer: Any, places: list[TopicPartition]) -> None:
        if self._incremental:
            consumer.incremental_unassign(places)
        else:
            consumer.unassign()

    # -- trouble -------------------------------------------------------------------------------

    def _hear_of(self, record: Any, error: Any) -> None:
        code = error.code()
        if code in GONE:
            self._topics.look_soon()  # brokers do not hear of a new one all at once
        elif code in FORBIDDEN:
            text = f"group {self._asks.group!r} may not read: {error}: ask for the rights"
            self._fail(ConfigurationError(text))
        elif code == KafkaError._AUTO_OFFSET_RESET:
            if not self._moves_on:
                self._fail(self._positions.out_of_range(record))
            self._join_again = True
        elif error.fatal():
            self._fail(self._out_for_good(error))
        else:
            log.warning("group %s: %s", self._asks.group, error)

    def _out_for_good(self, error: Any) -> TransportError:
        return TransportError(f"group {self._asks.group!r}: this member is out for good: {error}")

    def _fail(self, error: ReliableMQError) -> None:
        self._error = self._error or error  # the first one tells why

    def _raise_what_went_wrong(self, now: float) -> None:
        error = self._error or self._topics.look(now)
        if self._topics.made_again:
            self._topics.made_again, self._join_again = False, True
        self._error = None
        if error is not None:
            raise error
