"""What the owner thread and RocketMQ's thread of one subscription share, under one gate."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from reliable_mq.adapters.rocketmq.hand import Hand

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from reliable_mq.adapters.rocketmq.hand import Held

__all__ = ["Mailbox"]

#: Seconds without an answer before a poll says that the broker cannot be reached.
CUT_OFF_AFTER: Final = 1.0


class Mailbox:
    """The hand, its gate, and what each thread has to know of the other.

    Whoever touches `hand` holds `gate`. The other methods take it, but for those that say so.

    Args:
        lease_timeout: Seconds without a poll after which all goes back.
        credit: The most that may be in hand; None: as much as is asked for.
    """

    def __init__(
        self, monotonic: Callable[[], float], lease_timeout: float, credit: int | None
    ) -> None:
        self.monotonic = monotonic
        self.gate = threading.Condition()
        self.hand = Hand(lease_timeout)
        self._lease_timeout = lease_timeout
        self._credit = credit
        self._polled_at = monotonic()
        self._limit = 0
        self._woken = False
        self._missing = ""
        self._failed_since: float | None = None
        self._reason = ""

    # -- the owner thread; it holds the gate ---------------------------------------------------

    def polled(self, limit: int) -> None:
        """The owner is alive, and takes so many."""
        now = self.monotonic()
        self.look_for_silence(now)
        self._polled_at = now
        self._limit = limit

    def was_woken(self) -> bool:
        """Whether somebody called `wake` since the last time."""
        woken, self._woken = self._woken, False
        return woken

    @property
    def is_missing(self) -> str:
        """Why there is nothing to read any more; "" while there is."""
        return self._missing

    def is_cut_off(self, now: float) -> str:
        """Why nothing comes, once that has lasted; "" while something may."""
        since = self._failed_since
        return self._reason if since is not None and now - since >= CUT_OFF_AFTER else ""

    # -- RocketMQ's thread; it holds the gate --------------------------------------------------

    def look_for_silence(self, now: float) -> None:
        """Who does not poll loses everything."""
        if now >= self._polled_at + self._lease_timeout and len(self.hand):
            self.hand.drop_all()
        if now >= self._polled_at + self._lease_timeout:
            self._limit = 0

    def silent_at(self) -> float:
        """When that is, if nobody polls until then."""
        return self._polled_at + self._lease_timeout if len(self.hand) else float("inf")

    def wanted(self) -> int:
        """How many a poll would take."""
        return self._limit

    def tell(self) -> None:
        """Wake the owner if there is something for it."""
        if self.hand.has_news or self.hand.fetched or not self.hand.unsettled:
            self.gate.notify_all()

    # -- any thread ----------------------------------------------------------------------------

    def within_credit(self, batch: int, *, least: int = 1) -> int:
        """So many, or as many as may be in hand beside what is."""
        if self._credit is None:
            return batch
        with self.gate:
            return max(least, min(batch, self._credit - len(self.hand)))

    def arrived(self, held: Sequence[Held], *, wanted: bool) -> None:
        """Messages that have come; unless they are wanted they go back at once."""
        with self.gate:
            for one in held:
                self.hand.arrived(one)
                if not wanted:
                    self.hand.leave(one, 0.0)
            self.gate.notify_all()

    def has_unsettled(self) -> bool:
        """Whether acks or nacks have not been answered."""
        with self.gate:
            return self.hand.unsettled

    def reached(self) -> None:
        """The broker has answered."""
        self._failed_since, self._reason = None, ""

    def cut_off(self, reason: str) -> None:
        """The broker has not."""
        with self.gate:
            self._reason = reason
            if self._failed_since is None:
                self._failed_since = self.monotonic()

    def missing(self, why: str) -> None:
        """There is nothing to read any more."""
        with self.gate:
            self._missing = why
            self.gate.notify_all()

    def wake_quietly(self) -> None:
        """Let the poll that waits look around; it goes on waiting if there is nothing."""
        with self.gate:
            self.gate.notify_all()

    def wake(self) -> None:
        """Let the poll that waits, or the next, return at once."""
        with self.gate:
            self._woken = True
            self.gate.notify_all()
