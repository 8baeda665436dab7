"""What is sent when: windows, the order of message groups, batches, pauses. No I/O, no clock.

    add ──> its line ──draw──> a flight (one request) ──landed──> over, or first in line again

On a FIFO topic each message group has a line of its own and one flight at a time: whatever happens
to the first, nothing passes it. Messages of NORMAL topics have no order; while as many requests as
are useful are under way they gather, and the next request takes what has gathered: the broker takes
batches of them ten times as fast. It must never be done with FIFO topics, where each batch would go
to a queue of its own.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from reliable_mq.confirmation import Confirmation

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Entry", "Flight", "Flights", "Line", "Shape"]

#: Messages of one request, and their bytes: the broker takes 4 MiB, and answers when all is stored.
BATCH: Final = 64
BATCH_BYTES: Final = 1024 * 1024
#: Requests of a NORMAL topic under way before messages gather.
GATHER_AFTER: Final = 4
#: Seconds before a request that failed is sent again: at first, and at most.
PAUSE, LONGEST_PAUSE = 0.05, 1.0


class Shape(Enum):
    """How the messages of a topic are sent."""

    ORDERED = 1
    BATCHED = 2
    SINGLE = 3


class Entry(Struct, eq=False):
    """One publish on its way.

    sent: a request with it is under way, and may get there. in_doubt: an earlier one may have got
    there. over: it has its ending. alone: it was in a batch that was refused.
    """

    confirmation: Confirmation
    topic: str
    group: str
    wire: Any
    due: float | None
    deadline: float | None
    size: int
    sent: bool = False
    in_doubt: bool = False
    over: bool = False
    alone: bool = False
    looked_again: bool = False


class Line:
    """What waits for one group, or of one topic without order; `ready_at`: not before this time."""

    __slots__ = ("flying", "pause", "ready_at", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[Entry] = deque()
        self.flying = 0
        self.pause = 0.0
        self.ready_at = 0.0


class Flight(Struct, eq=False):
    """One request: what is in it, and the line that it came from."""

    topic: str
    group: str
    entries: list[Entry]
    line: Line


class _Topic:
    __slots__ = ("lines", "shape")

    def __init__(self) -> None:
        self.shape: Shape | None = None
        self.lines: dict[str, Line] = {}


class Flights:
    """Of one publisher; one thread. Times are monotonic seconds.

    Args:
        window: Requests that are under way at once, at most.
    """

    def __init__(self, window: int) -> None:
        self._window = window
        self._flying = 0
        self._topics: dict[str, _Topic] = {}
        #: Lines that may have something to send, by topic and group, in the order they got it; and
        #: those that have failed, with the time when they go on.
        self._ready: dict[tuple[str, str], None] = {}
        self._resting: dict[tuple[str, str], float] = {}

    def add(self, entry: Entry) -> bool:
        """Take it in; whether the shape of its topic has to be found out."""
        topic = self._topics.get(entry.topic)
        if topic is None:
            topic = self._topics[entry.topic] = _Topic()
            self._line(topic, entry).waiting.append(entry)
            return True
        self._line(topic, entry).waiting.append(entry)
        if topic.shape is not None:
            self._ready[self._place(topic, entry)] = None
        return False

    def found(self, name: str, shape: Shape) -> None:
        """This is how messages of the topic are sent."""
        topic = self._topics.get(name)
        if topic is None or topic.shape is shape:
            return
        waiting = [entry for line in topic.lines.values() for entry in line.waiting]
        for line in topic.lines.values():
            line.waiting.clear()
        topic.shape = shape
        for entry in waiting:
            self._line(topic, entry).waiting.append(entry)
            self._ready[self._place(topic, entry)] = None

    def lost(self, name: str) -> list[Entry]:
        """The topic is not there: those that waited for it, which are forgotten."""
        topic = self._topics.pop(name, None)
        if topic is None:
            return []
        for group in topic.lines:
            self._ready.pop((name, group), None)
        return [entry for entry in self._waiting_of(topic) if not entry.over]

    def draw(self, now: float) -> Iterator[Flight]:
        """The requests that can be sent now; each counts as under way from here on."""
        for place in [place for place, at in self._resting.items() if at <= now]:
            del self._resting[place]
            self._ready[place] = None
        while self._ready and self._flying < self._window:
            place = next(iter(self._ready))
            del self._ready[place]
            flight = self._draw_from(place, now)
            if flight is not None:
                self._ready[place] = None  # behind the others
                yield flight

    def landed(self, flight: Flight) -> None:
        """Its request has an answer. What of it is not over goes again, before all behind it."""
        self._flying -= 1
        line = flight.line
        line.flying -= 1
        topic = self._topics.get(flight.topic)
        if topic is None:  # forgotten meanwhile: it is asked for again
            topic = self._topics[flight.topic] = _Topic()
        for entry in reversed(flight.entries):
            if not entry.over:
                self._line(topic, entry).waiting.appendleft(entry)
                self._ready[self._place(topic, entry)] = None
        if line.waiting:
            self._ready[flight.topic, flight.group] = None
        elif not line.flying and topic.lines.get(flight.group) is line:
            del topic.lines[flight.group]
        if not topic.lines:
            del self._topics[flight.topic]

    def rest(self, flight: Flight, now: float) -> None:
        """It failed: its line waits, longer each time."""
        line = flight.line
        line.pause = min(max(PAUSE, 2 * line.pause), LONGEST_PAUSE)
        line.ready_at = now + line.pause

    def went_well(self, flight: Flight) -> None:
        """The broker answers: the next failure waits for a short time again."""
        flight.line.pause = 0.0

    def unknown(self) -> list[str]:
        """Topics with something to send whose shape nobody knows."""
        return [
            name
            for name, topic in self._topics.items()
            if topic.shape is None and any(line.waiting for line in topic.lines.values())
        ]

    def forget_shape(self, name: str) -> None:
        """Something was wrong with it: it is found out again."""
        topic = self._topics.get(name)
        if topic is not None:
            topic.shape = None
            for group in topic.lines:
                self._ready.pop((name, group), None)

    def purge(self) -> None:
        """Drop what is over, and lines and topics that have nothing: nothing grows for ever."""
        for name, topic in list(self._topics.items()):
            for group, line in list(topic.lines.items()):
                line.waiting = deque(entry for entry in line.waiting if not entry.over)
                if not line.waiting and not line.flying:
                    del topic.lines[group]
                    self._ready.pop((name, group), None)
            if not topic.lines:
                del self._topics[name]

    def next_at(self) -> float | None:
        """When a line that rests can go on; None: none rests."""
        return min(self._resting.values(), default=None)

    # -- parts ---------------------------------------------------------------------------------

    def _line(self, topic: _Topic, entry: Entry) -> Line:
        _, group = self._place(topic, entry)
        line = topic.lines.get(group)
        if line is None:
            line = topic.lines[group] = Line()
        return line

    def _place(self, topic: _Topic, entry: Entry) -> tuple[str, str]:
        """Which line it belongs to; while nobody knows the shape, each group has one."""
        loose = topic.shape in (Shape.BATCHED, Shape.SINGLE)
        return (entry.topic, "" if loose else entry.group)

    def _waiting_of(self, topic: _Topic) -> list[Entry]:
        return [entry for line in topic.lines.values() for entry in line.waiting]

    def _draw_from(self, place: tuple[str, str], now: float) -> Flight | None:
        """None: it has nothing, or not now; what changes that makes it ready again."""
        name, group = place
        topic = self._topics.get(name)
        line = None if topic is None else topic.lines.get(group)
        if topic is None or line is None or topic.shape is None:
            return None
        while line.waiting and line.waiting[0].over:
            line.waiting.popleft()
        if not line.waiting:
            if not line.flying:
                del topic.lines[group]
            return None
        if line.ready_at > now:
            self._resting[place] = line.ready_at
            return None
        batched = topic.shape is Shape.BATCHED
        if line.flying >= (GATHER_AFTER if batched else 1) and topic.shape is not Shape.SINGLE:
            return None  # until one of them lands
        entries = self._take(line) if batched else [line.waiting.popleft()]
        line.flying += 1
        self._flying += 1
        return Flight(name, group, entries, line)

    def _take(self, line: Line) -> list[Entry]:
        entries: list[Entry] = []
        size = 0
        while line.waiting and len(entries) < BATCH:
            entry = line.waiting[0]
            if entry.over:
                line.waiting.popleft()
                continue
            if entries and (entry.alone or size + entry.size > BATCH_BYTES):
                break
            entries.append(line.waiting.popleft())
            size += entry.size
            if entry.alone:
                break
        return entries
