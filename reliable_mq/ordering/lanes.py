"""Lanes: one mailbox per key, run one delivery at a time.

The owner thread is the only one that changes a lane's state; a worker that was handed a lane
only takes deliveries from the left of its queue while the owner appends on the right (a deque's
ends are safe for that). So nothing here needs a lock, and at most one worker runs a key:

           add                      worker hands it back, queue not empty
    (none) ───> READY ──> a worker ─┬──> READY ...
                  ^                 ├──> forgotten, queue empty
                  │ due             ├──> WAITING (an ending is carried out, or until due)
                  └─────────────────┴──> HALTED  (until an operator says so)

A lane lives from its first delivery to its last, so memory follows what is in hand, not how many
keys there are. A delivery without a key gets a lane of its own: no order, no special case.

A *suspect*, a delivery that came again twice without an ack or a nack, may be what killed the
process before. It runs when nothing else does, so that it takes nobody with it; which of several
is next, chance decides.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

from msgspec import Struct, field

from reliable_mq.message import Delivery

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator

    from reliable_mq.message import Lease

__all__ = ["HALTED", "READY", "WAITING", "Lane", "Lanes", "too_long"]

READY, WAITING, HALTED = "ready", "waiting", "halted"

#: Arrivals without an end from which on a message is a suspect.
SUSPECT = 2
#: From so many deliveries on it pays that a queue be a deque.
LONG = 500


class Queue(list[Delivery]):
    """What a lane holds while that is little: most hold one item, and a deque has 600 bytes.

    Both ends may be used by two threads at once, as those of a deque.
    """

    __slots__ = ()

    def popleft(self) -> Delivery:
        """The first; IndexError if there is none."""
        return self.pop(0)


def too_long(queue: Queue | deque[Delivery]) -> bool:
    """Whether it should become a deque, which it can while no worker has the lane."""
    return len(queue) > LONG and isinstance(queue, Queue)


class Lane(Struct, eq=False, gc=False):
    """The deliveries of one key that have not run yet, in their order.

    One is made for most messages. gc=False: what it holds does not refer to it, but for `turn`,
    which ends before the lane does.
    """

    key: Hashable
    queue: Queue | deque[Delivery]
    state: str = READY
    #: What a worker runs at this moment, and since when (monotonic seconds; 0 unless timed).
    #: Written by the worker, read by anybody who only wants to tell.
    current: Delivery | None = None
    since: float = 0.0
    #: What a worker reports next, as far as it has come; None: no worker has the lane.
    turn: Any = None
    #: Endings that are still being carried out; the lane goes on when there are none left.
    endings: int = 0
    #: Deliveries to run again before all others, and not before `due`.
    again: list[Delivery] = field(default_factory=list)
    due: float = 0.0
    #: What halted it, one for each ending that an operator has to decide, the first in front.
    halts: tuple[Any, ...] = ()
    #: Whether nothing else runs while a worker has it.
    alone: bool = False

    def in_run(self) -> list[Delivery]:
        """What a worker runs now, or has run and not reported yet. Any thread, as a snapshot."""
        # In this order: a delivery is among the done before it is no longer the current one.
        current, turn = self.current, self.turn
        running = [] if current is None else [current]
        if turn is not None:
            running += [*turn.taken, *turn.done, *[one.delivery for one in turn.ended]]
        return running

    @property
    def why(self) -> Any:
        """What an operator needs to know about a halted lane, and decides first."""
        return self.halts[0]


class Lanes:
    """All lanes of one consumer. The owner thread only, but for taking from a lane's queue.

    Args:
        hand_out: Gives a lane to the workers.
        draw: A number from 0 up to 1, for the choice among suspects.
    """

    def __init__(
        self, hand_out: Callable[[Lane], None], draw: Callable[[], float] = random.random
    ) -> None:
        self._hand_out = hand_out
        self._draw = draw
        self._lanes: dict[Hashable, Lane] = {}
        self._timers: list[tuple[float, int, Lane | None, Callable[[Any], object]]] = []
        self._ticket = 0
        self._suspects: deque[Lane] = deque()
        self._deferred: deque[Lane] = deque()
        self._solitary: Lane | None = None
        self._open = True
        self._paused = False
        #: Lanes that the workers have.
        self.busy = 0

    def __len__(self) -> int:
        return len(self._lanes)

    def __iter__(self) -> Iterator[Lane]:
        return iter(self._lanes.values())

    def snapshot(self) -> list[Lane]:
        """All lanes, for another thread to look at: as they are, or were a moment ago."""
        while True:
            try:
                return list(self._lanes.values())
            except RuntimeError:  # the owner changed them meanwhile
                continue

    @property
    def suspects(self) -> int:
        """Lanes that wait to run alone, and the one that does; no more work is taken meanwhile."""
        return len(self._suspects) + (self._solitary is not None)

    def add(self, key: Hashable, delivery: Delivery) -> None:
        """Put a new arrival behind all others of its key."""
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane(key, Queue((delivery,)))
            self._ready(lane)
        else:
            lane.queue.append(delivery)

    def stand(self, key: Hashable) -> Lane:
        """A lane of its own for a delivery that cannot run; it waits for one ending."""
        lane = self._lanes[key] = Lane(key, Queue(), WAITING)
        lane.endings = 1
        return lane

    def handed_back(self, lane: Lane, endings: int) -> None:
        """A worker is through with a lane; `endings` of its runs have to be carried out."""
        self.busy -= 1
        lane.turn = None
        if lane is self._solitary:
            self._solitary = None
            lane.alone = False
            self.hand_out_deferred()
        if endings:
            lane.state = WAITING
            lane.endings = endings
        elif lane.queue:
            self._go_on(lane)
        else:  # run to its end, as most are
            self._forget(lane)

    def ended(self, lane: Lane) -> None:
        """One ending is carried out; when it was the last, the lane goes on."""
        lane.endings -= 1
        if not lane.endings:
            self._go_on(lane)

    def run_again(self, lane: Lane, delivery: Delivery, due: float) -> None:
        """One ending is a further run of this delivery, first of all, not before `due`."""
        lane.again.append(delivery)
        lane.due = max(lane.due, due)
        self.ended(lane)

    def call_later(self, lane: Lane | None, due: float, resume: Callable[[Any], object]) -> None:
        """Call `resume(lane)` from `wake` once it is `due`, monotonic seconds."""
        self._ticket += 1
        heapq.heappush(self._timers, (due, self._ticket, lane, resume))

    def halt(self, lane: Lane, why: object) -> None:
        """Let the lane stand until `resume`; of a bundle, several endings may halt one lane."""
        lane.state = HALTED
        lane.halts += (why,)

    def resume(self, lane: Lane) -> None:
        """Take the first ending of a halted lane back to where it is carried out."""
        lane.halts = lane.halts[1:]
        lane.state = HALTED if lane.halts else WAITING

    def halted(self) -> list[Lane]:
        """The lanes that wait for an operator."""
        return [lane for lane in self._lanes.values() if lane.state is HALTED]

    def next_due(self) -> float | None:
        """When the next timer is due, monotonic seconds."""
        return self._timers[0][0] if self._timers else None

    def wake(self, now: float) -> None:
        """Set going what is due."""
        timers = self._timers
        while timers and timers[0][0] <= now:
            _, _, lane, resume = heapq.heappop(timers)
            resume(lane)

    def close(self) -> list[Delivery]:
        """Hand out nothing more, and forget what has not started; returns it."""
        self._open = False
        dropped = self.drop()
        while self._deferred or self._suspects:
            self._ready((self._deferred or self._suspects).popleft())
        return dropped

    def drop(self, leases: Container[Lease] | None = None) -> list[Delivery]:
        """Forget what has not started, all of it or what these leases hold; returns it.

        The queue is emptied from the right, so a worker may go on taking from the left; what it
        does not find it does not run, and it hands the lane back.
        """
        dropped: list[Delivery] = []
        gone: set[Lane | None] = set()
        for lane in tuple(self._lanes.values()):
            held: deque[Delivery] | list[Delivery]
            for held in (lane.queue, lane.again):
                kept: deque[Delivery] = deque()
                for delivery in _emptied(held):
                    if leases is None or delivery.lease in leases:
                        dropped.append(delivery)
                    else:
                        kept.appendleft(delivery)
                held.extend(kept)
            if lane.state is WAITING and not (lane.queue or lane.again or lane.endings):
                # It waited for a second run of what is gone; what comes must not wait for that.
                del self._lanes[lane.key]
                gone.add(lane)
        if gone:
            self._timers = [timer for timer in self._timers if timer[2] not in gone]
            heapq.heapify(self._timers)
        return dropped

    def pause(self) -> None:
        """Hand out nothing; what gets ready waits."""
        self._paused = True

    def unpause(self) -> None:
        """Hand out again, what waited first."""
        self._paused = False
        self.hand_out_deferred()

    def run_suspect(self) -> Delivery | None:
        """Hand out one suspect if nothing else runs; returns its head."""
        while self._suspects and not (self.busy or self._paused or self._solitary):
            # Any of them, not the first: what was in hand with the killer came again as often as it
            # did, and must not wait behind it in every life of the process.
            self._suspects.rotate(-int(self._draw() * len(self._suspects)))
            lane = self._suspects.popleft()
            if lane.queue:
                self._solitary = lane
                lane.alone = True
                self.busy += 1
                head = lane.queue[0]  # before a worker has it, who may be through with it at once
                self._hand_out(lane)
                return head
            self._ready(lane)  # dropped while it waited: gone
        return None

    def hand_out_deferred(self) -> None:
        """Hand out what got ready while it could not."""
        while self._deferred and not (self._paused or self._solitary):
            self._ready(self._deferred.popleft())

    def _go_on(self, lane: Lane) -> None:
        # No worker has the lane, so its queue may become another one.
        if too_long(lane.queue):
            lane.queue = deque(lane.queue)
        due, lane.due = lane.due, 0.0
        if lane.again:
            lane.queue = Queue((*lane.again, *lane.queue))
            lane.again.clear()
            if self._open:
                lane.state = WAITING
                self.call_later(lane, due, self._ready)
                return
        self._ready(lane)

    def _ready(self, lane: Lane) -> None:
        if not lane.queue or not self._open:  # run to its end, dropped while it waited, or closed
            self._forget(lane)
            return
        lane.state = READY
        if self._solitary is not None or self._paused:
            self._deferred.append(lane)
        elif lane.queue[0].redelivered >= SUSPECT:
            self._suspects.append(lane)
        else:
            self.busy += 1
            self._hand_out(lane)

    def _forget(self, lane: Lane) -> None:
        del self._lanes[lane.key]


def _emptied(deliveries: deque[Delivery] | list[Delivery]) -> Iterator[Delivery]:
    """Take all from the right, the last first; another thread may take from the left meanwhile."""
    while deliveries:
        try:
            yield deliveries.pop()
        except IndexError:
            return
