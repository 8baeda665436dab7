"""What a user's unit test can rely on: the app in memory, in virtual time, without a thread."""

import asyncio
import threading
import time
from contextlib import contextmanager
from typing import Annotated

import pytest

from reliable_mq import (
    Batch,
    BatchFailed,
    ConfigurationError,
    Context,
    Depends,
    Limits,
    Reject,
    ReliableMQ,
    Retry,
    RetryPolicy,
    Unroutable,
)
from reliable_mq.testing.inmemory import inmemory


@pytest.fixture
def mq():
    """An app whose broker nobody could reach."""
    return ReliableMQ("sqlite:////nowhere/at/all.db")


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    """Whatever a test does, no thread of ours is there afterwards."""
    yield
    names = [one.name for one in threading.enumerate() if one.name.startswith("reliable-mq")]
    assert names == []


# ---- handlers


def test_a_handler_runs_when_the_test_says_so(mq):
    """Not when a message is published, but in run_until_idle, on the thread of the test."""
    got = []

    @mq.consumer("orders", group="billing")
    def bill(order: dict) -> None:
        got.append((order, threading.current_thread()))

    with inmemory(mq) as t:
        receipt = t.publish("orders", {"id": 1}, key="a")
        assert receipt.stored == "broker"
        assert got == []
        t.run_until_idle()

    assert got == [({"id": 1}, threading.main_thread())]


def test_async_handlers_share_one_loop(mq):
    """What they made on it, a lock or a task, works for the next one, too."""
    lock, seen = asyncio.Lock(), []

    async def hold():
        async with lock:
            await asyncio.sleep(0)

    @mq.consumer("orders", group="billing", concurrency=4)
    async def bill(order: int) -> None:
        holding = asyncio.create_task(hold())
        await asyncio.sleep(0)
        async with lock:
            seen.append((order, asyncio.get_running_loop()))
        await holding

    with inmemory(mq) as t:
        before = threading.active_count()
        for number in range(3):
            t.publish("orders", number)
        t.run_until_idle()
        assert threading.active_count() == before

    assert sorted(order for order, _ in seen) == [0, 1, 2]
    assert len({loop for _, loop in seen}) == 1
    assert seen[0][1].is_closed()


def test_on_an_event_loop_handlers_run_on_it():
    """`async with` and `await t.idle()`: pools made on the loop of the test work in handlers."""
    mq, loops, threads = ReliableMQ(), [], []

    @mq.consumer("orders", group="billing")
    async def bill(order: str) -> None:
        await asyncio.sleep(0)
        loops.append(asyncio.get_running_loop())

    @mq.consumer("orders", group="audit")
    def audit(order: str) -> None:
        threads.append(threading.current_thread())  # a def may block, so it is not on the loop
        mq.publish("audited", order)

    mq.topic("audited")

    async def test():
        async with inmemory(mq) as t:
            t.publish("orders", "x")
            await t.idle()
            assert [message.topic for message in t.published] == ["orders", "audited"]
        return asyncio.get_running_loop()

    assert loops == [asyncio.run(test())]
    assert threads != [threading.main_thread()]


def test_waiting_for_idle_on_an_event_loop_names_the_await(mq):
    """It would stop the loop that handlers need; nothing is lost by asking."""
    got = []

    @mq.consumer("orders", group="billing")
    async def bill(order: str) -> None:
        got.append(order)

    async def test():
        async with inmemory(mq) as t:
            t.publish("orders", "x")
            with pytest.raises(ConfigurationError, match=r"await t\.idle\(\)"):
                t.run_until_idle()
            await t.idle()

    asyncio.run(test())
    assert got == ["x"]


def test_a_batch_is_handed_over_full_or_after_its_wait(mq):
    """Its wait passes in an instant, and what BatchFailed names comes again."""
    batches = []

    @mq.consumer("orders", group="billing", batch=Batch(3, wait=60), order_by="none")
    def bill(orders: list[int]) -> None:
        batches.append(orders)
        if len(batches) == 1:
            raise BatchFailed({1: OSError()})

    with inmemory(mq) as t:
        for number in range(4):
            t.publish("orders", number)
        t.run_until_idle()

    assert batches[0] == [0, 1, 2]
    assert sorted(order for batch in batches[1:] for order in batch) == [1, 3]


def test_keys_keep_their_order_and_the_seed_shuffles_the_rest(mq):
    """Which of several keys is first depends on the seed alone; in a key nothing overtakes."""
    got = []

    @mq.consumer("orders", group="billing", concurrency=8)
    def bill(order: str, ctx: Context) -> None:
        if order == "a0" and ctx.attempt == 1:
            raise OSError
        got.append(order)

    runs = []
    for seed in (1, 1, 2, 3, 4):
        got.clear()
        with inmemory(mq, seed=seed) as t:
            for number in range(3):
                for key in "abcd":
                    t.publish("orders", f"{key}{number}", key=key)
            t.run_until_idle()
        assert [[one for one in got if one[0] == key] for key in "abcd"] == [
            [f"{key}{number}" for number in range(3)] for key in "abcd"
        ]
        runs.append(tuple(got))

    assert runs[0] == runs[1]
    assert len(set(runs)) > 1


