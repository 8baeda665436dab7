"""The pipeline as the table that it is: every ending of every delivery, and what follows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from reliable_mq import message as wire
from reliable_mq.deadletter import REASONS, Shed
from reliable_mq.envelope import ForgedHeader, ours
from reliable_mq.errors import (
    Backpressure,
    CodecError,
    PublishRejected,
    PublishUnknown,
    TooLarge,
    Unroutable,
)
from reliable_mq.events import DeadLettered, KeyGap, Observers, SettleFailed, Undeadletterable
from reliable_mq.execution import Execution
from reliable_mq.message import DeadLetter, Delivery, Lease, Message, Receipt, RetryCopy, Topic
from reliable_mq.outcome import Reject, Retry
from reliable_mq.pipeline import (
    LONGEST_SETBACK,
    SHORT_SECONDS,
    Ack,
    Halt,
    Hold,
    Nack,
    Pipeline,
    Send,
    Wait,
)
from reliable_mq.policy import RetryPolicy
from reliable_mq.testing.clock import FakeClock

ATTEMPTS = 4
STORED = Receipt("id", "t", 0, 1)
NOT_STORED = (Backpressure, PublishRejected, PublishUnknown, TooLarge, Unroutable)
FIRST_RUN = Message("id", "t", None, b"body")


def pipeline(
    *, keyed=False, on_failure="dead_letter", max_hold=None, policy=None, clock=None, events=None
):
    """One member's pipeline; `events` is a list that hears all."""
    observers = Observers()
    if events is not None:
        observers.add(events.append)
    return Pipeline(
        handler="m.handler",
        group="g",
        policy=policy or RetryPolicy(ATTEMPTS, backoff=1.0, jitter=False),
        on_failure=on_failure,
        keyed=lambda _: keyed,
        max_hold=max_hold,
        stories=100,
        clock=clock or FakeClock(),
        draw=lambda: 0.5,
        host="h",
        observers=observers,
    )


def run(message=FIRST_RUN, attempt=1, **ending):
    """An Execution: one run of a delivery, as a worker reports it."""
    return Execution(Delivery(message, Lease(), attempt), attempt, **ending)


# ---- the table

OUTPUTS = tuple(Message(f"out-{number}", "u") for number in range(3))
#: How a run can end: what the worker reports, and which row of the table that is.
ENDINGS = {
    "done": lambda: ({"outputs": OUTPUTS}, "send"),
    "retry, short": lambda: ({"error": Retry(after=SHORT_SECONDS)}, "short"),
    "retry, long": lambda: ({"error": Retry(after=SHORT_SECONDS + 0.1)}, "long"),
    "error": lambda: ({"error": OSError("down")}, "short"),
    "cancelled": lambda: ({"error": KeyboardInterrupt()}, "short"),
    "rejected": lambda: ({"error": Reject("never")}, "rejected"),
    "fatal": lambda: ({"error": LookupError("bad")}, "fatal-exception"),
    "undecodable": lambda: ({"error": CodecError("no"), "reason": "undecodable"}, "undecodable"),
    "forged": lambda: (
        {"error": ForgedHeader("rmq-x", "is odd"), "reason": "forged-header"},
        "forged-header",
    ),
}


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("attempt", range(1, ATTEMPTS + 2))
@pytest.mark.parametrize("on_failure", ["dead_letter", "block"])
@pytest.mark.parametrize("keyed", [False, True])
def test_every_ending_has_the_verdict_of_its_row(keyed, on_failure, attempt, ending):
    """Unkeyed or keyed, early or late: what follows is what the table says."""
    policy = RetryPolicy(ATTEMPTS, backoff=1.0, jitter=False, reject_on=(LookupError,))
    one = pipeline(keyed=keyed, on_failure=on_failure, policy=policy)
    given_, row = ENDINGS[ending]()
    execution = run(attempt=attempt, **given_)
    if row in ("short", "long") and attempt >= ATTEMPTS:
        row = "retries-exhausted"

    verdict = one.settle(execution)

    if row == "send":
        assert verdict == Send(tuple((message, Topic()) for message in OUTPUTS))
    elif row in ("short", "long"):
        after = execution.outcome.after
        again = replace(execution.delivery, attempt=attempt + 1)
        if keyed:
            assert verdict == Wait(after, again)
        elif row == "short":
            assert verdict == Nack(again, after)
        else:
            ((copy, to),) = verdict.messages
            assert to == RetryCopy("t", "g", after)
            assert (copy.id, copy.key, copy.body) == ("id", None, b"body")
    elif keyed and on_failure == "block":
        assert verdict == Halt(row)
    else:
        assert row in REASONS
        ((letter, to),) = verdict.messages
        assert to == DeadLetter("t", "g")
        assert wire.header(letter, "rmq-dl-reason") == row
        assert wire.header(letter, "rmq-dl-attempts") == str(attempt)


