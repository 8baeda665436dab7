"""Deletes what nobody needs any more: old enough, and finished by every group of its topic.

A topic without a group keeps everything for the groups to come, dead letters stay until they are
discarded. Each call looks at a bounded number of rows, from where the last one stopped, so that
what has to stay is not looked at again and again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from reliable_mq.adapters.sqlite.keys import as_list

if TYPE_CHECKING:
    from reliable_mq.adapters.sqlite.connection import Connection

__all__ = ["Retention"]

#: Topics to look at, and the position that all their groups have passed.
TOPICS: Final = """
    SELECT t.id, min(g.cursor) FROM mq_topic AS t JOIN mq_group AS g ON g.topic = t.id
    WHERE NOT t.dead_letters GROUP BY t.id"""
OLDEST: Final = """
    SELECT m.position, m.stored_at, EXISTS (
        SELECT 1 FROM mq_group AS g JOIN mq_state AS s ON s.grp = g.id AND s.position = m.position
        WHERE g.topic = :topic)
    FROM mq_message AS m INDEXED BY mq_log
    WHERE m.topic = :topic AND m.only_group IS NULL AND m.position BETWEEN :first AND :last
    ORDER BY m.position LIMIT :limit"""
DELETE: Final = "DELETE FROM mq_message WHERE position IN (SELECT value FROM json_each(?))"


class Retention:
    """Where one member has got to. `seconds`: how long a finished message stays."""

    def __init__(self, connection: Connection, seconds: float) -> None:
        self._connection = connection
        self._seconds = seconds
        self._first: dict[int, int] = {}
        self._turn = 0

    def find(self, now: float, limit: int) -> list[int]:
        """Positions that may go, of `limit` looked at. Reads only."""
        gone: list[int] = []
        topics = self._connection.rows(TOPICS)
        self._turn += 1  # another topic begins, so that a large one does not keep the others off
        for number in range(len(topics)):
            topic, passed = topics[(number + self._turn) % len(topics)]
            if limit <= 0:
                break
            limit -= self._look(topic, passed, now, limit, gone)
        return gone

    def delete(self, positions: list[int]) -> None:
        """In any later transaction: what may go once may go for ever."""
        if positions:
            self._connection.execute(DELETE, (as_list(positions),))

    def _look(self, topic: int, passed: int, now: float, limit: int, gone: list[int]) -> int:
        """Collect what may go; returns how many rows it looked at."""
        parameters = {
            "topic": topic,
            "first": self._first.get(topic, 0),
            "last": passed - 1,
            "limit": limit,
        }
        looked_at = 0
        for position, stored_at, needed in self._connection.each(OLDEST, parameters):
            # In the order they were stored in: behind a young one all are young.
            if stored_at is not None and stored_at > now - self._seconds:
                break
            looked_at += 1
            self._first[topic] = position + 1
            if not needed:
                gone.append(position)
        if looked_at < limit:
            # The end: begin anew next time, as what was needed now may be finished then.
            self._first.pop(topic, None)
        return looked_at
