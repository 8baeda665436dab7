"""Which offset of a partition is the first that is not done, however the others end.

    delivered    3  4  7  8  9         offsets need not be neighbours: logs are compacted
    done         x     x  x
    commit at       4                  never past what is not done

One tracker per assignment, not per partition: when a partition is taken away and comes back there
is a new tracker, and a late end from before sets a slot that nobody looks at any more.
"""

from __future__ import annotations

from collections import deque

from msgspec import Struct

from reliable_mq.errors import ReliableMQError

__all__ = ["OffsetRegression", "OffsetTracker", "Slot", "WindowOverflow"]


class OffsetRegression(ReliableMQError):
    """An offset came that is not above the last one; nothing was added."""


class WindowOverflow(ReliableMQError):
    """More offsets came than the window holds; nothing was added."""


class Slot(Struct, eq=False, gc=False):
    """One delivered offset. Whoever finishes it sets `done = True`: any thread, once or more often.

    Safe without a lock: a slot changes only from not done to done, and each change is one store to
    one attribute. The owner may see it late, and then commits a lower offset for a while; it cannot
    see it early.
    """

    offset: int
    done: bool = False


class OffsetTracker:
    """First offset not done. The owner thread only, but for `slot.done = True`.

    The owner is the one thread that adds and removes slots, so the deque needs no lock either:
    others hold slots, never the deque.

    Args:
        window: Slots at most, from the first that is not done to the last that was added. They are
            counted as delivered: gaps between offsets take no room.
    """

    __slots__ = ("_last", "_slots", "window")

    def __init__(self, window: int = 20_000) -> None:
        self.window = window
        self._slots: deque[Slot] = deque()
        self._last: int | None = None

    def add(self, offset: int) -> Slot:
        """A record was delivered. Returns the slot to be set done.

        Raises:
            OffsetRegression: `offset` is not above the last one: it was delivered twice, or this is
                the tracker of an older assignment.
            WindowOverflow: The window is full; look at `full` before asking for more.
        """
        last = self._last
        if last is not None and offset <= last:
            msg = (
                f"offset {offset} came after offset {last}, with {len(self._slots)} slots from "
                f"offset {self.position} on; offsets of one assignment only rise"
            )
            raise OffsetRegression(msg)
        slots = self._slots
        if len(slots) >= self.window:
            msg = (
                f"offset {offset} is over the window of {self.window}: {len(slots)} slots from "
                f"offset {self.position} to offset {last}; stop polling while `full`"
            )
            raise WindowOverflow(msg)
        slot = Slot(offset)
        slots.append(slot)
        self._last = offset
        return slot

    def advance(self) -> int | None:
        """Pass over what is done. Returns the offset to commit; None before the first `add`.

        It is the offset of the first record that is not done, or, if all are, the one behind the
        last. It never falls.
        """
        slots = self._slots
        while slots and slots[0].done:
            slots.popleft()
        return self.position

    @property
    def position(self) -> int | None:
        """What `advance` returned last, or would return if nothing ended since."""
        if self._slots:
            return self._slots[0].offset
        return None if self._last is None else self._last + 1

    def done_behind(self) -> list[int]:
        """Offsets that are done behind one that is not."""
        return [slot.offset for slot in self._slots if slot.done]

    @property
    def pending(self) -> int:
        """Slots that a commit would not cover: those not done, and done ones behind them."""
        return len(self._slots)

    @property
    def full(self) -> bool:
        """Whether the next `add` would overflow; `advance` makes room."""
        return len(self._slots) >= self.window
