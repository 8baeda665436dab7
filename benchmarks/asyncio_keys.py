"""B8: coroutines whose handlers wait for something, in key order."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from benchmarks.harness import Bench, Floor, Meter, Result, Sample, scenario
from benchmarks.peers import task_per_message
from benchmarks.workload import messages_of, ours, rate, round_robin

if TYPE_CHECKING:
    from collections.abc import Callable

SECONDS = 0.005
#: Floor of the ratio, and of what a key runs one after the other.
FLOORS = {100: 0.80, 1_000: 0.60}


@scenario("B8", 100, 1_000)
def sleeping_coroutines(bench: Bench, case: int) -> Result:
    """`async def` handlers that sleep 5 ms, concurrency = keys, keys round robin; messages/s.

    Limit: keys / 5 ms, which an event loop cannot reach (timers are late by up to 1 ms); ratio:
    ours / limit. Peers: one coroutine a key that sleeps as often, with no broker; a task a message
    with a lock for each key. pyrallel-consumer 1.0.0 needs Kafka: 7,200/s with 100 keys and 4,700/s
    with 1,000 on librdkafka's mock broker, measured earlier, not in this run.
    """
    total = bench.size(200 * case, 2 * case)
    messages = messages_of(round_robin(total, case))
    series = bench.interleave(
        {
            "ours": rate(messages, nap, ours(case)),
            "coroutines alone": lambda: coroutines_alone(case, total // case),
            "task a message": rate(messages, nap, task_per_message),
        }
    )
    value, limit = series["ours"].value, case / SECONDS
    return Result(
        "msg/s",
        value,
        limit,
        value / limit,
        Floor("ratio", ">=", FLOORS[case]),
        series,
        cpu_us=series["ours"].cpu_us,
        detail={"of_coroutines_alone": round(value / series["coroutines alone"].value, 3)},
    )


def nap(append: Callable[[bytes], object]) -> Callable[[bytes], Any]:
    """An `async def` that waits 5 ms."""

    async def handle(body: bytes) -> None:
        await asyncio.sleep(SECONDS)
        append(body)

    return handle


def coroutines_alone(keys: int, each: int) -> Sample:
    """One task a key that sleeps so often: what an event loop allows here."""

    async def one() -> None:
        for _ in range(each):
            await asyncio.sleep(SECONDS)

    async def main() -> None:
        await asyncio.gather(*[one() for _ in range(keys)])

    with Meter() as meter:
        asyncio.run(main())
    return meter.rate(keys * each)
