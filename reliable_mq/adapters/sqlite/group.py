"""What one group still has to do of one topic: choosing, finishing, again.

First comes what waits (given back, overtaken by its key's owner, due), then what is new in the log,
both in the order of their positions. New messages of a key that another member has in hand are put
to wait, so that each row of the log is looked at once in each group. The cost of a fetch follows
from its limit, whatever lies in the file.

Indexes are named: without statistics SQLite takes the one that gives the order, and walks over all
that is blocked. The caller is in a transaction, but for `look`.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from reliable_mq.adapters.sqlite import keys
from reliable_mq.adapters.sqlite.record import COLUMNS, Columns, from_row
from reliable_mq.adapters.sqlite.schema import SET_ASIDE
from reliable_mq.message import Message

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from reliable_mq.adapters.base import Order
    from reliable_mq.adapters.sqlite.connection import Connection

__all__ = ["Group", "News", "Taken"]

log = logging.getLogger("reliable_mq.sqlite")

#: New messages that one fetch looks at beyond its limit, where their keys are others'.
LOOK_AHEAD: Final = 1_000
#: Bytes of bodies after which a fetch is full.
MOST_BYTES: Final = 16 * 1024 * 1024
#: Delayed messages that one fetch lets become due.
DUE_AT_ONCE: Final = 1_000

#: A walk in the order of positions over all that may be given out: the recursion's queue holds the
#: next message of each key.
WAITING: Final = f"""
    WITH RECURSIVE walk (position, key) AS (
        SELECT position, key FROM (
            SELECT position, key FROM mq_state INDEXED BY mq_ready
            WHERE grp = :grp AND ready = 0 ORDER BY position LIMIT :limit)
        UNION ALL
        SELECT position, key FROM (
            SELECT position, key FROM mq_state INDEXED BY mq_ready
            WHERE grp = :grp AND ready = :member ORDER BY position LIMIT :limit)
        UNION ALL
        SELECT n.position, walk.key FROM walk CROSS JOIN mq_state AS n
        ON n.grp = :grp AND n.position = (
            SELECT w.position FROM mq_state AS w INDEXED BY mq_waiting
            WHERE w.grp = :grp AND w.key = walk.key AND w.owner IS NULL AND w.due IS NULL
                AND w.position > walk.position
            ORDER BY w.position LIMIT 1)
        ORDER BY 1 LIMIT :limit
    )
    SELECT walk.position, s.attempt, s.redelivered, walk.key, m.position, m.only_group, {COLUMNS}
    FROM walk CROSS JOIN mq_state AS s ON s.grp = :grp AND s.position = walk.position
    LEFT JOIN mq_message AS m ON m.position = walk.position"""  # noqa: S608 - constants
NEW: Final = f"""
    SELECT m.position, m.due, l.owner, CAST(m.key AS BLOB), {COLUMNS}
    FROM mq_message AS m INDEXED BY mq_log
    LEFT JOIN mq_key_lease AS l ON l.grp = :grp AND l.key = CAST(m.key AS BLOB)
    WHERE m.topic = :topic AND m.only_group IS NULL AND m.position >= (
        SELECT cursor FROM mq_group WHERE id = :grp)
    ORDER BY m.position LIMIT :limit"""  # noqa: S608 - constants
ENTER: Final = """
    INSERT INTO mq_state (grp, position, key, due, owner, ready)
    SELECT :grp, m.position, CAST(m.key AS BLOB),
        CASE WHEN :owner IS NULL THEN coalesce(m.due, 0) END, :owner, NULL
    FROM json_each(:positions) AS j CROSS JOIN mq_message AS m ON m.position = j.value"""
LOOK: Final = """
    SELECT
        EXISTS (SELECT 1 FROM mq_state INDEXED BY mq_ready WHERE grp = :grp AND ready = 0)
        OR EXISTS (
            SELECT 1 FROM mq_state INDEXED BY mq_ready WHERE grp = :grp AND ready = :member)
        OR EXISTS (
            SELECT 1 FROM mq_message INDEXED BY mq_log
            WHERE topic = g.topic AND only_group IS NULL AND position >= g.cursor),
        (SELECT min(due) FROM mq_state INDEXED BY mq_delayed WHERE grp = :grp AND due IS NOT NULL),
        g.active IS NULL OR g.active = :member
    FROM mq_group AS g WHERE g.id = :grp"""


class Taken(Struct, frozen=True, gc=False):
    """A message that is ours now. `copy`: it exists for this group alone."""

    message: Message
    position: int
    key: bytes | None
    attempt: int
    redelivered: int
    copy: bool


class News(Struct, frozen=True):
    """What a look found: whether there is anything to take, and when something will be due."""

    now: bool
    due: float | None


class Group:
    """The rows of one group and topic, as one member sees them."""

    def __init__(
        self, connection: Connection, grp: int, topic: int, *, where: str, file: str, order: Order
    ) -> None:
        self.grp = grp
        self.where = where
        self._connection = connection
        self._topic = topic
        self._file = file
        self._order = order
        #: Whether another member has all of it, as far as it was seen.
        self.stands_by = False

    def look(self, member: int) -> News:
        """Whether `take` would find something. Reads only."""
        found = self._connection.row(LOOK, {"grp": self.grp, "member": member})
        self.stands_by = self._order == "partition" and (found is None or not found[2])
        if found is None or self.stands_by:
            return News(now=False, due=None)
        return News(now=bool(found[0]), due=found[1])

    def take(self, member: int, limit: int, now: float) -> list[Taken]:
        """At most `limit` messages, in hand of this member from now on."""
        self.stands_by = self._order == "partition" and not self._is_active(member)
        if self.stands_by:
            return []
        self._let_become_due(now)
        taken: list[Taken] = []
        full = self._take_waiting(member, limit, taken)
        if not full:
            self._take_new(member, limit, now, taken)
        return taken

    def finish(self, member: int, positions: Iterable[int], copies: Sequence[int]) -> None:
        """These are done. `copies`: those of them that nobody else will ever want."""
        delete = f"DELETE FROM mq_state WHERE {keys.LISTED} AND owner = :member"  # noqa: S608 - constants
        listed = keys.as_list(positions)
        self._connection.execute(delete, {"grp": self.grp, "positions": listed, "member": member})
        if copies:
            delete = "DELETE FROM mq_message WHERE position IN (SELECT value FROM json_each(?))"
            self._connection.execute(delete, (keys.as_list(copies),))

    def free(self, member: int, positions: Iterable[int]) -> None:
        """Give up the keys of these, of which nothing will be left in hand. Before `finish`."""
        if self._order == "key":
            keys.free(self._connection, self.grp, keys.as_list(positions), member)

    def again(self, member: int, position: int, attempt: int, due: float) -> None:
        """Back to the group, not before `due`."""
        sql = """
            UPDATE mq_state SET owner = NULL, attempt = ?, due = ?
            WHERE grp = ? AND position = ? AND owner = ?"""
        self._connection.execute(sql, (attempt, due, self.grp, position, member))

    # -- the parts of take ---------------------------------------------------------------------

    def _is_active(self, member: int) -> bool:
        sql = "UPDATE mq_group SET active = ? WHERE id = ? AND active IS NULL"
        active = self._connection.row("SELECT active FROM mq_group WHERE id = ?", (self.grp,))[0]
        if active is None:
            self._connection.execute(sql, (member, self.grp))
        return active is None or active == member

    def _let_become_due(self, now: float) -> None:
        sql = """
            SELECT position FROM mq_state INDEXED BY mq_delayed
            WHERE grp = ? AND due <= ? ORDER BY due LIMIT ?"""
        due = self._connection.rows(sql, (self.grp, now, DUE_AT_ONCE))
        if not due:
            return
        self._line_up(position for (position,) in due)

    def _line_up(self, positions: Iterable[int]) -> None:
        """Let delayed messages wait from now on, each in its place among those of its key."""
        listed = keys.as_list(positions)
        keys.hide(self._connection, self.grp, listed)
        update = f"""
            UPDATE mq_state SET due = NULL, ready = CASE WHEN key IS NULL THEN 0 END
            WHERE {keys.LISTED}"""  # noqa: S608 - constants
        self._connection.execute(update, {"grp": self.grp, "positions": listed})
        keys.show(self._connection, self.grp, listed)

    def _take_waiting(self, member: int, limit: int, taken: list[Taken]) -> bool:
        """Returns whether the fetch is full."""
        parameters = {"grp": self.grp, "member": member, "limit": limit}
        seen: list[int] = []
        damaged: list[int] = []
        gone: list[int] = []
        size = 0
        for row in self._connection.each(WAITING, parameters):
            position, attempt, redelivered, key, there, only = row[:6]
            seen.append(position)
            if there is None:
                gone.append(position)
            elif (message := self._read(row[6:], position)) is None:
                damaged.append(position)
            else:
                taken.append(Taken(message, position, key, attempt, redelivered, only is not None))
                size += len(message.body or b"")
            if size >= MOST_BYTES:
                break
        if not seen:
            return False
        self._change("SET owner = :value, ready = NULL", seen, member)
        self._change("SET owner = :value", damaged, SET_ASIDE)
        self._claim(member, taken)
        keys.show(self._connection, self.grp, keys.as_list(seen))
        if gone:  # discarded while it waited
            self.finish(member, gone, ())
        return len(seen) >= limit or size >= MOST_BYTES

    def _take_new(self, member: int, limit: int, now: float, taken: list[Taken]) -> None:
        most = limit - len(taken) + LOOK_AHEAD
        parameters = {"grp": self.grp, "topic": self._topic, "limit": most}
        fresh: list[Taken] = []
        blocked: list[int] = []
        delayed: list[int] = []
        damaged: list[int] = []
        size, position = 0, None
        for row in self._connection.each(NEW, parameters):
            position, due, owner, key = row[:4]
            message = self._read(row[4:], position)
            if message is None:
                damaged.append(position)
            elif due is not None and due > now:
                delayed.append(position)
            elif owner is not None and owner != member:
                blocked.append(position)
            else:
                fresh.append(Taken(message, position, key, 1, 0, False))  # noqa: FBT003 - hot
            size += len(row[6] or b"")
            if len(taken) + len(fresh) >= limit or size >= MOST_BYTES:
                break
        if position is None:
            return
        self._enter((one.position for one in fresh), member)
        self._enter(damaged, SET_ASIDE)
        self._enter(delayed + blocked, None)
        if blocked:
            self._line_up(blocked)
        sql = "UPDATE mq_group SET cursor = ? WHERE id = ?"
        self._connection.execute(sql, (position + 1, self.grp))
        self._claim(member, fresh)
        taken += fresh

    def _enter(self, positions: Iterable[int], owner: int | None) -> None:
        listed = keys.as_list(positions)
        if listed != "[]":
            parameters = {
                "grp": self.grp,
                "positions": listed,
                "owner": owner,
            }
            self._connection.execute(ENTER, parameters)

    def _change(self, what: str, positions: list[int], value: int) -> None:
        if positions:
            sql = f"UPDATE mq_state {what} WHERE {keys.LISTED}"
            listed = keys.as_list(positions)
            self._connection.execute(sql, {"grp": self.grp, "positions": listed, "value": value})

    def _claim(self, member: int, taken: list[Taken]) -> None:
        keyed = [one.position for one in taken if one.key is not None]
        if keyed and self._order == "key":
            keys.claim(self._connection, self.grp, keys.as_list(keyed), member)

    def _read(self, columns: Columns, position: int) -> Message | None:
        message = from_row(columns, self.where, self._file, position)
        if message is None:
            log.error(
                "message at position %d of topic %r in %s is damaged: it is set aside and not "
                "delivered; its row stays in mq_message",
                position,
                self.where,
                self._connection.path,
            )
        return message
