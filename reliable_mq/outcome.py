"""The closed set of endings of a handler: Done, Retry, Reject.

A handler ends with `Done` by returning. `Retry` and `Reject` may be raised or returned: it is the
same. Whatever else it raises is turned into one of the three by the consumer's RetryPolicy.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from reliable_mq.errors import ReliableMQError

__all__ = ["DONE", "Done", "Outcome", "Reject", "Retry", "seconds"]


def seconds(duration: float | timedelta) -> float:
    """A duration as float seconds."""
    return duration.total_seconds() if isinstance(duration, timedelta) else float(duration)


class Done:
    """The handler returned: the message has had its effect."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "Done()"


DONE: Final = Done()


class Retry(ReliableMQError):
    """Run the handler again, `after` seconds from now (None: as the RetryPolicy says).

    It counts as an attempt; when the attempts are used up the message becomes a dead letter.
    """

    def __init__(self, reason: str = "", *, after: float | timedelta | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.after = None if after is None else max(0.0, seconds(after))


class Reject(ReliableMQError):
    """Never run it again: the message becomes a dead letter with this reason."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason


Outcome = Done | Retry | Reject
