"""What the benchmarks on RabbitMQ share: the broker, its queue, and what lies in it afterwards.

The broker is started with the first of them and lives until Python ends; RELIABLE_MQ_RABBITMQ_URL
names another one. Everybody uses the exchange and the quorum queue that ours declares.
"""

from __future__ import annotations

from contextlib import closing, contextmanager
from functools import cache
from statistics import median
from typing import TYPE_CHECKING, Any

import pika

from benchmarks.harness import Counts
from benchmarks.rabbitmq_raw import BlockingConnection, consume, publish
from benchmarks.workload import GROUP, TOPIC, count
from reliable_mq.adapters.base import GroupSpec, TopicSpec, Topology
from reliable_mq.adapters.rabbitmq import RabbitTransport
from reliable_mq.adapters.rabbitmq.properties import by_pika
from reliable_mq.adapters.rabbitmq.wire import properties_of
from reliable_mq.testing.brokers import provide_rabbitmq

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from benchmarks.harness import Series
    from reliable_mq.message import Message

QUEUE = f"{TOPIC}.{GROUP}"
KEYS = 100


@cache
def url() -> str:
    """Where the broker is; started by the first call."""
    broker = provide_rabbitmq()
    broker.start()
    if broker.controlled:
        # Of its 512 MB a quorum queue's log alone may take all: an alarm would stop everybody.
        broker.ctl("set_vm_memory_high_watermark", "absolute", "4GB")
    _kept.append(broker)
    return broker.url


_kept: list[Any] = []


@contextmanager
def fresh_queue() -> Iterator[str]:
    """The URL of a broker with an empty queue, which is deleted behind."""
    _delete()
    transport = RabbitTransport(url())
    transport.ensure(Topology((TopicSpec(TOPIC, groups=(GroupSpec(GROUP),)),)))
    try:
        yield url()
    finally:
        _delete()


def fill(messages: Sequence[Message]) -> None:
    """Put these into the queue, as ours writes them."""
    publish(
        url(), TOPIC, [(one.body or b"", by_pika(properties_of(one).encoded)) for one in messages]
    )


def stored(sent: int) -> Counts:
    """What went wrong with these messages: reads all that is in the queue."""
    return count(sent, consume(url(), QUEUE, sent).bodies)


def left() -> int:
    """Messages in the queue that nobody has in hand."""
    with closing(BlockingConnection(pika.URLParameters(url()))) as connection:
        answer = connection.channel().queue_declare(QUEUE, passive=True)
        return int(answer.method.message_count)


def by_rounds(series: Mapping[str, Series], one: str, other: str) -> float:
    """The median of the ratios of each round: what changed between rounds does not show in it."""
    pairs = zip(series[one].samples, series[other].samples, strict=True)
    return round(median(mine.value / theirs.value for mine, theirs in pairs), 3)


def _delete() -> None:
    with closing(BlockingConnection(pika.URLParameters(url()))) as connection:
        connection.channel().queue_delete(QUEUE)
