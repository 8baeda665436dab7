"""One group's view of a topic: what it has still to finish, and who has which key in hand.

A message goes from the log to one member, and from there, if it is not acked, back to the front of
what waits, in the order it was given out. Under order "key", as soon as a group has a second
member, a key belongs to the member that has any of it in hand; what others meet of that key is
parked behind it. Every step costs the same whatever the number of keys: nothing here walks over
keys, and over messages only where members or leases end.

The caller holds the broker's lock in every method.
"""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush
from itertools import count
from typing import TYPE_CHECKING

from msgspec import Struct

from reliable_mq.errors import ConfigurationError
from reliable_mq.message import Delivery, Lease, Message

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from reliable_mq.adapters.base import Order
    from reliable_mq.adapters.memory.log import Log
    from reliable_mq.adapters.memory.subscription import MemorySubscription

__all__ = ["Group", "Place", "Waiting"]


class Waiting(Struct, frozen=True, gc=False):
    """A message that the group has taken from the log and that nobody has in hand."""

    message: Message
    position: int | str
    attempt: int = 1
    redelivered: int = 0


class Arrival(Delivery, frozen=True, gc=False):
    """A Delivery that the garbage collector need not follow: no lease refers to its delivery."""


class Turn(Struct):
    """Whose turn a key is: `owner` has `held` of its messages in hand, the others are parked."""

    owner: Place | None
    held: int = 1
    parked: deque[Waiting] | None = None


class Place:
    """One member's place in one group. `in_hand` keeps the order in which things were given."""

    __slots__ = ("group", "in_hand", "member", "parked_keys")

    def __init__(self, group: Group, member: MemorySubscription) -> None:
        self.group = group
        self.member = member
        self.in_hand: dict[Lease, Delivery] = {}
        #: Keys of this member that have something parked; may name keys that it has lost since.
        self.parked_keys: deque[bytes] = deque()

    @property
    def stands_by(self) -> bool:
        """Whether another member has all of the group's work."""
        return self.group.order == "partition" and self.group.places[0] is not self


