"""Work in threads, in order within a key and side by side between keys.

For those who keep a consume loop of their own:

    with KeyedExecutor(concurrency=16) as executor:
        for record in consumer:
            executor.submit(record.key, handle, record)

    submit ──> lane of the key (made by its first item, gone with its last) ──> ready ──> a worker

A lane is in the ready queue at most once, and with one worker at most: that is the order. The lock
guards the lanes and the counters; user code always runs outside of it.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections import deque
from inspect import iscoroutine
from queue import SimpleQueue
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal

from msgspec import Struct

from reliable_mq.errors import ConfigurationError, ReliableMQError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from types import TracebackType

__all__ = ["ExecutorFull", "ExecutorIncomplete", "KeyedExecutor", "Unfinished"]

log = logging.getLogger("reliable_mq.executor")

#: A worker keeps a lane for so many items, or so many seconds, then others have their turn.
TURN = 16
TURN_SECONDS = 0.005
#: How many failures that nobody observed are kept for `close`; all of them are logged.
KEPT_FAILURES = 100

Item = tuple["Callable[..., object]", tuple[Any, ...]]


class Unfinished(Struct, frozen=True):
    """An item that did not end well.

    state: "queued": it never ran. "running": it had not returned, and may still have its effect.
        "failed": it raised `error` and there is no on_done to observe that, or on_done raised it.
    """

    key: Any
    function: Any
    args: tuple[Any, ...]
    state: Literal["queued", "running", "failed"]
    error: BaseException | None = None


class ExecutorFull(ReliableMQError):
    """There was no room within the timeout; the item was not taken."""


class ExecutorIncomplete(ReliableMQError):
    """The `with` block is over and not everything ended well; `unfinished` says what."""

    def __init__(self, text: str, unfinished: list[Unfinished]) -> None:
        super().__init__(text)
        self.unfinished = unfinished


class _Lane:
    """The items of one key. Fields are guarded by the executor's lock."""

    __slots__ = ("items", "key", "running")

    def __init__(self, key: Hashable) -> None:
        self.key = key
        self.items: deque[Item] = deque()
        #: What a worker has taken, until somebody has been told how it ended.
        self.running: Item | None = None


