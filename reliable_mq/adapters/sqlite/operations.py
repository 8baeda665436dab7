"""What operators ask: how far behind a group is, what its dead letters are, what is damaged."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from reliable_mq.adapters.base import StoredMessage
from reliable_mq.adapters.sqlite.keys import as_list
from reliable_mq.adapters.sqlite.record import COLUMNS, from_row
from reliable_mq.adapters.sqlite.schema import SET_ASIDE
from reliable_mq.adapters.sqlite.topology import find_group, find_topic
from reliable_mq.errors import ConfigurationError
from reliable_mq.message import dead_letter_topic

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from reliable_mq.adapters.sqlite.connection import Connection

__all__ = ["browse", "damaged", "discard", "lag"]

log = logging.getLogger("reliable_mq.sqlite")

#: Rows read at once: between two reads nothing keeps others from folding the log into the file.
PAGE: Final = 100


def browse(connection: Connection, topic: str, group: str, limit: int) -> Iterator[StoredMessage]:
    """The oldest `limit` dead letters; damaged ones are passed over, and logged."""
    where = dead_letter_topic(topic, group)
    number = _topic(connection, where)
    file = str(connection.row("SELECT value FROM mq_meta WHERE name = 'file'")[0])
    sql = f"""
        SELECT m.position, {COLUMNS} FROM mq_message AS m INDEXED BY mq_log
        WHERE m.topic = ? AND m.only_group IS NULL AND m.position > ?
        ORDER BY m.position LIMIT ?"""  # noqa: S608 - constants
    position = -1
    while limit > 0:
        page: list[Any] = connection.rows(sql, (number, position, min(limit, PAGE)))
        if not page:
            return
        for position, *columns in page:
            message = from_row(tuple(columns), where, file, position)
            if message is None:
                log.error("dead letter at position %d of %r is damaged", position, where)
            else:
                limit -= 1
                yield StoredMessage(message, position)


def discard(
    connection: Connection, topic: str, group: str, positions: Sequence[int | str], wait: float
) -> int:
    """Delete these dead letters; returns how many were there."""
    number = _topic(connection, dead_letter_topic(topic, group))
    listed = as_list({one for one in positions if isinstance(one, int)})
    sql = """
        DELETE FROM mq_message
        WHERE topic = ? AND position IN (SELECT value FROM json_each(?))"""
    connection.begin(wait)
    try:
        count = connection.execute(sql, (number, listed)).rowcount
    except BaseException:
        connection.rollback()
        raise
    connection.commit()
    return count


def lag(connection: Connection, topic: str, group: str) -> int:
    """What the group has not finished: in hand, waiting, delayed, set aside, or not taken yet."""
    sql = """
        SELECT (SELECT count(*) FROM mq_state WHERE grp = g.id) + (
            SELECT count(*) FROM mq_message INDEXED BY mq_log
            WHERE topic = g.topic AND only_group IS NULL AND position >= g.cursor)
        FROM mq_group AS g WHERE g.id = ?"""
    return int(connection.row(sql, (_group(connection, topic, group),))[0])


def damaged(connection: Connection, topic: str, group: str) -> list[int]:
    """Positions in `mq_message` of what was set aside because it is damaged."""
    sql = """
        SELECT position FROM mq_state INDEXED BY mq_in_hand
        WHERE owner = ? AND grp = ? ORDER BY position"""
    grp = _group(connection, topic, group)
    return [position for (position,) in connection.rows(sql, (SET_ASIDE, grp))]


def _topic(connection: Connection, name: str) -> int:
    topic = find_topic(connection, name)
    if topic is None:
        text = f"topic {name!r} does not exist in {connection.path}: declare the group first"
        raise ConfigurationError(text)
    return topic


def _group(connection: Connection, topic: str, group: str) -> int:
    grp = find_group(connection, topic, group)
    if grp is None:
        text = (
            f"topic {topic!r} has no group {group!r} in {connection.path}: declare it with "
            f"mq.topic({topic!r}, groups=({group!r},))"
        )
        raise ConfigurationError(text)
    return grp
