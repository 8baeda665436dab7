"""One member's place in its groups: what it polls, acks and loses.

Acks are kept here until the next poll, as a client of a real broker keeps them: a member that is
killed in between has acked nothing.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Final

from reliable_mq.adapters.base import Polled
from reliable_mq.errors import ConfigurationError, ConnectionFailed, TransportError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reliable_mq.adapters.base import OnRevoke, Subscribe
    from reliable_mq.adapters.memory.broker import MemoryBroker
    from reliable_mq.adapters.memory.group import Place
    from reliable_mq.message import Delivery, Lease

__all__ = ["MemorySubscription"]

NOTHING: Final = Polled()


class MemorySubscription:
    """The owner thread polls, acks and nacks; the broker, under its lock, ends leases."""

    def __init__(self, broker: MemoryBroker, subscribe: Subscribe, on_revoke: OnRevoke) -> None:
        self._broker = broker
        self._subscribe = subscribe
        self._on_revoke = on_revoke
        self._places: deque[Place] = deque()
        self._acks: list[Delivery] = []
        self._settled: list[Lease] = []
        self._lost: list[Lease] = []
        self._woken = False
        self._dead = False
        self._closed = False
        #: Set to have `on_revoke` called by the next poll.
        self.revoking = False
        with broker.lock:
            self._seen = broker.clock.monotonic()
            self._waiting = False
            self._join()

    # -- the port ------------------------------------------------------------------------------

    def poll(self, limit: int, timeout: float) -> Polled:
        """See Subscription.poll."""
        broker = self._broker
        if broker.pending:
            broker.tick()
        patience = None
        while True:
            if self.revoking:
                self._revoke()
            with broker.lock:
                now = broker.clock.monotonic()
                polled = self._look(limit, now)
                if polled is not NOTHING or timeout <= 0 or self._woken:
                    self._woken = False
                    return polled
                patience = patience or broker.patience(timeout)
                if (left := patience.left) <= 0:
                    return NOTHING
                self._waiting = True
                try:
                    broker.sleep(min(left, self._next_event(limit, now)))
                finally:
                    self._waiting = False
                    self._seen = broker.clock.monotonic()

    @property
    def standby(self) -> bool:
        """See Subscription.standby."""
        with self._broker.lock:
            return bool(self._places) and all(place.stands_by for place in self._places)

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        """See Subscription.ack."""
        self._acks.extend(deliveries)

    def nack(self, delivery: Delivery, delay: float) -> None:
        """See Subscription.nack."""
        broker = self._broker
        with broker.lock:
            due = broker.clock.monotonic() + delay if delay > 0 else None
            if any(place.group.put_back(place, delivery, due) for place in self._places):
                broker.notify()

    def wake(self) -> None:
        """See Subscription.wake."""
        with self._broker.lock:
            self._woken = True
            self._broker.notify()

    def close(self) -> None:
        """See Subscription.close."""
        with self._broker.lock:
            if not self._dead:
                self._flush()
                self._leave(counted=False)
            self._closed = True

    # -- under the broker's lock ---------------------------------------------------------------

    def die(self) -> None:
        """End as a killed process does: no flush, no goodbye."""
        self._leave(counted=True)
        self._dead = True

    def lapse(self) -> None:
        """It has not polled for too long, or its groups are wanted elsewhere: it has nothing more.

        Its next poll reports what it lost and joins again, behind the others.
        """
        self._leave(counted=True)

    @property
    def expires(self) -> float:
        """When its leases end unless it polls: never, while it waits in a poll."""
        if self._waiting:
            return float("inf")
        return self._seen + self._broker.capabilities.lease_timeout

    def _join(self) -> None:
        asks = self._subscribe
        groups = [
            self._broker.find_group(topic, asks.group) for topic in dict.fromkeys(asks.topics)
        ]
        # A fault is read here and not at each message: the hot path knows nothing of it.
        shared = "share-keys" in self._broker.faults.unsafe
        order = "none" if shared else asks.order
        try:
            for group in groups:
                self._places.append(group.join(self, order))
        except ConfigurationError:
            self._leave(counted=False)
            raise
        for group in groups:
            if not group.placed:
                group.placed = True
                if asks.start is not None:
                    group.log.place(group, asks.start)

    def _leave(self, *, counted: bool) -> None:
        for place in self._places:
            self._lost += place.group.leave(place, counted=counted)
        self._places.clear()
        self._broker.notify()

    def _look(self, limit: int, now: float) -> Polled:
        """One heartbeat: what is there for us now."""
        broker = self._broker
        faults = broker.faults
        if self._dead or faults.disconnected:
            text = f"the memory broker cannot be reached by group {self._subscribe.group!r}"
            raise ConnectionFailed(text)
        if self._closed:
            text = f"this subscription of group {self._subscribe.group!r} is closed"
            raise TransportError(text)
        if now >= self.expires:
            self.lapse()
        self._seen = now
        if not self._places:
            self._join()
        if self._acks:
            self._flush()
        if faults.unsafe and "ignore-limit" in faults.unsafe:
            limit += 1
        deliveries = self._take(limit, now)
        if not (deliveries or self._settled or self._lost):
            return NOTHING
        polled = Polled(deliveries, self._settled, self._lost)
        self._settled, self._lost = [], []
        return polled

    def _take(self, limit: int, now: float) -> list[Delivery]:
        max_hold = self._broker.capabilities.max_hold
        taken: list[Delivery] = []
        for place in self._places:
            group = place.group
            if max_hold is not None:
                self._lost += group.let_go(place, now - max_hold)
            if len(group.places) > 1:
                for other in list(group.places):
                    if other is not place and now >= other.member.expires:
                        other.member.lapse()
            if group.log.delayed:
                group.log.ripen(self._broker.clock.now())
            if len(taken) < limit:
                taken += group.take(place, limit - len(taken), now)
        self._places.rotate(-1)  # the next poll begins with another topic
        return taken

    def _flush(self) -> None:
        acks, self._acks = self._acks, []
        if self._broker.faults.unsafe:
            acks = self._unsafely(acks, self._broker.faults.unsafe)
        for place in self._places:
            place.group.settle(place, acks, self._settled)
        self._broker.notify()  # a key that became free may be waited for

    def _unsafely(self, acks: list[Delivery], unsafe: frozenset[str]) -> list[Delivery]:
        """What these acks become with a safety removed."""
        if "ignore-acks" in unsafe:
            self._settled += [one.lease for one in acks]
            return []
        for place in self._places:
            if "late-ack" in unsafe:
                place.group.log.discard([one.position for one in acks if one.lease.lost])
            if "ack-before" in unsafe:
                given, acked = list(place.in_hand.values()), {one.lease for one in acks}
                last = max((at for at, one in enumerate(given, 1) if one.lease in acked), default=0)
                acks = acks + given[:last]
        return acks

    def _next_event(self, limit: int, now: float) -> float:
        """Seconds until time alone may bring something."""
        broker = self._broker
        max_hold = broker.capabilities.max_hold
        at: list[float] = []
        for place in self._places:
            group = place.group
            at += [other.member.expires for other in group.places if other is not place]
            if max_hold is not None:
                at += [held.arrived + max_hold for held in islice(place.in_hand.values(), 1)]
            if group.log.delayed:
                at.append(now + group.log.delayed[0][0] - broker.clock.now())
            if limit > 0 and group.delayed:
                at.append(group.delayed[0][0])
        return max(0.0, min(at) - now) if at else float("inf")

    def _revoke(self) -> None:
        """Give everything up; what `on_revoke` acks is settled, the rest is lost.

        Not under the lock: the callback is not ours.
        """
        broker = self._broker
        with broker.lock:
            self.revoking = False
            if self._dead or self._closed:
                return
            self._flush()
            leases = [lease for place in self._places for lease in place.in_hand]
            self._seen = broker.clock.monotonic()
            deadline = self._seen + broker.capabilities.lease_timeout
        try:
            self._on_revoke(leases, deadline)
        finally:
            with broker.lock:
                self._flush()
                self.lapse()