class Group:
    """Everything below `cursor` the group has taken; `gaps` offsets from there on are empty.

    `open` counts what was taken, or came to this group alone, and is not finished.
    """

    def __init__(self, log: Log, name: str) -> None:
        self.log = log
        self.name = name
        self.order: Order = "none"
        self.first = self.cursor = log.end
        self.gaps = 0
        self.open = 0
        #: Whether its beginning is fixed: declared with one, or subscribed to.
        self.placed = False
        #: The members, the one that joined first in front: under order "partition" it is active.
        self.places: list[Place] = []
        self.delayed: list[tuple[float, int, Waiting]] = []
        #: Whether keys have owners: under order "key" from the second member on, till all are gone.
        self._shared = False
        self._ready: deque[Waiting] = deque()
        self._turns: dict[bytes, Turn] = {}
        #: Keys with something parked that belong to nobody; may name keys that were taken since.
        self._free: deque[bytes] = deque()
        self._count = count(1)

    @property
    def lag(self) -> int:
        """What the group has not finished, the messages that are not due yet included."""
        return self.log.end - self.cursor - self.gaps + self.open + len(self.log.delayed)

    # -- members -------------------------------------------------------------------------------

    def join(self, member: MemorySubscription, order: Order) -> Place:
        """A new place, behind all others."""
        if order != self.order:
            if self.places:
                text = (
                    f"group {self.name!r} of {self.log.name!r} has members with order="
                    f"{self.order!r}; one with {order!r} would break it: use the same in all"
                )
                raise ConfigurationError(text)
            self.order = order
        place = Place(self, member)
        self.places.append(place)
        if order == "key" and not self._shared and len(self.places) > 1:
            self._share(self.places[0])
        return place

    def leave(self, place: Place, *, counted: bool) -> list[Lease]:
        """Give up the place; all in hand goes back. `counted`: it was an arrival in vain."""
        self.places.remove(place)
        lost = self._give_back(place, list(place.in_hand), counted=counted)
        if not self.places:
            self._unshare()
        return lost

    def let_go(self, place: Place, before: float) -> list[Lease]:
        """End the leases given out before that time.

        The later ones of the same keys end with them: they would overtake the first otherwise.
        """
        in_hand = place.in_hand
        oldest = next(iter(in_hand.values()), None)
        if oldest is None or oldest.arrived > before:
            return []
        if self.order == "partition":
            return self._give_back(place, list(in_hand), counted=True)
        keys = {held.message.key for held in in_hand.values() if held.arrived <= before}
        keys = keys - {None} if self.order == "key" else set()
        old = [
            lease
            for lease, held in in_hand.items()
            if held.arrived <= before or held.message.key in keys
        ]
        return self._give_back(place, old, counted=True)

    # -- giving out ----------------------------------------------------------------------------

    def take(self, place: Place, limit: int, now: float) -> list[Delivery]:
        """At most `limit` deliveries: first what came back, then what is new.

        What is parked of our own keys goes first: as long as any of it is left, the limit is
        reached, and nothing of these keys can overtake it.
        """
        while self.delayed and self.delayed[0][0] <= now:
            self._ready.append(heappop(self.delayed)[2])
        if place.stands_by:
            return []
        taken: list[Delivery] = []
        if place.parked_keys or self._free:
            self._take_parked(place, limit, now, taken)
        if self._ready:
            self._take_ready(place, limit, now, taken)
        if self.cursor < self.log.end:
            self._take_new(place, limit - len(taken), now, taken)
        return taken

    def _take_parked(self, place: Place, limit: int, now: float, taken: list[Delivery]) -> None:
        for keys, owner in ((place.parked_keys, place), (self._free, None)):
            while keys and len(taken) < limit:
                key = keys.popleft()
                turn = self._turns.get(key)
                if turn is None or turn.owner is not owner or not turn.parked:
                    continue
                turn.owner = place
                while turn.parked and len(taken) < limit:
                    turn.held += self._give(place, turn.parked.popleft(), now, taken)
                if turn.parked:
                    place.parked_keys.append(key)
                elif not turn.held:
                    del self._turns[key]

    def _take_ready(self, place: Place, limit: int, now: float, taken: list[Delivery]) -> None:
        ready = self._ready
        while ready and len(taken) < limit:
            waiting = ready.popleft()
            key = waiting.message.key
            if not self._shared or key is None:
                self._give(place, waiting, now, taken)
            elif (turn := self._turns.get(key)) is None:
                if self._give(place, waiting, now, taken):
                    self._turns[key] = Turn(place)
            elif turn.owner is place:
                turn.held += self._give(place, waiting, now, taken)
            else:
                self._park(key, turn, waiting)

    def _take_new(self, place: Place, limit: int, now: float, taken: list[Delivery]) -> None:
        # The hot loop of the transport: everything is a local name, nothing is called twice.
        cursor, end = self.cursor, self.log.end
        message_at, turns, in_hand, give = (
            self.log.messages.get,
            self._turns,
            place.in_hand,
            taken.append,
        )
        shared = self._shared
        while cursor < end and limit > 0:
            position = cursor
            cursor += 1
            message = message_at(position)
            if message is None:
                self.gaps -= 1
                continue
            self.open += 1
            if shared and (key := message.key) is not None:
                turn = turns.get(key)
                if turn is None:
                    turns[key] = Turn(place)
                elif turn.owner is place:
                    turn.held += 1
                else:
                    self._park(key, turn, Waiting(message, position))
                    continue
            lease = Lease()
            delivery = Arrival(message, lease, 1, 0, 0, position, arrived=now)
            in_hand[lease] = delivery
            give(delivery)
            limit -= 1
        self.cursor = cursor

    def _give(self, place: Place, waiting: Waiting, now: float, taken: list[Delivery]) -> int:
        """Put one in hand; returns 0 where it was discarded while it waited."""
        message, position = waiting.message, waiting.position
        if isinstance(position, int) and position not in self.log.messages:
            self.open -= 1
            return 0
        lease = Lease()
        delivery = Arrival(
            message, lease, waiting.attempt, waiting.redelivered, 0, position, arrived=now
        )
        place.in_hand[lease] = delivery
        taken.append(delivery)
        return 1

    def _park(self, key: bytes, turn: Turn, waiting: Waiting) -> None:
        if turn.parked is None:
            turn.parked = deque()
        if not turn.parked and turn.owner is not None:
            turn.owner.parked_keys.append(key)
        turn.parked.append(waiting)

    # -- endings -------------------------------------------------------------------------------

    def settle(self, place: Place, acked: Iterable[Delivery], settled: list[Lease]) -> None:
        """Finish what of this the place has in hand; what it has not is passed by."""
        take_out, finish, turns = place.in_hand.pop, self.log.finish, self._turns
        shared = self._shared
        for delivery in acked:
            lease = delivery.lease
            held = take_out(lease, None)
            if held is None:
                continue
            settled.append(lease)
            finish(held.position)
            self.open -= 1
            if shared and (key := held.message.key) is not None:
                turn = turns[key]
                if turn.held > 1:
                    turn.held -= 1
                elif not turn.parked:
                    del turns[key]
                else:
                    self._free_key(key, turn)

    def put_back(self, place: Place, delivery: Delivery, due: float | None) -> bool:
        """Again, with the attempt of this Delivery, at `due` or now. False: it was lost before."""
        held = place.in_hand.pop(delivery.lease, None)
        if held is None:
            return False
        key = held.message.key
        if self._shared and key is not None:
            turn = self._turns[key]
            turn.held -= 1
            if not turn.held:
                self._free_key(key, turn)
        waiting = Waiting(held.message, held.position, delivery.attempt, held.redelivered)
        self._wait(waiting, due)
        return True

    def add(self, message: Message, due: float | None) -> str:
        """A message for this group alone; returns its position."""
        position = f"{self.name}-{next(self._count)}"
        self._wait(Waiting(message, position), due)
        self.open += 1
        return position

    def _wait(self, waiting: Waiting, due: float | None) -> None:
        if due is None:
            self._ready.append(waiting)
        else:
            heappush(self.delayed, (due, next(self._count), waiting))

    def _free_key(self, key: bytes, turn: Turn) -> None:
        turn.owner, turn.held = None, 0
        if turn.parked:
            self._free.append(key)
        else:
            del self._turns[key]

    def _give_back(self, place: Place, leases: Sequence[Lease], *, counted: bool) -> list[Lease]:
        """End these leases. Of a key, either all that is in hand or nothing is among them."""
        loose: list[Waiting] = []
        by_key: dict[bytes, list[Waiting]] = {}
        for lease in leases:
            held = place.in_hand.pop(lease)
            lease.lost = True
            redelivered = held.redelivered + counted
            waiting = Waiting(held.message, held.position, held.attempt, redelivered)
            key = held.message.key
            if self._shared and key is not None:
                by_key.setdefault(key, []).append(waiting)
            else:
                loose.append(waiting)
        self._ready.extendleft(reversed(loose))
        for key, back in by_key.items():
            turn = self._turns[key]
            turn.parked = turn.parked or deque()
            turn.parked.extendleft(reversed(back))
            self._free_key(key, turn)
        return list(leases)

    def _share(self, alone: Place) -> None:
        """A second member comes: the keys that the first has in hand are its own."""
        self._shared = True
        for held in alone.in_hand.values():
            key = held.message.key
            if key is None:
                continue
            if (turn := self._turns.get(key)) is None:
                self._turns[key] = Turn(alone)
            else:
                turn.held += 1

    def _unshare(self) -> None:
        """Nobody is in the group: what was parked lines up again, in the order of the log."""
        if self._turns:
            waiting = list(self._ready)
            for turn in self._turns.values():
                waiting.extend(turn.parked or ())
            waiting.sort(key=lambda one: (isinstance(one.position, str), one.position))
            self._ready = deque(waiting)
        self._turns.clear()
        self._free.clear()
        self._shared = False
