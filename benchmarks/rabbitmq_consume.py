"""B5: consuming from a quorum queue with manual acks, by a handler that does nothing."""

from __future__ import annotations

import asyncio
import time
from importlib.util import find_spec
from typing import TYPE_CHECKING

from benchmarks import rabbitmq_raw as raw
from benchmarks.harness import Bench, Counts, Floor, Meter, Result, Sample, scenario
from benchmarks.rabbitmq import KEYS, QUEUE, by_rounds, fill, fresh_queue, left
from benchmarks.workload import GROUP, STUCK_SECONDS, TOPIC, count, messages_of, note, round_robin
from reliable_mq import Limits, ReliableMQ

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from reliable_mq.message import Message

THREADS = 16


@scenario("B5")
def consume(bench: Bench) -> Result:
    """100-byte messages of 100 keys from a full quorum queue; a prefetch of 1,000 for everybody.

    From the first message handled to the last; afterwards nothing may be left in the queue. Ours:
    the whole consumer, 16 threads, key order. Limit: pika's SelectConnection, the handler called
    inline, one ack with `multiple` for every 100. Peers: the same with an ack each; aio-pika.
    """
    messages = messages_of(round_robin(bench.size(30_000, 600), KEYS))
    some = messages[: bench.size(10_000, 600)]
    runs = {
        "ours": lambda: _sample(messages, ours),
        "limit": lambda: _sample(messages, _inline(raw.TOGETHER)),
        "an ack each": lambda: _sample(some, _inline(1)),
    }
    missing = [] if find_spec("aio_pika") else ["aio-pika"]
    if not missing:
        runs["aio-pika"] = lambda: _sample(some, by_aio_pika)
    series = bench.interleave(runs)
    value, limit = series["ours"].value, series["limit"].value
    return Result(
        "msg/s",
        value,
        limit,
        value / limit,
        Floor("ratio", ">=", 0.70),
        series,
        cpu_us=series["ours"].cpu_us,
        detail={
            "ratio_by_rounds": by_rounds(series, "ours", "limit"),
            "limit_cpu_us": round(series["limit"].cpu_us, 1),
            "not_installed": missing,
        },
    )


def ours(url: str, total: int) -> tuple[Meter, list[bytes]]:
    """The whole SDK."""
    seen: list[bytes] = []
    began: list[Meter] = []

    def append(body: bytes) -> None:
        if not began:
            began.append(Meter().__enter__())
        seen.append(body)

    mq = ReliableMQ(url, limits=Limits(credit=raw.PREFETCH))
    mq.consumer(TOPIC, group=GROUP, concurrency=THREADS)(note(append))
    with mq:
        _until(lambda: len(seen) >= total, lambda: len(seen))
        began[0].__exit__(None, None, None)
    return began[0], seen


def by_aio_pika(url: str, total: int) -> tuple[Meter, list[bytes]]:
    """aio-pika: a callback for each message, and an ack each."""
    import aio_pika

    async def main() -> tuple[Meter, list[bytes]]:
        seen: list[bytes] = []
        meter, over = Meter(), asyncio.Event()
        connection = await aio_pika.connect(url)
        async with connection:
            channel = await connection.channel()
            await channel.set_qos(prefetch_count=raw.PREFETCH)

            acked = 0

            async def handle(message: aio_pika.abc.AbstractIncomingMessage) -> None:
                nonlocal acked
                if not seen:
                    meter.__enter__()
                seen.append(message.body)
                await message.ack()
                acked += 1
                if acked == total:
                    over.set()

            queue = await channel.get_queue(QUEUE)
            await queue.consume(handle)
            await over.wait()
            meter.__exit__(None, None, None)
            # The channel has the acks when it answers, the queue a moment later: with an ack a
            # message many are on their way between the two, and a closed channel forgets them.
            await channel.set_qos(prefetch_count=raw.PREFETCH)
            await asyncio.sleep(0.5)
        return meter, seen

    return asyncio.run(main())


def _inline(together: int) -> Callable[[str, int], tuple[Meter, list[bytes]]]:
    def run(url: str, total: int) -> tuple[Meter, list[bytes]]:
        seen: list[bytes] = []
        consumed = raw.consume(url, QUEUE, total, note(seen.append), together=together)
        return consumed.meter, seen

    return run


def _sample(
    messages: Sequence[Message], run: Callable[[str, int], tuple[Meter, list[bytes]]]
) -> Sample:
    total = len(messages)
    with fresh_queue() as url:
        fill(messages)
        meter, seen = run(url, total)
        again = left()  # not acked, whatever ran: it would come once more
    return meter.rate(total, count(total, seen) + Counts(duplicated=again))


def _until(over: Callable[[], bool], progress: Callable[[], int]) -> None:
    before, since = -1, time.monotonic()
    while not over():
        now = time.monotonic()
        if (moved := progress()) != before:
            before, since = moved, now
        elif now - since > STUCK_SECONDS:
            return  # the counters tell what is missing
        time.sleep(0.002)
