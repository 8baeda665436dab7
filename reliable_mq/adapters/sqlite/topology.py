"""Topics and groups: making them, comparing them, finding them.

A group of a topic comes with a topic of its own for its dead letters. It begins where it is
declared to, or, declared without a start, where its first member asks to; until then it has
everything that there is.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from reliable_mq.errors import ConfigurationError
from reliable_mq.message import dead_letter_topic

if TYPE_CHECKING:
    from collections.abc import Iterable

    from reliable_mq.adapters.base import GroupSpec, Start, Subscribe, Topology
    from reliable_mq.adapters.sqlite.connection import Connection

__all__ = ["check", "create", "find_group", "find_groups", "find_topic", "place"]


def create(connection: Connection, topology: Topology, wait: float) -> None:
    """Make what is missing; where nothing is, nothing is written.

    Raises: Locked when another process has the lock for longer than `wait` seconds.
    """
    if not any(_missing(connection, topology)):
        return
    connection.begin(wait)
    try:
        _create(connection, topology)
    except BaseException:
        connection.rollback()
        raise
    connection.commit()


def _create(connection: Connection, topology: Topology) -> None:
    for spec in topology.topics:
        topic = _make_topic(connection, spec.name, dead_letters=False)
        for group in spec.groups:
            if find_group(connection, spec.name, group.name) is None:
                _make_group(connection, topic, spec.name, group)


def check(connection: Connection, topology: Topology) -> None:
    """Compare only; a file that is not there is not made.

    Raises: ConfigurationError listing what is missing.
    """
    if not os.path.exists(connection.path):  # noqa: PTH110 - a path as SQLite takes it
        text = f"{connection.path} does not exist: use topology='create' once"
        raise ConfigurationError(text)
    missing = list(_missing(connection, topology))
    if missing:
        text = (
            f"{connection.path}: {'; '.join(missing)}: declare them, or use topology='create' once"
        )
        raise ConfigurationError(text)


def find_topic(connection: Connection, name: str) -> int | None:
    """The id of a topic; None where there is none."""
    found = connection.row("SELECT id FROM mq_topic WHERE name = ?", (name,))
    return None if found is None else int(found[0])


def find_group(connection: Connection, topic: str, group: str) -> int | None:
    """The id of a group; None where there is none."""
    sql = """
        SELECT g.id FROM mq_group AS g JOIN mq_topic AS t ON t.id = g.topic
        WHERE t.name = ? AND g.name = ?"""
    found = connection.row(sql, (topic, group))
    return None if found is None else int(found[0])


def find_groups(connection: Connection, subscribe: Subscribe) -> list[tuple[int, int, str]]:
    """(group id, topic id, topic name) for each topic of a subscription.

    Raises: ConfigurationError listing what does not exist.
    """
    found, missing = [], []
    for name in dict.fromkeys(subscribe.topics):
        topic = find_topic(connection, name)
        grp = find_group(connection, name, subscribe.group)
        if topic is None:
            missing.append(f"topic {name!r} does not exist")
        elif grp is None:
            missing.append(f"topic {name!r} has no group {subscribe.group!r}")
        else:
            found.append((grp, topic, name))
    if missing:
        text = (
            f"{connection.path}: {'; '.join(missing)}: declare them with "
            f"mq.topic(..., groups=({subscribe.group!r},))"
        )
        raise ConfigurationError(text)
    return found


def place(connection: Connection, groups: Iterable[tuple[int, int, str]], start: Start) -> None:
    """Let those of the groups that have no beginning yet begin at `start`. In a transaction."""
    for grp, topic, _ in groups:
        placed = connection.row("SELECT placed FROM mq_group WHERE id = ?", (grp,))[0]
        if placed:
            continue
        connection.execute("UPDATE mq_group SET placed = 1 WHERE id = ?", (grp,))
        if start is not None:
            cursor = _position(connection, topic, start)
            connection.execute("UPDATE mq_group SET cursor = ? WHERE id = ?", (cursor, grp))


def _missing(connection: Connection, topology: Topology) -> Iterable[str]:
    for spec in topology.topics:
        if find_topic(connection, spec.name) is None:
            yield f"topic {spec.name!r} is missing"
        for group in spec.groups:
            if find_group(connection, spec.name, group.name) is None:
                yield f"group {group.name!r} of topic {spec.name!r} is missing"


def _make_topic(connection: Connection, name: str, *, dead_letters: bool) -> int:
    sql = "INSERT INTO mq_topic (name, dead_letters) VALUES (?, ?) ON CONFLICT DO NOTHING"
    connection.execute(sql, (name, dead_letters))
    topic = find_topic(connection, name)
    assert topic is not None  # noqa: S101 - it has just been made
    return topic


def _make_group(connection: Connection, topic: int, name: str, group: GroupSpec) -> None:
    cursor = 0 if group.start is None else _position(connection, topic, group.start)
    sql = "INSERT INTO mq_group (topic, name, cursor, placed) VALUES (?, ?, ?, ?)"
    connection.execute(sql, (topic, group.name, cursor, group.start is not None))
    _make_topic(connection, dead_letter_topic(name, group.name), dead_letters=True)


def _position(connection: Connection, topic: int, start: Start) -> int:
    """The first position from `start` on."""
    if start is None or start == "earliest":
        return 0
    if isinstance(start, int):
        return start
    if start != "latest":
        sql = """
            SELECT position FROM mq_message INDEXED BY mq_log
            WHERE topic = ? AND only_group IS NULL AND created_at >= ? ORDER BY position LIMIT 1"""
        if first := connection.row(sql, (topic, start)):
            return int(first[0])
    last = connection.row("SELECT seq FROM sqlite_sequence WHERE name = 'mq_message'")
    return 1 if last is None else int(last[0]) + 1
