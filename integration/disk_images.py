"""What a disk may look like after the power was cut: copies, shortened logs, flipped bits.

The format of the log: sqlite.org/fileformat2.html, section 4.
"""

from __future__ import annotations

import re
import shutil
import struct
from pathlib import Path
from typing import Any

import msgspec

from reliable_mq import ReliableMQError
from reliable_mq.adapters.base import Subscribe
from reliable_mq.adapters.sqlite import SqliteTransport
from reliable_mq.testing.history import Entry, Numbered

HEADER, FRAME = 32, 24


class Found:
    """What can be read of a file: events, how many messages are reported as damaged, an error."""

    def __init__(self, entries: list[Entry], damaged: int, error: ReliableMQError | None) -> None:
        self.entries = entries
        self.damaged = damaged
        self.error = error

    @property
    def ids(self) -> list[str]:
        """In the order in which they were delivered."""
        return [entry.id for entry in self.entries]


def read(path: Path) -> Found:
    """Deliver everything that the file holds to its group."""
    transport = SqliteTransport(path)
    entries: list[Entry] = []
    error: ReliableMQError | None = None
    damaged = 0
    try:
        subscription = transport.subscribe(
            Subscribe(topics=("orders",), group="billing"), lambda *_: None
        )
        try:
            while deliveries := subscription.poll(1_000, 0.0).deliveries:
                entries += [_entry(delivery.message) for delivery in deliveries]
        finally:
            subscription.close()
        damaged = len(transport.damaged("orders", "billing"))
    except ReliableMQError as one:
        error = one
    return Found(entries, damaged, error)


def _entry(message: Any) -> Entry:
    try:
        one = msgspec.json.decode(message.body, type=Numbered)
        key = None if one.key is None else one.key.encode()
        whole = one.whole() and one.id == message.id and key == message.key
    except (msgspec.DecodeError, UnicodeDecodeError):
        whole = False
    return Entry("kept" if whole else "damaged", message.id, 0.0, 0)


def copied(path: Path, folder: Path) -> Path:
    """A copy of the file and its log, without what only helps to find things in it."""
    folder.mkdir()
    for end in ("", "-wal"):
        source = Path(f"{path}{end}")
        if source.exists():
            shutil.copy(source, folder / f"{path.name}{end}")
    return folder / path.name


def shortened(image: Path, folder: Path, length: int) -> Path:
    """A copy whose log ends after so many bytes."""
    copy = copied(image, folder)
    log = Path(f"{copy}-wal")
    with log.open("r+b") as file:
        file.truncate(length)
    return copy


def commits(image: Path) -> list[int]:
    """Where in the log each transaction ends."""
    log = Path(f"{image}-wal")
    data = log.read_bytes() if log.exists() else b""
    if len(data) < HEADER:
        return []
    page, salt = struct.unpack_from(">8xI", data)[0], data[16:24]
    ends = []
    for at in range(HEADER, len(data) - FRAME - page + 1, FRAME + page):
        if data[at + 8 : at + 16] != salt:
            break  # of an earlier round
        if struct.unpack_from(">I", data, at + 4)[0]:
            ends.append(at + FRAME + page)
    return ends


def folded(path: Path) -> int:
    """How many bytes of the log may have gone into the file already: before these it is safe."""
    index = Path(f"{path}-shm").read_bytes()
    [attempted] = struct.unpack_from("=I", index, 128)
    page = struct.unpack_from("=H", index, 14)[0]
    return HEADER + attempted * (FRAME + (page or 65_536)) if attempted else 0


class PowerCut:
    """What strace saw: how much of the log was on the disk whenever a message was confirmed."""

    #: pid, call and its arguments up to where it ends or is interrupted by another thread's.
    LINE = re.compile(r"(\d+) +(\w+)\(\d+<([^>]*)>(.*)")
    RESUMED = re.compile(r"(\d+) +<\.\.\. (\w+) resumed>")
    CONFIRMED = re.compile(r'\\"kind\\":\\"ok\\",\\"id\\":\\"([^"\\]+)\\"')
    CALLS = "trace=pwrite64,fdatasync,fsync,write"

    def __init__(self, text: str, log: Path) -> None:
        #: (message id, bytes of the log that were synced by then).
        self.confirmed: list[tuple[str, int]] = []
        written = synced = 0
        syncing: dict[str, int] = {}
        for line in text.splitlines():
            if found := self.LINE.match(line):
                pid, call, path, rest = found.groups()
                if call == "write" and (one := self.CONFIRMED.search(rest)):
                    self.confirmed.append((one[1], synced))
                elif call == "pwrite64" and path == str(log):
                    count, offset = re.findall(r", (\d+)", rest.rpartition('"')[2])[:2]
                    written = max(written, int(count) + int(offset))
                elif call in ("fdatasync", "fsync") and path == str(log):
                    syncing[pid] = written
                    if rest.endswith("= 0"):
                        synced = max(synced, syncing.pop(pid))
            elif (found := self.RESUMED.match(line)) and found[2] in ("fdatasync", "fsync"):
                synced = max(synced, syncing.pop(found[1], 0))
