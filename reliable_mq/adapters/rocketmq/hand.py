"""What one member has of the broker's messages: fetched, in hand, acked, given back. No I/O.

    arrived ──> fetched ──take──> in hand ──ack──> acking ──> settled
                   │                 │  └──nack──> leaving (again, later), or on a FIFO topic
                   │                 │             copying ──> acking, without a word
                   └── close, silence ┴──────────> leaving (again, at once)

Each has a handle that the broker knows it by, which is another one after each change of its time:
whoever acks with an old one is answered OK and changes nothing. So of one message there is never
more than one request under way, and what comes meanwhile waits for its answer.

A message is ours until its time is over, counted from before its last change was asked for. On a
FIFO topic the first that is lost of a queue takes all behind it along: the broker gives them out
again from there on.

Not thread-safe; the subscription guards it. Times are monotonic seconds.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from reliable_mq.message import Lease

if TYPE_CHECKING:
    from collections.abc import Iterable

    from reliable_mq.adapters.rocketmq.config import Address
    from reliable_mq.adapters.rocketmq.sources import Source

__all__ = ["Hand", "Held", "State"]

#: Share of its time after which a message that stays in hand is asked for again.
RENEW_AFTER: Final = 1 / 3
#: Messages whose attempts are remembered.
REMEMBERED: Final = 10_000
#: Entries of one ack request.
ACKS: Final = 128
#: Seconds until a request that failed is tried again.
AGAIN: Final = 0.3
#: Seconds between two looks at all of it, at least.
LOOK: Final = 0.05


class State(Enum):
    """Where a message stands."""

    FETCHED = 1
    IN_HAND = 2
    ACKING = 3
    LEAVING = 4
    COPYING = 5
    GONE = 6


class Held(Lease):
    """One arrival: the lease that the core sees, and what the broker knows it by.

    addresses: of the proxy that it came from. known_until: monotonic seconds; the broker gives it
    to others afterwards. busy: a request about it is under way. leave_for: seconds after which it
    may come again, once it is LEAVING. silent: the core has done with it, and is told nothing more.
    """

    __slots__ = (
        "addresses",
        "attempt",
        "busy",
        "handle",
        "known_until",
        "leave_for",
        "offset",
        "queue",
        "renew_at",
        "silent",
        "source",
        "state",
        "try_at",
        "wire",
        "wire_id",
    )

    def __init__(
        self,
        source: Source,
        wire: Any,
        arrived: float,
        time: float,
        addresses: tuple[Address, ...] = (),
    ) -> None:
        super().__init__()
        system = wire.system_properties
        self.source = source
        self.addresses = addresses
        self.wire = wire
        self.wire_id: str = system.message_id
        self.handle: str = system.receipt_handle
        self.queue = (source, wire.topic.name, system.store_host, system.queue_id)
        self.offset: int = system.queue_offset
        self.attempt: int = max(1, system.delivery_attempt)
        self.state = State.FETCHED
        self.busy = False
        self.silent = False
        self.known_until = arrived + time
        self.renew_at = arrived + time * RENEW_AFTER
        self.try_at = 0.0
        self.leave_for = 0.0


class Remembered(Struct):
    """What a nack was told: the attempt, and how often the message had come by then."""

    attempt: int
    arrivals: int
    redelivered: int


class Hand:
    """Of one subscription.

    Args:
        time: Seconds for which the broker hides a message that it gave out.
    """

    def __init__(self, time: float) -> None:
        self._time = time
        #: All that the broker counts as ours, in the order it came.
        self._held: dict[Held, None] = {}
        self._fetched: deque[Held] = deque()
        self._acking: dict[Held, None] = {}
        #: Acks that have to be sent, in their order; some of them not yet.
        self._acks: deque[Held] = deque()
        #: Nothing is to be renewed, nor ends, before this time: a look at all of it costs time.
        self._look_at = float("inf")
        self._leaving: dict[Held, None] = {}
        self._settled: list[Lease] = []
        self._lost: list[Lease] = []
        self._nacked: OrderedDict[tuple[str, str], Remembered] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    @property
    def fetched(self) -> int:
        """How many wait for a poll."""
        return len(self._fetched)

    @property
    def has_news(self) -> bool:
        """Whether there is something for `news`."""
        return bool(self._settled or self._lost)

    @property
    def unsettled(self) -> bool:
        """Whether acks or nacks have not been answered."""
        return bool(self._acking or self._leaving)

    # -- the owner -----------------------------------------------------------------------------

    def take(self, limit: int, now: float) -> list[Held]:
        """The next so many, in their order."""
        taken: list[Held] = []
        while len(taken) < limit and self._fetched:
            held = self._fetched.popleft()
            if held.state is State.FETCHED and held.known_until > now:
                held.state = State.IN_HAND
                taken.append(held)
        return taken

    def ack(self, held: Held) -> bool:
        """It is finished. Whether it was in hand."""
        if held.state is not State.IN_HAND or held not in self._held:
            return False
        self._begin_ack(held)
        return True

    def leave(self, held: Held, delay: float) -> bool:
        """It comes again, to anybody, after `delay` seconds; its lease is over without a word."""
        if held not in self._held or held.state in (State.ACKING, State.LEAVING):
            return False
        held.state, held.leave_for = State.LEAVING, delay
        held.lost = True
        self._leaving[held] = None
        return True

    def copy(self, held: Held) -> bool:
        """Another message takes its place: it stays ours until `copied`; its lease is over."""
        if held.state is not State.IN_HAND:
            return False
        held.state, held.silent, held.lost = State.COPYING, True, True
        return True

    def copied(self, held: Held) -> None:
        """The other one is stored: this one can be acked."""
        if held.state is State.COPYING:
            self._begin_ack(held)

    def remember(self, held: Held, attempt: int, redelivered: int) -> None:
        """What the next arrival of this message is told, if it comes here."""
        self._nacked[held.source.topic, held.wire_id] = Remembered(
            attempt, held.attempt, redelivered
        )
        if len(self._nacked) > REMEMBERED:
            self._nacked.popitem(last=False)

    def recall(self, held: Held) -> tuple[int | None, int]:
        """The attempt that a nack was told here, and arrivals that ended without ack or nack."""
        told = self._nacked.pop((held.source.topic, held.wire_id), None)
        if told is None or held.attempt <= told.arrivals:
            return None, held.attempt - 1
        return told.attempt, told.redelivered + held.attempt - told.arrivals - 1

    def news(self) -> tuple[list[Lease], list[Lease]]:
        """What has been settled and what was lost since the last time."""
        settled, self._settled = self._settled, []
        lost, self._lost = self._lost, []
        return settled, lost

    def drop_all(self) -> None:
        """All of it is lost, and goes back at once; acks that are under way still count."""
        for held in list(self._held):
            if held.state is State.IN_HAND:
                self._lost.append(held)
                self.leave(held, 0.0)
            elif held.state in (State.FETCHED, State.COPYING):
                self.leave(held, 0.0)
        self._fetched.clear()

    # -- the broker ----------------------------------------------------------------------------

    def arrived(self, held: Held) -> None:
        """A message that has come."""
        self._held[held] = None
        self._fetched.append(held)
        self._look_at = min(self._look_at, held.renew_at)

    def expire(self, now: float) -> None:
        """What the broker gives to others by now is lost."""
        if now < self._look_at:
            return
        for held in [one for one in self._held if one.known_until <= now]:
            self.lose(held)

    def lose(self, held: Held) -> None:
        """The broker took it back; on a FIFO topic, with all behind it in its queue."""
        gone: Iterable[Held] = (held,)
        if held.source.fifo:
            gone = [
                one for one in self._held if one.queue == held.queue and one.offset >= held.offset
            ]
        for one in gone:
            if one.state is not State.GONE:
                self._lose(one)

    def to_ack(self, now: float) -> list[list[Held]]:
        """Acks that can be sent now, one request each list, in their order; all are busy then."""
        batches: dict[tuple[Source, tuple[Address, ...]], list[Held]] = {}
        later: deque[Held] = deque()
        for held in self._acks:
            if held.state is not State.ACKING:
                continue
            batch = batches.setdefault((held.source, held.addresses), [])
            if held.busy or held.try_at > now or len(batch) >= ACKS:
                later.append(held)
            else:
                held.busy = True
                batch.append(held)
        self._acks = later
        return [batch for batch in batches.values() if batch]

    def to_leave(self, now: float) -> list[Held]:
        """Those that can be given back now; each is busy from here on."""
        found = [held for held in self._leaving if not held.busy and held.try_at <= now]
        for held in found:
            held.busy = True
        return found

    def to_renew(self, now: float) -> list[Held]:
        """Those whose time has to be asked for again; each is busy from here on."""
        if now < self._look_at:
            return []
        found = []
        self._look_at = float("inf")
        for held in self._held:
            if held.renew_at <= now and not held.busy and held.state is not State.LEAVING:
                held.busy = True
                found.append(held)
            next_look = held.known_until if held.busy else held.renew_at
            self._look_at = min(self._look_at, max(next_look, now + LOOK))
        return found

    def acked(self, held: Held, *, taken: bool | None, now: float) -> None:
        """The answer to its ack; `taken` None: there was none, it is tried again."""
        held.busy = False
        if held.state is State.GONE:
            return
        if taken is None:
            held.try_at = now + AGAIN
            self._acks.append(held)
        elif taken:
            self._forget(held)
            if not held.silent:
                self._settled.append(held)
        else:
            self.lose(held)

    def changed(self, held: Held, handle: str | None, asked_at: float, seconds: float) -> None:
        """Its time was changed: this is its handle from now on. `handle` None: it is not ours."""
        held.busy = False
        if held.state is State.GONE:
            return
        if handle is None:
            self.lose(held)
        elif held.state is State.LEAVING:
            held.handle = handle
        else:
            held.handle = handle or held.handle
            held.known_until = asked_at + seconds
            held.renew_at = asked_at + seconds * RENEW_AFTER
            self._look_at = min(self._look_at, held.renew_at)

    def left(self, held: Held) -> None:
        """It is the broker's again, or somebody else's."""
        held.busy = False
        self._forget(held)

    def not_changed(self, held: Held, now: float) -> None:
        """No answer: try again in a moment, while it is ours."""
        held.busy = False
        held.try_at = now + AGAIN
        held.renew_at = max(held.renew_at, now + AGAIN)
        self._look_at = min(self._look_at, held.renew_at)

    def next_at(self) -> float:
        """When something is due: a renewal, another attempt, the end of a lease."""
        times = [held.try_at for held in (*self._acks, *self._leaving) if not held.busy]
        return min([self._look_at, *times])

    # -- parts ---------------------------------------------------------------------------------

    def _begin_ack(self, held: Held) -> None:
        held.state = State.ACKING
        self._acking[held] = None
        self._acks.append(held)

    def _lose(self, held: Held) -> None:
        if held.state in (State.IN_HAND, State.ACKING) and not held.silent:
            self._lost.append(held)
        held.lost = True
        self._forget(held)

    def _forget(self, held: Held) -> None:
        held.state = State.GONE
        held.wire = None
        for kept in (self._held, self._acking, self._leaving):
            kept.pop(held, None)
