"""What a fresh reader found: each of these once stopped a consumer, or hid a loss, in silence."""

from __future__ import annotations

import asyncio
import gc
import threading
from typing import Any

import pytest

from reliable_mq import (
    Batch,
    BatchFailed,
    ConfigurationError,
    Context,
    KeyedExecutor,
    Limits,
    ReliableMQ,
    RetryPolicy,
)
from reliable_mq import confirmation as confirmations
from reliable_mq.adapters.memory import MemoryBroker, MemoryTransport
from tests.waiting import eventually

NOW = RetryPolicy(2, backoff=0.0)


@pytest.fixture
def mq() -> ReliableMQ:
    """An app on a broker of its own."""
    return ReliableMQ(MemoryTransport(MemoryBroker()))


def test_a_handler_that_cancels_its_own_task_stops_nobody_else(mq: ReliableMQ) -> None:
    """The task that it ran in ends; another one takes what is ready."""
    done: list[int] = []

    @mq.consumer("orders", group="g")
    async def handle(number: int) -> None:
        if number == 0:
            asyncio.current_task().cancel()  # type: ignore[union-attr]
            until = asyncio.get_running_loop().time() + 0.006
            while asyncio.get_running_loop().time() < until:
                pass
        done.append(number)

    with mq:
        for number in range(6):
            mq.publish("orders", number)
        eventually(lambda: set(done) == set(range(6)))


@pytest.mark.parametrize("errors", [{0.0: OSError()}, {0: "text"}, {"0": OSError()}])
def test_a_batch_failed_that_cannot_be_fails_the_batch(mq: ReliableMQ, errors: Any) -> None:
    """It is the handler's failure: retried, then dead letters, and the worker goes on."""

    @mq.consumer("orders", group="g", batch=Batch(2, wait=0.01), retry=NOW)
    def handle(batch: list[int]) -> None:
        raise BatchFailed(errors)

    with mq:
        mq.publish("orders", 1)
        eventually(lambda: list(mq.dead_letters("orders", "g")))
        (letter,) = mq.dead_letters("orders", "g")
    assert letter.error.startswith("TypeError")


def test_a_worker_that_breaks_makes_the_consumer_fail_loudly(mq: ReliableMQ) -> None:
    """Not health that is green while nothing moves."""
    mq.consumer("orders", group="g")(_nothing)
    with mq:
        eventually(lambda: mq.health().ready)
        (consumer,) = mq._connected().consumers
        consumer._workers.hand_out(object())  # no lane: the turn itself raises
        eventually(lambda: not mq.health().live)
        assert mq.health().consumers[0].state == "failed"


def test_publishing_while_it_stops_does_not_spoil_the_next_start(mq: ReliableMQ) -> None:
    """Whoever publishes in between may be refused; after start() it works again."""
    mq.topic("orders")
    over = threading.Event()

    def publish_on() -> None:
        while not over.is_set():
            assert mq.submit("orders", b"x").outcome is not None

    thread = threading.Thread(target=publish_on)
    thread.start()
    try:
        for _ in range(20):
            mq.start()
            mq.stop(1.0)
    finally:
        over.set()
        thread.join()
    mq.start()
    assert mq.publish("orders", b"y")
    mq.stop()


def test_what_found_no_room_and_nobody_looked_at_is_reported() -> None:
    """Submitting beyond the window and never looking: stop says so."""
    broker = MemoryBroker()
    mq = ReliableMQ(MemoryTransport(broker), limits=Limits(window=10))
    mq.topic("orders")
    mq.start()
    broker.faults.hold_answers()
    kept = [mq.submit("orders", b"x") for _ in range(50)]
    assert mq.health().unseen == 40
    broker.faults.heal()

    stopped = mq.stop(1.0)

    assert len(stopped.unconfirmed) == 40
    assert all(one.done() for one in kept)


def test_a_stop_tells_of_an_owner_that_does_not_end(mq: ReliableMQ) -> None:
    """An observer that blocks the owner thread: the handler is abandoned, the consumer stuck."""
    blocked, release, started = threading.Event(), threading.Event(), threading.Event()

    def block(_: object) -> None:
        if threading.current_thread().name.endswith("owner"):
            blocked.set()
            release.wait(20)

    @mq.consumer("orders", group="g", concurrency=2, retry=NOW)
    def handle(number: int) -> None:
        if number == 1:
            started.set()
            release.wait(20)
        else:
            raise OSError

    mq.observe(block)
    mq.start()
    mq.publish("orders", 1, id="m1")
    assert started.wait(10)
    mq.publish("orders", 2)
    assert blocked.wait(10)

    stopped = mq.stop(0.1)

    release.set()
    assert stopped.stuck
    assert "m1" in [message.id for message in stopped.abandoned]


