"""One member's place in its group. Only the owner thread touches the Consumer.

    poll ──> records into the inbox of their partition ──> deliveries, up to the limit
    ack  ──> the slot of its offset is done ──> commit: up to where all is done, and what is above

A rebalance happens inside poll, in callbacks on the same thread: what is taken away is drained and
committed there, what is lost is only forgotten.
"""

from __future__ import annotations

import heapq
import logging
from itertools import count
from typing import TYPE_CHECKING, Any, Final

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException, TopicPartition
from msgspec.structs import replace

from reliable_mq.adapters.base import Polled
from reliable_mq.adapters.kafka.names import owner_of, retry_pattern
from reliable_mq.adapters.kafka.partition import KafkaLease, Partition
from reliable_mq.adapters.kafka.position import Positions
from reliable_mq.adapters.kafka.wire import from_record
from reliable_mq.errors import ConfigurationError, ConnectionFailed, ReliableMQError
from reliable_mq.message import NOT_BEFORE, Delivery, header
from reliable_mq.outcome import LONGEST

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from reliable_mq.adapters.base import OnRevoke, Subscribe
    from reliable_mq.adapters.kafka.config import Config
    from reliable_mq.clock import Clock
    from reliable_mq.message import Lease, Message

__all__ = ["KafkaSubscription"]

log = logging.getLogger("reliable_mq.kafka")

NOTHING: Final = Polled()
#: Records of one call, and in all inboxes; above that, all partitions are paused.
FETCH: Final = 500
INBOX: Final = 1_000
#: Offsets from the first that is not done to the last that came, for each partition.
WINDOW: Final = 20_000
#: Seconds of one wait, which nothing can interrupt: while there is work in hand, and without.
BUSY, IDLE = 0.01, 0.1
#: Seconds between two tries to reach a broker that is gone.
RETRY: Final = 1.0


