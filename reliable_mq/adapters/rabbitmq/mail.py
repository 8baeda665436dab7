"""What the I/O thread leaves for the owner thread of a subscription, and when it wakes it."""

from __future__ import annotations

import threading
from collections import deque
from itertools import repeat
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from reliable_mq.adapters.rabbitmq.reader import Delivered
    from reliable_mq.clock import Clock

__all__ = ["Arrival", "Mail", "News"]

#: What came, and when (monotonic seconds).
Arrival = tuple["Delivered", float]


class News(NamedTuple):
    """How the consuming goes, at one moment.

    up: a channel consumes. generation: which one, or which one did last. expired: nobody polled for
    too long, and what was in hand went back. woken: somebody called `wake`.
    """

    up: bool
    generation: int
    expired: bool
    woken: bool


class Mail:
    """A Mailroom. The owner's methods come first, those of the I/O thread behind them.

    Args:
        one_at_a_time: Whether one member has all the work.
        on_silence: Called on the I/O thread when nobody has polled for too long.
    """

    def __init__(
        self,
        clock: Clock,
        lease_timeout: float,
        *,
        one_at_a_time: bool,
        on_silence: Callable[[], object],
    ) -> None:
        self._clock = clock
        self._lease_timeout = lease_timeout
        self._one_at_a_time = one_at_a_time
        self._on_silence = on_silence
        #: Guards all below.
        self._changed = threading.Condition()
        self._inbox: deque[Arrival] = deque()
        self._settled: list[int] = []
        self._generation = 0
        self._up = False
        self._joined = False
        self._expired = False
        self._woken = False
        self._polled_at = clock.monotonic()
        #: Why the broker cannot be reached; "" while it can.
        self.cut_off = ""
        #: A queue that is not there any more; "" while all are.
        self.missing = ""
        #: Another member was there first, and nothing has come since.
        self.standby = False

    # -- the owner thread ----------------------------------------------------------------------

    def wait_joined(self, timeout: float) -> None:
        """Until it is a member of its groups, or so long."""
        with self._changed:
            self._changed.wait_for(lambda: self._joined, timeout)

    def wait(self, known: int, until: float, *, arrivals: bool, in_hand: bool) -> News:
        """Until there is something to do about: see `_is_news`; or until then. This is a poll."""
        with self._changed:
            while not self._is_news(known, arrivals=arrivals, in_hand=in_hand):
                left = until - self._clock.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            self._polled_at = self._clock.monotonic()
            news = News(self._up, self._generation, self._expired, self._woken)
            self._expired = self._woken = False
        return news

    def _is_news(self, known: int, *, arrivals: bool, in_hand: bool) -> bool:
        return bool(
            self._woken
            or self._expired
            or self._settled
            or self._generation != known
            or (in_hand and not self._up)
            or (arrivals and self._inbox)
        )

    def wait_settled(self, timeout: float) -> bool:
        """Until an ack is answered, or so long; whether there is a channel that may answer."""
        with self._changed:
            self._changed.wait_for(lambda: self._settled or not self._up, timeout)
            return self._up

    def take(self, known: int, limit: int) -> list[Arrival]:
        """At most so many arrivals, the first ones; none where another generation has begun."""
        with self._changed:
            if known != self._generation:
                return []
            return [self._inbox.popleft() for _ in range(min(limit, len(self._inbox)))]

    def take_settled(self, known: int) -> list[int]:
        """Tags of the acks that the broker has taken, of this generation."""
        with self._changed:
            if known != self._generation:
                return []
            settled, self._settled = self._settled, []
        return settled

    def oldest(self) -> float | None:
        """When the first came that was not taken."""
        with self._changed:
            return self._inbox[0][1] if self._inbox else None

    def wake(self) -> None:
        """End the wait. Any thread."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    # -- the I/O thread ------------------------------------------------------------------------

    def began(self, generation: int) -> None:
        """See Mailroom.began."""
        with self._changed:
            self._generation = generation
            self._up = True
            self._forget()

    def joined(self, *, free: bool) -> None:
        """See Mailroom.joined."""
        with self._changed:
            self._joined = True
            self.cut_off = self.missing = ""
            self.standby = self._one_at_a_time and not free
            self._changed.notify_all()

    def arrived(self, deliveries: Sequence[Delivered]) -> None:
        """See Mailroom.arrived."""
        now = self._clock.monotonic()
        with self._changed:
            self._inbox.extend(zip(deliveries, repeat(now)))
            self.standby = False
            self._changed.notify_all()

    def settled(self, tags: Sequence[int]) -> None:
        """See Mailroom.settled."""
        with self._changed:
            self._settled += tags
            self._changed.notify_all()

    def ended(self, why: str, *, cut_off: bool) -> None:
        """See Mailroom.ended."""
        with self._changed:
            self._up = False
            self.cut_off = why if cut_off else ""
            self._forget()

    def gone(self, queue: str) -> None:
        """See Mailroom.gone."""
        with self._changed:
            self.missing = queue
            self._changed.notify_all()

    def look(self) -> None:
        """See Mailroom.look."""
        with self._changed:
            silence = self._clock.monotonic() - self._polled_at
            silent = self._up and silence > self._lease_timeout
        if silent:
            self._on_silence()
            # Only now: whoever is told resumes, and that has to come behind the rest.
            with self._changed:
                self._expired = True
                self._changed.notify_all()

    def _forget(self) -> None:
        # What came on a channel that has ended comes again, and its acks are void.
        self._inbox.clear()
        self._settled.clear()
        self._changed.notify_all()
