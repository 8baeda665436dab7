"""SQLITE: durable messages through the embedded broker, published in batches, then consumed."""

from __future__ import annotations

import os
import sqlite3
import tempfile
import time
from contextlib import closing, contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.harness import Bench, Counts, Floor, Meter, Result, Sample, scenario
from benchmarks.workload import (
    GROUP,
    TOPIC,
    count,
    messages_of,
    note,
    round_robin,
    until_settled,
)
from reliable_mq import ReliableMQ

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from reliable_mq.message import Message

BATCH, THREADS, KEYS = 500, 16, 100
#: Files are made here: /tmp is memory on some machines, and memory has no fsync.
DIRECTORY = Path(__file__).parent.parent / ".cache" / "benchmarks"
TABLE = "CREATE TABLE log (position INTEGER PRIMARY KEY AUTOINCREMENT, key BLOB, body BLOB)"
INSERT = "INSERT INTO log (key, body) VALUES (?, ?)"


@scenario("SQLITE")
def durable(bench: Bench) -> Result:
    """100-byte messages of 100 keys, `submit_all` in batches of 500, then one process consumes.

    Ours: messages a second over both phases, one after the other; `publish` and `consume` are the
    phases, `at_once` is the rate with both at the same time. A Receipt means an fsync, and so does
    an ack. Limit: executemany of as many rows, then a read and a delete, in the same batches and
    with the same settings (WAL, synchronous=FULL). Peer: the same with a commit for each row.
    """
    messages = messages_of(round_robin(bench.size(20_000, 200), KEYS))
    few = messages[: bench.size(1_000, 20)]
    series = bench.interleave(
        {
            "ours": lambda: in_turn(messages),
            "limit": lambda: raw(messages, BATCH),
            "ours, at once": lambda: at_once(messages),
            "a commit each": lambda: raw(few, 1),
        }
    )
    value, limit = series["ours"].value, series["limit"].value
    return Result(
        "msg/s",
        value,
        limit,
        value / limit,
        Floor("ours", ">=", 3_000),
        series,
        cpu_us=series["ours"].cpu_us,
        detail={
            "publish": round(series["ours"].detail("publish")),
            "consume": round(series["ours"].detail("consume")),
            "at_once": round(series["ours, at once"].value),
            "limit_publish": round(series["limit"].detail("publish")),
            "limit_consume": round(series["limit"].detail("consume")),
            "fsync_ms": round(fsync_seconds() * 1e3, 3),
        },
    )


def in_turn(messages: Sequence[Message]) -> Sample:
    """Publish everything, then start the consumer."""
    with fresh_file() as path:
        with publishing(path) as publish, Meter() as first:
            publish(messages)
        with consuming(path) as (seen, transport), Meter() as second:
            until_settled(transport)
    return _sample(messages, first, second, count(len(messages), seen))


def at_once(messages: Sequence[Message]) -> Sample:
    """Publish while the consumer runs."""
    with (
        fresh_file() as path,
        publishing(path) as publish,
        consuming(path) as (seen, transport),
        Meter() as meter,
    ):
        publish(messages)
        until_settled(transport)
    return meter.rate(len(messages), count(len(messages), seen))


def raw(messages: Sequence[Message], batch: int) -> Sample:
    """SQLite alone: rows in, rows out, a transaction a batch."""
    total = len(messages)
    rows = [(message.key, message.body) for message in messages]
    append = note([].append)
    with fresh_file() as path, closing(connect(path)) as connection:
        connection.execute(TABLE)
        with Meter() as first:
            for at in range(0, total, batch):
                connection.execute("BEGIN IMMEDIATE")
                connection.executemany(INSERT, rows[at : at + batch])
                connection.execute("COMMIT")
        with Meter() as second:
            select = "SELECT position, body FROM log ORDER BY position LIMIT ?"
            while found := connection.execute(select, (batch,)).fetchall():
                for _, body in found:
                    append(body)
                connection.execute("BEGIN IMMEDIATE")
                positions = [(position,) for position, _ in found]
                connection.executemany("DELETE FROM log WHERE position = ?", positions)
                connection.execute("COMMIT")
    return _sample(messages, first, second, Counts())


def connect(path: str) -> sqlite3.Connection:
    """A connection with the broker's settings."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    return connection


@contextmanager
def publishing(path: str) -> Iterator[Callable[[Sequence[Message]], None]]:
    """An app that publishes; gives a function that does, in batches."""
    mq = ReliableMQ(f"sqlite:///{path}")
    mq.topic(TOPIC, groups=(GROUP,))
    mq.start(consume=False)

    def publish(messages: Sequence[Message]) -> None:
        for at in range(0, len(messages), BATCH):
            batch = messages[at : at + BATCH]
            made = [mq.message(TOPIC, one.body, key=one.key) for one in batch]
            mq.submit_all(made).result()

    yield publish
    mq.stop()


@contextmanager
def consuming(path: str) -> Iterator[tuple[list[bytes], object]]:
    """An app that consumes; gives what it has seen, and where its lag can be read."""
    seen: list[bytes] = []
    mq = ReliableMQ(f"sqlite:///{path}")
    mq.consumer(TOPIC, group=GROUP, concurrency=THREADS)(note(seen.append))
    with mq:
        yield seen, mq._runtime.transport  # type: ignore[union-attr]


@contextmanager
def fresh_file() -> Iterator[str]:
    """The path of a database that is removed behind."""
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=DIRECTORY) as directory:
        yield f"{directory}/bench.db"


def fsync_seconds() -> float:
    """The median of 50 fsyncs of 4 KiB, where the databases are."""
    found = []
    with fresh_file() as path, Path(path).open("wb", buffering=0) as file:
        for _ in range(50):
            file.write(b"." * 4096)
            began = time.perf_counter()
            os.fsync(file.fileno())
            found.append(time.perf_counter() - began)
    return median(found)


def _sample(messages: Sequence[Message], first: Meter, second: Meter, counts: Counts) -> Sample:
    total = len(messages)
    return Sample(
        total / (first.seconds + second.seconds),
        (first.cpu + second.cpu) / total * 1e6,
        counts,
        {"publish": total / first.seconds, "consume": total / second.seconds},
    )
