"""Imports every module that registers scenarios, in the order in which they run."""

from __future__ import annotations

from importlib import import_module

MODULES = ("lanes", "sleeping", "asyncio_keys", "slow_key", "overhead", "memory_use", "sqlite")


def load() -> None:
    """Register all of them."""
    for name in MODULES:
        import_module(f"benchmarks.{name}")
