from __future__ import annotations

import asyncio
import os
import threading
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import pytest

from reliable_mq import (
    Backpressure,
    BatchIncomplete,
    ConfigurationError,
    Context,
    Depends,
    Limits,
    Message,
    PublishRejected,
    PublishUnknown,
    Reject,
    ReliableMQ,
    Retry,
    RetryPolicy,
    Routes,
    TooLarge,
    Unroutable,
    current_message,
)
from reliable_mq.adapters.memory import MemoryBroker, MemoryTransport
from reliable_mq.events import DeadLettered, Event, Handled, Published, PublishFailed, Retried
from tests.waiting import eventually

NOW = RetryPolicy(3, backoff=0.0)
FIRE = ("disk on fire",)


@dataclass
class Order:
    """A payload."""

    id: int
    total: float = 0.0


@pytest.fixture
def broker() -> MemoryBroker:
    """A broker of this test."""
    return MemoryBroker()


@pytest.fixture
def mq(broker: MemoryBroker) -> ReliableMQ:
    """An app on it."""
    return ReliableMQ(MemoryTransport(broker))


def test_a_published_order_reaches_its_handler_as_the_type_it_asks_for(mq: ReliableMQ) -> None:
    """The main job: a dataclass goes in and comes out, with key, id, headers and attempt."""
    got: list[tuple[Order, Context]] = []
    orders = mq.topic("orders", Order)

    @mq.consumer(orders, group="billing")
    def bill(order: Order, ctx: Context) -> None:
        got.append((order, ctx))

    with mq:
        receipt = orders.publish(Order(7, 1.5), key="c1", id="placed-7", headers={"a": "b"})
        eventually(lambda: got)

    ((order, ctx),) = got
    assert order == Order(7, 1.5)
    assert (receipt.id, ctx.id, ctx.topic, ctx.key, ctx.attempt) == (
        "placed-7",
        "placed-7",
        "orders",
        b"c1",
        1,
    )
    assert ("a", "b") in ctx.headers


def test_what_is_declared_after_the_first_publish_is_made_too(mq: ReliableMQ) -> None:
    """As in a notebook: the order of declaring and publishing does not matter."""
    got: list[str] = []
    mq.topic("early", groups=("g",)).publish("first")

    assert mq.topic("late", groups=("g",)).publish("second").topic == "late"

    @mq.consumer("latest", group="g")
    def handle(text: str) -> None:
        got.append(text)

    with mq:
        mq.publish("latest", "third")
        eventually(lambda: got == ["third"])


def test_each_group_gets_all_and_members_of_a_group_share(mq: ReliableMQ) -> None:
    """Two groups hear every message; a handler stacked on two topics hears both."""
    heard: dict[str, list[str]] = {"billing": [], "shipping": []}

    @mq.consumer("orders", group="billing")
    @mq.consumer("refunds", group="billing")
    def bill(body: str) -> None:
        heard["billing"].append(body)

    @mq.consumer("orders", group="shipping")
    def ship(body: str) -> None:
        heard["shipping"].append(body)

    with mq:
        mq.publish("orders", "o1")
        mq.publish("refunds", "r1")
        eventually(lambda: len(heard["billing"]) == 2 and heard["shipping"])

    assert sorted(heard["billing"]) == ["o1", "r1"]
    assert heard["shipping"] == ["o1"]


@pytest.mark.parametrize("raised", [True, False])
def test_retry_and_reject_may_be_raised_or_returned(mq: ReliableMQ, raised: bool) -> None:
    """It is the same: a Retry runs again, a Reject is a dead letter with its reason."""
    runs: list[int] = []

    @mq.consumer("orders", group="g", retry=NOW)
    def handle(_: bytes, ctx: Context) -> Any:
        runs.append(ctx.attempt)
        ending = Retry("busy", after=0.0) if ctx.attempt == 1 else Reject("no such customer")
        if raised:
            raise ending
        return ending

    with mq:
        mq.publish("orders", b"x")
        eventually(lambda: list(mq.dead_letters("orders", "g")))
        (letter,) = mq.dead_letters("orders", "g")

    assert runs == [1, 2]
    assert (letter.reason, letter.attempts) == ("rejected", 2)
    assert "no such customer" in letter.error
    assert [failure.attempt for failure in letter.history] == [1, 2]