def test_a_handler_may_publish_only_so_much(mq: ReliableMQ) -> None:
    """Beyond Limits(outputs=) it is the handler's failure, not a buffer that never fits."""
    mq.topic("invoices")

    @mq.consumer("orders", group="g", retry=None)
    def handle(_: bytes, ctx: Context) -> None:
        for _ in range(1_001):
            ctx.publish("invoices", b"x")

    with mq:
        mq.publish("orders", b"x")
        eventually(lambda: list(mq.dead_letters("orders", "g")))
        (letter,) = mq.dead_letters("orders", "g")
    assert "Limits(outputs=1000" in letter.error


def test_a_typo_in_an_output_is_a_failed_run(mq: ReliableMQ) -> None:
    """Not a run for ever: attempts are used up, and the dead letter names the topic."""
    runs: list[int] = []

    @mq.consumer("orders", group="g", retry=NOW)
    def handle(_: bytes, ctx: Context) -> None:
        runs.append(ctx.attempt)
        ctx.publish("inovices", b"x")

    with mq:
        mq.publish("orders", b"x", key="a")
        eventually(lambda: list(mq.dead_letters("orders", "g")))
        (letter,) = mq.dead_letters("orders", "g")
    assert runs == [1, 2]
    assert "inovices" in letter.error


def test_a_bundle_that_grows_full_goes_at_once(mq: ReliableMQ) -> None:
    """Also when its messages all belong to one key, and came after it was begun."""
    batches: list[int] = []

    @mq.consumer("orders", group="g", batch=Batch(50, wait=30.0))
    def handle(batch: list[int]) -> None:
        batches.append(len(batch))

    with mq:
        for number in range(50):
            mq.publish("orders", number, key="a")
        eventually(lambda: batches == [50], within=10.0)
        mq.publish("orders", 50, key="a")
        eventually(lambda: mq.health().consumers[0].in_hand == 1)
        assert not mq.stop(20.0)


def test_what_runs_in_a_bundle_is_abandoned_as_a_whole(mq: ReliableMQ) -> None:
    """Every message of it is reported, also those of one key."""
    started, release = threading.Event(), threading.Event()

    @mq.consumer("orders", group="g", batch=Batch(5, wait=0.05), timeout=10)
    def handle(batch: list[int]) -> None:
        started.set()
        release.wait(20)

    mq.start()
    mq.submit_all(mq.message("orders", n, key="a") for n in range(5)).result()
    assert started.wait(10)
    stopped = mq.stop(0.1)
    release.set()
    assert len(stopped.abandoned) == 5


def test_an_async_batch_handler_is_cancelled_at_its_deadline(mq: ReliableMQ) -> None:
    """Timeout= and batch= go together."""

    @mq.consumer("orders", group="g", batch=Batch(2, wait=0.01), timeout=0.05, retry=None)
    async def handle(batch: list[int]) -> None:
        await asyncio.Event().wait()

    with mq:
        mq.publish("orders", 1)
        eventually(lambda: list(mq.dead_letters("orders", "g")))
        (letter,) = mq.dead_letters("orders", "g")
    assert letter.error.startswith("TimeoutError")


def test_loops_are_not_kept_alive_by_who_waited_on_them(mq: ReliableMQ) -> None:
    """A table that grows with every asyncio.run would be a buffer without a limit."""
    mq.topic("orders")

    async def publish() -> None:
        confirmation = confirmations.Confirmation(mq.message("orders", b"x"))
        asyncio.get_running_loop().call_soon(confirmation.settle, receipt)
        await confirmation

    with mq:
        receipt = mq.publish("orders", b"x")
        gc.collect()
        before = len(confirmations._bells)
        for _ in range(5):
            asyncio.run(publish())
        gc.collect()
        assert len(confirmations._bells) <= before


def test_an_operators_mistake_stays_the_operators(mq: ReliableMQ) -> None:
    """What raises while the owner answers is raised where it was asked."""
    from reliable_mq.operate import ask

    mq.consumer("orders", group="g")(_nothing)
    with mq:
        eventually(lambda: mq.health().ready)
        (consumer,) = mq._connected().consumers
        with pytest.raises(ZeroDivisionError):
            ask(consumer, lambda settler, lanes: 1 / 0)
        assert mq.health().live


def test_declarations_that_would_do_nothing_are_refused(mq: ReliableMQ) -> None:
    """A string of groups, a consumer after start, a coroutine for an executor of functions."""
    with pytest.raises(ConfigurationError, match="billing"):
        mq.topic("orders", groups="billing")
    mq.consumer("orders", group="g")(_nothing)
    with mq, pytest.raises(ConfigurationError, match="before start"):
        mq.consumer("refunds", group="g")
    failed: list[Any] = []
    with KeyedExecutor(on_done=lambda args, error: failed.append(error)) as executor:
        executor.submit("k", _coroutine)
    assert isinstance(failed[0], TypeError)


def _nothing(_: bytes) -> None:
    return None


async def _coroutine() -> None:
    return None
