"""What is told of a message that failed: its retry copies, its dead letter, its replays."""

from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from reliable_mq import message as wire
from reliable_mq.deadletter import HEADER_BYTES, Shed, StoredDeadLetter, revived
from reliable_mq.envelope import ours
from reliable_mq.errors import TooLarge
from reliable_mq.events import Observers
from reliable_mq.execution import Execution
from reliable_mq.message import DeadLetter, Delivery, Lease, Message, Receipt, RetryCopy
from reliable_mq.outcome import Reject, Retry
from reliable_mq.pipeline import Ack, Hold, Nack, Pipeline, Send
from reliable_mq.policy import RetryPolicy
from reliable_mq.story import KEPT, history_from_json
from reliable_mq.testing.clock import FakeClock

ATTEMPTS = 4
STORED = Receipt("id", "t", 0, 1)
FIRST_RUN = Message("id", "t", None, b"body")


def pipeline(*, policy=None, clock=None):
    """One member's pipeline, of deliveries without a key."""
    return Pipeline(
        handler="m.handler",
        group="g",
        policy=policy or RetryPolicy(ATTEMPTS, backoff=1.0, jitter=False),
        on_failure="dead_letter",
        keyed=lambda _: False,
        max_hold=None,
        stories=100,
        clock=clock or FakeClock(),
        draw=lambda: 0.5,
        host="h",
        observers=Observers(),
    )


def run(message=FIRST_RUN, attempt=1, **ending):
    """An Execution: one run of a delivery, as a worker reports it."""
    return Execution(Delivery(message, Lease(), attempt), attempt, **ending)


def raised(error):
    """The error with a traceback, as a handler leaves it."""
    try:
        _raise(error, None)
    except BaseException as caught:  # noqa: BLE001 - all that a handler can raise
        return caught


def _raise(error, cause):
    raise error from cause


class Broken(Exception):
    """Cannot even say what it is."""

    def __str__(self):
        """Fails."""
        raise RuntimeError


class Nested(Exception):
    """Its text is no text."""

    def __str__(self):
        """Not a str."""
        return 7  # noqa: PLE0307 - that is the point


LONG = type("Long" * 500, (Exception,), {"__module__": "deep." * 500})
ODD = type("Odd\nname", (Exception,), {"__module__": "m\x1b[31m"})
ODD.__qualname__ = "Odd\ud800"
TEXTS = st.one_of(
    st.text(max_size=20),
    st.text(st.sampled_from('"\\\n\0\x85\u2028\ud800\udfffé漢🦀'), max_size=600),
    st.sampled_from(["x", "é", "漢", "🦀", "\0", '"', "\ud800"]).map(lambda one: one * 5_000),
)
KINDS = st.sampled_from([OSError, ValueError, Broken, Nested, Reject, LONG, ODD])


def chained(errors):
    """The last of them, each the cause of the one that follows."""
    cause = None
    for error in errors:
        try:
            _raise(error, cause)
        except Exception as caught:  # noqa: BLE001 - whatever it is
            cause = caught
    return cause


def control_free(value):
    """Whether it can be a header on every broker."""
    return value.isprintable() and value.encode().decode() == value


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(
    errors=st.lists(
        st.builds(lambda kind, text: kind(text), KINDS, TEXTS), min_size=1, max_size=12
    ),
    runs=st.integers(0, 14),
    name=st.sampled_from(["orders", "漢" * 200]),
    mine=st.sampled_from([(), (("mine", "x"), ("mine", b"\xff"))]),
)
def test_a_dead_letter_adds_at_most_8_kib_whatever_went_wrong(errors, runs, name, mine):
    """Its headers are printable, in order of what may be left out, and small in bytes."""
    clock = FakeClock()
    policy = RetryPolicy(runs + 1, reject_on=(), backoff=0)
    one = pipeline(policy=policy, clock=clock)
    message = Message(name, name, b"key", b"body", mine)
    error = chained(errors)
    for attempt in range(1, runs + 1):
        verdict = one.settle(run(message, attempt, error=error))
        if isinstance(verdict, Send):
            break  # a Reject: the first is the last
        clock.advance(1)
    execution = run(message, runs + 1, error=error)

    verdict = one.settle(execution)

    seen = []
    for _ in Shed:
        ((letter, to),) = verdict.messages
        assert to == DeadLetter(name, "g")
        assert (letter.id, letter.topic, letter.key, letter.body) == (name, name, b"key", b"body")
        told = letter.headers[len(mine) :]
        assert letter.headers[: len(mine)] == mine
        assert sum(len(key.encode()) + len(value.encode()) for key, value in told) <= HEADER_BYTES
        assert all(control_free(value) for _, value in told)
        assert len({key for key, _ in told}) == len(told)
        seen.append({key for key, _ in told})
        verdict = one.sent(execution, [TooLarge("no", letter)])
    assert verdict == Hold()
    assert all(earlier >= later for earlier, later in pairwise(seen))
    assert all("rmq-dl-history" not in headers for headers in seen[Shed.HISTORY :])
    assert all("rmq-dl-exception-stack" not in headers for headers in seen[Shed.STACK :])
    assert not any(key.startswith("rmq-dl-exception") for key in seen[Shed.ALL])
    assert "rmq-dl-reason" in seen[Shed.ALL]
    assert "rmq-orig-message-id" in seen[Shed.ALL]


