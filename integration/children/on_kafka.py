"""What the child programs do on Kafka: kill points around the client, and safeties that it has.

librdkafka sends and receives on threads of its own. The boundaries are where it is told something
and where it tells; a kill there hits these threads wherever they happen to be.

fence       an ack of a lost lease counts: what it says is committed in the name of the next one
deadline    a publish may wait for its report as long as it likes
acks        a message counts as stored when it was sent (acks=0)
commits     a commit says up to what was fetched, as enable.auto.commit does
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlencode

import confluent_kafka
from confluent_kafka import KafkaException, TopicPartition

from integration.children.removed import Around
from reliable_mq import ReliableMQError
from reliable_mq.adapters.kafka import KafkaTransport
from reliable_mq.adapters.kafka.names import retry_topic
from reliable_mq.adapters.kafka.partition import Partition
from reliable_mq.clock import SYSTEM_CLOCK

if TYPE_CHECKING:
    from collections.abc import Callable

    from integration.children.kit import Boundaries, Plan

#: Seconds: the shortest session that the brokers of the tests allow.
SHORTEST = 1.0
#: Seconds without a poll: longer, as a machine with much to do must not be taken for a dead one.
POLLS = 10.0


class OnKafka:
    """The broker of a plan."""

    def __init__(self, plan: Plan, boundaries: Boundaries) -> None:
        self._plan = plan
        Counted.boundaries = boundaries
        confluent_kafka.Producer = Producer  # type: ignore[misc]
        confluent_kafka.Consumer = Consumer  # type: ignore[misc]
        session = max(SHORTEST, plan.lease_timeout)
        options = {
            "session_timeout": session,
            "lease_timeout": max(POLLS, session + 1.0),
            "commit_interval": 0.1,
            "partitions": plan.partitions,
        }
        self._url = f"{plan.url}?{urlencode(options)}"
        #: For questions.
        self._operator = KafkaTransport(self._url)

    def transport(self, removed: str) -> Any:
        """What the app runs on."""
        transport: Any = KafkaTransport(self._url)
        if self._plan.fast_since:
            transport = Hasty(transport, self._url)
        Counted.removed = removed
        if removed == "commits":  # what it takes itself to have said, so that the answer is its own
            Partition.to_commit = fetched  # type: ignore[method-assign]
        without = {"deadline": Patient, "fence": Unfenced}
        return without[removed](transport) if removed in without else transport

    def seems_done(self, health: Any) -> bool:
        """Whether the group has nothing left, as far as the broker knows."""
        return not self.left()

    def left(self) -> int:
        """What the group has not finished, of its topic and of its retry topics."""
        topic, group = self._plan.topic, self._plan.group
        copies = retry_topic(topic, group, 0).removesuffix("0")
        try:
            found = self._operator._admin.topics()
            mine = [name for name in found if name == topic or name.startswith(copies)]
            return sum(self._operator.lag(name, group) for name in mine)
        except (ReliableMQError, KafkaException):
            return 1  # nobody knows

    def waiting_copies(self) -> list[str]:
        """Retry copies that are not due: none, as the members' clock is ahead."""
        return []


class Ahead:
    """The system's clocks, but the wall's is so far ahead that whatever waits is due."""

    monotonic = staticmethod(SYSTEM_CLOCK.monotonic)

    def now(self) -> float:
        """Epoch seconds."""
        return SYSTEM_CLOCK.now() + 1_000.0


class Hasty(Around):
    """Members whose clock is ahead of that of those who publish."""

    def __init__(self, inner: Any, url: str) -> None:
        super().__init__(inner)
        self._ahead = KafkaTransport(url, clock=Ahead())

    def subscribe(self, *arguments: Any) -> Any:
        """A subscription for which everything is due."""
        return self._ahead.subscribe(*arguments)


