"""What the child programs do on a broker in a file: kill points, and safeties that SQLite has.

fence           an ack of a lost lease counts
deadline        SQLite may wait for a lock as long as it likes
sync            COMMIT does not wait for the disk
journal         a transaction is written into the file at once, without a log
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any

from integration.children.removed import Around
from reliable_mq.adapters.sqlite import SqliteTransport
from reliable_mq.clock import SYSTEM_CLOCK

if TYPE_CHECKING:
    from integration.children.kit import Boundaries, Plan

#: Seconds that SQLite may wait where it should not.
FOR_EVER = 60.0
PRAGMAS = {"sync": ("synchronous", "OFF", 2), "journal": ("journal_mode", "OFF", "wal")}


class FastClock:
    """The system's clocks, but since a moment the wall's runs a thousand times as fast."""

    monotonic = staticmethod(SYSTEM_CLOCK.monotonic)

    def __init__(self, since: float) -> None:
        self._since = since

    def now(self) -> float:
        """Epoch seconds."""
        return self._since + 1_000.0 * (SYSTEM_CLOCK.now() - self._since)


class OnSqlite:
    """The file of a plan."""

    def __init__(self, plan: Plan, boundaries: Boundaries) -> None:
        self._plan = plan
        self._path = plan.url.removeprefix("sqlite:///")
        self._connect = connecting(boundaries)
        #: For questions: nobody dies or stands still while asking.
        self._operator = SqliteTransport(self._path)

    def transport(self, removed: str) -> Any:
        """What the app runs on."""
        plan = self._plan
        transport = SqliteTransport(
            self._path,
            clock=FastClock(plan.fast_since) if plan.fast_since else SYSTEM_CLOCK,
            connect=self._connect_without(removed),
            lease_timeout=plan.lease_timeout,
            boot_id=plan.boot,
        )
        return Unfenced(transport, self._path) if removed == "fence" else transport

    def _connect_without(self, removed: str) -> Any:
        connect = self._connect

        def patient(path: str, **options: Any) -> sqlite3.Connection:
            return connect(path, **{**options, "timeout": FOR_EVER})

        def careless(path: str, **options: Any) -> Any:
            return _careless(connect(path, **options), *PRAGMAS[removed])

        if removed == "deadline":
            return patient
        return careless if removed in PRAGMAS else connect

    def seems_done(self, health: Any) -> bool:
        """Whether the group has nothing left, as far as can be seen while it works."""
        return not self.left()

    def left(self) -> int:
        """What the group has not finished."""
        return self._operator.lag(self._plan.topic, self._plan.group)

    def waiting_copies(self) -> list[str]:
        """Retry copies that are not due: none, as its clock is fast."""
        return []


def connecting(boundaries: Boundaries) -> Any:
    """`connect=` for the adapter: a connection that counts."""

    class Connection(sqlite3.Connection):
        def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
            name = " ".join(sql.split())[:60]
            boundaries.cross(f"before {name}")
            cursor = super().execute(sql, *parameters)
            boundaries.cross(f"behind {name}")
            return cursor

    def connect(path: str, **options: Any) -> sqlite3.Connection:
        return sqlite3.connect(path, factory=Connection, **options)

    return connect


class Unfenced(Around):
    """Lets the late ack of a lost lease settle what is somebody else's by now."""

    def __init__(self, inner: Any, path: str) -> None:
        super().__init__(inner)
        self._path = path

    def subscribe(self, *arguments: Any) -> Any:
        """A subscription that acks whatever it is given."""
        return _UnfencedSubscription(self.inner.subscribe(*arguments), self._path)


class _UnfencedSubscription(Around):
    def __init__(self, inner: Any, path: str) -> None:
        super().__init__(inner)
        self._path = path

    def ack(self, deliveries: Any) -> None:
        lost = [one.position for one in deliveries if one.lease.lost]
        self.inner.ack(deliveries)
        with sqlite3.connect(self._path) as file:
            file.executemany("DELETE FROM mq_state WHERE position = ?", [(one,) for one in lost])
        file.close()


def _careless(file: sqlite3.Connection, name: str, value: str, claimed: Any) -> Any:
    """Sets a pragma of its own, and answers as if it were the one that was asked for."""

    class Careless(Around):
        def execute(self, sql: str, *parameters: Any) -> Any:
            if sql.startswith(f"PRAGMA {name}"):
                self.inner.execute(f"PRAGMA {name}={value}")
                return self.inner.execute("SELECT ?", (claimed,))
            return self.inner.execute(sql, *parameters)

    return Careless(file)