def test_a_message_that_always_fails_is_a_dead_letter_that_tells_its_story(mq: ReliableMQ) -> None:
    """Every run is in the history, the body and the user's headers are as they were."""

    @mq.consumer("orders", group="g", retry=NOW)
    def handle(_: dict[str, Any]) -> None:
        raise OSError(*FIRE)

    with mq:
        mq.publish("orders", {"id": 1}, key="k", id="m1", headers={"tenant": "t"})
        eventually(lambda: list(mq.dead_letters("orders", "g")))
        (letter,) = mq.dead_letters("orders", "g")

    assert (letter.reason, letter.attempts) == ("retries-exhausted", 3)
    assert letter.error == "OSError: disk on fire"
    assert [one.type for one in letter.history] == ["OSError"] * 3
    message = letter.message
    assert (message.id, message.key, message.body) == ("m1", b"k", b'{"id":1}')
    assert dict(message.headers)["tenant"] == "t"
    assert dict(message.headers)["rmq-orig-topic"] == "orders"


def test_what_cannot_be_decoded_is_a_dead_letter_at_once(mq: ReliableMQ) -> None:
    """No run, no retry, and the bytes as they came."""
    ran: list[Order] = []

    @mq.consumer("orders", group="g", content_type="application/json")
    def handle(order: Order) -> None:
        ran.append(order)

    with mq:
        mq.publish("orders", b"{", content_type="application/json")
        mq.publish("orders", {"id": "no number"})
        eventually(lambda: len(list(mq.dead_letters("orders", "g"))) == 2)
        letters = list(mq.dead_letters("orders", "g"))

    assert ran == []
    assert [letter.reason for letter in letters] == ["undecodable"] * 2
    assert letters[0].message.body == b"{"


def test_a_replayed_dead_letter_reaches_its_group_alone_and_is_gone(mq: ReliableMQ) -> None:
    """It keeps its id, opens a new generation of attempts, and can be chosen."""
    broken = True
    runs: list[tuple[str, str, int]] = []

    @mq.consumer("orders", group="g", retry=None)
    def handle(_: bytes, ctx: Context) -> None:
        runs.append(("g", ctx.id, ctx.attempt))
        if broken:
            raise OSError

    @mq.consumer("orders", group="other")
    def other(_: bytes, ctx: Context) -> None:
        runs.append(("other", ctx.id, ctx.attempt))

    with mq:
        for name in ("m1", "m2"):
            mq.publish("orders", b"x", id=name)
        eventually(lambda: len(list(mq.dead_letters("orders", "g"))) == 2)
        eventually(lambda: len(runs) == 4)
        broken = False
        runs.clear()
        letters = mq.dead_letters("orders", "g")
        assert letters.replay(where=lambda letter: letter.message.id == "m2") == 1
        eventually(lambda: runs)
        assert [letter.message.id for letter in letters] == ["m1"]
        assert letters.discard(["m1", "unknown"]) == 1
        assert list(letters) == []

    assert runs == [("g", "m2", 1)]


def test_outputs_leave_only_if_the_handler_returns(mq: ReliableMQ, broker: MemoryBroker) -> None:
    """What a failed run published is not sent; what the good run published is."""
    invoices: list[Message] = []

    @mq.consumer("orders", group="g", retry=NOW)
    def bill(_: bytes, ctx: Context) -> None:
        ctx.publish("invoices", {"attempt": ctx.attempt}, key="k")
        if ctx.attempt < 3:
            raise OSError

    @mq.consumer("invoices", group="post")
    def post(message: Message) -> None:
        invoices.append(message)

    with mq:
        mq.publish("orders", b"x", id="m1")
        eventually(lambda: invoices)
        eventually(lambda: mq.health().consumers[0].in_hand == 0)

    (invoice,) = invoices
    assert invoice.body == b'{"attempt":3}'


