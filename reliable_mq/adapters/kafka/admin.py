"""What is asked and declared rarely: topics, groups, offsets."""

from __future__ import annotations

import threading
import time
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, Final, NamedTuple, ParamSpec, TypeVar

import confluent_kafka
from confluent_kafka import (
    ConsumerGroupTopicPartitions,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka import admin as kafka_admin

from reliable_mq.adapters.kafka.metadata import decode
from reliable_mq.adapters.kafka.position import MOVING
from reliable_mq.errors import ConfigurationError, ConnectionFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from reliable_mq.adapters.base import Start
    from reliable_mq.adapters.kafka.config import Config

__all__ = ["Admin", "Shape"]

P = ParamSpec("P")
T = TypeVar("T")

#: Seconds that each question may take.
ASKING: Final = 30.0
#: Seconds after which every broker has heard of a new topic.
SETTLING: Final = 2.0
NEVER: Final = -1
#: Seconds without an answer after which a question is asked again.
AGAIN: Final = 5.0
#: Nobody has answered, or nobody who knows: a broker that came back does not know its groups yet.
UNHEARD: Final = frozenset(
    {
        KafkaError._TIMED_OUT,
        KafkaError._TRANSPORT,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError.NOT_COORDINATOR,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
    }
)
Spec: Final[Any] = kafka_admin.OffsetSpec  # type: ignore[attr-defined]  # it is exported
ConfigResource: Final[Any] = kafka_admin.ConfigResource  # type: ignore[attr-defined]  # as well
EARLIEST: Final[Any] = Spec.earliest()
LATEST: Final[Any] = Spec.latest()


#: Nothing that waiting would change.
FORBIDDEN: Final = frozenset(
    {
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    }
)


def _translated(method: Callable[Concatenate[Admin, P], T]) -> Callable[Concatenate[Admin, P], T]:
    """Errors of the client become ours."""

    @wraps(method)
    def translated(admin: Admin, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(admin, *args, **kwargs)
        except (KafkaException, TimeoutError, FutureTimeout) as error:
            said = error.args[0] if error.args else "no answer in time"
            text = f"{admin.shown}: {method.__name__}: {said}"
            if isinstance(said, KafkaError) and said.code() in FORBIDDEN:
                raise ConfigurationError(text) from error
            admin.close()  # it may never reach a broker again (see `reach`); the next one asks anew
            raise ConnectionFailed(text) from error

    return translated


class Shape(NamedTuple):
    """Of a topic. `is_led`: each partition has a leader."""

    partitions: int
    replicas: int
    is_led: bool


class Admin:
    """Any thread. The client is made with the first question."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._gate = threading.Lock()
        self._nap = threading.Event()  # never set: something to wait on
        self._client: Any = None

    @property
    def shown(self) -> str:
        """Where it asks, without a secret."""
        return str(self._config)

    @property
    def client(self) -> Any:
        """Librdkafka's own."""
        with self._gate:
            if self._client is None:
                self._client = kafka_admin.AdminClient(self._config.admin())
            return self._client

    @_translated
    def shapes(self) -> Mapping[str, Shape]:
        """All topics: how many partitions each has, and on how many brokers a partition is."""
        found = self.client.list_topics(timeout=ASKING)
        return {
            name: Shape(
                len(one.partitions),
                min([len(part.replicas) for part in one.partitions.values()], default=0),
                all(part.leader >= 0 for part in one.partitions.values()),
            )
            for name, one in found.topics.items()
        }

    def topics(self) -> Mapping[str, int]:
        """All topics, with how many partitions each has."""
        return {name: shape.partitions for name, shape in self.shapes().items()}

    def missing(self, names: Iterable[str]) -> list[str]:
        """Those that are not there, nor a while later: brokers do not hear of one all at once."""
        end = time.monotonic() + SETTLING
        while True:
            there = self.shapes()
            missing = [name for name in names if name not in there]
            if not missing or time.monotonic() > end:
                return missing
            self._nap.wait(0.1)

    @_translated
    def brokers(self) -> int:
        """How many there are."""
        return len(self.client.list_topics(timeout=ASKING).brokers)

    @_translated
    def settings(self, names: Iterable[str]) -> Mapping[str, Mapping[str, str]]:
        """What these topics are configured with, defaults included."""
        asked = [ConfigResource(ConfigResource.Type.TOPIC, name) for name in names]
        if not asked:
            return {}
        end = time.monotonic() + SETTLING
        while True:
            answers = self.client.describe_configs(asked, request_timeout=ASKING)
            try:
                return {
                    resource.name: {key: one.value for key, one in answer.result(ASKING).items()}
                    for resource, answer in answers.items()
                }
            except KafkaException as error:
                if error.args[0].code() not in MOVING or time.monotonic() > end:
                    raise
            self._nap.wait(0.1)

    @_translated
    def create(self, new: Sequence[Any]) -> None:
        """Make these NewTopics, and wait until each is led; what is there by now stays as it is."""
        if not new:
            return
        self._insist(lambda: self._make(new), AGAIN, ASKING)
        names = {one.topic for one in new}
        end = time.monotonic() + ASKING
        while not all(
            shape is not None and shape.is_led for shape in map(self.shapes().get, names)
        ):
            if time.monotonic() > end:
                text = f"topics {', '.join(sorted(names))} were made and have no leader yet"
                raise ConnectionFailed(text)
            self._nap.wait(0.05)

    def _make(self, new: Sequence[Any]) -> None:
        for name, made in self.client.create_topics(new, request_timeout=AGAIN).items():
            try:
                made.result(2 * AGAIN)
            except KafkaException as error:
                code = error.args[0].code()
                if code in UNHEARD:
                    raise
                if code != KafkaError.TOPIC_ALREADY_EXISTS:
                    text = f"topic {name!r} cannot be made: {error}"
                    raise ConfigurationError(text) from error

    @_translated
    def topic_id(self, name: str, within: float = ASKING) -> str:
        """What tells this topic from another one of the same name; "" where brokers are too old."""
        again = min(1.0, within / 2)
        try:
            described = self._insist(
                lambda: self.describe([name], again)[name].result(2 * again), again, within
            )
        except KafkaException as error:
            if error.args[0].code() == KafkaError._UNSUPPORTED_FEATURE:
                return ""
            raise
        return str(described.topic_id)

    def _insist(self, ask: Callable[[], T], again: float, within: float) -> T:
        """Ask until somebody answers: librdkafka waits for the controller that it knew first."""
        end = time.monotonic() + within
        while True:
            try:
                return ask()
            except KafkaException as error:
                if error.args[0].code() not in UNHEARD or time.monotonic() + again > end:
                    raise
            with suppress(KafkaException):
                self.client.list_topics(timeout=again)  # who controls the cluster now
            self._nap.wait(0.05)

    def close(self) -> None:
        """Forget the client, which ends its threads; the next question makes another."""
        with self._gate:
            self._client = None

    def describe(self, names: Iterable[str], within: float = ASKING) -> Mapping[str, Any]:
        """A future of what each topic is. Returns at once."""
        asked = TopicCollection(list(names))
        return self.client.describe_topics(asked, request_timeout=within)  # type: ignore[no-any-return]

    @_translated
    def lags(self, topic: str, group: str) -> dict[int, int]:
        """Messages that the group has not finished, by partition."""
        committed = self.committed(topic, group)
        ends, begins = self.ends(topic), self.begins(topic)
        lags = {}
        for number, end in ends.items():
            offset, metadata = committed.get(number, (NEVER, ""))
            first = begins[number] if offset < 0 else offset
            done = [one for one in decode(first, metadata).done if one < end]
            lags[number] = max(0, end - first - len(done))
        return lags

    @_translated
    def remove_before(self, places: Sequence[TopicPartition]) -> None:
        """Remove the records in front of these offsets."""
        if places:
            for answer in self.client.delete_records(list(places)).values():
                answer.result(ASKING)

    @_translated
    def committed(self, topic: str, group: str) -> dict[int, tuple[int, str]]:
        """Offset and metadata of each partition."""
        end = time.monotonic() + ASKING
        answer = self._insist(
            lambda: self._ask_committed(topic, group, max(end - time.monotonic(), AGAIN)),
            AGAIN,
            ASKING,
        )
        return {one.partition: (one.offset, one.metadata or "") for one in answer}

    def _ask_committed(self, topic: str, group: str, within: float) -> list[TopicPartition]:
        # Not by the AdminClient: librdkafka's crashes the process when the broker answers that it
        # does not coordinate the group now (confluentinc/librdkafka#5040).
        consumer = confluent_kafka.Consumer(self._config.consumer(group))
        try:
            answer: list[TopicPartition] = consumer.committed(
                self._partitions(topic), timeout=within
            )
        finally:
            consumer.close()
        for one in answer:
            if one.error is not None:
                raise KafkaException(one.error)
        return answer

    def _partitions(self, topic: str) -> list[TopicPartition]:
        count = self.topics().get(topic)
        if count is None:
            text = f"topic {topic!r} is missing: declare it, mq.topic(…)"
            raise ConfigurationError(text)
        return [TopicPartition(topic, number) for number in range(count)]

    @_translated
    def begins(self, topic: str) -> dict[int, int]:
        """The first offset of each partition."""
        return self._offsets(topic, EARLIEST)

    @_translated
    def ends(self, topic: str) -> dict[int, int]:
        """The offset behind the last record of each partition."""
        return self._offsets(topic, LATEST)

    def _offsets(self, topic: str, which: Any) -> dict[int, int]:
        asked = dict.fromkeys(self._partitions(topic), which)
        end = time.monotonic() + ASKING
        while True:
            answers = self.client.list_offsets(asked, request_timeout=ASKING)
            try:
                return {one.partition: done.result(ASKING).offset for one, done in answers.items()}
            except KafkaException as error:
                if error.args[0].code() not in MOVING or time.monotonic() > end:
                    text = f"the offsets of {topic!r} cannot be had: {error}"
                    raise ConnectionFailed(text) from error
            self._nap.wait(0.05)

    @_translated
    def place(self, topic: str, group: str, start: Start) -> None:
        """Give a group that has no position there the one that it was declared with."""
        if any(offset >= 0 for offset, _ in self.committed(topic, group).values()):
            return
        offsets = self._starts(topic, start)
        places = [TopicPartition(topic, number, offset) for number, offset in offsets.items()]
        self.commit(group, places)

    @_translated
    def commit(self, group: str, places: list[TopicPartition]) -> None:
        """Commit these offsets for a group that nobody is a member of."""
        asked = [ConsumerGroupTopicPartitions(group, places)]
        answer = self.client.alter_consumer_group_offsets(asked)[group].result(ASKING)
        for one in answer.topic_partitions:
            if one.error is not None:
                raise KafkaException(one.error)

    def _starts(self, topic: str, start: Start) -> dict[int, int]:
        begins, ends = self.begins(topic), self.ends(topic)
        if start in (None, "earliest"):
            return begins
        if start == "latest":
            return ends
        if isinstance(start, int):
            return {number: max(begins[number], min(start, ends[number])) for number in ends}
        assert isinstance(start, float)  # noqa: S101 - the rest of Start
        found = self._offsets(topic, Spec.for_timestamp(int(start * 1000)))
        return {number: ends[number] if found[number] < 0 else found[number] for number in ends}
