"""Wakes the polls of this process at once when something was committed by this process.

Polls of other processes notice by themselves, a few milliseconds later.
"""

from __future__ import annotations

import threading

__all__ = ["Bell"]


class Bell:
    """One for each transport. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners: tuple[threading.Event, ...] = ()

    def listen(self, event: threading.Event) -> None:
        """Set `event` whenever it rings."""
        with self._lock:
            self._listeners = (*self._listeners, event)

    def leave(self, event: threading.Event) -> None:
        """No longer."""
        with self._lock:
            self._listeners = tuple(one for one in self._listeners if one is not event)

    def ring(self) -> None:
        """There may be something new."""
        for event in self._listeners:
            event.set()