@given(
    keyed=st.booleans(),
    ending=st.sampled_from([one for one in ENDINGS if one != "retry, short"]),
    outcomes=st.lists(st.sampled_from([None, None, *NOT_STORED]), min_size=3, max_size=3),
)
def test_it_is_acked_when_everything_of_a_send_is_stored_and_never_before(keyed, ending, outcomes):
    """One message without a Receipt, and there is another try: never a Nack for a key."""
    events = []
    one = pipeline(keyed=keyed, events=events)
    given_, _ = ENDINGS[ending]()
    execution = run(**given_)
    verdict = one.settle(execution)
    if not isinstance(verdict, Send):
        return
    answers = [
        STORED if failed is None else failed("no", message)
        for failed, (message, _) in zip(outcomes, verdict.messages, strict=False)
    ]

    follows = one.sent(execution, answers)

    if all(answer is STORED for answer in answers):
        assert isinstance(follows, Ack)
        if isinstance(execution.outcome, Reject):
            assert [type(event) for event in events] == [DeadLettered, *[KeyGap] * keyed]
    elif ending == "done" and any(isinstance(one, PublishRejected) for one in answers):
        again = follows.delivery
        assert isinstance(follows, Wait if keyed else Nack)
        assert again.attempt == execution.attempt + 1
    elif isinstance(execution.outcome, Reject) and isinstance(answers[0], TooLarge):
        assert isinstance(follows, Send)
        assert execution.shed == 1
    elif keyed:
        assert follows == Wait(1.0)
        assert one.settle(execution) == verdict
    else:
        assert follows == Nack(execution.delivery, 1.0)
        assert [type(event) for event in events][-1] is SettleFailed


LIVES = st.lists(st.sampled_from([OSError, OSError, Retry, Reject, KeyboardInterrupt, None]))
ANSWERS = st.lists(st.sampled_from([None, None, Backpressure, PublishUnknown]), max_size=12)


@given(keyed=st.booleans(), long=st.booleans(), errors=LIVES, answers=ANSWERS)
def test_an_attempt_is_a_failed_run_and_nothing_else(keyed, long, errors, answers):
    """Through nacks, waits, retry copies and outages: attempts are failed runs, the last is 4."""
    one = pipeline(keyed=keyed, policy=RetryPolicy(ATTEMPTS, backoff=40.0 if long else 1.0))
    delivery, failed = Delivery(FIRST_RUN, Lease()), 0
    for kind in errors:
        attempt = max(delivery.attempt, ours(delivery.message).attempt)
        assert attempt == failed + 1
        error = None if kind is None else kind()
        execution = Execution(delivery, attempt, error=error, outputs=OUTPUTS)
        verdict, stored = one.settle(execution), True
        while isinstance(verdict, Send) or verdict == Wait(getattr(verdict, "delay", None)):
            if isinstance(verdict, Wait):
                verdict = one.settle(execution)
                continue
            sent = verdict.messages
            refused = [answers.pop() if answers else None for _ in sent]
            stored = refused == [None] * len(sent)
            ended = [STORED if no is None else no("no", FIRST_RUN) for no in refused]
            verdict = one.sent(execution, ended)
            assert isinstance(verdict, Ack) == stored
        failed += isinstance(execution.outcome, Retry) and stored
        if isinstance(verdict, (Nack, Wait)):
            assert isinstance(verdict, Wait) == keyed
            delivery = verdict.delivery
        elif isinstance(execution.outcome, Retry):
            delivery = Delivery(sent[0][0], Lease())
        else:
            if isinstance(execution.outcome, Reject):
                assert kind is Reject or failed == ATTEMPTS - 1
            return
    assert failed < ATTEMPTS


