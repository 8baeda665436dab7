"""B7K, B8K, B9K and B12K: the handlers of B7, B8, B9 and B12, and messages from a topic of Kafka.

What is asked of them is the same as in memory: commits, fetches and their threads come on top.
"""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from benchmarks import asyncio_keys, sleeping
from benchmarks import kafka_consume_peers as others
from benchmarks.harness import Bench, Floor, Result, scenario
from benchmarks.kafka import by_rounds, fresh_topic
from benchmarks.kafka_running import duration, on_kafka, ours, plain_loop, rate
from benchmarks.peers import static_hash, task_per_message
from benchmarks.workload import HEAD, drawn, messages_of, round_robin, sleep

if TYPE_CHECKING:
    from collections.abc import Callable

THREADS = sleeping.THREADS
#: What takes about 10 us to parse.
DOCUMENT = json.dumps(
    {
        "order": "0b0e6f6e-90a5-4b8f-9c0b-6a1f5d3f4a21",
        "customer": {"id": 48213, "name": "Ada Lovelace", "tier": "gold", "since": "2019-03-04"},
        "lines": [{"sku": f"SKU-{one:05d}", "count": one, "price": 19.99} for one in range(11)],
        "total": 299.85,
        "currency": "EUR",
        "paid": True,
    }
).encode()


@scenario("B7K", 1, 2, 5, 10, 20, 100, 1_000, 10_000)
def parallel_consumer(bench: Bench, case: int) -> Result:
    """B7 from a topic of 6 partitions: 10,000 messages that sleep 0 to 5 ms, 16 threads; seconds.

    Limit: the sum of the sleeps / 16, or the longest key; ratio: limit / ours. Peers: a hashed pool
    of 16 threads on our transport; 16 threads that take the sleeps from one queue. With less than
    20 keys one run of ours, and the hashed pool computed.
    """
    draw = random.Random(1)
    longest = 0.0005 if bench.quick else 0.005
    sleeps = [draw.uniform(0.0, longest) for _ in range(bench.size(10_000, 48))]
    keys = drawn(len(sleeps), case)
    messages = messages_of(keys, sleeps=sleeps)
    many, total = case >= 20, len(messages)
    computed = {"plain loop (computed)": sum(sleeps)}
    with fresh_topic(messages) as place:
        contestants = {"ours": duration(place, total, sleep, ours(THREADS))}
        if many:
            hashed = on_kafka(static_hash(THREADS))
            contestants["hashed pool"] = duration(place, total, sleep, hashed)
            contestants["threads alone"] = lambda: sleeping.threads_alone(sleeps)
        else:
            computed["hashed pool (computed)"] = sleeping.hashed_at_best(messages)
        series = bench.interleave(contestants, at_most=None if many else 1)
    limit = sleeping.at_best(keys, sleeps)
    value = series["ours"].value
    return Result(
        "s",
        value,
        limit,
        limit / value,
        Floor("ratio", ">=", 0.90) if many else None,
        series,
        cpu_us=series["ours"].cpu_us,
        computed=computed,
    )


@scenario("B8K", 100, 1_000)
def sleeping_coroutines(bench: Bench, case: int) -> Result:
    """B8 from a topic of 6 partitions: `async def` handlers that sleep 5 ms, concurrency = keys.

    Limit: keys / 5 ms; ratio: ours / limit. Peers: one coroutine a key that sleeps as often, with
    no broker; on our transport a task a message with a lock for each key; pyrallel-consumer.
    """
    total = bench.size(200 * case, 2 * case)
    messages = messages_of(round_robin(total, case))
    nap, alone, lead = asyncio_keys.nap, asyncio_keys.coroutines_alone, asyncio_keys.SECONDS
    here, missing = others.installed("pyrallel_consumer")
    few = messages[: bench.size(20_000, 2 * case)]
    with fresh_topic(messages) as place, fresh_topic(few) as smaller:
        runs = {
            "ours": rate(place, total, nap, ours(case), lead),
            "coroutines alone": lambda: alone(case, total // case),
            "task a message": rate(place, total, nap, on_kafka(task_per_message), lead),
        }
        for name, peer in here.items():
            runs[name] = rate(smaller, len(few), nap, peer, lead)
        series = bench.interleave(runs)
    value, limit = series["ours"].value, case / asyncio_keys.SECONDS
    return Result(
        "msg/s",
        value,
        limit,
        value / limit,
        Floor("ratio", ">=", asyncio_keys.FLOORS[case]),
        series,
        cpu_us=series["ours"].cpu_us,
        detail={
            "of_coroutines_alone": round(value / series["coroutines alone"].value, 3),
            "not_installed": missing,
        },
    )


@scenario("B9K")
def cheap(bench: Bench) -> Result:
    """A handler that parses JSON for about 10 us, 1,000 keys, 16 threads, key order; messages/s.

    Limit: one thread that consumes 500 at a time, calls the handler and commits each second. Peer:
    pyrallel-consumer.
    """
    made = messages_of(round_robin(bench.size(60_000, 1_000), 1_000), size=HEAD.size)
    messages = [replace(one, body=(one.body or b"") + DOCUMENT) for one in made]
    few = messages[: bench.size(10_000, 1_000)]
    here, missing = others.installed("pyrallel_consumer")
    with fresh_topic(messages) as place, fresh_topic(few) as smaller:
        runs = {
            "ours": rate(place, len(messages), parse, ours(THREADS)),
            "limit": rate(place, len(messages), parse, plain_loop),
        }
        for name, peer in here.items():
            runs[name] = rate(smaller, len(few), parse, peer)
        series = bench.interleave(runs)
    value, limit = series["ours"].value, series["limit"].value
    return Result(
        "msg/s",
        value,
        limit,
        value / limit,
        Floor("ratio", ">=", 0.6),
        series,
        cpu_us=series["ours"].cpu_us,
        detail={
            "ratio_by_rounds": by_rounds(series, "ours", "limit"),
            "limit_cpu_us": round(series["limit"].cpu_us, 1),
            "not_installed": missing,
        },
    )


@scenario("B12K")
def hot_key(bench: Bench) -> Result:
    """B12 from a topic of 6 partitions: one key has 10 % of 8,000 messages of 2.5 ms; seconds.

    Limit: max(all / 16, all of the hot key), here the hot key; ratio: limit / ours. Peers: a hashed
    pool on our transport; a thread that only sleeps for the hot key.
    """
    total = bench.size(8_000, 60)
    seconds = 0.0002 if bench.quick else 0.0025
    keys = [key + 1 for key in drawn(total, 1_000)]
    draw = random.Random(2)
    for at in draw.sample(range(total), total // 10):
        keys[at] = 0
    messages = messages_of(keys, sleeps=seconds)
    hot = [seconds] * (total // 10)
    hashed = on_kafka(static_hash(THREADS))
    with fresh_topic(messages) as place:
        series = bench.interleave(
            {
                "ours": duration(place, total, sleep, ours(THREADS), seconds),
                "hashed pool": duration(place, total, sleep, hashed, seconds),
                "hot key alone": lambda: sleeping.threads_alone(hot, threads=1),
            }
        )
    limit = sleeping.at_best(keys, [seconds] * total)
    value = series["ours"].value
    return Result(
        "s",
        value,
        limit,
        limit / value,
        Floor("ratio", ">=", 0.75),
        series,
        cpu_us=series["ours"].cpu_us,
    )


def parse(append: Callable[[bytes], object]) -> Callable[[bytes], Any]:
    """A `def` that only computes."""

    def handle(body: bytes) -> None:
        json.loads(body[HEAD.size :])
        append(body)

    return handle