class KeyedExecutor:
    """Runs functions in threads: items of one key in their order, one at a time. Any thread.

    A failed item does not hold back the ones behind it: a function that must succeed first retries
    by itself. Threads start with the first item. They are daemons, so that a function that never
    returns cannot keep the program from ending; what is left at its end without `close` is logged.

    Args:
        concurrency: Threads.
        limit: Items that are taken and not ended, at most.
        on_done: Called with the arguments and the exception (None: it returned) of every item that
            ended, on the item's thread, before the next one of the key begins. It is not called for
            an item that `close` returns as queued or running.
        name: Begins the names of the threads.

    Without on_done every failure is logged and returned by `close`.
    """

    def __init__(
        self,
        concurrency: int = 8,
        limit: int = 1000,
        *,
        on_done: Callable[[tuple[Any, ...], BaseException | None], object] | None = None,
        name: str = "keyed",
    ) -> None:
        if concurrency < 1 or limit < 1:
            msg = f"KeyedExecutor(concurrency={concurrency!r}, limit={limit!r}): both from 1 up"
            raise ConfigurationError(msg)
        self._concurrency = concurrency
        self._limit = limit
        self._on_done = on_done
        self._name = name
        self._process = os.getpid()
        self._lock = threading.Lock()
        #: Those who wait for room, or for the end.
        self._waiters = threading.Condition(self._lock)
        self._waiting = 0
        # Below this many items those who wait are woken, so that they put in a burst at a time.
        self._low = limit - max(1, limit // 4)
        self._pending = 0
        self._lanes: dict[Hashable, _Lane] = {}
        self._ready: SimpleQueue[_Lane | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._failures: list[Unfinished] = []
        self._closed = False
        self._stopped = False
        self._unfinished: list[Unfinished] = []
        self._at_exit: weakref.finalize[[str, dict[Hashable, _Lane]], KeyedExecutor] | None = None

    @property
    def pending(self) -> int:
        """Items that are taken and not ended."""
        return self._pending

    def submit(
        self,
        key: Hashable,
        function: Callable[..., object],
        *args: Any,
        timeout: float = 30.0,
    ) -> None:
        """Run `function(*args)` behind all earlier items of this key; None: in no order.

        Waits for room, at most `timeout` seconds.

        Raises:
            ExecutorFull: There was none.
            ConfigurationError: It is closed, or was made before a fork.
        """
        self._refuse_other_process()
        with self._lock:
            if self._pending >= self._limit:
                self._wait_for_room(timeout)
            if self._closed:
                msg = f"KeyedExecutor {self._name!r} is closed: nothing more can be submitted"
                raise ConfigurationError(msg)
            lane = None if key is None else self._lanes.get(key)
            if lane is None:
                lane = _Lane(key)
                self._lanes[lane if key is None else key] = lane
                lane.items.append((function, args))
                if not self._threads:
                    self._start()
                self._ready.put(lane)
            else:
                lane.items.append((function, args))
            self._pending += 1

    def close(self, timeout: float = 25.0) -> list[Unfinished]:
        """Take nothing more, wait for all items, `timeout` seconds at most, and end the threads.

        Returns what did not end well: failures that nobody observed (the first 100; all are in the
        log), and, when the time is over, what has not ended; of that, nothing is begun any more.
        Idempotent.

        Raises:
            ConfigurationError: It is called from inside an item, or was made before a fork.
        """
        self._refuse_other_process()
        if threading.current_thread() in self._threads:
            msg = f"KeyedExecutor {self._name!r} cannot be closed from inside one of its items"
            raise ConfigurationError(msg)
        deadline = monotonic() + timeout
        with self._lock:
            self._closed = True
            self._wait_until(lambda: not self._pending, deadline)
            if not self._stopped:
                self._stopped = True
                self._unfinished = self._failures + self._abandoned()
                self._lanes.clear()
                self._pending = 0
            threads, self._threads = self._threads, []
        for _ in threads:
            self._ready.put(None)
        for thread in threads:
            thread.join(max(0.0, deadline - monotonic()))
        if self._at_exit is not None:
            self._at_exit.detach()
        return list(self._unfinished)

    def __enter__(self) -> KeyedExecutor:  # noqa: PYI034 - Self is not in Python 3.10
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close; raises ExecutorIncomplete when not everything ended well."""
        unfinished = self.close()
        if not unfinished:
            return
        counts = {"queued": 0, "running": 0, "failed": 0}
        for one in unfinished:
            counts[one.state] += 1
        text = f"KeyedExecutor {self._name!r} ended with items " + ", ".join(
            f"{state}: {count}" for state, count in counts.items() if count
        )
        if error is not None:  # that one is on its way already
            log.error(text)
            return
        raise ExecutorIncomplete(text, unfinished) from unfinished[0].error

    def _start(self) -> None:
        for index in range(self._concurrency):
            name = f"{self._name}-{index}"
            thread = threading.Thread(target=self._work, name=name, daemon=True)
            self._threads.append(thread)
            thread.start()
        self._at_exit = weakref.finalize(self, _left_open, self._name, self._lanes)

    def _refuse_other_process(self) -> None:
        # Before the lock is touched: the fork may have copied it while a thread held it.
        if os.getpid() != self._process:
            msg = (
                f"KeyedExecutor {self._name!r} was made before a fork and has no threads in this "
                "process: make one here"
            )
            raise ConfigurationError(msg)

    def _wait_for_room(self, timeout: float) -> None:
        room = self._wait_until(
            lambda: self._pending < self._limit or self._closed, monotonic() + timeout
        )
        if not room:
            text = (
                f"KeyedExecutor {self._name!r} had no room for {timeout} s: {self._pending} items "
                f"have not ended, and the limit is {self._limit}"
            )
            raise ExecutorFull(text)

    def _wait_until(self, condition: Callable[[], bool], deadline: float) -> bool:
        """Wait with the lock; workers wake when few or no items are left, not for each one."""
        self._waiting += 1
        try:
            while not condition():
                left = deadline - monotonic()
                if left <= 0:
                    return False
                self._waiters.wait(min(left, 0.01))
        finally:
            self._waiting -= 1
        return True

    def _abandoned(self) -> list[Unfinished]:
        left = []
        for lane in self._lanes.values():
            if lane.running is not None:
                left.append(Unfinished(lane.key, *lane.running, "running"))
            left += [Unfinished(lane.key, *item, "queued") for item in lane.items]
            lane.items.clear()
        return left

    # ---- worker threads

    def _work(self) -> None:
        take = self._ready.get
        while (lane := take()) is not None:
            self._run(lane)

    def _run(self, lane: _Lane) -> None:
        """One turn of a lane."""
        until = monotonic() + TURN_SECONDS
        turns = TURN
        with self._lock:
            if not lane.items:  # abandoned
                return
            item = lane.running = lane.items.popleft()
        while True:
            function, args = item
            error = None
            try:
                result = function(*args)
                if result is not None and iscoroutine(result):
                    result.close()
                    msg = f"{function!r} is an async def: a KeyedExecutor runs functions only"
                    raise TypeError(msg)  # noqa: TRY301 - told as every other failure is
            except BaseException as caught:  # noqa: BLE001 - every ending is told or kept
                error = caught
            if (error is not None or self._on_done is not None) and not self._tell(
                lane, item, error
            ):
                return
            turns -= 1
            with self._lock:
                if self._stopped:
                    return
                self._pending -= 1
                if self._waiting and self._pending in (self._low, 0):
                    self._waiters.notify_all()
                lane.running = None
                if not lane.items:
                    del self._lanes[lane if lane.key is None else lane.key]
                    return
                if not turns or monotonic() >= until:
                    self._ready.put(lane)
                    return
                item = lane.running = lane.items.popleft()

    def _tell(self, lane: _Lane, item: Item, error: BaseException | None) -> bool:
        """Tell on_done, or keep and log the failure. False: `close` has given the item up."""
        with self._lock:
            given_up = self._stopped
            if not given_up:
                lane.running = None  # from here on `close` does not return it as running
                if self._on_done is None:
                    self._keep(lane, item, error)
        if given_up:
            log.warning("an item of KeyedExecutor %r ended after it was given up", self._name)
            return False
        if self._on_done is not None:
            try:
                self._on_done(item[1], error)
            except BaseException as caught:  # noqa: BLE001 - it is kept, as the item's failure
                error = caught
                with self._lock:
                    self._keep(lane, item, error)
            else:
                return True
        function = item[0]
        name = getattr(function, "__qualname__", type(function).__name__)
        log.error("%s failed in KeyedExecutor %r", name, self._name, exc_info=error)
        return True

    def _keep(self, lane: _Lane, item: Item, error: BaseException | None) -> None:
        if len(self._failures) < KEPT_FAILURES:
            self._failures.append(Unfinished(lane.key, *item, "failed", error))


def _left_open(name: str, lanes: dict[Hashable, _Lane]) -> None:
    """At the end of the program."""
    left = sum(len(lane.items) + (lane.running is not None) for lane in list(lanes.values()))
    if left:
        log.error("KeyedExecutor %r was never closed: %d items have not ended", name, left)
