"""A file on the fastest disk there is, and connections to it that fail, stall or die as told."""

from __future__ import annotations

import os
import sqlite3
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: fsync costs milliseconds on a disk; nothing in these tests turns the power off.
SHM = "/dev/shm"  # noqa: S108 - a directory of ours is made in it
FAST = SHM if os.access(SHM, os.W_OK) else None

IO_ERROR = "disk I/O error"
FULL = "database or disk is full"
LOCKED = "database is locked"


@contextmanager
def broker_file() -> Iterator[Path]:
    """A path for a broker, gone with all its files afterwards."""
    with tempfile.TemporaryDirectory(dir=FAST, prefix="reliable-mq-") as directory:
        yield Path(directory) / "broker.sqlite3"


class Faults:
    """Hand it in as `connect`. Statements are told apart by how they begin."""

    def __init__(self) -> None:
        self.statements: list[str] = []
        self.opened: list[sqlite3.Connection] = []
        self.down = False
        #: Statements to carry out on each connection that is opened.
        self.options: list[str] = []
        self._rules: list[tuple[str, bool, Callable[[], object]]] = []

    def __call__(self, path: str, **options: Any) -> sqlite3.Connection:
        """As sqlite3.connect."""
        if self.down:
            raise sqlite3.OperationalError("unable to open database file")
        connection = sqlite3.connect(path, factory=_connection(self), **options)
        for option in self.options:
            sqlite3.Connection.execute(connection, option)
        self.opened.append(connection)
        return connection

    def before(self, statement: str, action: Callable[[], object]) -> None:
        """Once, call `action` instead of (if it raises) or before such a statement."""
        self._rules.append((statement, True, action))

    def after(self, statement: str, action: Callable[[], object]) -> None:
        """Once, call `action` after such a statement was carried out."""
        self._rules.append((statement, False, action))

    def fail(self, statement: str, text: str, times: int = 1) -> None:
        """The next such statements are not carried out."""
        for _ in range(times):
            self.before(statement, _raiser(text))

    def lose(self, statement: str, text: str = IO_ERROR, times: int = 1) -> None:
        """The next such statements are carried out, and fail all the same."""
        for _ in range(times):
            self.after(statement, _raiser(text))

    def forget(self) -> None:
        """Whatever was ordered and has not happened will not happen."""
        self._rules.clear()

    def count(self, statement: str) -> int:
        """How many such statements there were."""
        return sum(one.startswith(statement) for one in self.statements)

    def close(self) -> None:
        """Close every connection, wherever it is in use."""
        for connection in self.opened:
            connection.close()

    def run(self, statement: str, execute: Callable[[], sqlite3.Cursor]) -> sqlite3.Cursor:
        """Carry out one statement, with what was ordered for it."""
        if self.down:
            raise sqlite3.OperationalError(IO_ERROR)
        self.statements.append(statement)
        self._apply(statement, early=True)
        cursor = execute()
        self._apply(statement, early=False)
        return cursor

    def _apply(self, statement: str, *, early: bool) -> None:
        for rule in self._rules:
            if rule[1] == early and statement.startswith(rule[0]):
                self._rules.remove(rule)
                rule[2]()
                return


def _connection(faults: Faults) -> type[sqlite3.Connection]:
    class Connection(sqlite3.Connection):
        def execute(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:
            run = super().execute
            return faults.run(" ".join(sql.split()), lambda: run(sql, parameters))

    return Connection


def _raiser(text: str) -> Callable[[], object]:
    def fail() -> None:
        raise sqlite3.OperationalError(text)

    return fail


@contextmanager
def write_lock(path: Path) -> Iterator[None]:
    """Another program is in a write transaction, and does not move."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.rollback()
        connection.close()


class Gate:
    """An action that waits until it is opened."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self._opened = threading.Event()

    def __call__(self) -> None:
        """Wait."""
        self.reached.set()
        self._opened.wait(30)

    def open(self) -> None:
        """Let it go on."""
        self._opened.set()