@given(
    texts=st.lists(TEXTS, min_size=1, max_size=14),
    kind=KINDS.filter(lambda one: one is not Reject),
    generation=st.sampled_from([(), ((wire.GENERATION, "3"), (wire.REPLAY_COUNT, "2"))]),
)
def test_a_retry_copy_is_never_taken_for_forged_and_carries_its_story(texts, kind, generation):
    """From copy to copy: attempt + 1, not before its time, for this group, with all that failed."""
    clock = FakeClock()
    message = Message("id", "t", None, b"body", (("mine", "x"), *generation))
    for number, text in enumerate(texts, 1):
        one = pipeline(policy=RetryPolicy(99, backoff=100, jitter=False), clock=clock)
        control = ours(message)
        assert control.attempt == number
        verdict = one.settle(run(message, number, error=raised(kind(text))))
        ((message, to),) = verdict.messages
        assert to == RetryCopy("t", "g", min(60.0, 100.0 * 2 ** (number - 1)))
        control = ours(message)
        assert control.group == "g"
        assert abs(control.not_before - (clock.now() + to.delay)) < 0.001
        assert len(history_from_json(control.history)) == min(number, KEPT)
        assert wire.without_ours(message.headers) == (("mine", "x"),)
        assert all(pair in message.headers for pair in generation)
        clock.advance(to.delay)

    execution = run(message, len(texts) + 1, error=Reject("enough"))
    ((letter, _),) = pipeline(clock=clock).settle(execution).messages
    assert int(wire.header(letter, "rmq-dl-attempts")) == len(texts) + 1
    history = StoredDeadLetter(letter, 0).history
    if "rmq-dl-history" in dict(letter.headers):
        numbers = list(range(1, len(texts) + 2))[-KEPT:]
        assert [failure.attempt for failure in history] == numbers


@given(dead=st.integers(1, 5))
def test_each_replay_opens_a_new_generation_of_attempts(dead):
    """A replayed message is as it was published, but marked, and has all its attempts again."""
    clock = FakeClock()
    one = pipeline(policy=RetryPolicy(2, backoff=0, within=60), clock=clock)
    message = Message("id", "t", b"k", b"body", (("mine", "x"),))
    for generation in range(dead):
        assert ours(message).generation == generation
        first, second = run(message, 1, error=OSError()), run(message, 2, error=OSError())
        assert isinstance(one.settle(first), Nack)
        ((letter, _),) = one.settle(second).messages
        assert one.sent(second, [STORED]) == Ack()
        assert StoredDeadLetter(letter, 0).attempts == 2
        assert len(StoredDeadLetter(letter, 0).history) == 2
        message = revived(letter, "t", f"replay-{generation}")
        assert (message.id, message.topic, message.key, message.body) == ("id", "t", b"k", b"body")
        assert ours(message).attempt == 1
        assert wire.header(message, wire.REPLAY_COUNT) == str(generation + 1)
        assert wire.header(message, wire.REPLAY_ID) == f"replay-{generation}"
        assert wire.without_ours(message.headers) == (("mine", "x"),)
        clock.advance(1_000)


def test_a_replay_at_a_member_that_still_remembers_the_first_generation_begins_anew():
    """What a member knows from before a replay neither shortens nor lengthens the new story."""
    clock = FakeClock()
    policy = RetryPolicy(5, backoff=0, within=60)
    here = pipeline(policy=policy, clock=clock)
    here.settle(run(error=OSError("seen here, dead-lettered elsewhere")))
    clock.advance(1_000)
    replayed = replace(FIRST_RUN, headers=((wire.GENERATION, "1"), (wire.REPLAY_COUNT, "1")))

    assert isinstance(here.settle(run(replayed, error=OSError())), Nack)


def test_a_member_adds_what_a_copy_tells_to_what_it_knows_itself():
    """A run here, two elsewhere, one here: all four are told, once each."""
    clock = FakeClock()
    policy = RetryPolicy(9, backoff=100, jitter=False)
    here, there = (pipeline(policy=policy, clock=clock) for _ in range(2))
    here.settle(run(error=Retry("a", after=1)))
    clock.advance(1)
    there.settle(run(attempt=2, error=Retry("b", after=1)))
    clock.advance(1)
    ((copy, _),) = there.settle(run(attempt=3, error=OSError("c"))).messages
    clock.advance(100)

    ((letter, _),) = here.settle(run(copy, 4, error=Reject("d"))).messages

    history = StoredDeadLetter(letter, 0).history
    assert [(one.attempt, one.text) for one in history] == [(1, "a"), (2, "b"), (3, "c"), (4, "d")]


@pytest.mark.parametrize("kind", [Broken, Nested])
def test_an_error_that_cannot_be_shown_uses_up_its_attempts_like_any_other(kind):
    """A broken __str__ is no way to be retried for ever."""
    one = pipeline()
    for attempt in range(1, ATTEMPTS):
        assert isinstance(one.settle(run(attempt=attempt, error=raised(kind()))), Nack)

    assert isinstance(one.settle(run(attempt=ATTEMPTS, error=raised(kind()))), Send)