class KafkaSubscription:
    """The owner thread polls, acks, nacks and closes; `wake` any thread."""

    def __init__(
        self,
        config: Config,
        subscribe: Subscribe,
        on_revoke: OnRevoke,
        clock: Clock,
        topic_id: Callable[[str], str],
    ) -> None:
        self._config = config
        self._asks = subscribe
        self._on_revoke = on_revoke
        self._clock = clock
        self._topic_id = topic_id
        self._partitions: dict[tuple[str, int], Partition] = {}
        self._later: list[tuple[float, int, Delivery]] = []
        self._tickets = count()
        self._settled: list[Lease] = []
        self._lost: list[Lease] = []
        self._woken = False
        self._closed = False
        self._error: ReliableMQError | None = None
        self._cut_off = ""
        self._look_again = 0.0
        self._committing: list[tuple[Partition, list[KafkaLease]]] | None = None
        self._commit_at = 0.0
        self._all_paused = False
        self._join_again = False
        options = config.options
        self._incremental = (
            options.group_protocol == "consumer" or options.assignment == "cooperative-sticky"
        )
        self._consumer = confluent_kafka.Consumer(
            config.consumer(subscribe.group)
            | {"on_commit": self._committed, "error_cb": self._heard, "logger": log}
        )
        self._positions = Positions(self._consumer, subscribe, options.on_out_of_range)
        self._join()

    # -- the port ------------------------------------------------------------------------------

    @property
    def standby(self) -> bool:
        """See Subscription.standby."""
        return not self._partitions

    def poll(self, limit: int, timeout: float) -> Polled:
        """See Subscription.poll."""
        if self._join_again:
            self._consumer.unsubscribe()
            self._join()
        end = self._clock.monotonic() + timeout
        while True:
            now = self._clock.monotonic()
            self._fetch(self._patience(limit, end - now))
            now = self._clock.monotonic()
            if now >= self._commit_at:
                self._commit(now)
            polled = self._collect(limit, now)
            if polled is not NOTHING:
                return polled
            if self._error is not None:
                error, self._error = self._error, None
                raise error
            if self._woken:
                self._woken = False
                return NOTHING
            if now >= end:
                self._raise_if_cut_off(now)
                return NOTHING

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        """See Subscription.ack."""
        for delivery in deliveries:
            lease: Any = delivery.lease
            if isinstance(lease, KafkaLease) and lease in lease.partition.in_hand:
                lease.partition.finish(lease)

    def nack(self, delivery: Delivery, delay: float) -> None:
        """See Subscription.nack: it is kept here until it is due."""
        lease: Any = delivery.lease
        if not isinstance(lease, KafkaLease) or lease not in lease.partition.in_hand:
            return
        partition = lease.partition
        partition.in_hand.discard(lease)
        again = KafkaLease(partition, lease.slot)
        partition.in_hand.add(again)
        due = self._clock.monotonic() + delay
        copy = replace(delivery, lease=again, redelivered=0)
        heapq.heappush(self._later, (due, next(self._tickets), copy))

    def wake(self) -> None:
        """See Subscription.wake."""
        self._woken = True

    def close(self) -> None:
        """See Subscription.close."""
        if self._closed:
            return
        self._closed = True
        try:
            self._commit_now(list(self._partitions.values()))
        finally:
            for partition in self._partitions.values():
                partition.lose()
            self._partitions.clear()
            self._consumer.close()

    def _join(self) -> None:
        self._join_again = False
        topics = [*self._asks.topics]
        topics += [retry_pattern(topic, self._asks.group) for topic in self._asks.topics]
        self._consumer.subscribe(
            topics, on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._taken
        )

    # -- one round -----------------------------------------------------------------------------

    def _patience(self, limit: int, left: float) -> float:
        if self._woken or left <= 0 or (limit > 0 and self._inboxes()):
            return 0.0
        busy = any(one.in_hand or one.dirty for one in self._partitions.values())
        if limit > 0 and self._later:
            left = min(left, self._later[0][0] - self._clock.monotonic())
        return max(0.0, min(left, BUSY if busy else IDLE))

    def _inboxes(self) -> int:
        return sum([len(one.inbox) for one in self._partitions.values()])

    def _fetch(self, timeout: float) -> None:
        """Serve callbacks and take what there is: one wait, then a batch without."""
        waiting = self._inboxes()
        self._pause_or_go_on(waiting)
        record = self._consumer.poll(timeout)
        if record is None:
            return
        records = [record]
        if waiting < INBOX:
            records += self._consumer.consume(FETCH, 0.0)
        one: Any
        for one in records:
            error = one.error()
            if error is not None:
                self._hear_of(one, error)
                continue
            offset: int = one.offset()
            partition = self._partitions.get((one.topic(), one.partition()))
            if partition is not None and partition.expects(offset):
                partition.fetched = offset + 1
                partition.inbox.append(one)

    def _pause_or_go_on(self, waiting: int) -> None:
        if not self._all_paused and waiting >= INBOX:
            self._consumer.pause(self._consumer.assignment())
            self._all_paused = True
        elif self._all_paused and waiting < INBOX // 2:
            self._consumer.resume(self._consumer.assignment())
            self._all_paused = False

    def _collect(self, limit: int, now: float) -> Polled:
        deliveries: list[Delivery] = []
        while len(deliveries) < limit and self._later and self._later[0][0] <= now:
            due = heapq.heappop(self._later)[2]
            if not due.lease.lost:
                deliveries.append(due)
        for partition in tuple(self._partitions.values()):
            while partition.inbox and len(deliveries) < limit:
                partition.to_commit()
                if partition.tracker.full:
                    break
                self._receive(partition, partition.inbox.popleft(), now, deliveries)
        settled, self._settled = self._settled, []
        lost, self._lost = self._lost, []
        if not (deliveries or settled or lost):
            return NOTHING
        return Polled(deliveries, settled, lost)

    def _receive(
        self, partition: Partition, record: Any, now: float, deliveries: list[Delivery]
    ) -> None:
        slot = partition.receive(record.offset())
        if slot is None:
            return
        owner = owner_of(record.topic(), self._asks.topics, self._asks.group)
        message = from_record(owner, self._topic_id, record)
        lease = KafkaLease(partition, slot)
        partition.in_hand.add(lease)
        delivery = Delivery(
            message,
            lease,
            partition=record.partition(),
            position=record.offset(),
            arrived=now,
        )
        early = _early(message, self._clock.now())
        if early > 0:
            heapq.heappush(self._later, (now + early, next(self._tickets), delivery))
        else:
            deliveries.append(delivery)

    # -- commits -------------------------------------------------------------------------------

    def _commit(self, now: float) -> None:
        """Commit what has changed, if the last commit has been answered."""
        self._commit_at = now + self._config.options.commit_interval
        dirty = [one for one in self._partitions.values() if one.dirty]
        if not dirty or self._committing is not None:
            return
        offsets = [self._offset_of(one) for one in dirty]
        self._committing = [(one, one.unsettled) for one in dirty]
        for one in dirty:
            one.dirty, one.unsettled = False, []
        try:
            self._consumer.commit(offsets=offsets, asynchronous=True)
        except KafkaException as error:
            self._not_committed(error)

    def _committed(self, error: Any, partitions: Sequence[TopicPartition]) -> None:
        """Called from poll with the answer."""
        if self._committing is None:
            return
        failed = {(one.topic, one.partition) for one in partitions if one.error is not None}
        if error is not None:
            self._not_committed(error)
            return
        committing, self._committing = self._committing, None
        for partition, leases in committing:
            if (partition.topic, partition.number) in failed:
                self._put_back(partition, leases)
            else:
                self._settled += leases

    def _not_committed(self, error: object) -> None:
        log.debug("group %s: a commit failed: %s; it is tried again", self._asks.group, error)
        committing, self._committing = self._committing or [], None
        for partition, leases in committing:
            self._put_back(partition, leases)

    def _put_back(self, partition: Partition, leases: list[KafkaLease]) -> None:
        partition.unsettled = [*leases, *partition.unsettled]
        partition.dirty = True

    def _commit_now(self, partitions: Sequence[Partition]) -> None:
        """Commit these, and wait for the answer."""
        dirty = [one for one in partitions if one.dirty or one.unsettled or self._committing]
        if not dirty:
            return
        if self._committing is not None:
            self._not_committed("overtaken by a commit that is waited for")
        try:
            self._consumer.commit(
                offsets=[self._offset_of(one) for one in dirty], asynchronous=False
            )
        except KafkaException as error:
            log.warning("group %s: the last commit failed: %s", self._asks.group, error)
            return
        for one in dirty:
            self._settled += one.unsettled
            one.unsettled, one.dirty = [], False

    def _offset_of(self, partition: Partition) -> TopicPartition:
        position, metadata = partition.to_commit()
        return TopicPartition(partition.topic, partition.number, position, metadata)

    # -- rebalances, called from inside poll -----------------------------------------------------

    def _assigned(self, consumer: Any, partitions: list[TopicPartition]) -> None:
        try:
            found = self._positions.of(partitions)
        except ReliableMQError as error:
            # Without their positions they cannot be assigned, and nobody would offer them again.
            self._error, self._join_again = error, True
            return
        for one, finished, fresh in found:
            partition = Partition(one.topic, one.partition, one.offset, finished, WINDOW)
            partition.dirty = fresh
            self._partitions[one.topic, one.partition] = partition
        offsets = [one for one, _, _ in found]
        (consumer.incremental_assign if self._incremental else consumer.assign)(offsets)
        self._all_paused = False

    def _revoked(self, consumer: Any, partitions: list[TopicPartition]) -> None:
        """Finish what runs of these, commit it, and let go."""
        mine = self._of(partitions)
        leases: list[Lease] = [lease for one in mine for lease in one.in_hand]
        if leases and not self._closed:
            deadline = self._clock.monotonic() + self._config.options.drain_timeout
            self._on_revoke(leases, deadline)
        self._commit_now(mine)
        self._forget(consumer, mine, partitions)

    def _taken(self, consumer: Any, partitions: list[TopicPartition]) -> None:
        """They are somebody else's already: nothing is committed."""
        self._forget(consumer, self._of(partitions), partitions)

    def _of(self, partitions: list[TopicPartition]) -> list[Partition]:
        keys = [(one.topic, one.partition) for one in partitions]
        return [self._partitions[key] for key in keys if key in self._partitions]

    def _forget(
        self, consumer: Any, mine: list[Partition], partitions: list[TopicPartition]
    ) -> None:
        for one in mine:
            self._lost += one.lose()
            del self._partitions[one.topic, one.number]
        if self._incremental:
            consumer.incremental_unassign(partitions)
        else:
            consumer.unassign()

    # -- trouble -------------------------------------------------------------------------------

    def _heard(self, error: Any) -> None:
        if error.code() in (KafkaError._ALL_BROKERS_DOWN, KafkaError._AUTHENTICATION):
            self._cut_off = str(error)

    def _hear_of(self, record: Any, error: Any) -> None:
        code = error.code()
        if code in (KafkaError._UNKNOWN_TOPIC, KafkaError.UNKNOWN_TOPIC_OR_PART):
            if record.topic() in self._asks.topics:
                text = f"topic {record.topic()!r} is gone: {error}"
                self._error = ConfigurationError(text)
        elif code == KafkaError._AUTO_OFFSET_RESET:
            self._error = self._positions.out_of_range(record)
        else:
            log.warning("group %s: %s", self._asks.group, error)

    def _raise_if_cut_off(self, now: float) -> None:
        if not self._cut_off:
            return
        if now >= self._look_again:
            self._look_again = now + RETRY
            try:
                self._consumer.list_topics(timeout=0.5)
            except KafkaException as error:
                self._cut_off = str(error)
            else:
                self._cut_off = ""
                return
        text = f"{self._config}: {self._cut_off}; it is tried again"
        raise ConnectionFailed(text)


def _early(message: Message, now: float) -> float:
    """Seconds until it may be handled."""
    text = header(message, NOT_BEFORE)
    try:
        early = 0.0 if text is None else float(text) - now
    except ValueError:
        return 0.0  # forged: the core says so
    return early if 0.0 < early <= LONGEST else 0.0
