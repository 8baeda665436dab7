"""One topic: messages by offset, kept until every group has finished them.

A topic without a group keeps everything, for the groups to come. The caller holds the broker's
lock in every method.
"""

from __future__ import annotations

from heapq import heappop, heappush
from itertools import count
from typing import TYPE_CHECKING

from reliable_mq.adapters.memory.group import Group

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reliable_mq.adapters.base import Start
    from reliable_mq.message import Message

__all__ = ["Log"]


class Log:
    """`messages` is in the order of its offsets; `end` is the next one."""

    def __init__(self, name: str, *, retain: bool) -> None:
        self.name = name
        self.messages: dict[int, Message] = {}
        self.end = 0
        self.groups: dict[str, Group] = {}
        #: (epoch seconds, ordinal, message): they take their place in the log when they are due.
        self.delayed: list[tuple[float, int, Message]] = []
        self._retain = retain
        #: How many groups have finished an offset, where there are several.
        self._finished: dict[int, int] = {}
        self._count = count(1)

    def append(self, message: Message) -> int:
        """Store it for every group; returns its offset."""
        position = self.end
        self.messages[position] = message
        self.end = position + 1
        return position

    def delay(self, message: Message, not_before: float) -> str:
        """Store it, for every group, from that time on."""
        ordinal = next(self._count)
        heappush(self.delayed, (not_before, ordinal, message))
        return f"delayed-{ordinal}"

    def ripen(self, now: float) -> None:
        """Let the delayed messages that are due at `now` (epoch seconds) take their place."""
        while self.delayed and self.delayed[0][0] <= now:
            self.append(heappop(self.delayed)[2])

    def finish(self, position: int | str) -> None:
        """One more group has finished this; the last one lets it go."""
        if self._retain:
            return
        if len(self.groups) == 1:
            self.messages.pop(position, None)  # type: ignore[arg-type] # a str is no key of it
        elif position in self.messages:
            assert isinstance(position, int)  # noqa: S101 - it is a key of messages
            self._finished[position] = self._finished.get(position, 0) + 1
            self._drop_if_finished(position)

    def discard(self, positions: Sequence[int | str]) -> int:
        """Remove these whatever the groups have done; returns how many were there."""
        there = [one for one in dict.fromkeys(positions) if one in self.messages]
        for position in there:
            assert isinstance(position, int)  # noqa: S101 - it is a key of messages
            del self.messages[position]
            self._finished.pop(position, None)
            for group in self.groups.values():
                group.gaps += group.cursor <= position
        return len(there)

    def declare(self, name: str, start: Start) -> Group:
        """A new group. Without a `start` it has all there is until its first member asks."""
        group = self.groups[name] = Group(self, name)
        group.placed = start is not None
        self.place(group, start)
        return group

    def place(self, group: Group, start: Start) -> None:
        """Let a group that has taken nothing yet begin at `start`."""
        group.first = group.cursor = self._offset(start)
        there = sum(position >= group.cursor for position in self.messages)
        group.gaps = self.end - group.cursor - there
        for position in list(self.messages):
            self._drop_if_finished(position)

    def _drop_if_finished(self, position: int) -> None:
        needed = sum(group.first <= position for group in self.groups.values())
        if self._finished.get(position, 0) >= needed and not self._retain:
            del self.messages[position]
            self._finished.pop(position, None)

    def _offset(self, start: Start) -> int:
        if start == "latest":
            return self.end
        if isinstance(start, int):
            return min(max(start, 0), self.end)
        since = start if isinstance(start, float) else float("-inf")
        young = (at for at, message in self.messages.items() if message.created_at >= since)
        return next(young, self.end)
