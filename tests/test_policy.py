from __future__ import annotations

from datetime import timedelta

import pytest
import tenacity
from hypothesis import given
from hypothesis import strategies as st

from reliable_mq import ConfigurationError, Reject, Retry, RetryPolicy


def test_attempts_include_the_first_run() -> None:
    """With attempts=3 the third failed run is the last."""
    policy = RetryPolicy(3)

    assert isinstance(policy.decide(1, OSError()), Retry)
    assert isinstance(policy.decide(2, OSError()), Retry)
    last = policy.decide(3, OSError())
    assert isinstance(last, Reject)
    assert last.reason == "retries-exhausted"


@given(
    attempt=st.integers(1, 10_000),
    backoff=st.floats(0, 1e6),
    longest=st.floats(0, 1e6),
    draw=st.floats(0, 1),
)
def test_a_wait_is_never_negative_and_never_over_the_longest(
    attempt: int, backoff: float, longest: float, draw: float
) -> None:
    """Whatever the attempt, the wait stays between zero and max_backoff."""
    policy = RetryPolicy(20_000, backoff=backoff, max_backoff=longest)

    outcome = policy.decide(attempt, OSError(), draw=draw)

    assert isinstance(outcome, Retry)
    assert outcome.after is not None
    assert 0.0 <= outcome.after <= longest


def test_without_jitter_the_wait_doubles() -> None:
    """1, 2, 4 … up to the longest."""
    policy = RetryPolicy(9, backoff=1, max_backoff=timedelta(seconds=5), jitter=False)

    waits = [policy.decide(attempt, OSError()) for attempt in range(1, 5)]

    assert [wait.after for wait in waits if isinstance(wait, Retry)] == [1, 2, 4, 5]


def test_only_what_retry_on_names_is_run_again() -> None:
    """Other errors, and those of reject_on, are fatal at once."""
    policy = RetryPolicy(retry_on=(OSError,), reject_on=(FileNotFoundError,))

    assert isinstance(policy.decide(1, OSError()), Retry)
    for fatal in (ValueError(), FileNotFoundError()):
        outcome = policy.decide(1, fatal)
        assert isinstance(outcome, Reject)
        assert outcome.reason == "fatal-exception"


def test_a_function_may_choose_what_is_run_again() -> None:
    """retry_on may be a function of the error."""
    policy = RetryPolicy(retry_on=lambda error: "later" in str(error))

    assert isinstance(policy.decide(1, ValueError("try later")), Retry)
    assert isinstance(policy.decide(1, ValueError("never")), Reject)


def test_a_cancelled_run_is_not_the_fault_of_the_message() -> None:
    """A BaseException that is no Exception is retried whatever retry_on says."""
    policy = RetryPolicy(retry_on=())

    assert isinstance(policy.decide(1, SystemExit(1)), Retry)
    assert isinstance(policy.decide(1, KeyboardInterrupt()), Retry)


def test_a_raised_retry_says_when_but_counts_as_an_attempt() -> None:
    """Retry(after=) takes the place of the backoff, not of the limit."""
    policy = RetryPolicy(2)

    again = policy.decide(1, Retry("busy", after=timedelta(minutes=1)))
    assert isinstance(again, Retry)
    assert again.after == 60
    assert isinstance(policy.decide(2, Retry("busy", after=1)), Reject)


def test_within_ends_the_retries_by_time() -> None:
    """No further run starts later than `within` seconds after the first failure."""
    policy = RetryPolicy(100, backoff=10, jitter=False, within=15)

    assert isinstance(policy.decide(1, OSError(), elapsed=0), Retry)
    assert isinstance(policy.decide(1, OSError(), elapsed=6), Reject)


def test_tenacity_objects_are_understood() -> None:
    """wait=, stop= and retry= take tenacity's objects as they are."""
    policy = RetryPolicy(
        wait=tenacity.wait_fixed(3) + tenacity.wait_random(0, 1),
        stop=tenacity.stop_after_attempt(2) | tenacity.stop_after_delay(60),
        retry=tenacity.retry_if_exception_type(OSError),
    )

    again = policy.decide(1, OSError())
    assert isinstance(again, Retry)
    assert again.after is not None
    assert 3 <= again.after <= 4
    assert isinstance(policy.decide(2, OSError()), Reject)
    assert isinstance(policy.decide(1, OSError(), elapsed=61), Reject)
    assert isinstance(policy.decide(1, ValueError()), Reject)
    waits = RetryPolicy(wait=tenacity.wait_exponential(multiplier=1, max=10))
    third = waits.decide(3, OSError())
    assert isinstance(third, Retry)
    assert third.after == 4


@pytest.mark.parametrize(
    "options",
    [
        {"attempts": 0},
        {"backoff": -1},
        {"max_backoff": float("inf")},
        {"within": float("nan")},
        {"attempts": 3, "stop": tenacity.stop_never},
        {"retry_on": (OSError,), "retry": tenacity.retry_always},
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, object]) -> None:
    """Values out of range, and two that say the same thing, fail when the policy is made."""
    with pytest.raises(ConfigurationError):
        RetryPolicy(**options)  # type: ignore[arg-type]