class Counted:
    """What both kinds of client have: where a child may die, and the safety that it is without."""

    boundaries: ClassVar[Any] = None
    removed: ClassVar[str] = ""

    def counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same, between two boundaries."""

        def between(*arguments: Any, **options: Any) -> Any:
            self.boundaries.cross(f"before {name}")
            answer = call(*arguments, **options)
            self.boundaries.cross(f"behind {name}")
            return answer

        return between


class Guessed:
    """A record that nobody confirmed, with an offset all the same: without one ours asks again."""

    def __init__(self, record: Any) -> None:
        self.partition = record.partition

    def offset(self) -> int:
        """The first that comes to mind."""
        return 0


class Producer(Counted, confluent_kafka.Producer):
    """Each message that it is given, and each report."""

    def __init__(self, config: dict[str, Any]) -> None:
        if self.removed == "acks":
            config = {
                **config,
                "enable.idempotence": False,
                "enable.gapless.guarantee": False,
                "acks": 0,
            }
        super().__init__(config)

    def produce(self, *arguments: Any, on_delivery: Any, **options: Any) -> None:
        """See confluent_kafka."""
        if self.removed == "acks":
            report = on_delivery
            on_delivery = lambda error, record: report(error, Guessed(record))  # noqa: E731
        options["on_delivery"] = self.counted("report", on_delivery)
        self.counted("produce", super().produce)(*arguments, **options)


class Consumer(Counted, confluent_kafka.Consumer):
    """Each message, each commit and its answer, each rebalance, and the end of a member."""

    member = False

    def __init__(self, config: dict[str, Any]) -> None:
        if "on_commit" in config:
            answered = self.counted("answer to a commit", config["on_commit"])
            config = {**config, "on_commit": answered}
        super().__init__(config)

    def subscribe(self, topics: list[str], **callbacks: Any) -> None:
        """See confluent_kafka."""
        self.member = True
        counted = {name: self.counted(name, call) for name, call in callbacks.items()}
        super().subscribe(topics, **counted)

    def poll(self, *arguments: Any) -> Any:
        """See confluent_kafka."""
        record = super().poll(*arguments)
        if record is not None:
            self.boundaries.cross("behind poll")
        return record

    def commit(self, *, offsets: list[TopicPartition], **options: Any) -> Any:
        """See confluent_kafka."""
        return self.counted("commit", super().commit)(offsets=offsets, **options)

    def close(self) -> None:
        """See confluent_kafka."""
        (self.counted("close", super().close) if self.member else super().close)()


def fetched(partition: Partition) -> TopicPartition:
    """What enable.auto.commit commits: up to where it has read, done or not."""
    return TopicPartition(partition.topic, partition.number, partition.fetched)


class Patient(Around):
    """Publishes without a deadline."""

    def publisher(self) -> Any:
        """A publisher that waits for ever."""
        return _PatientPublisher(self.inner.publisher())


class _PatientPublisher(Around):
    def submit(self, message: Any, to: Any, *, deadline: Any = None, **options: Any) -> Any:
        return self.inner.submit(message, to, **options)


class Unfenced(Around):
    """Lets the late ack of a lost lease settle what is somebody else's by now."""

    def subscribe(self, *arguments: Any) -> Any:
        """A subscription that acks whatever it is given."""
        return _UnfencedSubscription(self.inner.subscribe(*arguments))


class _UnfencedSubscription(Around):
    def ack(self, deliveries: Any) -> None:
        self.inner.ack(deliveries)
        late = [
            TopicPartition(one.message.topic, one.partition, one.position + 1)
            for one in deliveries
            if one.lease.lost
        ]
        end = SYSTEM_CLOCK.monotonic() + POLLS
        while late and not self._committed(late) and SYSTEM_CLOCK.monotonic() < end:
            self.inner.poll(0, 0.05)  # it has to be a member again

    def _committed(self, offsets: list[TopicPartition]) -> bool:
        """The broker asks who commits, and not whose it is."""
        try:
            answer = self.inner._consumer.commit(offsets=offsets, asynchronous=False)
        except KafkaException:
            return False
        return not any(one.error for one in answer)