# ---- time


def test_backoffs_pass_in_an_instant_but_in_virtual_time(mq):
    """Hours of retries take no time, and every wait is the one of the policy."""
    at = []

    @mq.consumer(
        "orders",
        group="billing",
        retry=RetryPolicy(4, backoff=3600, max_backoff=86_400, jitter=False),
    )
    def bill(order: str) -> None:
        at.append(t.clock.monotonic())
        raise OSError

    began = time.monotonic()
    with inmemory(mq) as t:
        t.publish("orders", "x", key="k")
        t.run_until_idle()
        (letter,) = t.dead_letters("orders", "billing")

    assert [later - at[0] for later in at] == [0, 3600, 3 * 3600, 7 * 3600]
    assert (letter.reason, letter.attempts, letter.error) == ("retries-exhausted", 4, "OSError: ")
    assert [failure.after for failure in letter.history] == [3600, 7200, 14400, None]
    assert time.monotonic() - began < 5


def test_a_retry_that_is_due_later_stays(mq):
    """`within` bounds the virtual time that may pass; the next call goes on from there."""
    runs = []

    @mq.consumer("orders", group="billing")
    def bill(order: str, ctx: Context) -> None:
        runs.append(ctx.attempt)
        if ctx.attempt == 1:
            raise Retry("not yet", after=120)

    with inmemory(mq) as t:
        t.publish("orders", "x")
        t.run_until_idle(within=60)
        assert runs == [1]
        t.run_until_idle()

    assert runs == [1, 2]


def test_what_is_overdue_for_want_of_credit_is_waited_for(mq):
    """A key that waits holds all the credit, and a retry is overdue: that is no endless run."""
    mq._limits = Limits(credit=2)
    runs = []

    @mq.consumer("orders", group="billing", concurrency=2)
    def bill(order: str, ctx: Context) -> None:
        runs.append(order)
        if ctx.attempt == 1:
            raise Retry("later", after={"slow": 3600, "quick": 5}.get(order, 0))

    with inmemory(mq) as t:
        t.publish("orders", "quick")
        t.publish("orders", "slow", key="k")
        t.run_until_idle(within=1)
        t.publish("orders", "behind", key="k")
        t.run_until_idle()

    assert sorted(runs) == ["behind", "behind", "quick", "quick", "slow", "slow"]


def test_members_of_one_group_free_keys_for_each_other(mq):
    """Two consumers of one app share a group: what one is through with lets the other go on."""
    got = []
    for number in range(2):

        @mq.consumer("orders", group="billing")
        def bill(order: int, number=number) -> None:
            got.append(order)

    with inmemory(mq) as t:
        for order in range(500):
            t.publish("orders", order, key="k")
        t.run_until_idle()

    assert got == list(range(500))


def test_an_app_that_never_gets_idle_is_told_so(mq):
    """A handler that publishes what it consumes would run for ever: an error says so."""

    @mq.consumer("orders", group="billing")
    def bill(order: int, ctx: Context) -> None:
        ctx.publish("orders", order + 1)

    with inmemory(mq) as t:
        t.rounds = 200
        t.publish("orders", 1)
        with pytest.raises(AssertionError, match="does a handler publish what it consumes"):
            t.run_until_idle()


# ---- what can be asked


def test_every_run_is_noted_with_its_attempt(mq):
    """`deliveries` has one entry a run: message, attempt, key."""

    @mq.consumer("orders", group="billing")
    def bill(order: str, ctx: Context) -> None:
        if ctx.attempt < 3:
            raise OSError

    with inmemory(mq) as t:
        t.publish("orders", "x", key="k", id="order-1")
        t.run_until_idle()

        runs = [(one.message.id, one.message.key, one.attempt) for one in t.deliveries]
    assert runs == [("order-1", b"k", 1), ("order-1", b"k", 2), ("order-1", b"k", 3)]


def test_what_was_published_is_there_and_nothing_else(mq):
    """By the test, by ctx.publish of runs that ended well; no retry copies, no dead letters."""

    @mq.consumer("orders", group="billing", retry=RetryPolicy(3, backoff=90, jitter=False))
    def bill(order: str, ctx: Context) -> None:
        ctx.publish("invoices", f"{order}-{ctx.attempt}", key=ctx.key)
        if order == "poison" or ctx.attempt == 1:
            raise OSError

    mq.topic("invoices")
    with inmemory(mq) as t:
        t.publish("orders", "good")
        t.publish("orders", "poison")
        t.run_until_idle()

        published = [(one.topic, one.body) for one in t.published]
        assert len(t.dead_letters("orders", "billing")) == 1
    assert published == [
        ("orders", b'"good"'),
        ("orders", b'"poison"'),
        ("invoices", b'"good-2"'),
    ]


