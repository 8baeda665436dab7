"""Confirmation: what `submit` returns, one per message, and Confirmations, one per batch.

A Confirmation ends once, as a Receipt or as a PublishError, and can be asked from any number of
threads and event loops. Waking loops is batched: a burst of endings costs each loop one wake-up.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary, ref

from reliable_mq.errors import BatchIncomplete, PublishError, PublishUnknown
from reliable_mq.message import Receipt

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

    from reliable_mq.message import Message

__all__ = ["Confirmation", "Confirmations", "when_all_done"]

log = logging.getLogger("reliable_mq.producer")

#: Seconds between two looks for room, where nothing of ours tells when there is some.
A_LOOK = 0.01

# Guards the rare moves: the first callback of a confirmation, a new loop. Never held while waiting.
_GATE = threading.Lock()


class Confirmation:
    """The ending of one publish. Thread-safe; cancelling who waits never cancels the send.

    Callbacks run on the publisher's thread, or at once on the caller's where it has ended already;
    they must be quick and must not raise. A failure that nobody looked at is logged as an error
    when the confirmation is dropped.
    """

    __slots__ = ("_alarm", "_callback", "_more", "_outcome", "message")

    def __init__(self, message: Message) -> None:
        self.message = message
        self._outcome: Receipt | PublishError | None = None
        # Most have one, and each message in flight is to be small: it is what the caches hold.
        self._callback: Callable[[Confirmation], object] | None = None
        self._more: list[Callable[[Confirmation], object]] | None = None
        self._alarm: _Unseen | None = None

    def settle(self, outcome: Receipt | PublishError) -> None:
        """End it. Called by the publisher's thread only, and the first call counts."""
        if self._outcome is not None:
            return
        if isinstance(outcome, PublishError):
            self._alarm = _Unseen(outcome)
        self._outcome = outcome
        if self._callback is not None:
            self._run_callbacks()

    @property
    def outcome(self) -> Receipt | PublishError | None:
        """The ending, None while there is none. Looking at a failure counts as seeing it."""
        if self._alarm is not None:
            self._alarm.seen = True
        return self._outcome

    def done(self) -> bool:
        """Whether it has ended."""
        return self._outcome is not None

    @property
    def unseen(self) -> bool:
        """Whether it failed and nobody has looked at that yet."""
        return self._alarm is not None and not self._alarm.seen

    def result(self, timeout: float | None = None) -> Receipt:
        """Wait for the Receipt, at most `timeout` seconds (None: until the publisher's deadline).

        Raises: the PublishError it ended with; PublishUnknown when `timeout` is over first: the
        send goes on, and this confirmation can be asked again.
        """
        if self._outcome is None:
            ended = threading.Lock()  # an Event has one, and costs three times as much
            ended.acquire()
            self.add_done_callback(lambda _: ended.release())
            if not ended.acquire(timeout=-1 if timeout is None else max(0.0, timeout)):
                text = (
                    f"message {self.message.id} to {self.message.topic!r} was not confirmed within "
                    f"{timeout} s; it may be stored: publish again with the same id"
                )
                raise PublishUnknown(text, self.message)
        return self._get()

    def add_done_callback(self, callback: Callable[[Confirmation], object]) -> None:
        """Call `callback(self)` at the end, once."""
        with _GATE:
            if self._callback is None:
                self._callback = callback
            elif self._more is None:
                self._more = [callback]
            else:
                self._more.append(callback)
        # settle() may have looked before: then nobody else runs this one.
        if self._outcome is not None:
            self._run_callbacks()

    def __await__(self) -> Generator[Any, None, Receipt]:
        if self._outcome is None:
            loop = asyncio.get_running_loop()
            waiter = loop.create_future()
            bell = _bell_of(loop)
            self.add_done_callback(lambda _: bell.ring(waiter))
            yield from waiter
        return self._get()

    def __repr__(self) -> str:
        state = "pending" if self._outcome is None else type(self._outcome).__name__
        return f"<Confirmation {self.message.id} {state}>"

    def _get(self) -> Receipt:
        outcome = self.outcome
        if isinstance(outcome, Receipt):
            return outcome
        assert outcome is not None  # noqa: S101 - both callers have waited for it
        raise outcome

    def _run_callbacks(self) -> None:
        while True:
            with _GATE:  # each runs once, whoever gets it
                callback = self._callback
                self._callback = self._more.pop(0) if self._more else None
            if callback is None:
                return
            try:
                callback(self)
            except BaseException:  # this is a publisher's thread, which others depend on
                log.exception("a callback of message %s failed", self.message.id)
            if self._callback is None:  # whoever adds one from here on runs it
                return


class _Unseen:
    """Says so when a failure is dropped that nobody looked at; exists for failures only."""

    __slots__ = ("error", "seen")

    def __init__(self, error: PublishError) -> None:
        self.error = error
        self.seen = False

    def __del__(self) -> None:
        if not self.seen:
            log.error("a publish failed and nobody looked at its Confirmation: %s", self.error)


