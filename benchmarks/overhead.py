"""B19, CPU: what the SDK adds to each publish and to each consumed message."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.harness import Bench, Counts, Floor, Meter, Result, Sample, scenario
from benchmarks.lanes import COROUTINES, THREADS
from benchmarks.peers import plain_loop, plain_loop_async
from benchmarks.workload import (
    TOPIC,
    broker,
    measure,
    messages_of,
    note,
    note_async,
    ours,
    round_robin,
)
from reliable_mq import ReliableMQ
from reliable_mq.message import Topic

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.harness import Series
    from benchmarks.workload import Running, Work
    from reliable_mq.adapters.memory import MemoryTransport
    from reliable_mq.message import Message


@scenario("B19-publish")
def publish(bench: Bench) -> Result:
    """CPU that `mq.submit(topic, bytes, key=str)` adds to the adapter's own submit; µs.

    Ours: the whole call less the limit. Limit: the memory publisher's submit of ready messages.
    Each is confirmed when the call returns, and both loops throw the Confirmation away.
    `handle_adds`: the same by `mq.topic(...).submit`. `message alone`: `mq.message`, sent nowhere.
    """
    total = bench.size(50_000, 500)
    messages = messages_of(round_robin(total, 1_000))
    keys = [(message.key or b"").decode() for message in messages]
    bodies = [message.body or b"" for message in messages]
    series = bench.interleave(
        {
            "ours, whole call": lambda: _by_submit(bodies, keys, declared=False),
            "ours, by a handle": lambda: _by_submit(bodies, keys, declared=True),
            "limit": lambda: _by_adapter(messages),
            "message alone": lambda: _message_alone(bodies, keys),
        }
    )
    whole, limit = series["ours, whole call"].value, series["limit"].value
    return Result(
        "µs",
        whole - limit,
        limit,
        whole / limit,
        Floor("ours", "<=", 3.0),
        series,
        cpu_us=whole,
        detail={"handle_adds": round(series["ours, by a handle"].value - limit, 2)},
    )


@scenario("B19-consume", "def-100-keys", "def-key-each", "async-100-keys", "async-key-each")
def consume(bench: Bench, case: str) -> Result:
    """CPU that the whole consumer adds to a poll and ack loop that calls the handler; µs a message.

    With 100 keys about ten messages of a key are in hand together and share a turn of their lane;
    with a key each, every message has a lane of its own, the most that it can cost.
    """
    total = bench.size(200_000, 1_000)
    messages = messages_of(round_robin(total, 100 if "100" in case else total))
    if case.startswith("def"):
        series = _cpu_of(bench, messages, note, ours(THREADS), plain_loop)
    else:
        series = _cpu_of(bench, messages, note_async, ours(COROUTINES), plain_loop_async)
    whole, limit = series["ours"].value, series["limit"].value
    return Result(
        "µs",
        whole - limit,
        limit,
        whole / limit,
        Floor("ours", "<=", 5.0),
        {"ours, whole": series["ours"], "limit": series["limit"]},
        cpu_us=whole,
    )


def _cpu_of(
    bench: Bench, messages: Sequence[Message], work: Work, mine: Running, bare: Running
) -> dict[str, Series]:
    def sample(running: Running) -> Sample:
        meter, counts = measure(messages, work, running)
        cpu = meter.cpu / len(messages) * 1e6
        return Sample(cpu, cpu, counts)

    return bench.interleave({"ours": lambda: sample(mine), "limit": lambda: sample(bare)})


def _by_submit(bodies: Sequence[bytes], keys: Sequence[str], *, declared: bool) -> Sample:
    transport = broker()
    mq = ReliableMQ(transport)
    handle = mq.topic(TOPIC)
    mq.start(consume=False)
    with Meter() as meter:
        if declared:
            submit_to = handle.submit
            for body, key in zip(bodies, keys, strict=True):
                submit_to(body, key=key)
        else:
            submit = mq.submit
            for body, key in zip(bodies, keys, strict=True):
                submit(TOPIC, body, key=key)
    assert not mq.stop()
    return _sample(meter, transport, len(bodies))


def _by_adapter(messages: Sequence[Message]) -> Sample:
    transport = broker()
    submit, everybody = transport.publisher().submit, Topic()
    with Meter() as meter:
        for message in messages:
            submit(message, everybody)
    return _sample(meter, transport, len(messages))


def _message_alone(bodies: Sequence[bytes], keys: Sequence[str]) -> Sample:
    message = ReliableMQ(broker()).message
    with Meter() as meter:
        for body, key in zip(bodies, keys, strict=True):
            message(TOPIC, body, key=key)
    return Sample(meter.cpu / len(bodies) * 1e6)


def _sample(meter: Meter, transport: MemoryTransport, total: int) -> Sample:
    lost = total - len(transport.broker.logs[TOPIC].messages)
    return Sample(meter.cpu / total * 1e6, counts=Counts(lost))
