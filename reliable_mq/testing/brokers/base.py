"""What a test may do to a broker: start, stop, kill, pause and resume it, wherever it runs.

A broker keeps its address and its data through all of it: whoever was connected finds the same one
again. Every wait is for a state, has a deadline, and says in its error what the broker logged last.
"""

from __future__ import annotations

import abc
import atexit
import os
import threading
import time
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from typing_extensions import Self

__all__ = ["READY_WITHIN", "Broker", "BrokerFailed", "Missing", "until"]

T = TypeVar("T")

#: Seconds that a broker gets to become ready: a busy machine needs five times what a quiet one
#: does.
READY_WITHIN: Final = 90.0


class BrokerFailed(RuntimeError):
    """A broker did not come to a state in time; the text ends with what it logged last."""


class Missing(RuntimeError):
    """This machine has not got what it takes to run the broker; the text tells the remedy."""


class Broker(abc.ABC):
    """One broker under the hands of a test. Not thread-safe: the test that hurts it owns it.

    Each method returns when the state is reached, may be called in any state, and does nothing
    where the state is that already. What is still there when Python ends is
    closed, unless it was made to be kept.
    """

    #: Whether it can be hurt. One that runs elsewhere cannot: a `Proxy` in front of it can.
    controlled: ClassVar[bool] = True

    def __init__(self, *, keep: bool = False) -> None:
        if not keep:
            _open.add(self)

    # -- the fault interface -------------------------------------------------------------------

    @property
    @abc.abstractmethod
    def url(self) -> str:
        """Where clients reach it, always the same."""

    @abc.abstractmethod
    def start(self) -> None:
        """Start it, or start it again on its port and its data; ready when this returns."""

    @abc.abstractmethod
    def stop(self) -> None:
        """End it as an administrator does: it may finish what it has begun."""

    @abc.abstractmethod
    def kill(self) -> None:
        """End it by kill -9, all of it at once."""

    @abc.abstractmethod
    def pause(self) -> None:
        """Let it stand still: its connections stay open, and nothing answers."""

    @abc.abstractmethod
    def resume(self) -> None:
        """Let it go on where it was paused."""

    @abc.abstractmethod
    def probe(self) -> None:
        """A client's whole round trip; raises whatever that client raises where it fails."""

    @abc.abstractmethod
    def log(self, lines: int = 30) -> str:
        """The last lines that it logged."""

    @abc.abstractmethod
    def close(self) -> None:
        """End it and remove its data. Never raises for what is gone already."""

    # -- built on these ------------------------------------------------------------------------

    def alive(self) -> bool:
        """Whether it can still become ready. False ends the wait for it."""
        return True

    def is_up(self) -> bool:
        """Whether a client is served now."""
        try:
            self.probe()
        except Exception:  # noqa: BLE001 - each client library has errors of its own
            return False
        return True

    def ensure_up(self) -> None:
        """Heal it, whatever an earlier test left behind; costs one probe where it is well."""
        if not self.is_up():
            self.resume()
            self.start()

    def wait_ready(self, within: float = READY_WITHIN) -> None:
        """Wait until a client is served; a `BrokerFailed` by the deadline, or when it has ended."""
        last: list[BaseException] = []

        def served() -> bool:
            try:
                self.probe()
            except Exception as error:  # noqa: BLE001 - as in is_up
                last[:] = [error]
                if not self.alive():
                    self._failed("ended while it started", error)
                return False
            return True

        if not until(served, within):
            self._failed(f"is not ready after {within} s", last[0] if last else None)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.url}>"

    def _failed(self, what: str, cause: BaseException | None) -> None:
        log = "\n".join(f"    {line}" for line in self.log().splitlines())
        msg = f"{self!r} {what}: {cause!r}\nIts last lines:\n{log or '    (none)'}"
        raise BrokerFailed(msg) from cause


def until(look: Callable[[], T], within: float, *, every: float = 0.05) -> T:
    """The first thing that `look` returns that is true; what it returned last at the deadline."""
    end = time.monotonic() + within
    pause = threading.Event()
    while not (found := look()) and time.monotonic() < end:
        pause.wait(every)
    return found


_open: weakref.WeakSet[Broker] = weakref.WeakSet()
_owner = os.getpid()


@atexit.register
def _close_all() -> None:
    if os.getpid() != _owner:
        return  # a fork of the test run: the brokers are its parent's
    for broker in list(_open):
        with suppress(Exception):  # the others are closed, too
            broker.close()
