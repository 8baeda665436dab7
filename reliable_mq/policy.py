"""When to try again, and what is bounded: values that decide without doing anything.

`RetryPolicy.decide` turns a failed run into an Outcome. It is used on the failure path only.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, Final, Union

from msgspec import Struct

from reliable_mq.errors import ConfigurationError
from reliable_mq.outcome import LONGEST, Reject, Retry, seconds
from reliable_mq.story import text_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta

__all__ = ["Batch", "Limits", "RetryPolicy"]

Matcher = Union[
    tuple[type[BaseException], ...], type[BaseException], "Callable[[BaseException], bool]"
]

#: Reasons that a policy gives a dead letter; the whole list is in `deadletter`.
RETRIES_EXHAUSTED: Final = "retries-exhausted"
FATAL: Final = "fatal-exception"
DEFAULT_ATTEMPTS: Final = 5


class RetryPolicy:
    """How often a message is run, how long to wait in between, and which errors are hopeless.

    Args:
        attempts: Runs in all, the first included.
        backoff: Seconds before the second run; doubles with each further one. Or a timedelta.
        max_backoff: No wait is longer than this many seconds. Or a timedelta.
        jitter: Draw each wait evenly from zero to its full length, so that messages that failed
            together do not come back together ("full jitter", M. Brooker, AWS Architecture Blog,
            2015).
        within: No further run starts later than this many seconds after the first failure.
        retry_on: Errors worth another run: classes, or a function of the error. All else is fatal.
        reject_on: Errors that are fatal although `retry_on` names them.
        wait: A tenacity wait object (or a function of its retry state) in place of the backoff.
        stop: A tenacity stop object in place of `attempts` and `within`.
        retry: A tenacity retry object in place of `retry_on` and `reject_on`.

    Immutable, safe to share. A BaseException that is no Exception (a cancelled task, a SystemExit)
    is never the message's fault and is retried whatever `retry_on` says.

    Raises:
        ConfigurationError: A value out of range, or two that say the same thing.
    """

    def __init__(
        self,
        attempts: int = DEFAULT_ATTEMPTS,
        *,
        backoff: float | timedelta = 1.0,
        max_backoff: float | timedelta = 60.0,
        jitter: bool = True,
        within: float | timedelta | None = None,
        retry_on: Matcher = (Exception,),
        reject_on: Matcher = (),
        wait: Callable[[Any], float] | None = None,
        stop: Callable[[Any], bool] | None = None,
        retry: Callable[[Any], bool] | None = None,
    ) -> None:
        if attempts < 1:
            msg = f"RetryPolicy(attempts={attempts!r}): 1 or more, the first run is the first"
            raise ConfigurationError(msg)
        if stop is not None and (attempts != DEFAULT_ATTEMPTS or within is not None):
            msg = "RetryPolicy: stop= takes the place of attempts= and within=; give one of them"
            raise ConfigurationError(msg)
        if retry is not None and (retry_on != (Exception,) or reject_on != ()):
            msg = (
                "RetryPolicy: retry= takes the place of retry_on= and reject_on=; give one of them"
            )
            raise ConfigurationError(msg)
        self.attempts = attempts
        self.backoff = seconds("backoff", backoff)
        self.max_backoff = seconds("max_backoff", max_backoff)
        self.jitter = jitter
        self.within = None if within is None else seconds("within", within)
        self.retry_on = retry_on
        self.reject_on = reject_on
        self._wait = wait
        self._stop = stop
        self._retry = retry

    def decide(
        self,
        attempt: int,
        error: BaseException,
        *,
        elapsed: float = 0.0,
        draw: float | None = None,
    ) -> Retry | Reject:
        """What follows the failed run number `attempt`.

        Args:
            attempt: The run that failed, 1 for the first.
            error: What it failed with.
            elapsed: Seconds since the first run failed.
            draw: A number from 0 to 1, for the jitter; None: a random one.
        """
        if isinstance(error, Reject):
            return error
        asked = error.after if isinstance(error, Retry) else None
        state = _State(attempt, error, elapsed)
        if not isinstance(error, Retry) and not self._worth_it(state):
            return Reject(FATAL)
        if self._over(state):
            return Reject(RETRIES_EXHAUSTED)
        if draw is None:
            draw = random.random()  # noqa: S311 - it spreads retries, it keeps no secret
        after = self._delay(state, draw) if asked is None else asked
        if self.within is not None and elapsed + after > self.within:
            return Reject(RETRIES_EXHAUSTED)
        return Retry(text_of(error), after=after)

    def _worth_it(self, state: _State) -> bool:
        error = state.error
        if not isinstance(error, Exception):
            return True
        if self._retry is not None:
            return bool(self._retry(state))
        return _matches(self.retry_on, error) and not _matches(self.reject_on, error)

    def _over(self, state: _State) -> bool:
        if self._stop is not None:
            return bool(self._stop(state))
        return state.attempt_number >= self.attempts

    def _delay(self, state: _State, draw: float) -> float:
        if self._wait is not None:
            return min(LONGEST, max(0.0, float(self._wait(state))))
        # 2.0 ** 1024 overflows: beyond 64 doublings any backoff is over any limit anyway.
        full = min(self.max_backoff, self.backoff * 2.0 ** min(state.attempt_number - 1, 64))
        return full * draw if self.jitter else full

    def __repr__(self) -> str:
        return f"RetryPolicy(attempts={self.attempts}, backoff={self.backoff})"


class _State:
    """As much of tenacity's RetryCallState as its wait, stop and retry objects read."""

    __slots__ = ("attempt_number", "error", "seconds_since_start")

    def __init__(self, attempt: int, error: BaseException, elapsed: float) -> None:
        self.attempt_number = attempt
        self.error = error
        self.seconds_since_start = elapsed

    failed = True
    idle_for = 0.0
    upcoming_sleep = 0.0

    @property
    def outcome(self) -> _State:
        return self

    def exception(self) -> BaseException:
        return self.error


def _matches(matcher: Matcher, error: BaseException) -> bool:
    if isinstance(matcher, (tuple, type)):
        return isinstance(error, matcher)
    return bool(matcher(error))


class Limits(Struct, frozen=True, kw_only=True):
    """Every buffer of the library and how far it may fill. Reaching one is Backpressure or a pause.

    credit: deliveries that one consumer has in hand, running, waiting or held by a waiting key.
        None: 64 for each unit of concurrency, at most 1,000, and two batches at least.
    credit_bytes: bytes of their bodies; the consumer takes no more above it, so it may pass it by
        the deliveries of one poll.
    window: messages published and not yet confirmed, for the whole app.
    window_bytes: bytes of their bodies.
    outputs: messages that one run of a handler may publish by its Context.
    outputs_bytes: bytes of their bodies.
    stories: messages whose failed runs are remembered for the dead letter's history.
    """

    credit: int | None = None
    credit_bytes: int = 64 * 1024 * 1024
    window: int = 10_000
    window_bytes: int = 64 * 1024 * 1024
    outputs: int = 1_000
    outputs_bytes: int = 16 * 1024 * 1024
    stories: int = 10_000


class Batch(Struct, frozen=True):
    """Hand a handler up to `size` messages at once, or what there is after `wait` seconds."""

    size: int
    wait: float = 1.0