def test_dead_letters_tell_their_story_and_can_be_replayed(mq):
    """As from the app: reason, error, history; a replay comes back to the handler."""
    mended = []

    @mq.consumer("orders", group="billing")
    def bill(order: str) -> None:
        if not mended:
            msg = "no such customer"
            raise Reject(msg)

    with inmemory(mq) as t:
        t.publish("orders", "x", key="k", id="order-1")
        t.run_until_idle()
        (letter,) = t.dead_letters("orders", "billing")
        assert (letter.message.id, letter.reason) == ("order-1", "rejected")
        assert "no such customer" in letter.error
        mended.append(True)
        assert mq.dead_letters("orders", "billing").replay() == 1
        t.run_until_idle()
        assert t.dead_letters("orders", "billing") == []
        assert [one.attempt for one in t.deliveries] == [1, 1]


def test_a_dependency_is_overridden_inside_its_block_only(mq):
    """`t.override(get, fake)`, also twice, one in the other."""

    def get_rate() -> float:
        return 1.0

    got = []

    @mq.consumer("orders", group="billing")
    def bill(order: str, rate: Annotated[float, Depends(get_rate)]) -> None:
        got.append(rate)

    with inmemory(mq) as t:

        def send():
            t.publish("orders", "x")
            t.run_until_idle()

        send()
        with t.override(get_rate, lambda: 2.0):
            send()
            with t.override(get_rate, lambda: 3.0):
                send()
            send()
        send()

    assert got == [1.0, 2.0, 3.0, 2.0, 1.0]


def test_managers_around_handlers_run_in_memory_too(mq):
    """What `mq.around` puts around a handler is around it here."""
    seen = []

    @mq.around
    @contextmanager
    def tell(ctx: Context):
        seen.append(("before", ctx.id))
        yield
        seen.append(("behind", ctx.id))

    @mq.consumer("orders", group="billing")
    def bill(order: str) -> None:
        seen.append(order)

    with inmemory(mq) as t:
        t.publish("orders", "x", id="1")
        t.run_until_idle()

    assert seen == [("before", "1"), "x", ("behind", "1")]


def test_halted_keys_can_be_operated(mq):
    """on_failure="block": the key stands, and `mq.halted` sets it going, without a thread."""
    got, mended = [], []

    @mq.consumer("orders", group="billing", on_failure="block", retry=None)
    def bill(order: str) -> None:
        if order == "bad" and not mended:
            raise OSError
        got.append(order)

    with inmemory(mq) as t:
        for order in ("bad", "good"):
            t.publish("orders", order, key="k")
        t.run_until_idle()
        assert got == []
        (halted,) = mq.halted("orders", "billing")
        assert (halted.key, halted.reason, halted.error) == (b"k", "retries-exhausted", "OSError")
        mended.append(True)
        assert mq.halted("orders", "billing").retry("k")
        t.run_until_idle()
    assert got == ["bad", "good"]


def test_a_whole_bundle_that_halts_its_key_is_decided_one_by_one(mq):
    """A batch handler that raises fails all of it; an operator skips them in their order."""

    @mq.consumer("orders", group="billing", on_failure="block", retry=None, batch=Batch(3))
    def bill(orders: list[int]) -> None:
        raise OSError

    with inmemory(mq) as t:
        for number in range(3):
            t.publish("orders", number, key="k", id=str(number))
        t.run_until_idle()
        for number in range(3):
            (halted,) = mq.halted("orders", "billing")
            assert halted.message_id == str(number)
            assert mq.halted("orders", "billing").skip("k")
            t.run_until_idle()
        assert list(mq.halted("orders", "billing")) == []
        letters = t.dead_letters("orders", "billing")
        assert [letter.message.id for letter in letters] == ["0", "1", "2"]
        assert mq.health().consumers[0].in_hand == 0


@pytest.mark.parametrize("after", [0.0, 600.0])
def test_an_order_that_cannot_be_found_is_a_failure_of_that_message_alone(mq, after):
    """order_by that raises, or returns what is no key: its attempts run out, others are handled."""
    got = []

    def customer(message):
        if message.body == b'"odd"':
            raise Retry("whose is this?", after=after)
        return [] if message.body == b'"unhashable"' else message.body

    @mq.consumer("orders", group="billing", order_by=customer, retry=RetryPolicy(3, backoff=after))
    def bill(order: str) -> None:
        got.append(order)

    with inmemory(mq) as t:
        for order in ("a", "odd", "unhashable", "b"):
            t.publish("orders", order)
        t.run_until_idle()
        letters = t.dead_letters("orders", "billing")
        assert {letter.message.body for letter in letters} == {b'"odd"', b'"unhashable"'}
        assert {(letter.reason, letter.attempts) for letter in letters} == {
            ("retries-exhausted", 3)
        }
    assert got == ["a", "b"]


