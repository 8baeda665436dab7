"""The closed set of endings of a handler: Done, Retry, Reject.

A handler ends with `Done` by returning. `Retry` and `Reject` may be raised or returned: it is the
same. Whatever else it raises is turned into one of the three by the consumer's RetryPolicy.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

from reliable_mq.errors import ConfigurationError, ReliableMQError

__all__ = ["DONE", "Done", "Outcome", "Reject", "Retry", "seconds"]


#: The longest duration that is taken, in seconds: 30 days.
LONGEST = 30 * 24 * 3600.0


def seconds(name: str, duration: float | timedelta) -> float:
    """A duration as float seconds; `name` is what the caller knows it by.

    Raises: ConfigurationError unless it is a number from 0 to 30 days, or such a timedelta.
    """
    length: Any = duration.total_seconds() if isinstance(duration, timedelta) else duration
    if isinstance(length, (int, float)) and not isinstance(length, bool) and 0 <= length <= LONGEST:
        return float(length)
    msg = f"{name}={duration!r:.40} is no duration: seconds, or a timedelta, from 0 to 30 days"
    raise ConfigurationError(msg)


class Done:
    """The handler returned: the message has had its effect."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "Done()"


DONE: Final = Done()


class Retry(ReliableMQError):
    """Run the handler again, `after` seconds from now (None: as the RetryPolicy says).

    It counts as an attempt; when the attempts are used up the message becomes a dead letter.

    Raises: ConfigurationError for an `after` that is no duration.
    """

    def __init__(self, reason: str = "", *, after: float | timedelta | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.after = None if after is None else seconds("Retry(after)", after)


class Reject(ReliableMQError):
    """Never run it again: the message becomes a dead letter with this reason."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason


Outcome = Done | Retry | Reject