@pytest.mark.parametrize("keyed", [False, True])
def test_a_dead_letter_that_never_fits_is_held_after_everything_was_left_out(keyed):
    """Nothing, then history, then the stack, then all details are left out; then it is held."""
    events = []
    one = pipeline(keyed=keyed, events=events)
    execution = run(error=Reject("no"))
    verdict = one.settle(execution)
    sizes = []
    while isinstance(verdict, Send):
        ((letter, _),) = verdict.messages
        sizes.append(len(letter.headers))
        verdict = one.sent(execution, [TooLarge("no", letter)])

    assert verdict == Hold()
    assert len(sizes) == len(Shed)
    assert sizes == sorted(sizes, reverse=True)
    assert isinstance(events[-1], Undeadletterable)


@given(tries=st.integers(1, 30), keyed=st.booleans(), attempt=st.integers(1, 9))
def test_setbacks_grow_up_to_a_minute_and_use_up_no_attempt(tries, keyed, attempt):
    """However often the broker refuses, the attempt stays what it was."""
    one = pipeline(keyed=keyed)
    delays = []
    for _ in range(tries):
        execution = run(attempt=attempt, error=Reject("no"))
        one.settle(execution)
        verdict = one.sent(execution, [PublishUnknown("no", FIRST_RUN)])
        delays.append(verdict.delay)
        if not keyed:
            assert verdict.delivery.attempt == attempt

    assert delays == [min(LONGEST_SETBACK, 2.0**number) for number in range(tries)]


class Raising(RetryPolicy):
    """A policy with a bug."""

    def decide(self, attempt, error, **_):
        """Never gets that far."""
        raise ZeroDivisionError


@pytest.mark.parametrize("keyed", [False, True])
def test_a_policy_that_raises_does_not_decide(keyed):
    """Its functions are the user's; the default policy decides, so the message ends in any case."""
    one = pipeline(keyed=keyed, policy=Raising())

    again = one.settle(run(attempt=3, error=OSError()))
    last = one.settle(run(attempt=5, error=OSError()))

    assert isinstance(again, Wait if keyed else Nack)
    assert again.delivery.attempt == 4
    ((letter, to),) = last.messages
    assert to == DeadLetter("t", "g")
    assert wire.header(letter, "rmq-dl-reason") == "retries-exhausted"


@given(hold=st.floats(0.1, 200), after=st.floats(0, 300))
def test_a_retry_waits_in_place_only_while_its_lease_lasts(hold, after):
    """Short is at most half of what the broker lets us hold a delivery."""
    verdict = pipeline(max_hold=hold).settle(run(error=Retry(after=after)))

    short = after <= min(SHORT_SECONDS, hold / 2)
    assert isinstance(verdict, Nack if short else Send)


def test_a_skipped_head_does_not_halt_its_lane_again_when_the_broker_fails():
    """An operator's skip is carried out: its dead letter is sent until it is stored."""
    one = pipeline(keyed=True, on_failure="block")
    execution = run(error=Reject("no"))
    assert one.settle(execution) == Halt("rejected")
    sent = one.skip(execution)
    assert one.sent(execution, [Backpressure("full", FIRST_RUN)]) == Wait(1.0)

    assert one.settle(execution) == sent
    assert one.sent(execution, [STORED]) == Ack()


def test_a_retried_head_has_all_its_attempts():
    """An operator's retry begins at 1, also where a header says otherwise."""
    one = pipeline(keyed=True, on_failure="block")
    copy = replace(FIRST_RUN, headers=((wire.ATTEMPT, str(ATTEMPTS)), ("mine", "x")))
    execution = run(copy, ATTEMPTS, error=OSError())
    assert one.settle(execution) == Halt("retries-exhausted")

    again = one.afresh(execution)

    assert max(again.attempt, ours(again.message).attempt) == 1
    assert again.lease is execution.delivery.lease
    assert again.message.headers == (("mine", "x"),)
