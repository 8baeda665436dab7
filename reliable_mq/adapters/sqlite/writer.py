"""Writes bursts of messages: one transaction each, whose answer is always found out.

With its messages each transaction stores the number of the burst. When COMMIT ends without a clear
answer, a new connection reads that number: it says whether the burst is stored.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from reliable_mq.adapters.sqlite.connection import DiskFull, Locked
from reliable_mq.adapters.sqlite.topology import find_group, find_topic
from reliable_mq.confirmation import Confirmation
from reliable_mq.errors import TransportError, Unroutable
from reliable_mq.message import Receipt

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from reliable_mq.adapters.sqlite.broker import Broker
    from reliable_mq.errors import PublishError

__all__ = ["Ending", "Entry", "Writer"]

#: Seconds to wait for the lock of another process before the deadlines are looked at again.
PATIENCE: Final = 0.1
#: Rows of one INSERT. Each statement gives up the interpreter lock and takes it back behind the
#: threads that compute: 1,000 single ones take a second where 8 take a few milliseconds.
CHUNKS: Final = (128, 16, 1)
COLUMNS: Final = 11
#: Seconds after which a publisher that wrote nothing is forgotten.
FORGET: Final = 7 * 86400.0

INSERT: Final = """
    INSERT INTO mq_message (topic, only_group, id, key, body, headers, created_at, origin, crc,
        stored_at, due) VALUES """
ENTER: Final = "INSERT INTO mq_state (grp, position, key, due) VALUES (?, ?, ?, ?)"
MARK: Final = """
    INSERT INTO mq_publisher (token, batch, seen) VALUES (?, ?, ?)
    ON CONFLICT (token) DO UPDATE SET batch = excluded.batch, seen = excluded.seen"""


class Entry(Struct, eq=False):
    """A message on its way. `group`: a retry copy, for this group. `in_doubt`: it may be stored."""

    confirmation: Confirmation
    where: str
    group: str | None
    columns: tuple[Any, ...]
    due: float | None
    deadline: float | None
    size: int
    in_doubt: bool = False
    ended: bool = False


Ending = tuple[Entry, "Receipt | PublishError"]


class Writer:
    """The publisher's thread only."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._connection = broker.connection()
        self._token = ""
        self._batch = 0
        self._unanswered: list[Ending] = []
        self._topics: dict[str, int] = {}
        self._groups: dict[tuple[str, str], int] = {}

    @property
    def in_doubt(self) -> bool:
        """Whether a COMMIT had no answer: `find_out` comes before the next `write`."""
        return bool(self._unanswered)

    def write(self, burst: Sequence[Entry], may_send: Callable[[], bool]) -> list[Ending]:
        """Store these, in this order, and tell how each ended, after COMMIT returned.

        `may_send` is asked once the lock is ours; if not, nothing is stored and nothing ends.

        Raises: TransportError; nothing is stored, or it is `in_doubt`.
        """
        connection = self._connection
        try:
            connection.begin(PATIENCE)
            try:
                endings = self._insert(burst) if may_send() else []
                stored = [entry for entry, end in endings if isinstance(end, Receipt)]
                if not stored:
                    connection.rollback()
                    return endings
                self._mark()
            except BaseException:
                connection.rollback()
                raise
            self._commit(endings)
        except TransportError:
            self._topics.clear()  # it may be another file next time
            self._groups.clear()
            raise
        self._broker.bell.ring()
        return endings

    def find_out(self) -> list[Ending]:
        """The endings of the COMMIT that had no answer; none when it is not stored."""
        sql = "SELECT batch FROM mq_publisher WHERE token = ?"
        found = self._connection.row(sql, (self._token,))
        endings, self._unanswered = self._unanswered, []
        if found is None or found[0] < self._batch:
            return []
        self._broker.bell.ring()
        return endings

    def close(self) -> None:
        """Close the file."""
        self._connection.drop()

    # -- inside the transaction ----------------------------------------------------------------

    def _commit(self, endings: list[Ending]) -> None:
        try:
            self._connection.commit()
        except (Locked, DiskFull):
            raise
        except TransportError:
            self._unanswered = endings
            for entry, _ in endings:
                entry.in_doubt = True
            raise

    def _mark(self) -> None:
        now = self._broker.clock.now()
        if not self._token:
            self._token = self._connection.row("SELECT lower(hex(randomblob(16)))")[0]
            self._connection.execute("DELETE FROM mq_publisher WHERE seen < ?", (now - FORGET,))
        self._batch += 1
        self._connection.execute(MARK, (self._token, self._batch, now))

    def _insert(self, burst: Sequence[Entry]) -> list[Ending]:
        endings: list[Ending] = []
        stored_at = self._broker.clock.now()
        for is_copy, run in groupby(burst, key=lambda entry: entry.group is not None):
            if is_copy:
                endings += [self._insert_copy(entry, stored_at) for entry in run]
            else:
                self._insert_run(list(run), stored_at, endings)
        return endings

    def _insert_run(self, run: list[Entry], stored_at: float, endings: list[Ending]) -> None:
        """Messages for all groups, in few statements."""
        rows: list[tuple[Any, ...]] = []
        routed: list[Entry] = []
        for entry in run:
            topic = self._topic(entry.where)
            if topic is None:
                endings.append((entry, self._unroutable(entry, f"topic {entry.where!r}")))
            else:
                rows.append((topic, None, *entry.columns, stored_at, entry.due))
                routed.append(entry)
        done = 0
        for size in CHUNKS:
            while len(rows) - done >= size:
                position = self._insert_rows(rows[done : done + size])
                written = routed[done : done + size]
                endings += [_stored(entry, at) for at, entry in enumerate(written, position)]
                done += size

    def _insert_copy(self, entry: Entry, stored_at: float) -> Ending:
        """A message for one group: it waits there, not in the log."""
        topic = self._topic(entry.where)
        grp = self._group(entry.where, entry.group or "")
        if topic is None or grp is None:
            return entry, self._unroutable(entry, f"group {entry.group!r} of {entry.where!r}")
        position = self._insert_rows([(topic, grp, *entry.columns, stored_at, None)])
        self._connection.execute(ENTER, (grp, position, entry.columns[1], entry.due or 0.0))
        return _stored(entry, position)

    def _insert_rows(self, rows: list[tuple[Any, ...]]) -> int:
        """Returns the position of the first: under the write lock they follow each other."""
        row = f"({','.join('?' * COLUMNS)})"
        sql = INSERT + ",".join([row] * len(rows))
        last = self._connection.execute(sql, [value for row in rows for value in row]).lastrowid
        assert last is not None  # noqa: S101 - it was an INSERT
        return last - len(rows) + 1

    # -- where to ------------------------------------------------------------------------------

    def _topic(self, name: str) -> int | None:
        if name not in self._topics:
            topic = find_topic(self._connection, name)
            if topic is None:
                return None  # and asked again next time: it may have been declared by then
            self._topics[name] = topic
        return self._topics[name]

    def _group(self, topic: str, name: str) -> int | None:
        if (topic, name) not in self._groups:
            group = find_group(self._connection, topic, name)
            if group is None:
                return None
            self._groups[topic, name] = group
        return self._groups[topic, name]

    def _unroutable(self, entry: Entry, what: str) -> Unroutable:
        message = entry.confirmation.message
        text = (
            f"message {message.id} was not stored: {what} does not exist in {self._broker.path}; "
            f"declare it with mq.topic({message.topic!r}, groups=(...))"
        )
        return Unroutable(text, message)


def _stored(entry: Entry, position: int) -> Ending:
    return entry, Receipt(entry.confirmation.message.id, entry.where, 0, position)
