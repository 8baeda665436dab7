"""F23: a burst of ten times what the consumer can take. It waits in the broker, not in our memory.

Run as a program it is the other side: it publishes on a schedule, from a process of its own.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import confluent_kafka

from benchmarks.harness import Bench, Counts, Meter, Result, Sample, scenario
from benchmarks.kafka import KEYS, Place, fresh_topic, left, new_group
from benchmarks.kafka_raw import producer_settings
from benchmarks.kafka_running import ours
from benchmarks.memory_use import _resident_mib
from benchmarks.workload import HEAD, STUCK_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator

THREADS, PAUSE = 16, 0.005
#: Messages a second that the consumer can take, and how many times that come in the burst.
TAKES, TIMES = int(THREADS / PAUSE), 10


@scenario("F23-RSS")
def burst(bench: Bench) -> Result:
    """100-byte messages, 16 threads that take 3,200/s, a burst of 32,000/s: resident memory, %.

    10 s at what it can take to warm up, 10 s of the burst, 5 s more behind it; then the handlers
    stop sleeping, and it catches up. The most that was resident from the burst's begin to the end,
    over what was resident at its begin; `grown_later_mib` is what the second half of that time
    added. Consumer and publisher are a process each.
    """
    series = bench.interleave({"ours": lambda: _in_new_process(quick=bench.quick)}, at_most=1)
    one = series["ours"]
    names = ("begin_mib", "grown_mib", "grown_later_mib", "behind", "messages", "catch_up_seconds")
    return Result(
        "%",
        one.value,
        None,
        None,
        None,
        series,
        cpu_us=one.cpu_us,
        detail={name: round(one.detail(name), 1) for name in names},
    )


class Tally:
    """Counts what ran without keeping it: a kept body would be resident."""

    def __init__(self, total: int) -> None:
        self.ran = 0
        self.hurry = False
        self.duplicated = self.inversions = 0
        self._seen = bytearray(total)
        self._highest = [-1] * KEYS

    def handle(self, body: bytes) -> None:
        """One handler; keys run in order, so a key's entries have one writer at a time."""
        if not self.hurry:
            time.sleep(PAUSE)
        key, number, _ = HEAD.unpack_from(body)
        at = number * KEYS + key
        if self._seen[at]:
            self.duplicated += 1
        elif number < self._highest[key]:
            self.inversions += 1
        self._seen[at] = 1
        self._highest[key] = max(number, self._highest[key])
        self.ran += 1  # for the waits; threads may lose one of these

    def distinct(self) -> int:
        """Messages that ran."""
        return self._seen.count(1)


def _in_new_process(*, quick: bool) -> Sample:
    with (
        fresh_topic() as place,
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as processes,
    ):
        return processes.submit(_burst, place, quick).result()


def _burst(place: Place, quick: bool) -> Sample:  # noqa: FBT001 - it comes from another process
    warm_up, seconds, behind_for = (0.3, 0.5, 0.2) if quick else (10.0, 10.0, 5.0)
    first, then = int(TAKES * warm_up), int(TAKES * TIMES * seconds)
    total = first + then
    tally, group = Tally(total), new_group()
    with (
        ours(THREADS)(place, group, tally.handle, threading.Event()),
        _watched() as resident,
        Meter() as meter,
        _publish_elsewhere(place.hosts, place.topic, first, then) as publisher,
    ):
        assert publisher.stdout
        assert publisher.stdout.readline() == "burst\n"
        began, begin_mib = len(resident), _resident_mib()
        assert publisher.wait(60 + 10 * seconds) == 0
        behind = total - tally.ran
        time.sleep(behind_for)
        tally.hurry, hurried = True, time.monotonic()
        _until_all(tally, total)
        caught_up = time.monotonic() - hurried
    again = left(place, group)
    half = (began + len(resident)) // 2
    most = max([begin_mib, *resident[began:]])
    later = most - max([begin_mib, *resident[began:half]])
    lost = total - tally.distinct()
    counts = Counts(lost, tally.duplicated + (0 if lost else again), tally.inversions)
    return Sample(
        (most / begin_mib - 1) * 100,
        meter.cpu / total * 1e6,
        counts,
        {
            "begin_mib": begin_mib,
            "grown_mib": most - begin_mib,
            "grown_later_mib": later,
            "behind": behind,
            "messages": total,
            "catch_up_seconds": caught_up,
        },
    )


@contextmanager
def _watched() -> Iterator[list[float]]:
    """What is resident, every 50 ms."""
    found = [_resident_mib()]
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            found.append(_resident_mib())

    thread = threading.Thread(target=watch, name="watch")
    thread.start()
    yield found
    over.set()
    thread.join()


def _until_all(tally: Tally, total: int) -> None:
    before, since = -1, time.monotonic()
    while tally.distinct() < total:
        now = time.monotonic()
        if tally.ran != before:
            before, since = tally.ran, now
        elif now - since > STUCK_SECONDS:
            return  # the counters tell what is missing
        time.sleep(0.02)


def _publish_elsewhere(hosts: str, topic: str, first: int, then: int) -> subprocess.Popen[str]:
    arguments = [hosts, topic, str(first), str(then)]
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.kafka_burst", *arguments],
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        text=True,
    )


def _publish(hosts: str, topic: str, first: int, then: int) -> None:
    producer = confluent_kafka.Producer(producer_settings(hosts))
    padding = b"." * (100 - HEAD.size)

    def send(numbers: range, a_second: float) -> None:
        began = time.perf_counter()
        for sent, at in enumerate(numbers):
            if sent % 32 == 0:
                producer.poll(max(0.0, began + sent / a_second - time.perf_counter()))
            key = at % KEYS
            producer.produce(topic, HEAD.pack(key, at // KEYS, 0.0) + padding, f"key-{key}")

    send(range(first), TAKES)
    print("burst", flush=True)
    send(range(first, first + then), TAKES * TIMES)
    assert not producer.flush(60)


if __name__ == "__main__":
    _publish(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
