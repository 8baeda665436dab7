"""B10: what one slow key does to the others, with messages that come at a fixed rate."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

from benchmarks.harness import Bench, Counts, Floor, Meter, Result, Sample, scenario
from benchmarks.peers import static_hash
from benchmarks.workload import HEAD, broker, count, messages_of, ours, until_settled
from reliable_mq.message import Topic

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.workload import Running
    from reliable_mq.message import Message

THREADS, KEYS, SLOW = 16, 1_000, 0


@scenario("B10")
def slow_key(bench: Bench) -> Result:
    """1 key of 1,000 takes 500 ms, the others 1 ms, at 4,000 messages/s: their p99, milliseconds.

    Latency counts from when a message was due to be published, on a fixed schedule, to the end of
    its handler. Limit: the same run with no slow key; ratio: ours / limit. Peer: a hashed pool with
    the slow key, and without it.
    """
    each = 8 if not bench.quick else 1
    keys_ = KEYS if not bench.quick else 60
    keys = [key for key in range(keys_) for _ in range(each)]
    random.Random(3).shuffle(keys)
    pause, slow = (0.001, 0.5) if not bench.quick else (0.0002, 0.02)
    even = messages_of(keys, sleeps=pause)
    uneven = messages_of(keys, sleeps=[slow if key == SLOW else pause for key in keys])
    series = bench.interleave(
        {
            "ours": lambda: open_loop(uneven, ours(THREADS)),
            "limit": lambda: open_loop(even, ours(THREADS)),
            "hashed pool": lambda: open_loop(uneven, static_hash(THREADS)),
            "hashed pool, no slow key": lambda: open_loop(even, static_hash(THREADS)),
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
    transport = broker()
    publisher, everybody = transport.publisher(), Topic()
    ended: list[tuple[bytes, float]] = []
    with Meter() as meter, running(transport, _handler(ended)):
        began = time.perf_counter() + 0.01
        for at, message in enumerate(messages):
            late = time.perf_counter() - (began + at / a_second)
            if late < 0:
                time.sleep(-late)
            publisher.submit(message, everybody)
        until_settled(transport)
    due = {message.body: began + at / a_second for at, message in enumerate(messages)}
    latencies = sorted(
        (when - due[body]) * 1e3 for body, when in ended if HEAD.unpack_from(body)[0] != SLOW
    )
    counts: Counts = count(len(messages), [body for body, _ in ended])
    found = {f"p{one:g}": _percentile(latencies, one) for one in (50, 99, 99.9)}
    return Sample(found["p99"], meter.cpu / len(messages) * 1e6, counts, found)


def _handler(ended: list[tuple[bytes, float]]) -> Callable[[bytes], None]:
    def handle(body: bytes) -> None:
        time.sleep(HEAD.unpack_from(body)[2])
        ended.append((body, time.perf_counter()))

    return handle


def _percentile(ordered: Sequence[float], percent: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else 0.0
