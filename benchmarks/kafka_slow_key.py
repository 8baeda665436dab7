"""B10K: what one slow key does to the others, with messages that come by Kafka at a fixed rate."""

from __future__ import annotations

import random
import threading
import time
from typing import TYPE_CHECKING

from benchmarks import slow_key
from benchmarks.harness import Bench, Counts, Floor, Meter, Result, Sample, scenario
from benchmarks.kafka import fresh_topic, left, new_group
from benchmarks.kafka_running import on_kafka, ours
from benchmarks.peers import static_hash
from benchmarks.workload import HEAD, STUCK_SECONDS, count, messages_of
from reliable_mq.adapters.kafka import KafkaTransport
from reliable_mq.message import Message, Topic
from reliable_mq.testing.brokers.base import until

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.kafka_running import Running

THREADS, KEYS, SLOW = slow_key.THREADS, slow_key.KEYS, slow_key.SLOW
#: The key of what is sent before the schedule begins, to know that the group has come together.
FIRST = 2**32 - 1


@scenario("B10K")
def slow_key_on_kafka(bench: Bench) -> Result:
    """B10 by a topic of 6 partitions: 1 key of 1,000 takes 500 ms, 4,000/s; others' p99 in ms.

    Latency counts from when a message was due to be published to the end of its handler;
    linger.ms=0. Limit: the same run with no slow key; ratio: ours / limit. Peer: a hashed pool on
    our transport with the slow key, and without it.
    """
    each = 8 if not bench.quick else 1
    keys_ = KEYS if not bench.quick else 60
    keys = [key for key in range(keys_) for _ in range(each)]
    random.Random(3).shuffle(keys)
    pause, slow = (0.001, 0.5) if not bench.quick else (0.0002, 0.02)
    even = messages_of(keys, sleeps=pause)
    uneven = messages_of(keys, sleeps=[slow if key == SLOW else pause for key in keys])
    hashed = on_kafka(static_hash(THREADS))
    series = bench.interleave(
        {
            "ours": lambda: open_loop(uneven, ours(THREADS)),
            "limit": lambda: open_loop(even, ours(THREADS)),
            "hashed pool": lambda: open_loop(uneven, hashed),
            "hashed pool, no slow key": lambda: open_loop(even, hashed),
        }
    )
    value, limit = series["ours"].value, series["limit"].value
    return Result(
        "ms",
        value,
        limit,
        value / limit,
        Floor("ratio", "<=", 1.2),
        series,
        cpu_us=series["ours"].cpu_us,
        detail={
            "p50": round(series["ours"].detail("p50"), 3),
            "p50_limit": round(series["limit"].detail("p50"), 3),
            "p99_9": round(series["ours"].detail("p99.9"), 3),
            "p99_9_limit": round(series["limit"].detail("p99.9"), 3),
        },
    )


def open_loop(messages: Sequence[Message], running: Running, *, a_second: float = 4_000) -> Sample:
    """Publish on schedule whatever the consumer does; the p99 of all keys but the slow one."""
    everybody, group, total = Topic(), new_group(), len(messages)
    ended: list[tuple[bytes, float]] = []
    with fresh_topic() as place:
        here = [_at(place.topic, one) for one in messages]
        publisher = KafkaTransport(place.with_options("linger.ms=0")).publisher()
        with running(place, group, slow_key._handler(ended), threading.Event()):
            first = HEAD.pack(FIRST, 0, 0.0)
            publisher.submit(Message("f" * 32, place.topic, b"first", first, (), 0.0), everybody)
            assert until(lambda: ended, STUCK_SECONDS)
            with Meter() as meter:
                began = time.perf_counter() + 0.01
                for at, message in enumerate(here):
                    late = time.perf_counter() - (began + at / a_second)
                    if late < 0:
                        time.sleep(-late)
                    publisher.submit(message, everybody)
                until(lambda: len(ended) > total, STUCK_SECONDS, every=0.002)
        assert not publisher.close(STUCK_SECONDS)
        again = left(place, group)
    due = {message.body: began + at / a_second for at, message in enumerate(messages)}
    runs = [one for one in ended if HEAD.unpack_from(one[0])[0] != FIRST]
    latencies = sorted(
        (when - due[body]) * 1e3 for body, when in runs if HEAD.unpack_from(body)[0] != SLOW
    )
    counts = count(total, [body for body, _ in runs])
    counts += Counts(duplicated=0 if counts.lost else again)
    found = {f"p{one:g}": slow_key._percentile(latencies, one) for one in (50, 99, 99.9)}
    return Sample(found["p99"], meter.cpu / total * 1e6, counts, found)


def _at(topic: str, message: Message) -> Message:
    return Message(message.id, topic, message.key, message.body, message.headers, 0.0)
