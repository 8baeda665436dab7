"""How a consumer is doing: what only a look at all its lanes shows, and what is told of it.

The owner thread looks four times a second; others read what it saw.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal

from msgspec import Struct

from reliable_mq.events import Overdue, StalledByKey
from reliable_mq.ordering.lanes import HALTED

if TYPE_CHECKING:
    from reliable_mq.adapters.base import Subscribe
    from reliable_mq.events import Observers
    from reliable_mq.message import Delivery
    from reliable_mq.ordering.lanes import Lane, Lanes
    from reliable_mq.settle import InHand, Settler

__all__ = ["ConsumerHealth", "State", "Watch"]

log = logging.getLogger("reliable_mq.consumer")

#: Seconds between two looks.
LOOK = 0.25
#: Seconds without a round after which a consumer does not count as alive.
SILENT = 10.0
#: What a consumer says whose credit is all held by keys that wait.
STALLED = "waiting keys hold all its credit"

State = Literal[
    "starting",
    "running",
    "standby",
    "paused",
    "disconnected",
    "stopping",
    "stopped",
    "failed",
]


class ConsumerHealth(Struct, frozen=True, kw_only=True):
    """How a consumer is doing. Ages are seconds; no I/O was done to find out.

    live: the owner thread goes round and not too many handlers are stuck.
    ready: it is live, and takes work or stands by to take it over.
    """

    name: str
    topics: tuple[str, ...]
    group: str
    state: State
    live: bool
    ready: bool
    why: str = ""
    in_hand: int = 0
    running: int = 0
    overdue: int = 0
    halted_keys: int = 0
    suspects: int = 0
    since_last_poll: float | None = None
    oldest_unfinished: float | None = None


class Watch:
    """Looks after one consumer. `health`: any thread; all else: the owner.

    Args:
        timeout: Seconds after which a `def` handler is overdue; None: never.
        max_stuck: More overdue handlers than this, and the consumer takes no more work.
    """

    def __init__(
        self,
        name: str,
        subscribe: Subscribe,
        lanes: Lanes,
        in_hand: InHand,
        settler: Settler,
        *,
        timeout: float | None,
        max_stuck: int,
        observers: Observers,
    ) -> None:
        self._name = name
        self._subscribe = subscribe
        self._lanes = lanes
        self._in_hand = in_hand
        self._settler = settler
        self._timeout = timeout
        self._max_stuck = max_stuck
        self._observers = observers
        self._overdue: set[Lane] = set()
        self._stalled = False
        self._standby = False
        self._oldest: float | None = None
        self._running = 0
        self._halted = 0
        self._looked_at = float("-inf")

    def reported(self, lane: Lane) -> None:
        """A worker is through with this lane: whatever was overdue there has ended."""
        if self._overdue:
            self._overdue.discard(lane)

    def look(self, now: float, *, standby: bool) -> None:
        """Look, unless that was just done. There are at most as many lanes as the credit."""
        if now - self._looked_at < LOOK:
            return
        self._looked_at = now
        self._standby = standby
        running = halted = 0
        oldest = now
        for lane in self._lanes:
            current = lane.current
            if current is not None:
                running += 1
                if self._timeout is not None and lane.since and now - lane.since > self._timeout:
                    self._tell_overdue(lane, current, now - lane.since)
            halted += lane.state is HALTED
            head = current or _head(lane)
            if head is not None:
                oldest = min(oldest, head.arrived)
        self._running, self._halted = running, halted
        self._oldest = now - oldest if len(self._lanes) else None
        self._tell_stuck()
        self._tell_stalled()

    def health(self, now: float, state: State, why: str, last_poll: float | None) -> ConsumerHealth:
        """A snapshot, at most a quarter of a second old."""
        silent = None if last_poll is None else max(0.0, now - last_poll)
        stuck = self._too_many_stuck()
        if state == "running" and self._settler.paused:
            state = "paused"
        elif state == "running" and self._standby:
            state = "standby"
        alive = state not in ("failed", "stopped") and (silent is None or silent < SILENT)
        return ConsumerHealth(
            name=self._name,
            topics=self._subscribe.topics,
            group=self._subscribe.group,
            state=state,
            live=alive and not stuck,
            ready=state in ("running", "standby") and alive and not stuck,
            why=self._settler.paused or stuck or why or (STALLED if self._stalled else ""),
            in_hand=self._in_hand.count,
            running=self._running,
            overdue=len(self._overdue),
            halted_keys=self._halted,
            suspects=self._lanes.suspects,
            since_last_poll=silent,
            oldest_unfinished=self._oldest,
        )

    def _tell_overdue(self, lane: Lane, current: Delivery, seconds: float) -> None:
        if lane in self._overdue:
            return
        self._overdue.add(lane)
        log.error("message %s: its handler is overdue, %.1f s so far", current.message.id, seconds)
        self._observers.emit(Overdue(current.message, self._subscribe.group, seconds))

    def _too_many_stuck(self) -> str:
        """What is said of them; "" while there are not too many."""
        stuck = len(self._overdue)
        return f"{stuck} handlers are stuck beyond their timeout" if stuck > self._max_stuck else ""

    def _tell_stuck(self) -> None:
        if (reason := self._too_many_stuck()) and not self._settler.paused:
            self._settler.pause(reason)

    def _tell_stalled(self) -> None:
        busy = self._lanes.busy or self._settler.sending
        stalled = not (self._in_hand.room() or busy or self._settler.paused)
        if stalled and not self._stalled:
            log.warning("consumer %s: %s", self._name, STALLED)
            self._observers.emit(StalledByKey(self._subscribe.group, len(self._lanes)))
        self._stalled = stalled


def _head(lane: Lane) -> Delivery | None:
    try:
        return lane.queue[0]
    except IndexError:  # empty, or a worker has just taken it
        return None
