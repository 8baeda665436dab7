"""A clock that moves only when it is told to."""

from __future__ import annotations

import threading

__all__ = ["FakeClock"]


class FakeClock:
    """Virtual time: `advance` moves it, nothing else does. Thread-safe."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self._lock = threading.Lock()
        self._now = now
        self._monotonic = 1_000.0

    def now(self) -> float:
        """Epoch seconds of this clock."""
        return self._now

    def monotonic(self) -> float:
        """Steady seconds of this clock."""
        return self._monotonic

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass, for both clocks."""
        if seconds < 0:
            msg = f"time does not run backwards ({seconds})"
            raise ValueError(msg)
        with self._lock:
            self._now += seconds
            self._monotonic += seconds

    def set_wall(self, now: float) -> None:
        """Make the wall clock jump, as NTP or an administrator does."""
        self._now = now