def test_dead_letters_in_a_row_pause_the_consumer_until_it_is_resumed(mq):
    """Successes in between begin the count anew, also of handlers that publish."""

    @mq.consumer("orders", group="billing", dead_letter_limit=2)
    def bill(order: str, ctx: Context) -> None:
        if order == "poison":
            raise Reject
        ctx.publish("invoices", order)

    mq.topic("invoices")
    with inmemory(mq) as t:
        for order in ("poison", "good", "poison", "good", "poison", "good"):
            t.publish("orders", order, key="k")
        t.run_until_idle()
        assert len(t.dead_letters("orders", "billing")) == 3
        assert mq.health().ready

        for _ in range(5):
            t.publish("orders", "poison", key="k")
        t.run_until_idle()
        assert len(t.dead_letters("orders", "billing")) == 5
        assert not mq.health().ready
        mq.resume("orders", "billing")
        t.run_until_idle()
        assert len(t.dead_letters("orders", "billing")) == 7


# ---- in and out


def test_a_topic_that_nobody_declared_is_an_error_in_the_test(mq):
    """As from a real broker, with the remedy."""
    with inmemory(mq) as t, pytest.raises(Unroutable, match=r"mq\.topic"):
        t.publish("ordesr", "x")


def test_leaving_gives_the_app_back_as_it_was(mq):
    """Environment, URL, topology, producer, overrides: nothing of the test is left in the app."""

    @mq.consumer("orders", group="billing")
    def bill(order: str) -> None:
        pass

    def state():
        return (mq._environment, mq._url, mq._topology, mq._producer, mq._overrides, mq._runtime)

    before = state()
    with inmemory(mq) as t:
        t.publish("orders", "x")
    assert state() == before
    message = "the test fails"
    with pytest.raises(LookupError), inmemory(mq):
        raise LookupError(message)
    assert state() == before


def test_the_app_can_be_used_for_real_afterwards(tmp_path):
    """Its own broker is untouched, and works."""
    mq = ReliableMQ(f"sqlite:///{tmp_path}/real.db")
    got = threading.Event()

    @mq.consumer("orders", group="billing")
    def bill(order: str) -> None:
        got.set()

    with inmemory(mq) as t:
        t.publish("orders", "x")
        t.run_until_idle()
    assert got.is_set()
    assert list(tmp_path.iterdir()) == []
    got.clear()
    with mq:
        assert mq.publish("orders", "y").stored == "broker"
        assert got.wait(10)


def test_two_tests_in_a_row_know_nothing_of_each_other(mq):
    """Each begins with an empty broker, at the same time, with empty lists."""

    @mq.consumer("orders", group="billing", retry=RetryPolicy(2, backoff=5, jitter=False))
    def bill(order: str) -> None:
        raise OSError

    seen = []
    for _ in range(2):
        with inmemory(mq) as t:
            began = t.clock.monotonic()
            t.publish("orders", "x")
            t.run_until_idle()
            letters = t.dead_letters("orders", "billing")
            seen.append((began, len(t.published), len(t.deliveries), len(letters)))
    assert seen == [(began, 1, 2, 1)] * 2


def test_an_app_that_is_connected_already_is_refused():
    """Its messages would go to the broker it is connected to."""
    mq = ReliableMQ("memory://")
    mq.topic("orders")
    mq.publish("orders", "x")
    with pytest.raises(ConfigurationError, match="connected already"), inmemory(mq):
        pass
    mq.stop()


def test_an_app_that_only_compares_its_topology_has_one_in_memory(monkeypatch):
    """topology="check" is for the broker of production; in memory what is declared is made."""
    monkeypatch.setenv("RELIABLE_MQ_TOPOLOGY", "check")
    for mq in (ReliableMQ("sqlite:///x.db", topology="check"), ReliableMQ()):

        @mq.consumer("orders", group="billing")
        def bill(order: str) -> None:
            pass

        with inmemory(mq) as t:
            t.publish("orders", "x")
            t.run_until_idle()
            assert len(t.deliveries) == 1


def test_options_that_cannot_be_are_found_in_memory_as_well(mq):
    """What start refuses, it refuses here, and the app is as before."""
    mq.topic("orders", ordered=False)

    @mq.consumer("orders", group="billing", order_by="key")
    def bill(order: str) -> None:
        pass

    with pytest.raises(ConfigurationError, match="ordered=False"), inmemory(mq):
        pass
    assert mq._url == "sqlite:////nowhere/at/all.db"
    assert mq._runtime is None
