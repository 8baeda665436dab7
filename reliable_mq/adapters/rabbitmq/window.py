"""The order of publishing: what is to be sent, on its way, in doubt, or waits behind its key.

Pure: it sends nothing and reads no clock. The invariants, which a state machine tries to break:

* Entries of one key are sent in the order they came; after a nack, a loss of the connection or a
  refused route they are sent again from the first failed one on, before anything new of that key,
  with their ids. Later ones that the broker took meanwhile are sent again behind it, as copies.
* Nothing of a key is sent while one of it was refused and others of it are still on their way.
* No entry is forgotten: it is in exactly one of the places below until its Confirmation has ended.

The tags of a channel count from 1, so what is on its way is a queue whose head has a known tag.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from reliable_mq.adapters.rabbitmq.names import Address, Route
from reliable_mq.confirmation import Confirmation

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

__all__ = ["Entry", "Window"]

#: Seconds before what was refused is sent again: doubled with each refusal.
FIRST_PAUSE: Final = 0.01
LONGEST_PAUSE: Final = 1.0


class Entry(Struct, eq=False, gc=False):  # no cycle goes through it
    """One publish.

    key: what keeps its order with it; None: nothing. route: what has to be there before it is sent;
    None: nothing. over: it has ended without a Receipt, so it is not sent any more.
    """

    confirmation: Confirmation
    address: Address
    properties: Any
    key: Hashable = None
    route: Route | None = None
    deadline: float | None = None
    size: int = 0
    number: int = 0
    tries: int = 0
    on_its_way: bool = False
    in_doubt: bool = False
    over: bool = False


class _Held:
    """A key that waits: entries to send again, what came behind them, and not before when."""

    __slots__ = ("again", "behind", "due")

    def __init__(self, again: list[Entry]) -> None:
        self.again = again
        self.behind: list[Entry] = []
        self.due: float | None = None


class Window:
    """All entries of one publisher. The I/O thread only."""

    def __init__(self, size: int, presumed: Collection[Route] = ()) -> None:
        self._size = size
        #: Routes that somebody has just made or seen; nobody asks for them.
        self._presumed = presumed
        self._numbers = 0
        #: No deadline is before that: as long as it is not over, nobody need look at them all.
        self._earliest = math.inf
        self._tag = 1
        self._flight: deque[Entry] = deque()
        self._redo: deque[Entry] = deque()
        self._fresh: deque[Entry] = deque()
        self._held: dict[Hashable, _Held] = {}
        #: Refused, without a key: (when to send it again, entry).
        self._paused: list[tuple[float, Entry]] = []
        self._asking: dict[Route | None, list[Entry]] = {}
        self._known: set[Route | None] = {None}
        #: As long as there are any, entries are sent one by one: the broker closes the channel
        #: over one of them, and nothing else tells which.
        self._careful: set[int] = set()

    # -- in ------------------------------------------------------------------------------------

    def take(self, entries: Iterable[Entry]) -> None:
        """New ones, in their order."""
        for entry in entries:
            self._numbers += 1
            entry.number = self._numbers
            if entry.deadline is not None and entry.deadline < self._earliest:
                self._earliest = entry.deadline
            self._fresh.append(entry)

    # -- out -----------------------------------------------------------------------------------

    @property
    def full(self) -> bool:
        """Whether nothing can be sent before something is answered."""
        room = 1 if self._careful else self._size
        return len(self._flight) >= room

    def next(self) -> Entry | None:
        """What to send next; it is on its way from now on. None: no room, or nothing to send."""
        room = 1 if self._careful else self._size
        while len(self._flight) < room:
            if self._redo:
                entry = self._redo.popleft()
            elif self._fresh:
                entry = self._fresh.popleft()
            else:
                return None
            if entry.over:
                self._careful.discard(entry.number)
                continue
            held = self._held.get(entry.key) if self._held and entry.key is not None else None
            if held is not None:
                held.behind.append(entry)
            elif self._asking and entry.route in self._asking:
                self._asking[entry.route].append(entry)  # even if it is known by now: in order
            elif entry.route in self._known or entry.route in self._presumed:
                entry.on_its_way = True
                self._flight.append(entry)
                return entry
            else:
                self._asking.setdefault(entry.route, []).append(entry)
        return None

    def questions(self) -> list[Route]:
        """Routes that something waits for."""
        return [route for route in self._asking if route is not None]

    def answer(self, route: Route) -> None:
        """This route is there."""
        self._known.add(route)
        self._redo.extendleft(reversed(self._asking.pop(route, [])))

    def refuse(self, route: Route) -> list[Entry]:
        """This route will not be there: what waited for it."""
        refused = self._asking.pop(route, [])
        self._careful.difference_update([one.number for one in refused])
        return refused

    # -- answers of the broker -----------------------------------------------------------------

    def acked(self, tag: int, *, multiple: bool) -> list[Entry]:
        """The broker stored these."""
        answered = self._answered(tag, multiple=multiple)
        self._trim()
        return answered

    def nacked(self, tag: int, now: float, *, multiple: bool) -> None:
        """The broker refused these for now: they wait, and their keys with them."""
        for entry in self._answered(tag, multiple=multiple):
            entry.tries += 1
            pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(entry.tries, 10))
            if entry.key is None:
                self._paused.append((now + pause, entry))
                continue
            held = self._held.get(entry.key)
            if held is None:
                behind = [one for one in self._flight if one.key == entry.key]
                behind = [one for one in behind if one.number > entry.number]
                held = self._held[entry.key] = _Held([entry, *behind])
            elif entry not in held.again:
                held.again.append(entry)
            held.due = max(held.due or 0.0, now + pause)
        self._trim()  # only now: what was stored behind the refused ones had to be found

    def _answered(self, tag: int, *, multiple: bool) -> list[Entry]:
        flight = self._flight
        last = tag - self._tag  # the place of this tag
        if not 0 <= last < len(flight):
            return []
        if multiple:
            answered = [one for _, one in zip(range(last + 1), flight, strict=False)]
        else:
            answered = [flight[last]]
        answered = [one for one in answered if one.on_its_way]
        for entry in answered:
            entry.on_its_way = False
            self._careful.discard(entry.number)
        return answered

    def _trim(self) -> None:
        # What is answered behind something that is not stays: should that be refused, or the
        # connection be lost, it is needed to keep its key in order.
        flight = self._flight
        while flight and not flight[0].on_its_way:
            flight.popleft()
            self._tag += 1

    def due(self) -> float | None:
        """When to call `release` next, None: when something is answered."""
        times = [one.due for one in self._held.values() if one.due is not None and _ready(one)]
        times += [when for when, _ in self._paused]
        return min(times, default=None)

    def release(self, now: float) -> None:
        """Let what was refused be sent again, if its time has come and its key is at rest."""
        for key, held in list(self._held.items()):
            if held.due is not None and held.due <= now and _ready(held):
                del self._held[key]
                self._redo.extendleft(reversed([*_in_order(held.again), *held.behind]))
        again = _in_order(entry for when, entry in self._paused if when <= now)
        if again:
            self._paused = [pair for pair in self._paused if pair[0] > now]
            self._redo.extendleft(reversed(again))

    # -- trouble -------------------------------------------------------------------------------

    def lost(self) -> None:
        """The channel is gone: what was on its way is in doubt, and all goes out again in order."""
        again: dict[int, Entry] = {}
        open_keys: set[Hashable] = set()
        for entry in self._flight:
            if entry.on_its_way:
                entry.on_its_way = False
                entry.in_doubt = True
                again[entry.number] = entry
                open_keys.add(entry.key)
            elif entry.key is not None and entry.key in open_keys:
                again[entry.number] = entry  # stored before an earlier one: again, behind it
        self._flight.clear()
        self._tag = 1
        for one in chain(self._waiting(), self._redo):
            again[one.number] = one
        self._held.clear()
        self._paused.clear()
        self._asking.clear()
        self._known = {None}
        self._redo = deque(_in_order(again.values()))

    def be_careful(self) -> Entry | None:
        """The broker closed the channel over something that was on its way: find out what.

        Returns it where only one was; otherwise those are sent one by one from here on. Call `lost`
        afterwards.
        """
        open_ones = [one for one in self._flight if one.on_its_way]
        if len(open_ones) == 1:
            self._careful.discard(open_ones[0].number)
            return open_ones[0]
        self._careful.update(one.number for one in open_ones)
        return None

    def find(self, id: str, exchange: str, routing_key: str) -> Entry | None:
        """The first on its way with this id and address: the one that a return is about."""
        for entry in self._flight:
            if entry.properties.message_id == id and entry.on_its_way and not entry.over:
                address = entry.address
                if (address.exchange, address.routing_key) == (exchange, routing_key):
                    return entry
        return None

    def overdue(self, now: float) -> list[Entry]:
        """What is over its deadline. The caller ends it; it is not sent any more."""
        if now < self._earliest:
            return []
        open_ones = [
            (one.deadline, one)
            for one in self.all()
            if one.deadline is not None and not one.confirmation.done()
        ]
        late = [one for deadline, one in open_ones if now >= deadline]
        self._earliest = min([when for when, _ in open_ones if now < when], default=math.inf)
        if late:
            for one in late:
                one.over = True
                if not one.on_its_way:
                    self._careful.discard(one.number)
            for queue in (self._redo, self._fresh):
                kept = [one for one in queue if not one.over]
                queue.clear()
                queue.extend(kept)
        return late

    def all(self) -> Iterator[Entry]:
        """Every entry that may not have ended."""
        return chain(self._flight, self._waiting(), self._redo, self._fresh)

    def _waiting(self) -> Iterator[Entry]:
        for held in self._held.values():
            yield from held.again
            yield from held.behind
        for _, entry in self._paused:
            yield entry
        for entries in self._asking.values():
            yield from entries


def _ready(held: _Held) -> bool:
    return not any(one.on_its_way for one in held.again)


def _in_order(entries: Iterable[Entry]) -> list[Entry]:
    return sorted(entries, key=lambda one: one.number)
