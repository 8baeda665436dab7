"""One connection to the file: opened as durable as SQLite can be, its errors in our words.

The invariant: nothing is written through a connection whose journal mode, synchronous level or
file is not what durability rests on. Waiting for the lock of another process is bounded by the
seconds that the caller gives, never by SQLite's own timeout.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from typing import Any, Final

from reliable_mq.adapters.sqlite.schema import lay_out
from reliable_mq.errors import ConnectionFailed, TransportError

__all__ = ["Connect", "Connection", "Damaged", "DiskFull", "Locked", "boot_id"]

Connect = Callable[..., sqlite3.Connection]
Parameters = Sequence[Any] | Mapping[str, Any]

#: Seconds between two tries for a lock: short, because the gap between two bursts of a busy
#: writer is short, then longer, because a stopped one holds it for long.
FIRST_PAUSE: Final = 0.0005
LONGEST_PAUSE: Final = 0.005
#: Seconds that opening may wait for others who open or recover the same file.
OPENING: Final = 2.0

SETTINGS: Final = (
    # (pragma, value to set, value to find; None: a matter of speed only)
    ("journal_mode", "WAL", "wal"),
    ("synchronous", "FULL", 2),
    ("foreign_keys", "ON", 1),
    ("cell_size_check", "ON", None),  # damage is noticed before a cursor walks into it
    ("secure_delete", "OFF", None),  # Debian builds with ON: each delete writes its page once more
    ("temp_store", "MEMORY", None),
    ("cache_size", "-8000", None),  # KiB
    ("wal_autocheckpoint", "2000", None),  # pages: the log is folded into the file every 8 MiB
    ("journal_size_limit", str(64 * 1024 * 1024), None),
)


#: What a statement may fail with: where a damaged schema cannot be quoted in UTF-8, sqlite3 itself
#: fails on the text of its error.
BROKEN: Final = (sqlite3.Error, UnicodeDecodeError)


class Locked(ConnectionFailed):
    """Another process holds the lock: nothing was done."""


class DiskFull(ConnectionFailed):
    """There is no room on the disk: nothing was stored."""


class Damaged(TransportError):
    """The file is not what SQLite wrote."""


class Connection:
    """Opened at first use, and again after `drop`. One thread at a time."""

    def __init__(self, path: str, connect: Connect) -> None:
        self.path = path
        self._connect = connect
        self._raw: sqlite3.Connection | None = None
        self._inode: tuple[int, int] | None = None
        self._pause = threading.Event()  # never set: something to wait on

    # -- statements ----------------------------------------------------------------------------

    def execute(self, sql: str, parameters: Parameters = ()) -> sqlite3.Cursor:
        """Run one statement that brings no rows."""
        try:
            return self._open().execute(sql, parameters)
        except BROKEN as error:
            raise self._failed(error) from error

    def rows(self, sql: str, parameters: Parameters = ()) -> list[Any]:
        """All rows of a query."""
        try:
            return self._open().execute(sql, parameters).fetchall()
        except BROKEN as error:
            raise self._failed(error) from error

    def each(self, sql: str, parameters: Parameters = ()) -> Iterator[Any]:
        """The rows of a query, read one by one, so that the caller can stop before the next."""
        try:
            with closing(self._open().execute(sql, parameters)) as cursor:
                yield from cursor
        except BROKEN as error:
            raise self._failed(error) from error

    def row(self, sql: str, parameters: Parameters = ()) -> Any:
        """The first row of a query; None where there is none."""
        rows = self.rows(sql, parameters)
        return rows[0] if rows else None

    def version(self) -> int:
        """A number that changes when any other connection, of any process, has committed."""
        return int(self.row("PRAGMA data_version")[0])

    # -- transactions --------------------------------------------------------------------------

    def begin(self, wait: float) -> None:
        """Take the write lock, waiting at most `wait` seconds.

        Raises: Locked; ConnectionFailed, also where the file was deleted or replaced: what we
            would write to it, nobody could ever read.
        """
        self.retry("BEGIN IMMEDIATE", wait)
        if self._inode != _inode(self.path):
            self.drop()
            text = f"{self.path} was deleted or replaced while it was open; it is opened again"
            raise ConnectionFailed(text)

    def commit(self) -> None:
        """Make the transaction durable.

        Raises: Locked, DiskFull: it is not stored. Anything else: nobody knows; the connection is
            closed, and only a look through a new one can tell.
        """
        try:
            self._open().execute("COMMIT")
        except sqlite3.Error as error:
            failure = self._failed(error)
            self.rollback()
            raise failure from error

    def rollback(self) -> None:
        """End a transaction without a trace; never raises."""
        if self._raw is not None and self._raw.in_transaction:
            try:
                self._raw.execute("ROLLBACK")
            except sqlite3.Error:
                self.drop()

    def retry(self, sql: str, wait: float) -> Any:
        """Run a statement that others may stand in the way of; at most `wait` seconds."""
        pause = FIRST_PAUSE
        while True:
            try:
                return self.row(sql)
            except Locked:
                if wait <= 0:
                    raise
            # The pauses are added up: no clock, so it ends also where time stands still.
            self._pause.wait(min(pause, wait))
            wait -= pause
            pause = min(pause * 1.5, LONGEST_PAUSE)

    # -- opening and closing -------------------------------------------------------------------

    def drop(self) -> None:
        """Close it, whatever was going on; the next use opens it again."""
        raw, self._raw = self._raw, None
        if raw is not None:
            with suppress(sqlite3.Error):  # closed or not, nobody uses it any more
                raw.close()

    def _open(self) -> sqlite3.Connection:
        if self._raw is not None:
            return self._raw
        try:
            self._raw = self._connect(
                self.path,
                timeout=0,
                isolation_level=None,
                check_same_thread=False,
                cached_statements=256,
            )
            for name, value, expected in SETTINGS:
                self._set(name, value, expected)
            self._inode = _inode(self.path)
            lay_out(self, OPENING)
        except BaseException as error:
            self.drop()
            if isinstance(error, sqlite3.Error):
                raise self._failed(error) from error
            raise
        return self._raw

    def _set(self, name: str, value: str, expected: str | int | None) -> None:
        self.retry(f"PRAGMA {name}={value}", OPENING)
        if expected is None:
            return
        found = self.retry(f"PRAGMA {name}", OPENING)
        if found is None or found[0] != expected:
            text = (
                f"{self.path}: SQLite cannot give {name}={value} here (it says "
                f"{found and found[0]!r}); without it nothing is durable: put the file on a local "
                "disk"
            )
            raise TransportError(text)

    def _failed(self, error: Exception) -> TransportError:
        """The error in our words. Whatever is more than "not now" closes the connection.

        What SQLite holds in memory after an I/O error is better not trusted; closing rolls back.
        """
        failure = self._translated(error)
        if not isinstance(failure, (Locked, DiskFull)):
            self.drop()
        return failure

    def _translated(self, error: Exception) -> TransportError:
        # By the text: Python 3.10 does not give the code.
        text = str(error)
        where = f"{self.path}: {text}"
        if "is locked" in text or "locking protocol" in text:
            return Locked(f"{where}: another process holds the lock")
        if "is full" in text:
            return DiskFull(f"{where}: the disk is full, or the file may not grow: make room")
        # No statement of ours breaks a constraint of a file that is whole.
        broken = isinstance(error, (UnicodeDecodeError, sqlite3.IntegrityError))
        if broken or "malformed" in text or "not a database" in text or "corrupt" in text:
            return Damaged(f"{where}: the file is damaged: restore it, or move it away")
        if "unable to open" in text:
            return ConnectionFailed(f"{where}: does the directory exist, and may we write to it?")
        return ConnectionFailed(where)


def boot_id() -> str:
    """What tells this boot of the machine from all others, as `Clock.monotonic` starts anew then.

    Where the system does not say: nothing, and a lease that ends further ahead than it is long
    shows that the clock began again.
    """
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:  # noqa: PTH123 - no path to build
            return file.read().strip()
    except OSError:  # pragma: no cover - not on Linux
        return ""


def _inode(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)  # noqa: PTH116 - once a transaction: half the time of Path.stat
    except OSError:
        return None
    return status.st_dev, status.st_ino
