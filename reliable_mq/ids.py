"""Ids of messages: new ones, and ones that a rerun of a handler gives again."""

from __future__ import annotations

import hashlib
import itertools
import os
from typing import TYPE_CHECKING, Final
from uuid import UUID
from weakref import WeakSet

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["IdSource", "derived_id"]


class IdSource:
    """Ids that never come twice: 96 random bits, drawn once a process, and a counter.

    Any thread, without a lock. A forked child draws new bits, and so does a counter at its end.
    """

    __slots__ = ("__weakref__", "_random", "_state")

    def __init__(self, random: Callable[[int], bytes] = os.urandom) -> None:
        self._random = random
        self.renew()
        _sources.add(self)

    def renew(self, first: int = 0) -> None:
        """Draw new bits, and count from `first`."""
        # One attribute, so that no thread pairs the bits of one state with the counter of another.
        self._state = (self._random(12).hex(), itertools.count(first).__next__)

    def __call__(self) -> str:
        """A new id."""
        prefix, count = self._state
        number = count()
        if number >= _FULL:
            self.renew()
            return self()
        return prefix + hex(number + _FULL)[3:]  # twice as fast as a format of 08x


_FULL = 2**32
_sources: WeakSet[IdSource] = WeakSet()


def _renew_all() -> None:
    for source in _sources:
        source.renew()


if hasattr(os, "register_at_fork"):  # pragma: no branch - all but Windows
    os.register_at_fork(after_in_child=_renew_all)

_NAMESPACE: Final = UUID("5a9d8a4e-6b1f-5d0c-9a5e-3f1c7e0b2d64").bytes


def derived_id(incoming_id: str, group: str, ordinal: int, *, topic: str) -> str:
    """The id of the `ordinal`th message that a handler publishes: the same in each of its runs.

    A version 5 UUID. `topic` is where the incoming message is from: a group may read several, ids
    are unique within one only, and of two messages with one id the second would be taken for a
    duplicate.
    """
    # With their lengths, so that no two different pairs of names make the same text.
    text = f"{len(topic)}:{topic}{len(incoming_id)}:{incoming_id}{len(group)}:{group}{ordinal}"
    name = _NAMESPACE + text.encode("utf-8", "surrogatepass")
    digest = hashlib.sha1(name, usedforsecurity=False).hexdigest()
    variant = "89ab"[int(digest[16], 16) & 3]
    # What str(UUID(bytes=…, version=5)) gives, in a quarter of the time.
    return f"{digest[:8]}-{digest[8:12]}-5{digest[13:16]}-{variant}{digest[17:20]}-{digest[20:32]}"