def test_an_output_that_is_not_confirmed_holds_the_ack_back(
    mq: ReliableMQ, broker: MemoryBroker
) -> None:
    """The delivery is acked only after the broker has stored what its handler published."""
    posted: list[bytes] = []

    @mq.consumer("orders", group="g")
    def bill(_: bytes, ctx: Context) -> None:
        ctx.publish("invoices", b"i")

    @mq.consumer("invoices", group="post")
    def post(body: bytes) -> None:
        posted.append(body)

    with mq:
        transport = MemoryTransport(broker)
        mq.publish("orders", b"x", key="k")
        eventually(lambda: transport.lag("orders", "g") == 0)
        eventually(lambda: posted)
        broker.faults.hold_answers()
        mq.submit("orders", b"y", key="k")
        eventually(lambda: len(posted) == 2)
        assert transport.lag("orders", "g") == 1
        broker.faults.heal()
        eventually(lambda: transport.lag("orders", "g") == 0)


def test_publish_tells_rejected_unknown_and_full_apart(
    mq: ReliableMQ, broker: MemoryBroker
) -> None:
    """Three endings beside the Receipt, each with the message, so that resend keeps the id."""
    mq.topic("orders")

    with mq:
        with pytest.raises(Unroutable, match=r"mq\.topic"):
            mq.publish("nowhere", b"x")
        with pytest.raises(TooLarge):
            mq.publish("orders", b"x" * (5 * 1024 * 1024))
        broker.faults.lose_answers()
        with pytest.raises(PublishUnknown, match="m1") as unknown:
            mq.publish("orders", b"x", id="m1", timeout=0.05)
        broker.faults.heal()
        assert mq.resend(unknown.value.message).result(5).id == "m1"
        broker.faults.block()
        with pytest.raises((Backpressure, PublishUnknown)):
            mq.publish("orders", b"x", timeout=0.05)
        broker.faults.heal()


def test_the_window_bounds_what_is_on_its_way(broker: MemoryBroker) -> None:
    """A submit ends at once with Backpressure; submit_all waits for room, and loses nothing."""
    mq = ReliableMQ(MemoryTransport(broker), limits=Limits(window=10), publish_timeout=5.0)
    mq.topic("orders")
    with mq:
        broker.faults.hold_answers()
        first = [mq.submit("orders", b"x") for _ in range(10)]
        full = mq.submit("orders", b"x")
        assert full.done()
        assert isinstance(full.outcome, Backpressure)
        threading.Timer(0.05, broker.faults.heal).start()
        receipts = mq.submit_all(mq.message("orders", b"y") for _ in range(100)).result()
        assert len(receipts) == 100
        assert all(one.result(5) for one in first)


def test_a_batch_reports_each_input(mq: ReliableMQ) -> None:
    """BatchIncomplete has an outcome per input, in their order."""
    mq.topic("orders")
    with mq:
        messages = [mq.message(topic, b"x") for topic in ("orders", "nowhere", "orders")]
        with pytest.raises(BatchIncomplete) as failure:
            mq.submit_all(messages).result()

    outcomes = failure.value.outcomes
    assert isinstance(outcomes[1], Unroutable)
    assert [getattr(one, "position", None) is not None for one in outcomes] == [True, False, True]


def test_what_a_user_may_not_send_is_refused_with_the_message(mq: ReliableMQ) -> None:
    """Our headers, names that break brokers, and kinds of values that nothing can encode."""
    mq.topic("orders")
    with mq:
        with pytest.raises(PublishRejected, match="rmq-attempt"):
            mq.publish("orders", b"x", headers={"rmq-attempt": "1"})
        with pytest.raises(ConfigurationError):
            mq.publish("orders", b"x", key=1.5)
        with pytest.raises(ConfigurationError, match="delay"):
            mq.publish("orders", b"x", delay=5)


def test_publish_refuses_to_stop_an_event_loop(mq: ReliableMQ) -> None:
    """In async code it names `await mq.submit`, which works, as do many awaits of one."""
    mq.topic("orders")

    async def story() -> None:
        async with mq.publishing():
            with pytest.raises(ConfigurationError, match=r"await mq\.submit"):
                mq.publish("orders", b"x")
            confirmation = mq.submit("orders", b"x")
            assert await confirmation == await confirmation
            receipts = await mq.submit_all(mq.message("orders", b"y") for _ in range(10))
            assert len(receipts) == 10

    asyncio.run(story())


