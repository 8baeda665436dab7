"""LANES and KEYS: what the consume path costs when the handler costs nothing."""

from __future__ import annotations

from benchmarks.harness import Bench, Floor, Result, Sample, scenario
from benchmarks.peers import plain_loop, plain_loop_async, static_hash, task_per_message
from benchmarks.workload import messages_of, note, note_async, ours, rate, round_robin

#: Threads of a `def` consumer, coroutines of an `async def` one.
THREADS, COROUTINES = 16, 64


@scenario("LANES", "def")
def lanes_def(bench: Bench, case: str) -> Result:
    """No-op `def` handler, key order, 100 keys: poll, lane, handler, ack of the whole SDK.

    Limit: one thread that polls, calls the handler and acks. Peer: a pool of as many threads, keys
    placed by their hash. All from a full memory broker, to the last ack.
    """
    messages = messages_of(round_robin(bench.size(200_000, 1_000), 100))
    series = bench.interleave(
        {
            "ours": rate(messages, note, ours(THREADS)),
            "limit": rate(messages, note, plain_loop),
            "hashed pool": rate(messages, note, static_hash(THREADS)),
        }
    )
    value, limit = series["ours"].value, series["limit"].value
    floor = Floor("ours", ">=", 250_000)
    return Result("msg/s", value, limit, value / limit, floor, series, cpu_us=series["ours"].cpu_us)


@scenario("LANES", "async")
def lanes_async(bench: Bench, case: str) -> Result:
    """No-op `async def` handler that never suspends, key order, 100 keys.

    Limit: one coroutine that polls, awaits the handler and acks. Peer: a task a message, with a
    lock for each key.
    """
    messages = messages_of(round_robin(bench.size(200_000, 1_000), 100))
    series = bench.interleave(
        {
            "ours": rate(messages, note_async, ours(COROUTINES)),
            "limit": rate(messages, note_async, plain_loop_async),
            "task a message": rate(messages, note_async, task_per_message),
        }
    )
    value, limit = series["ours"].value, series["limit"].value
    floor = Floor("ours", ">=", 150_000)
    return Result("msg/s", value, limit, value / limit, floor, series, cpu_us=series["ours"].cpu_us)


@scenario("KEYS")
def keys(bench: Bench) -> Result:
    """Does a message cost more when there are more keys? The same messages, 100 to 1,000,000 keys.

    Ours is the slowest of the counts, ratio the slowest cost a message over the cheapest. Up to
    1,000 keys several messages of a key are in hand together and run in one turn of their lane;
    from there on a lane is made for each message, so that `from_1000` (the same ratio, of those
    counts alone) shows what more keys cost by themselves. Limit: the plain loop over 1,000,000.
    """
    total = bench.size(1_000_000, 1_000)
    counts = (100, 1_000, 10_000, 100_000, 1_000_000) if not bench.quick else (10, 1_000)

    def run_of(number: int, running: object) -> Sample:
        messages = messages_of(round_robin(total, number), size=16)
        return rate(messages, note, running)()  # type: ignore[arg-type]

    contestants = {
        f"ours {number:,} keys": (lambda number=number: run_of(number, ours(THREADS)))
        for number in counts
    }
    contestants["limit"] = lambda: run_of(counts[-1], plain_loop)
    series = bench.interleave(contestants, at_most=3)
    rates = {number: series[f"ours {number:,} keys"].value for number in counts}
    slowest, fastest = min(rates.values()), max(rates.values())
    many = [value for number, value in rates.items() if number >= 1_000]
    return Result(
        "msg/s",
        slowest,
        series["limit"].value,
        fastest / slowest,
        None,
        series,
        cpu_us=max(one.cpu_us for name, one in series.items() if name != "limit"),
        detail={
            "msg_per_s": {str(number): round(value) for number, value in rates.items()},
            "from_1000": round(max(many) / min(many), 3),
        },
    )
