"""B6: consuming a topic with manual commits, by a handler that does nothing."""

from __future__ import annotations

from benchmarks import kafka_consume_peers as peers
from benchmarks.harness import Bench, Floor, Result, scenario
from benchmarks.kafka import KEYS, by_rounds, fresh_topic
from benchmarks.kafka_running import ours, plain_loop, plain_loop_at_defaults, rate
from benchmarks.workload import messages_of, note, round_robin

THREADS = 16


@scenario("B6")
def consume(bench: Bench) -> Result:
    """100-byte messages of 100 keys from a full topic of 6 partitions, as a new group; messages/s.

    From the first message handled to the last; afterwards all has to be committed. Ours: the whole
    consumer, 16 threads, key order. Limit: `consume(500)`, all fields of each record read, the
    handler called inline, a commit each second, librdkafka as it is by default; `tuned` is the same
    loop with fetch.queue.backoff.ms=10, as ours has it, and hardly ever waits. aiokafka: as the
    limit. FastStream, which commits each, and pyrallel-consumer get fewer messages, of topics of
    their own.
    """
    messages = messages_of(round_robin(bench.size(200_000, 600), KEYS))
    some = messages[: bench.size(20_000, 600)]
    few = messages[: bench.size(3_000, 200)]
    here, missing = peers.installed("aiokafka", "faststream", "pyrallel_consumer")
    with fresh_topic(messages) as place, fresh_topic(some) as smaller, fresh_topic(few) as smallest:
        runs = {
            "ours": rate(place, len(messages), note, ours(THREADS)),
            "limit": rate(place, len(messages), note, plain_loop_at_defaults),
            "limit, tuned": rate(place, len(messages), note, plain_loop),
        }
        parts = {peers.faststream: (smallest, few), peers.pyrallel_consumer: (smaller, some)}
        for name, peer in here.items():
            topic, part = parts.get(peer, (place, messages))
            runs[name] = rate(topic, len(part), note, peer)
        series = bench.interleave(runs)
    value, limit = series["ours"].value, series["limit"].value
    return Result(
        "msg/s",
        value,
        limit,
        value / limit,
        Floor("ratio", ">=", 0.5),
        series,
        cpu_us=series["ours"].cpu_us,
        detail={
            "ratio_by_rounds": by_rounds(series, "ours", "limit"),
            "tuned": round(series["limit, tuned"].value),
            "ratio_tuned": round(value / series["limit, tuned"].value, 3),
            "limit_cpu_us": round(series["limit"].cpu_us, 1),
            "not_installed": missing,
        },
    )
