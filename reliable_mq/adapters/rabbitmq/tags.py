"""Delivery tags of one channel: which are acked, and in how few frames the broker can be told.

The broker counts what it delivers on a channel from 1. `multiple` acks everything up to a tag, so
it may only be used where nothing below is open: nothing unacked is ever passed over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["Tags"]


class Tags:
    """The I/O thread only."""

    def __init__(self) -> None:
        #: All up to here are acked, and the broker has been told.
        self._done = 0
        #: Acked above that, and told one by one.
        self._told: set[int] = set()

    def ack(self, tags: Iterable[int]) -> Iterator[tuple[int, bool]]:
        """What to tell the broker: (tag, multiple)."""
        new = {tag for tag in tags if tag > self._done and tag not in self._told}
        prefix: list[int] = []
        while self._done + 1 in new or self._done + 1 in self._told:
            self._done += 1
            if self._done in new:
                prefix.append(self._done)
                new.discard(self._done)
            else:
                self._told.discard(self._done)
        if prefix:
            # Not self._done, if that has been told: the broker looks for the very tag.
            yield prefix[-1], len(prefix) > 1
        for tag in sorted(new):
            self._told.add(tag)
            yield tag, False
