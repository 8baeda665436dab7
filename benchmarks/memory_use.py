"""B19, memory: what a message costs while it is on its way, and whether anything stays behind."""

from __future__ import annotations

import gc
import resource
import sys
import threading
import time
import tracemalloc
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.harness import Bench, Counts, Floor, Result, Sample, scenario
from benchmarks.workload import (
    GROUP,
    TOPIC,
    broker,
    count,
    messages_of,
    note,
    ours,
    round_robin,
    until_settled,
)
from reliable_mq import Limits, ReliableMQ
from reliable_mq.message import Topic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

EVERYBODY = Topic()


@scenario("B19-memory", "consume", "publish")
def in_flight(bench: Bench, case: str) -> Result:
    """Bytes for each message in flight, the message of 100 bytes and the broker's own included.

    consume: 50,000 deliveries in hand behind one handler that does not return, a key each (a lane
    each: the most) or 100 keys. publish: 10,000 submits whose answers the broker keeps back.
    Counted by tracemalloc. Limit: the share of the message and of the memory broker that keeps it.
    """
    if case == "consume":
        total = bench.size(50_000, 200)
        series = bench.interleave(
            {
                "ours": lambda: _in_hand(total, total),
                "ours, 100 keys": lambda: _in_hand(total, 100),
            },
            at_most=1,
        )
        detail = {"with_100_keys": round(series["ours, 100 keys"].value)}
    else:
        total = bench.size(10_000, 200)
        series = bench.interleave({"ours": lambda: _unconfirmed(total)}, at_most=1)
        detail = {}
    value, message = series["ours"].value, series["ours"].detail("message")
    return Result(
        "bytes",
        value,
        message,
        value / message,
        Floor("ours", "<=", 1.5 * 1024),
        series,
        detail=detail,
    )


@scenario("B19-rss")
def flat(bench: Bench) -> Result:
    """Growth of the resident memory while 10,000 messages at a time are published and consumed; %.

    From a fifth of the run to its end: what grows before then are pools that fill once.
    """
    waves, each = bench.size(100, 5), bench.size(10_000, 200)
    series = bench.interleave({"ours": lambda: _waves(waves, each)}, at_most=1)
    value = series["ours"].value
    return Result(
        "%",
        value,
        None,
        None,
        Floor("ours", "<=", 2.0),
        series,
        detail={
            "messages": waves * each,
            "first_mib": round(series["ours"].detail("first"), 1),
            "last_mib": round(series["ours"].detail("last"), 1),
        },
    )


def _in_hand(total: int, keys: int) -> Sample:
    release = threading.Event()
    seen: list[bytes] = []
    numbers = round_robin(total, keys)
    mq = ReliableMQ(transport := broker(), limits=Limits(credit=total))

    @mq.consumer(TOPIC, group=GROUP)
    def handle(body: bytes) -> None:
        release.wait()
        seen.append(body)

    with _traced() as traced:
        publisher = transport.publisher()
        for message in messages_of(numbers):
            publisher.submit(message, EVERYBODY)
        message_bytes = traced()
        with mq:
            _until_in_hand(mq, total)
            whole = traced()
            release.set()
            until_settled(transport)
    return Sample(
        whole / total, counts=count(total, seen), detail={"message": message_bytes / total}
    )


def _unconfirmed(total: int) -> Sample:
    transport = broker()
    mq = ReliableMQ(transport, limits=Limits(window=total))
    bodies = [message.body for message in messages_of(round_robin(total, total))]
    with mq:
        transport.broker.faults.hold_answers()
        with _traced() as traced:
            kept = [mq.submit(TOPIC, bytes(body or b""), key=at) for at, body in enumerate(bodies)]
            whole = traced()
        transport.broker.faults.heal()
        lost = sum(one.result(5.0) is None for one in kept)
    message = _stored_alone(total)
    return Sample(whole / total, counts=Counts(lost), detail={"message": message})


def _stored_alone(total: int) -> float:
    transport = broker()
    publisher = transport.publisher()
    with _traced() as traced:
        for message in messages_of(round_robin(total, total)):
            publisher.submit(message, EVERYBODY)
        return traced() / total


def _waves(waves: int, each: int) -> Sample:
    transport = broker()
    seen: list[bytes] = []
    publisher = transport.publisher()
    messages = messages_of(round_robin(each, each))
    counts = Counts()
    resident: list[float] = []
    with ours(16)(transport, note(seen.append)):
        for _ in range(waves):
            for message in messages:
                publisher.submit(message, EVERYBODY)
            until_settled(transport)
            counts += count(each, seen)
            seen.clear()
            resident.append(_resident_mib())
    first, last = resident[len(resident) // 5], resident[-1]
    return Sample((last / first - 1) * 100, counts=counts, detail={"first": first, "last": last})


@contextmanager
def _traced() -> Iterator[Callable[[], int]]:
    """Gives a function: bytes allocated since here and not freed."""
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]

    def grown() -> int:
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - before

    try:
        yield grown
    finally:
        tracemalloc.stop()


def _until_in_hand(mq: ReliableMQ, total: int) -> None:
    deadline = time.monotonic() + 30
    while mq.health().consumers[0].in_hand < total:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    # Counted, but perhaps not in their lanes yet: the owner thread answers behind that.
    routed = threading.Event()
    mq._runtime.consumers[0].call(lambda *_: routed.set())  # type: ignore[union-attr]
    assert routed.wait(30)


def _resident_mib() -> float:
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * resource.getpagesize() / 2**20
    except OSError:  # no Linux: the highest so far
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most / (2**20 if sys.platform == "darwin" else 2**10)
