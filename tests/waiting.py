"""Waiting on a state, with a deadline."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_never = threading.Event()


def eventually(state: Callable[[], object], what: str = "the state", within: float = 20.0) -> None:
    """Return once `state()` is true; fail when it is not within so many seconds."""
    deadline = time.monotonic() + within
    while not state():
        if time.monotonic() > deadline:
            msg = f"{what} did not come within {within} s"
            raise AssertionError(msg)
        _never.wait(0.002)
