"""Refusing by name what is not built yet, and what there never was.

An option that exists in the design is taken, so that a program written for a later version fails
with the reason and not with a silence.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any, Final

from reliable_mq.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["NOT_BUILT", "refuse", "refuse_all", "unknown"]

#: What has a name already and comes later, and what it waits for.
NOT_BUILT: Final = {
    "store": "the idempotency store",
    "inbox": "the inbox",
    "outbox": "the outbox",
    "spool": "the spool",
    "audit": "the auditor",
    "idempotency_key": "the idempotency store",
    "crash_limit": "the idempotency store, which alone can count such deaths",
    "broadcast": "broadcast groups",
    "filter": "filters",
    "delay": "delayed messages",
    "deliver_at": "delayed messages",
    "expires": "expiry",
    "park": "the park store",
    "native": "brokers that have a client library",
}


def refuse(name: str, shown: str) -> ConfigurationError:
    """The error for something that has a name and is not built yet."""
    return ConfigurationError(f"{shown} is not built yet: it comes with {NOT_BUILT[name]}")


def refuse_all(function: str, **options: object) -> None:
    """Raise for the first of these options that is given."""
    for option, value in options.items():
        if value is not None:
            raise refuse(option, f"{function}({option}=)")


def unknown(function: Callable[..., Any], name: str, option: str) -> ConfigurationError:
    """The error for an option that `function` does not have."""
    near = difflib.get_close_matches(option, function.__kwdefaults__ or (), n=1)
    hint = f"; did you mean {near[0]}=?" if near else ""
    return ConfigurationError(f"{name}({option}=): there is no such option{hint}")
