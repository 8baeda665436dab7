"""A member's place in a group, as the port has it: polls that wait, acks that are kept for them.

The owner thread has a connection of its own and does everything in `poll`; `wake` is for any
thread. While it waits it asks SQLite every few milliseconds whether anything was committed, which
reads one number from shared memory; what this process commits wakes it at once.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Final

from reliable_mq.adapters.base import Polled
from reliable_mq.adapters.sqlite.connection import Locked
from reliable_mq.adapters.sqlite.session import Session
from reliable_mq.errors import ConnectionFailed, TransportError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reliable_mq.adapters.base import Subscribe
    from reliable_mq.adapters.sqlite.broker import Broker
    from reliable_mq.message import Delivery

__all__ = ["SqliteSubscription"]

NOTHING: Final = Polled()
#: Seconds between two looks: soon after there was something, later when it stays quiet.
SHORTEST_PAUSE: Final = 0.001
LONGEST_PAUSE: Final = 0.02
#: Seconds for which another process may hold the lock before a poll says so.
STANDSTILL: Final = 5.0


class SqliteSubscription:
    """The owner thread polls, acks, nacks and closes; any thread may wake it."""

    def __init__(self, broker: Broker, subscribe: Subscribe) -> None:
        self._broker = broker
        self._session = Session(broker, subscribe)
        self._pid = os.getpid()
        self._closed = False
        self._woken = False
        self._event = threading.Event()
        self._locked_since: float | None = None
        try:
            self._session.join()
        except BaseException:
            self._session.drop()
            raise
        broker.bell.listen(self._event)

    def poll(self, limit: int, timeout: float) -> Polled:
        """See Subscription.poll."""
        self._check()
        clock = self._broker.clock
        end = clock.monotonic() + timeout
        pause = SHORTEST_PAUSE
        while True:
            # Before looking: whatever happens from here on ends the wait below.
            self._event.clear()
            woken = self._woken
            if woken:  # a store without this check could swallow a wake that comes in between
                self._woken = False
            polled = self._advance(limit)
            if polled.deliveries or polled.settled or polled.lost or woken:
                return polled
            # The waits are added up, so this ends also where the clock stands still.
            if timeout <= 0 or clock.monotonic() >= end:
                return NOTHING
            if not self._event.wait(min(pause, timeout)):
                timeout -= pause
                pause = min(2 * pause, LONGEST_PAUSE)

    @property
    def standby(self) -> bool:
        """See Subscription.standby."""
        return self._session.standby

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        """See Subscription.ack."""
        for delivery in deliveries:
            self._session.ack(delivery.lease)

    def nack(self, delivery: Delivery, delay: float) -> None:
        """See Subscription.nack."""
        self._session.nack(delivery.lease, delivery.attempt, delay)

    def wake(self) -> None:
        """See Subscription.wake."""
        self._woken = True
        self._event.set()

    def close(self) -> None:
        """See Subscription.close."""
        if self._closed:
            return
        self._closed = True
        self._broker.bell.leave(self._event)
        if self._pid == os.getpid():
            self._session.leave()

    def _advance(self, limit: int) -> Polled:
        try:
            polled = self._session.turn(limit) if self._session.look(limit) else NOTHING
        except Locked as error:
            now = self._broker.clock.monotonic()
            if self._locked_since is None:
                self._locked_since = now
            if now - self._locked_since < STANDSTILL:
                return NOTHING
            text = f"{error}; it has been so for {now - self._locked_since:.0f} s"
            raise ConnectionFailed(text) from error
        except TransportError:
            self._session.reconnect()
            raise
        self._locked_since = None
        return polled

    def _check(self) -> None:
        if self._pid != os.getpid():
            text = (
                f"{self._broker.path} was opened before a fork: SQLite must not be used on both "
                "sides; subscribe in the process that polls"
            )
            raise TransportError(text)
        if self._closed:
            text = f"this subscription to {self._broker.path} is closed"
            raise TransportError(text)
