"""What confluent-kafka alone can do, written by hand: the limits, and what fills and reads topics.

Each runs on the thread that calls, and nothing else: no retry, no dead letter, no lane, no watch.
"""

from __future__ import annotations

import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import confluent_kafka
from confluent_kafka import TopicPartition

from benchmarks.harness import Meter
from benchmarks.workload import STUCK_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    #: Key, body and headers.
    Record = tuple[bytes | None, bytes, Sequence[tuple[str, Any]]]

__all__ = ["consume_all", "consumer_of", "plain_loop", "producer_settings", "publish"]

#: Records of one call, and the seconds that it waits for as many.
FETCH, PATIENCE = 500, 0.01
COMMIT_EVERY = 1.0
#: librdkafka does not fetch for a second once it has 100,000 records; whoever takes them in less
#: has to wait. These are for who is as fast as that.
SOON: dict[str, Any] = {"fetch.queue.backoff.ms": 10}


def producer_settings(hosts: str, linger: float = 5) -> dict[str, Any]:
    """Idempotent, all replicas, keys placed as ours places them."""
    return {
        "bootstrap.servers": hosts,
        "enable.idempotence": True,
        "acks": "all",
        "linger.ms": linger,
        "partitioner": "murmur2_random",
        "log_level": 3,
    }


def consumer_of(hosts: str, group: str, settings: dict[str, Any] = SOON) -> Any:
    """A Consumer that commits nothing by itself."""
    return confluent_kafka.Consumer(
        {
            "bootstrap.servers": hosts,
            "group.id": group,
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "log_level": 3,
        }
        | settings
    )


def publish(hosts: str, topic: str, records: Iterable[Record], linger: float = 5) -> Meter:
    """`produce` with a shared callback, `poll(0)` after each, `flush`; all but the first."""
    producer = confluent_kafka.Producer(producer_settings(hosts, linger))
    produce, poll = producer.produce, producer.poll
    stored = 0

    def reported(error: Any, _record: Any) -> None:
        nonlocal stored
        assert error is None, error
        stored += 1

    meter, sent = Meter(), 0
    for key, body, headers in records:
        while True:
            try:
                produce(topic, body, key, on_delivery=reported, headers=headers)
            except BufferError:
                poll(0.01)
            else:
                break
        poll(0)
        sent += 1
        if sent == 1:
            producer.flush()
            meter.__enter__()
    producer.flush()
    if sent:
        meter.__exit__(None, None, None)
    assert stored == sent
    return meter


def plain_loop(
    hosts: str,
    topic: str,
    group: str,
    handler: Callable[[bytes], object],
    over: Callable[[], bool],
    *,
    settings: dict[str, Any] = SOON,
) -> None:
    """`consume` many, read all fields of each, handle it; commit each second, and at the end."""
    with closing(consumer_of(hosts, group, settings)) as consumer:
        consumer.subscribe([topic])
        moved = committed = time.monotonic()
        while not over():
            records = consumer.consume(FETCH, PATIENCE)
            for one in records:
                assert one.error() is None, one.error()
                body = one.value()
                one.key(), one.headers(), one.topic(), one.partition(), one.offset()
                handler(body)
            now = time.monotonic()
            if records:
                moved = now
            if now - moved > STUCK_SECONDS:
                return  # the counters tell what is missing
            if now - committed > COMMIT_EVERY:
                committed = now
                consumer.commit(asynchronous=True)
        consumer.commit(asynchronous=False)


def consume_all(hosts: str, topic: str) -> list[bytes]:
    """The bodies of all that is in a topic now, each partition in its order."""
    bodies: list[bytes] = []
    with closing(consumer_of(hosts, "nobody")) as consumer:
        numbers = consumer.list_topics(topic, timeout=STUCK_SECONDS).topics[topic].partitions
        partitions = [TopicPartition(topic, number, 0) for number in numbers]
        total = sum(consumer.get_watermark_offsets(one, cached=False)[1] for one in partitions)
        consumer.assign(partitions)
        end = time.monotonic() + STUCK_SECONDS
        while len(bodies) < total and time.monotonic() < end:
            for one in consumer.consume(FETCH, PATIENCE):
                assert one.error() is None, one.error()
                bodies.append(one.value())
                end = time.monotonic() + STUCK_SECONDS
    return bodies
