"""What the benchmarks on Kafka share: the broker, topics of their own, and what lies in them.

One node, started with the first of them, which lives until Python ends; RELIABLE_MQ_KAFKA_URL names
another one. A topic keeps what it has: it is filled once, and each run reads it as a new group.
"""

from __future__ import annotations

import time
from contextlib import closing, contextmanager
from functools import cache
from itertools import count as counter
from statistics import median
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import uuid4

import msgspec
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from benchmarks.harness import Counts
from benchmarks.kafka_raw import consume_all, consumer_of, plain_loop, publish
from benchmarks.workload import count, messages_of, round_robin
from reliable_mq.adapters.kafka.wire import headers_of
from reliable_mq.testing.brokers import KafkaProcess, choose, provide_kafka
from reliable_mq.testing.brokers.kafka_jars import is_installed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from benchmarks.harness import Series
    from reliable_mq.message import Message

KEYS, PARTITIONS = 100, 6
#: Tests give a broker less than this, and no second compiler.
JVM = ("-Xms256m", "-Xmx1g", "-XX:+UseG1GC")
#: Bytes of a file of a partition's log; tests have small ones.
SEGMENT = 128 * 1024 * 1024
ASKING = 10.0


class Place(msgspec.Struct, frozen=True):
    """A topic of its own, and where it is."""

    url: str
    topic: str

    @property
    def hosts(self) -> str:
        """The broker as librdkafka takes it."""
        return urlsplit(self.url).netloc

    def with_options(self, options: str) -> str:
        """The URL with options of ours."""
        return f"{self.url}{'&' if '?' in self.url else '?'}{options}"


@cache
def url() -> str:
    """Where the broker is; started, and used once, by the first call."""
    if choose("kafka", is_installed) == "process":
        broker: Any = KafkaProcess(jvm=JVM, settings={"log.segment.bytes": str(SEGMENT)})
    else:
        broker = provide_kafka()
    broker.start()
    _kept.append(broker)
    _warm_up(broker.url)
    return broker.url


_kept: list[Any] = []
_numbers = counter(1)


@contextmanager
def fresh_topic(messages: Sequence[Message] = ()) -> Iterator[Place]:
    """A topic with these messages, as ours writes them; it is deleted behind, with all of ours."""
    with _made(url()) as place:
        fill(place, messages)
        yield place


def fill(place: Place, messages: Sequence[Message]) -> None:
    """Put these into the topic."""
    publish(
        place.hosts,
        place.topic,
        [(one.key, one.body or b"", as_ours_writes(one)) for one in messages],
    )


def as_ours_writes(message: Message) -> list[tuple[str, Any]]:
    """The headers of the record that the adapter makes of it."""
    return list(headers_of(message))


def new_group() -> str:
    """A group that nobody has used."""
    return f"bench-{uuid4().hex[:12]}"


def stored(place: Place, sent: int) -> Counts:
    """What went wrong with these messages: reads all that is in the topic."""
    return count(sent, consume_all(place.hosts, place.topic))


def left(place: Place, group: str) -> int:
    """Messages that a commit of the group does not cover."""
    with closing(consumer_of(place.hosts, group)) as consumer:
        partitions = [TopicPartition(place.topic, number) for number in range(PARTITIONS)]
        open_ = 0
        for one in consumer.committed(partitions, timeout=ASKING):
            low, high = consumer.get_watermark_offsets(one, timeout=ASKING, cached=False)
            open_ += high - max(low, one.offset)
        return open_


def by_rounds(series: Mapping[str, Series], one: str, other: str) -> float:
    """The median of the ratios of each round: what changed between rounds does not show in it."""
    pairs = zip(series[one].samples, series[other].samples, strict=True)
    return round(median(mine.value / theirs.value for mine, theirs in pairs), 3)


@contextmanager
def _made(url: str) -> Iterator[Place]:
    place = Place(url, f"bench-{uuid4().hex[:8]}-{next(_numbers)}")
    admin = AdminClient({"bootstrap.servers": place.hosts, "log_level": 3})
    new = NewTopic(place.topic, PARTITIONS, 1)
    for made in admin.create_topics([new], operation_timeout=ASKING).values():
        made.result(ASKING)
    while not _is_led(admin, place.topic):
        time.sleep(0.01)
    try:
        yield place
    finally:
        topics = admin.list_topics(timeout=ASKING).topics
        names = [one for one in topics if one == place.topic or one.startswith(f"{place.topic}.")]
        for deleted in admin.delete_topics(names, operation_timeout=ASKING).values():
            deleted.result(ASKING)


def _is_led(admin: Any, topic: str) -> bool:
    found = admin.list_topics(topic, timeout=ASKING).topics[topic].partitions
    return len(found) == PARTITIONS and all(one.leader >= 0 for one in found.values())


def _warm_up(url: str) -> None:
    """The first group of a broker makes it create a topic of its own; the JVM compiles."""
    messages = messages_of(round_robin(20_000, KEYS))
    with _made(url) as place:
        fill(place, messages)
        seen: list[bytes] = []
        plain_loop(place.hosts, place.topic, new_group(), seen.append, lambda: len(seen) >= 20_000)