class _Bell:
    """Wakes one event loop once for all the waiters that ended since it last woke."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        # Weak: the table of bells has the loop as its key, which a bell must not keep alive.
        self._loop = ref(loop)
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._rung = False

    def ring(self, waiter: asyncio.Future[None]) -> None:
        self._waiters.append(waiter)
        if not self._rung:
            self._rung = True
            loop = self._loop()
            try:
                if loop is not None:
                    loop.call_soon_threadsafe(self._wake)
            except RuntimeError:  # the loop is closed: there is nobody left to wake
                self._waiters.clear()

    def _wake(self) -> None:
        self._rung = False  # before emptying: what is appended from here on rings again
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)


_bells: WeakKeyDictionary[asyncio.AbstractEventLoop, _Bell] = WeakKeyDictionary()


def _bell_of(loop: asyncio.AbstractEventLoop) -> _Bell:
    bell = _bells.get(loop)
    if bell is None:
        with _GATE:
            bell = _bells.setdefault(loop, _Bell(loop))
    return bell


class Confirmations:
    """The endings of a batch, in the order of its inputs. One thread or task at a time; awaitable.

    Inputs are drawn as room comes. What had no room when it was made is drawn by whoever waits for
    the result.

    Args:
        drawn: Sends the next input at each step and yields its Confirmation, or, while there is no
            room, the seconds that are left for waiting for some.
    """

    def __init__(self, drawn: Iterable[Confirmation | float]) -> None:
        self._drawn = iter(drawn)
        self._confirmations: list[Confirmation] = []
        #: How many at the front have ended already, so that nobody looks there again.
        self._ended_before = 0

    def __len__(self) -> int:
        return len(self._confirmations)

    def __getitem__(self, index: int) -> Confirmation:
        return self._confirmations[index]

    def draw_some(self) -> float | None:
        """Send inputs until there is no room: the seconds one may wait. None: all are sent."""
        for drawn in self._drawn:
            if not isinstance(drawn, Confirmation):
                return drawn
            self._confirmations.append(drawn)
        return None

    def draw_all(self) -> None:
        """Send all inputs, waiting for room where there is none."""
        while (left := self.draw_some()) is not None:
            self._wait_for_one(min(left, A_LOOK))

    def result(self, timeout: float | None = None) -> list[Receipt]:
        """Wait for all; raises BatchIncomplete when any of them has no Receipt.

        `timeout` is seconds for the confirms of the whole batch; a message without an answer by
        then counts as PublishUnknown.
        """
        self.draw_all()
        ended = threading.Event()
        when_all_done(self._confirmations, ended.set)
        ended.wait(timeout)
        return self._collect()

    def __await__(self) -> Generator[Any, None, list[Receipt]]:
        while (left := self.draw_some()) is not None:
            yield from asyncio.sleep(min(left, A_LOOK)).__await__()
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        bell = _bell_of(loop)
        when_all_done(self._confirmations, lambda: bell.ring(waiter))
        yield from waiter
        return self._collect()

    def _wait_for_one(self, seconds: float) -> None:
        """Until some that are on their way have ended, or so long."""
        while self._ended_before < len(self._confirmations):  # no slice: it would copy thousands
            confirmation = self._confirmations[self._ended_before]
            if not confirmation.done():
                # One further behind, if it is still open: then there is room for many at once.
                behind = self._confirmations[(self._ended_before + len(self)) // 2]
                if not behind.done():
                    confirmation = behind
                ended = threading.Event()
                confirmation.add_done_callback(_setter(ended))
                ended.wait(seconds)
                return
            self._ended_before += 1
        time.sleep(seconds)  # none of ours is on its way: others hold the room

    def _collect(self) -> list[Receipt]:
        outcomes: list[Receipt | PublishError] = []
        failed = 0
        for confirmation in self._confirmations:
            outcome = confirmation.outcome
            if outcome is None:
                text = f"message {confirmation.message.id} has no answer yet; it may be stored"
                outcome = PublishUnknown(text, confirmation.message)
            failed += isinstance(outcome, PublishError)
            outcomes.append(outcome)
        if failed:
            text = (
                f"{failed} of {len(outcomes)} messages have no Receipt; "
                "`outcomes` has one entry an input"
            )
            raise BatchIncomplete(text, outcomes)
        return cast("list[Receipt]", outcomes)


def _setter(event: threading.Event) -> Callable[[Confirmation], None]:
    return lambda _: event.set()


def when_all_done(confirmations: Iterable[Confirmation], callback: Callable[[], object]) -> None:
    """Call `callback()` once the last of them has ended: at once, or on the publisher's thread."""
    left = iter(confirmations)

    def follow(_: Confirmation | None = None) -> None:
        # One callback at a time, on the next that is still open: a batch of n costs few callbacks,
        # and no two threads ever count at once.
        for confirmation in left:
            if not confirmation.done():
                confirmation.add_done_callback(follow)
                return
        callback()

    follow()
