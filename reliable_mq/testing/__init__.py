"""For tests: contract suites, the in-memory app, a fake clock, fault injection, history checks."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reliable_mq.testing.clock import FakeClock
    from reliable_mq.testing.history import History, check
    from reliable_mq.testing.inmemory import InMemory, inmemory

__all__ = ["FakeClock", "History", "InMemory", "check", "inmemory"]

_MODULES = {
    "FakeClock": "clock",
    "History": "history",
    "InMemory": "inmemory",
    "check": "history",
    "inmemory": "inmemory",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for, and only then: the pytest plugin passes through here at start."""
    if name not in _MODULES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
