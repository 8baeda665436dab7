"""Time, as an argument.

Nothing else in the package reads a clock, so tests run hours in milliseconds and a seed replays.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Protocol

__all__ = ["SYSTEM_CLOCK", "Clock", "SystemClock"]


class Clock(Protocol):
    """Two clocks in one: the wall for what is shown and stored, the steady one for durations."""

    def now(self) -> float:
        """Epoch seconds; may jump when an administrator or NTP sets the time."""

    def monotonic(self) -> float:
        """Steady seconds, the same for every process of one boot, counting time spent suspended."""


class SystemClock:
    """The machine's clocks.

    CLOCK_BOOTTIME where there is one: CLOCK_MONOTONIC stands still while a laptop sleeps, and a
    lease that is over would look alive.
    """

    now = staticmethod(time.time)
    monotonic = staticmethod(
        partial(time.clock_gettime, time.CLOCK_BOOTTIME)  # half the time of a def
        if hasattr(time, "CLOCK_BOOTTIME")
        else time.monotonic
    )


SYSTEM_CLOCK = SystemClock()
