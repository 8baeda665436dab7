"""What is asked and declared rarely: topics, groups, offsets."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, Final

from confluent_kafka import (
    ConsumerGroupTopicPartitions,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka import admin as kafka_admin

from reliable_mq.adapters.kafka.metadata import decode
from reliable_mq.errors import ConfigurationError, ConnectionFailed
from reliable_mq.message import dead_letter_topic

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from reliable_mq.adapters.base import Start, TopicSpec, Topology
    from reliable_mq.adapters.kafka.config import Config

__all__ = ["Admin"]

#: Seconds that each question may take.
ASKING: Final = 15.0
#: Bytes that a dead letter, or a retry copy, may have beyond the largest body.
ROOM: Final = 512 * 1024
NEVER: Final = -1
#: A partition has no leader for the moment, or our client does not know it yet.
MOVING: Final = frozenset(
    {
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
    }
)
Spec: Final[Any] = kafka_admin.OffsetSpec  # type: ignore[attr-defined]  # it is exported
NewTopic: Final[Any] = kafka_admin.NewTopic  # type: ignore[attr-defined]  # as well
EARLIEST: Final[Any] = Spec.earliest()
LATEST: Final[Any] = Spec.latest()


class Admin:
    """Any thread. The client is made with the first question."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._gate = threading.Lock()
        self._nap = threading.Event()  # never set: something to wait on
        self._client: Any = None

    @property
    def client(self) -> Any:
        """Librdkafka's own."""
        with self._gate:
            if self._client is None:
                self._client = kafka_admin.AdminClient(self._config.admin())
            return self._client

    def topics(self) -> Mapping[str, int]:
        """All topics, with how many partitions each has."""
        try:
            found = self.client.list_topics(timeout=ASKING)
        except KafkaException as error:
            text = f"{self._config}: no answer: {error}"
            raise ConnectionFailed(text) from error
        return {name: len(one.partitions) for name, one in found.topics.items()}

    def ensure(self, topology: Topology) -> None:
        """See Transport.ensure."""
        there = self.topics()
        wanted: dict[str, TopicSpec | None] = {}
        for topic in topology.topics:
            wanted[topic.name] = topic
            for group in topic.groups:
                wanted.setdefault(dead_letter_topic(topic.name, group.name), None)
        missing = [name for name in wanted if name not in there]
        if missing and topology.mode == "check":
            text = (
                "the broker does not have what is declared: topics "
                f"{', '.join(map(repr, missing))} are missing; topology='create' makes them"
            )
            raise ConfigurationError(text)
        self.make(missing)
        for topic in topology.topics:
            for group in topic.groups:
                if group.start is not None and topology.mode == "create":
                    self._place(topic.name, group.name, group.start)

    def make(self, names: Iterable[str], partitions: int | None = None) -> None:
        """Create these topics; those that are there by now stay as they are."""
        brokers = len(self.client.list_topics(timeout=ASKING).brokers)
        copies = min(3, brokers)
        settings = {"max.message.bytes": str(self._config.options.max_body + ROOM)}
        if copies >= 3:  # noqa: PLR2004 - so that one may be away
            settings["min.insync.replicas"] = "2"
        count = partitions or self._config.options.partitions
        new = [NewTopic(name, count, copies, config=settings) for name in names]
        if not new:
            return
        for name, made in self.client.create_topics(new, operation_timeout=ASKING).items():
            try:
                made.result(ASKING)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    text = f"topic {name!r} cannot be made: {error}"
                    raise ConfigurationError(text) from error
        self._wait_for({one.topic for one in new})

    def _wait_for(self, names: set[str]) -> None:
        """Until every broker's answer has these with a leader: creating is not yet being there."""
        end = time.monotonic() + ASKING
        while True:
            found = self.client.list_topics(timeout=ASKING).topics
            if all(
                name in found
                and found[name].partitions
                and all(one.leader >= 0 for one in found[name].partitions.values())
                for name in names
            ):
                return
            if time.monotonic() > end:
                text = f"topics {', '.join(sorted(names))} were made and have no leader yet"
                raise ConnectionFailed(text)
            self._nap.wait(0.05)

    def make_retry_topic(self, name: str) -> bool:
        """Make a retry topic, if its group is there, which its dead letter topic tells."""
        base, separator, _ = name.rpartition(".retry.")
        if not separator or f"{base}.dlq" not in self.topics():
            return False
        self.make([name])
        return True

    def topic_id(self, name: str) -> str:
        """What tells this topic from another one of the same name; "" where brokers are too old."""
        try:
            described = self.describe([name])[name].result(ASKING)
        except KafkaException as error:
            if error.args[0].code() == KafkaError._UNSUPPORTED_FEATURE:
                return ""
            raise
        return str(described.topic_id)

    def describe(self, names: Iterable[str]) -> Mapping[str, Any]:
        """A future of what each topic is. Returns at once."""
        asked = TopicCollection(list(names))
        return self.client.describe_topics(asked, request_timeout=ASKING)  # type: ignore[no-any-return]

    def lag(self, topic: str, group: str) -> int:
        """Messages that the group has not finished."""
        committed = self.committed(topic, group)
        ends, begins = self._ends(topic, LATEST), self._ends(topic, EARLIEST)
        left = 0
        for number, end in ends.items():
            offset, metadata = committed.get(number, (NEVER, ""))
            first = begins[number] if offset < 0 else offset
            left += end - first - len([one for one in decode(first, metadata).done if one < end])
        return left

    def committed(self, topic: str, group: str) -> dict[int, tuple[int, str]]:
        """Offset and metadata of each partition."""
        partitions = [TopicPartition(topic, number) for number in range(self.topics()[topic])]
        asked = [ConsumerGroupTopicPartitions(group, partitions)]
        answer = self.client.list_consumer_group_offsets(asked)[group].result(ASKING)
        return {one.partition: (one.offset, one.metadata or "") for one in answer.topic_partitions}

    def _ends(self, topic: str, which: Any) -> dict[int, int]:
        asked = {TopicPartition(topic, number): which for number in range(self.topics()[topic])}
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

    def _place(self, topic: str, group: str, start: Start) -> None:
        """Give a group that has no position there the one that it was declared with."""
        if any(offset >= 0 for offset, _ in self.committed(topic, group).values()):
            return
        offsets = self._starts(topic, start)
        places = [TopicPartition(topic, number, offset) for number, offset in offsets.items()]
        asked = [ConsumerGroupTopicPartitions(group, places)]
        self.client.alter_consumer_group_offsets(asked)[group].result(ASKING)

    def _starts(self, topic: str, start: Start) -> dict[int, int]:
        begins, ends = self._ends(topic, EARLIEST), self._ends(topic, LATEST)
        if start in (None, "earliest"):
            return begins
        if start == "latest":
            return ends
        if isinstance(start, int):
            return {number: max(begins[number], min(start, ends[number])) for number in ends}
        assert isinstance(start, float)  # noqa: S101 - the rest of Start
        found = self._ends(topic, Spec.for_timestamp(int(start * 1000)))
        return {number: ends[number] if found[number] < 0 else found[number] for number in ends}