def test_async_handlers_run_on_the_loop_that_entered_the_app(mq: ReliableMQ) -> None:
    """A pool made on the application's own loop can be used in the handler."""
    done: list[asyncio.AbstractEventLoop] = []

    @mq.consumer("orders", group="g", concurrency=4)
    async def handle(_: bytes) -> None:
        async with pool:
            done.append(asyncio.get_running_loop())
            if len(done) == 20:
                all_done.set()

    async def story() -> None:
        nonlocal pool, all_done
        pool, all_done = asyncio.Semaphore(1), asyncio.Event()
        async with mq:
            for number in range(20):
                await mq.submit("orders", b"x", key=number)
            await all_done.wait()
        assert set(done) == {asyncio.get_running_loop()}

    pool, all_done = asyncio.Semaphore(1), asyncio.Event()
    asyncio.run(asyncio.wait_for(story(), 20))


def test_async_handlers_without_a_loop_of_the_app_run_on_one_of_ours(mq: ReliableMQ) -> None:
    """start() and `with` give them a loop in a thread."""
    done: list[str] = []

    @mq.consumer("orders", group="g")
    async def handle(_: bytes) -> None:
        await asyncio.sleep(0)
        done.append(threading.current_thread().name)

    with mq:
        mq.publish("orders", b"x")
        eventually(lambda: done)

    assert done == ["reliable-mq-loop"]


def test_keys_keep_their_order_while_others_go_on(mq: ReliableMQ) -> None:
    """One key that retries waits alone; within a key first runs never invert."""
    seen: list[tuple[bytes, int]] = []
    lock = threading.Lock()

    @mq.consumer("orders", group="g", concurrency=8, retry=RetryPolicy(3, backoff=0.01))
    def handle(number: int, ctx: Context) -> None:
        with lock:
            seen.append((ctx.key or b"", number))
        if number % 7 == 0 and ctx.attempt < 3:
            raise OSError

    with mq:
        for number in range(1, 301):
            mq.submit("orders", number, key=f"k{number % 10}")
        eventually(lambda: len({number for _, number in seen}) == 300)
        eventually(lambda: mq.health().consumers[0].in_hand == 0)

    for key in {key for key, _ in seen}:
        first = list(dict.fromkeys(number for k, number in seen if k == key))
        assert first == sorted(first)


def test_a_module_without_an_app_declares_routes(mq: ReliableMQ) -> None:
    """Routes have the same decorator, bound methods work, and functions stay what they were."""
    routes = Routes()
    got: list[str] = []

    class Service:
        def handle(self, body: str) -> None:
            got.append(body)

    routes.consumer("orders", group="g")(Service().handle)

    @routes.consumer("refunds", group="g")
    def refund(body: str) -> None:
        got.append(body)

    refund("called as it is")
    mq.include(routes)
    with mq:
        mq.publish("orders", "o")
        mq.publish("refunds", "r")
        eventually(lambda: len(got) == 3)

    assert sorted(got) == ["called as it is", "o", "r"]


def test_dependencies_and_the_message_in_hand(mq: ReliableMQ) -> None:
    """Depends gives what a function makes, current_message tells what runs, in threads too."""
    got: list[tuple[str, str]] = []
    closed: list[str] = []

    def rates(ctx: Context) -> Any:
        yield f"rates for {ctx.id}"
        closed.append(ctx.id)

    @mq.consumer("orders", group="g")
    def handle(_: bytes, rate: Annotated[str, Depends(rates)]) -> None:
        message = current_message()
        assert message is not None
        got.append((rate, message.id))

    with mq:
        mq.publish("orders", b"x", id="m1")
        eventually(lambda: closed)

    assert got == [("rates for m1", "m1")]
    assert current_message() is None


