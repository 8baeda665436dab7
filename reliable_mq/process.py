"""A process of its own: signals, draining within a budget, and a truthful exit code."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from reliable_mq.errors import ConfigurationError
from reliable_mq.outcome import seconds

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import timedelta
    from types import FrameType

    from reliable_mq.app import ReliableMQ

__all__ = ["run"]

log = logging.getLogger("reliable_mq.app")

#: Seconds between two looks whether a consumer has failed.
LOOK = 0.5


def run(*apps: ReliableMQ, drain: float | timedelta = 25.0) -> None:
    """Run apps until SIGTERM or SIGINT, or until one of them is no longer live; then drain.

    Args:
        drain: Seconds for handlers to end, over all apps. A second signal ends the wait.

    Raises:
        SystemExit: With 1 when a handler was abandoned, a message not confirmed, or a consumer
            failed; a line on standard error says so, the log says which.
        ConfigurationError: Off the main thread, where signals cannot be had: use `start`.
    """
    if not apps:
        msg = "run() needs an app"
        raise ConfigurationError(msg)
    if threading.current_thread() is not threading.main_thread():
        msg = "run() handles signals and needs the main thread; on another use app.start()"
        raise ConfigurationError(msg)
    budget = seconds("drain", drain)
    with _signals() as over:
        clean = False
        try:
            for app in apps:
                app.start()
            clean = _watch(apps, over)
        except KeyboardInterrupt:  # a second signal, before there was a wait that it could end
            budget = 0.0
            raise
        finally:
            clean = _stop(apps, budget) and clean
    if not clean:
        # Also where nobody configured logging, an exit code of 1 must not come without a word.
        sys.stderr.write("reliable_mq: work was left undone, or a consumer could not go on\n")
        raise SystemExit(1)


@contextmanager
def _signals() -> Iterator[threading.Event]:
    """An event that the first SIGTERM or SIGINT sets; a second one does what it always did."""
    over = threading.Event()
    before = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)}

    def restore() -> None:
        for one, previous in before.items():
            signal.signal(one, previous)

    def on_signal(number: int, _: FrameType | None) -> None:
        restore()  # first of all: a second signal may come while this is being told
        over.set()
        log.info("signal %d: draining", number)

    for one in before:
        signal.signal(one, on_signal)
    try:
        yield over
    finally:
        restore()


def _watch(apps: tuple[ReliableMQ, ...], over: threading.Event) -> bool:
    """Wait for the end; False when an app could not go on."""
    while not over.wait(LOOK):
        if not all(app.health().live for app in apps):
            log.critical("a consumer cannot go on: %s", [app.health() for app in apps])
            return False
    return True


def _stop(apps: tuple[ReliableMQ, ...], drain: float) -> bool:
    """Stop all at once, so that they share the budget; whether nothing was left undone."""
    undone: list[object] = []

    def stop(app: ReliableMQ) -> None:
        stopped = app.stop(drain)
        if stopped:
            undone.append(stopped)

    threads = [threading.Thread(target=stop, args=(app,), daemon=True) for app in apps]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():  # in slices, so that a second signal is heard
            thread.join(LOOK)
    return not undone
