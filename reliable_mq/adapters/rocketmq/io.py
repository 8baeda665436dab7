"""The thread on which all of RocketMQ's connections live, with one event loop: one a process.

grpc.aio is made for one loop, and a thread of its own for each would cost more than the messages.
It does not survive a fork: whoever was forked after it was used is told so at once, where the
client would hang for ever.

Handing over to the loop is dear (15 to 75 µs), so that what comes in a burst wakes it once.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from reliable_mq.errors import ConnectionFailed, TransportError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

__all__ = ["Io", "check_not_forked", "the_io"]

log = logging.getLogger("reliable_mq.rocketmq")

#: Seconds that the end of the process waits for the thread.
LAST_SECOND: Final = 1.0


class Io:
    """The thread and its loop. Any thread may call `call`, `run` and `spawn`."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._handed: deque[Callable[[], object]] = deque()
        self._rung = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._thread = threading.Thread(target=self._run, name="reliable-mq-rocketmq", daemon=True)
        self._thread.start()

    def on_its_thread(self) -> bool:
        """Whether this is the thread of the loop."""
        return threading.current_thread() is self._thread

    def call(self, function: Callable[[], object]) -> None:
        """Let the loop call it soon, in the order of these calls. It must not raise."""
        self._handed.append(function)
        if not self._rung:
            self._rung = True
            self._loop.call_soon_threadsafe(self._call_all)

    def spawn(self, work: Coroutine[Any, Any, object], name: str) -> None:
        """Let the loop run it. What it raises is logged: nobody waits for it. Any thread."""
        self.call(lambda: self.start(work, name))

    def start(self, work: Coroutine[Any, Any, object], name: str) -> asyncio.Task[Any]:
        """The same, on the thread of the loop."""
        task = self._loop.create_task(work, name=name)
        self._tasks.add(task)  # the loop has weak references only
        task.add_done_callback(self._ended)
        return task

    def later(self, seconds: float, function: Callable[[], object]) -> asyncio.TimerHandle:
        """Call it in so many seconds, unless it is cancelled. On the thread of the loop."""
        return self._loop.call_later(seconds, function)

    def run(self, work: Coroutine[Any, Any, Any], timeout: float) -> Any:
        """Run it, and wait for what it returns or raises. Not on the thread of the loop.

        Raises: ConnectionFailed when that takes longer than `timeout` seconds.
        """
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(timeout)
        except TimeoutError as error:
            if future.done() and not future.cancelled():
                raise
            future.cancel()
            text = f"RocketMQ did not answer within {timeout} s"
            raise ConnectionFailed(text) from error

    def stop(self) -> None:
        """At the end of the process: end what runs, so that the interpreter can."""
        if self._loop.is_running():
            self._loop.call_soon_threadsafe(lambda: self._loop.create_task(self._end()))
            self._thread.join(LAST_SECOND)

    # -- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _call_all(self) -> None:
        self._rung = False  # before emptying: what is appended from here on rings again
        while self._handed:
            function = self._handed.popleft()
            try:
                function()
            except Exception:  # others depend on this thread
                log.exception("a call on RocketMQ's thread failed")

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("%s has failed", task.get_name(), exc_info=task.exception())

    async def _end(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=LAST_SECOND / 2)
        self._loop.stop()


_gate = threading.Lock()
_io: Io | None = None
_forked = False


def the_io() -> Io:
    """The one of this process, started by the first who asks.

    Raises: TransportError in a process that was forked after another one had started it.
    """
    global _io  # noqa: PLW0603 - one a process
    check_not_forked("RocketMQ")
    with _gate:
        if _io is None:
            try:
                _io = Io()
            except RuntimeError as error:  # no more threads in this process
                text = f"RocketMQ's thread cannot start: {error}"
                raise TransportError(text) from error
            atexit.register(_io.stop)
        return _io


def check_not_forked(what: str) -> None:
    """Raises TransportError: the parent had connected before it forked."""
    if _forked:
        text = (
            f"{what}: this process was forked after its parent had connected to RocketMQ, and gRPC "
            "does not survive that: connect after the fork, or start processes by spawn"
        )
        raise TransportError(text)


def _mark() -> None:
    global _forked, _gate  # noqa: PLW0603 - the child's own
    _gate = threading.Lock()
    _forked = _forked or _io is not None


if hasattr(os, "register_at_fork"):  # pragma: no branch - all but Windows
    os.register_at_fork(after_in_child=_mark)