def test_around_wraps_every_handler_and_its_failure_is_the_handlers(mq: ReliableMQ) -> None:
    """A context manager around handlers sees each run; what it raises fails the run."""
    import contextlib

    seen: list[str] = []

    @mq.around
    @contextlib.contextmanager
    def guard(ctx: Context) -> Any:
        seen.append(f"before {ctx.attempt}")
        if ctx.attempt == 1:
            raise OSError(*FIRE)
        yield
        seen.append("after")

    @mq.consumer("orders", group="g", retry=NOW)
    def handle(_: bytes) -> None:
        seen.append("handler")

    with mq:
        mq.publish("orders", b"x")
        eventually(lambda: "after" in seen)

    assert seen == ["before 1", "before 2", "handler", "after"]


def test_observers_hear_what_happened_and_can_change_nothing(mq: ReliableMQ) -> None:
    """Each step is an event; an observer that raises hurts nobody."""
    events: list[Event] = []
    add = events.append
    assert mq.observe(add) is add  # so it may stand above a def
    mq.observe(lambda _: 1 / 0)

    @mq.consumer("orders", group="g", retry=NOW)
    def handle(body: bytes, ctx: Context) -> None:
        if body == b"bad" or ctx.attempt == 1:
            raise OSError

    with mq:
        mq.publish("orders", b"good")
        mq.publish("orders", b"bad")
        eventually(lambda: any(isinstance(one, DeadLettered) for one in events))
        with pytest.raises(Unroutable):
            mq.publish("nowhere", b"x")

    kinds = [type(one) for one in events]
    assert kinds.count(Published) == 2
    assert kinds.count(Retried) == 3
    assert kinds.count(Handled) == 1
    assert kinds.count(PublishFailed) == 1


def test_health_tells_before_while_and_after(mq: ReliableMQ) -> None:
    """Live and not ready before start and after stop; ready in between; no I/O."""

    @mq.consumer("orders", group="g")
    def handle(_: bytes) -> None:
        return None

    assert (mq.health().live, mq.health().ready) == (True, False)
    with mq:
        eventually(lambda: mq.health().ready)
        (one,) = mq.health().consumers
        assert (one.state, one.topics, one.group) == ("running", ("orders",), "g")
        assert msgspec.json.encode(mq.health())
    assert mq.health().ready is False


def test_a_fork_after_use_is_refused(mq: ReliableMQ) -> None:
    """The child gets a clear error instead of a hang; the parent goes on."""
    mq.topic("orders")
    with mq:
        mq.publish("orders", b"x")
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:  # pragma: no cover - the child is not measured
            try:
                mq.submit("orders", b"y")
                os.write(write, b"no error")
            except ConfigurationError as error:
                os.write(write, b"refused: " + str(error).encode())
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        assert os.read(read, 1000).startswith(b"refused: this app was connected before a fork")
        mq.publish("orders", b"z")


def test_stop_reports_what_was_abandoned_and_it_comes_again(broker: MemoryBroker) -> None:
    """A handler that still runs at the end of the budget is reported; its message redelivered."""
    mq = ReliableMQ(MemoryTransport(broker))
    started, release = threading.Event(), threading.Event()

    @mq.consumer("orders", group="g")
    def handle(_: bytes) -> None:
        started.set()
        release.wait(20)

    mq.start()
    mq.publish("orders", b"x", id="m1")
    assert started.wait(10)
    stopped = mq.stop(timeout=0.2)
    release.set()

    assert [message.id for message in stopped.abandoned] == ["m1"]
    again = ReliableMQ(MemoryTransport(broker))
    got: list[str] = []

    @again.consumer("orders", group="g")
    def second(message: Message) -> None:
        got.append(message.id)

    with again:
        eventually(lambda: got == ["m1"])


def test_stop_returns_what_is_not_confirmed(mq: ReliableMQ, broker: MemoryBroker) -> None:
    """And stopping twice, or without a start, is nothing."""
    assert not mq.stop()
    mq.topic("orders")
    mq.start()
    broker.faults.hold_answers()
    confirmation = mq.submit("orders", b"x", id="m1")

    stopped = mq.stop(timeout=0.1)

    assert [message.id for message in stopped.unconfirmed] == ["m1"]
    assert isinstance(confirmation.outcome, (PublishUnknown, Backpressure))
    assert not mq.stop()
