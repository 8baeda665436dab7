"""Where handlers run: lane threads for `def`, one event loop for `async def`.

Workers take what they are handed, run a turn of it, and put the report into the mailbox of the
owner thread, which is woken once a burst. They know nothing of brokers and settle nothing.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, cast

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
__all__ = ["LoopThread", "LoopWorkers", "Mailbox", "ThreadWorkers", "Workers", "end_tasks"]

#: A task that never suspends leaves the event loop to others after so many seconds.
TURN_SECONDS = 0.005


class Mailbox:
    """What other threads tell the owner thread. `put` from any thread, `take` by the owner."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._items: deque[Any] = deque()
        self._wake = wake
        self._rung = False

    def put(self, item: object) -> None:
        """Leave an item, and wake the owner unless it has been woken since it last looked."""
        self._items.append(item)
        if not self._rung:
            self._rung = True
            self._wake()

    def take(self) -> list[Any]:
        """All there is."""
        self._rung = False  # before emptying: what comes from here on rings again
        items = self._items
        return [items.popleft() for _ in range(len(items))]

    def __bool__(self) -> bool:
        return bool(self._items)


class Workers(Protocol):
    """Runs what the owner thread hands out."""

    def start(self) -> None:
        """Be ready to run."""

    def hand_out(self, item: Any) -> None:
        """Run this item soon. The owner thread only."""

    def stop(self) -> None:
        """Run nothing further; what runs is left to itself (threads) or cancelled (tasks)."""


class ThreadWorkers:
    """A fixed number of daemon threads, so that a handler that never returns cannot hold the exit.

    Args:
        count: Threads, which is the concurrency.
        turn: Runs one item and returns what the owner shall hear.
        waiting: Where items stand until a thread takes them; anybody may look at it.
        mailbox: Where reports go.
    """

    def __init__(
        self,
        name: str,
        count: int,
        turn: Callable[[Any], object],
        waiting: deque[Any],
        mailbox: Mailbox,
    ) -> None:
        self._waiting = waiting
        #: True wakes a thread, False ends one. There is one True, or a second for a moment.
        self._tokens: SimpleQueue[bool] = SimpleQueue()
        self._rung = False
        self._stopped = False
        self._turn = turn
        self._mailbox = mailbox
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{index}", daemon=True)
            for index in range(count)
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def hand_out(self, item: Any) -> None:
        """Queue an item, and wake a thread for it."""
        self._waiting.append(item)
        self._ring()

    def stop(self) -> None:
        """Let each thread end after what it runs now."""
        self._stopped = True
        for _ in self._threads:
            self._tokens.put(False)  # noqa: FBT003 - it is no option

    def _ring(self) -> None:
        """Wake one thread, which wakes the next if there is more than it takes.

        All at once would wake many for what the first is through with before the second runs.
        """
        if not self._rung:
            self._rung = True
            self._tokens.put(True)  # noqa: FBT003 - as above

    def _work(self) -> None:
        token, waiting = self._tokens.get, self._waiting
        take, turn, put = waiting.popleft, self._turn, self._mailbox.put
        while token():
            self._rung = False  # before looking: what comes from here on rings again
            while not self._stopped:
                try:
                    item = take()
                except IndexError:
                    break
                if waiting:
                    self._ring()
                try:
                    report = turn(item)
                except BaseException as error:  # noqa: BLE001 - no thread ends without a word
                    report = partial(_broken, error)
                put(report)


def _broken(error: BaseException) -> NoReturn:
    """For the mailbox: makes the owner fail, where a worker could not even report."""
    msg = "a worker broke, and what it had in hand comes again"
    raise RuntimeError(msg) from error


class LoopThread:
    """An event loop of ours in a thread, for apps that have none."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="reliable-mq-loop", daemon=True)
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Cancel what runs and close the loop, waiting at most `timeout` seconds for that."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(timeout)

    def _run(self) -> None:
        try:
            self.loop.run_forever()
            self.loop.run_until_complete(end_tasks())
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        finally:
            self.loop.close()


async def end_tasks() -> None:
    """Cancel everything else that runs on this loop, and wait for it."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class LoopWorkers:
    """Tasks on one event loop, at most `count` at a time. A task runs lanes until there is none.

    Args:
        turn: Coroutine function that runs one item and returns what the owner shall hear.
        waiting: Where items stand until a task takes them; anybody may look at it.
        mailbox: Where reports go.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        count: int,
        turn: Callable[[Any], Awaitable[object]],
        waiting: deque[Any],
        mailbox: Mailbox,
    ) -> None:
        self._loop = loop
        self._count = count
        self._turn = turn
        self._mailbox = mailbox
        self._waiting = waiting
        self._called = False
        self._tasks: set[asyncio.Task[None]] = set()
        #: Tasks that still look for work. Not len(_tasks): a task that found none is discarded
        #: only a loop turn later, and an item handed out in between would have nobody.
        self._looking = 0
        #: When all of them together have had the loop for long enough.
        self._until = 0.0
        self._stopped = False

    def start(self) -> None:
        """Nothing to do: the loop runs already."""

    def hand_out(self, item: Any) -> None:
        """Queue an item and wake the loop, once a burst."""
        self._waiting.append(item)
        if not self._called:
            self._called = True
            self._loop.call_soon_threadsafe(self._pump)

    def stop(self) -> None:
        """Cancel what still runs. Any thread; the loop may be gone already."""
        self._stopped = True
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._cancel)

    def _pump(self) -> None:
        self._called = False  # before looking: what is appended from here on calls again
        wanted = min(len(self._waiting), self._count - self._looking)
        for _ in range(wanted):
            self._looking += 1
            self._tasks.add(self._loop.create_task(self._work()))

    def _cancel(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def _work(self) -> None:
        waiting, turn, put, now = self._waiting, self._turn, self._mailbox.put, self._loop.time
        try:
            while waiting and not self._stopped:
                report: object
                try:
                    report = await turn(waiting.popleft())
                except BaseException as error:  # noqa: BLE001 - as in threads
                    report = partial(_broken, error)
                put(report)
                if now() >= self._until:
                    # A handler that never suspends must not starve the loop. One limit for all
                    # tasks: where handlers do suspend, hardly any of them comes by here.
                    self._until = now() + TURN_SECONDS
                    await asyncio.sleep(0)
        finally:
            # Also when a handler cancelled its own task: what waits needs another one.
            self._looking -= 1
            self._tasks.discard(cast("asyncio.Task[None]", asyncio.current_task()))
            if waiting and not self._stopped:
                self._loop.call_soon(self._pump)
