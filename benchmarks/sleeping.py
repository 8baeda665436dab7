"""B7 and B12: threads whose handlers wait for something, in key order."""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING
from zlib import crc32

from benchmarks.harness import Bench, Floor, Meter, Result, Sample, scenario
from benchmarks.peers import static_hash
from benchmarks.workload import HEAD, drawn, duration, messages_of, ours, sleep

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reliable_mq.message import Message

THREADS = 16


@scenario("B7", 1, 2, 5, 10, 20, 100, 1_000, 10_000)
def parallel_consumer(bench: Bench, case: int) -> Result:
    """10,000 messages whose handlers sleep 0 to 5 ms, 16 threads, so many keys; seconds.

    The workload of Confluent's Parallel Consumer README, which reports 2.06 to 2.24 s from 20 keys
    on with 16 threads (other hardware). Limit: the sum of the sleeps / 16, or the longest key;
    ratio: limit / ours. Peers: a hashed pool of 16 threads; 16 threads that take the sleeps from
    one queue, with no order, broker or ack; one loop after the other (computed).
    With less than 20 keys there is nothing to win and each run takes long: one run of ours, and the
    hashed pool computed, at its best.
    """
    draw = random.Random(1)
    longest = 0.0005 if bench.quick else 0.005
    sleeps = [draw.uniform(0.0, longest) for _ in range(bench.size(10_000, 48))]
    keys = drawn(len(sleeps), case)
    messages = messages_of(keys, sleeps=sleeps)
    contestants = {"ours": duration(messages, sleep, ours(THREADS))}
    computed = {"plain loop (computed)": sum(sleeps)}
    many = case >= 20
    if many:
        contestants["hashed pool"] = duration(messages, sleep, static_hash(THREADS))
        contestants["threads alone"] = lambda: threads_alone(sleeps)
    else:
        computed["hashed pool (computed)"] = hashed_at_best(messages)
    series = bench.interleave(contestants, at_most=None if many else 1)
    limit = at_best(keys, sleeps)
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


@scenario("B12")
def hot_key(bench: Bench) -> Result:
    """One key has 10 % of 8,000 messages of 2.5 ms, 1,000 keys the rest; 16 threads; seconds.

    Limit: max(all / 16, all of the hot key), here the hot key; ratio: limit / ours. Peers: a hashed
    pool, whose hot thread has other keys, too; a thread that only sleeps for the hot key.
    """
    total = bench.size(8_000, 60)
    seconds = 0.0002 if bench.quick else 0.0025
    keys = [key + 1 for key in drawn(total, 1_000)]
    draw = random.Random(2)
    for at in draw.sample(range(total), total // 10):
        keys[at] = 0
    messages = messages_of(keys, sleeps=seconds)
    series = bench.interleave(
        {
            "ours": duration(messages, sleep, ours(THREADS)),
            "hashed pool": duration(messages, sleep, static_hash(THREADS)),
            "hot key alone": lambda: threads_alone([seconds] * (total // 10), threads=1),
        }
    )
    limit = at_best(keys, [seconds] * total)
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


def at_best(keys: Sequence[int], sleeps: Sequence[float]) -> float:
    """Seconds below which no key order can be: all threads busy, or the longest key."""
    by_key: defaultdict[int, float] = defaultdict(float)
    for key, seconds in zip(keys, sleeps, strict=True):
        by_key[key] += seconds
    return max(sum(sleeps) / THREADS, *by_key.values(), 0.0)


def hashed_at_best(messages: Sequence[Message]) -> float:
    """What the busiest thread of a hashed pool sleeps."""
    by_thread: defaultdict[int, float] = defaultdict(float)
    for message in messages:
        seconds = HEAD.unpack_from(message.body or b"")[2]
        by_thread[crc32(message.key or b"") % THREADS] += seconds
    return max(by_thread.values())


def threads_alone(sleeps: Sequence[float], *, threads: int = THREADS) -> Sample:
    """The same sleeps on as many threads from one queue: what the machine's timers allow."""
    queue: SimpleQueue[float] = SimpleQueue()
    for seconds in sleeps:
        queue.put(seconds)

    def work() -> None:
        while True:
            try:
                time.sleep(queue.get_nowait())
            except Empty:
                return

    running = [threading.Thread(target=work) for _ in range(threads)]
    with Meter() as meter:
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
    return meter.took(len(sleeps))
