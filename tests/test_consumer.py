from __future__ import annotations

import asyncio
import contextlib
import threading
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from reliable_mq import (
    Batch,
    BatchFailed,
    ConfigurationError,
    Context,
    Limits,
    Message,
    Reject,
    ReliableMQ,
    Retry,
    RetryPolicy,
)
from reliable_mq.adapters.base import Subscribe
from reliable_mq.adapters.memory import CAPABILITIES, MemoryBroker, MemoryTransport
from reliable_mq.confirmation import Confirmation
from reliable_mq.errors import TooLarge
from reliable_mq.events import (
    Event,
    KeyGap,
    LaneHalted,
    LaneResumed,
    LeasesLost,
    Overdue,
    StalledByKey,
    Suspected,
    Undeadletterable,
)
from reliable_mq.message import DeadLetter
from reliable_mq.testing.inmemory import inmemory
from reliable_mq.watch import ConsumerHealth
from tests.waiting import eventually

if TYPE_CHECKING:
    from reliable_mq.adapters.base import OnRevoke
    from reliable_mq.adapters.memory import MemorySubscription

NOW = RetryPolicy(2, backoff=0.0)


class Watched(MemoryTransport):
    """A transport that remembers its subscriptions, so that a test can revoke or drop them."""

    def __init__(self, broker: MemoryBroker) -> None:
        super().__init__(broker)
        self.subscriptions: list[MemorySubscription] = []

    def subscribe(self, subscribe: Subscribe, on_revoke: OnRevoke) -> MemorySubscription:
        """Join, and remember it."""
        subscription = super().subscribe(subscribe, on_revoke)
        self.subscriptions.append(subscription)
        return subscription


@pytest.fixture
def broker() -> MemoryBroker:
    """A broker of this test."""
    return MemoryBroker()


@pytest.fixture
def transport(broker: MemoryBroker) -> Watched:
    """A client of it."""
    return Watched(broker)


@pytest.fixture
def mq(transport: Watched) -> ReliableMQ:
    """An app on it."""
    return ReliableMQ(transport)


@pytest.fixture
def events(mq: ReliableMQ) -> list[Event]:
    """What the app's observers hear."""
    heard: list[Event] = []
    mq.observe(heard.append)
    return heard


def test_block_halts_the_key_until_an_operator_decides(
    mq: ReliableMQ, transport: Watched, events: list[Event]
) -> None:
    """Later messages of the key wait, other keys go on; retry runs it again, skip dead-letters."""
    seen: list[tuple[str, int]] = []
    healed = False

    @mq.consumer("orders", group="g", retry=NOW, on_failure="block", concurrency=2)
    def handle(number: int, ctx: Context) -> None:
        if number in (1, 3) and not healed:
            raise OSError
        seen.append(((ctx.key or b"").decode(), number))

    with mq:
        for number, key in ((1, "a"), (2, "a"), (3, "b"), (4, "b"), (5, "c")):
            mq.publish("orders", number, key=key)
        halted = mq.halted("orders", "g")
        eventually(lambda: len(list(halted)) == 2)
        eventually(lambda: ("c", 5) in seen)
        assert {(one.key, one.reason, one.error) for one in halted} == {
            (b"a", "retries-exhausted", "OSError"),
            (b"b", "retries-exhausted", "OSError"),
        }
        assert seen == [("c", 5)]
        assert list(mq.dead_letters("orders", "g")) == []
        eventually(lambda: mq.health().consumers[0].halted_keys == 2)

        assert halted.skip("b")
        eventually(lambda: ("b", 4) in seen)
        healed = True
        assert halted.retry(b"a")
        eventually(lambda: ("a", 2) in seen)
        assert not halted.retry("a")
        assert [letter.message.body for letter in mq.dead_letters("orders", "g")] == [b"3"]
        eventually(lambda: transport.lag("orders", "g") == 0)

    assert [pair for pair in seen if pair[0] == "a"] == [("a", 1), ("a", 2)]
    assert sum(isinstance(one, LaneHalted) for one in events) == 2
    assert [one.how for one in events if isinstance(one, LaneResumed)] == ["skip", "retry"]


def test_what_fails_is_logged_without_its_payload(
    mq: ReliableMQ, caplog: pytest.LogCaptureFixture
) -> None:
    """A retry at INFO, a dead letter at ERROR, with the type of the error and never its text."""
    caplog.set_level("INFO", logger="reliable_mq")

    @mq.consumer("orders", group="g", retry=NOW)
    def handle(_: bytes) -> None:
        raise ValueError("card 4111 1111 1111 1111")

    with mq:
        mq.publish("orders", b"secret-body", id="m1")
        eventually(lambda: list(mq.dead_letters("orders", "g")))
        (letter,) = mq.dead_letters("orders", "g")

    eventually(lambda: "is a dead letter" in caplog.text)
    assert "message m1, group g: run 1 failed with ValueError" in caplog.text
    assert "4111" not in caplog.text
    assert "secret-body" not in caplog.text
    assert "4111" in letter.stack
    assert letter.host
    assert letter.failed_at > 0


def test_a_dead_letter_of_a_key_tells_of_the_gap(mq: ReliableMQ, events: list[Event]) -> None:
    """By default the key goes on without the message, and an event says so."""

    @mq.consumer("orders", group="g", retry=None)
    def handle(number: int) -> None:
        if number == 1:
            raise Reject

    with mq:
        mq.publish("orders", 1, key="a", id="m1")
        mq.publish("orders", 2, key="a")
        eventually(lambda: any(isinstance(one, KeyGap) for one in events))

    assert [one.message_id for one in events if isinstance(one, KeyGap)] == ["m1"]


def test_dead_letters_in_a_row_pause_the_consumer(mq: ReliableMQ, transport: Watched) -> None:
    """A bad deploy cannot drain a topic: exactly the limit is dead-lettered, the rest stays."""
    broken = True
    done: list[int] = []

    @mq.consumer("orders", group="g", retry=None, dead_letter_limit=5)
    def handle(number: int) -> None:
        if broken:
            raise OSError
        done.append(number)

    with mq:
        for number in range(20):
            mq.publish("orders", number)
        eventually(lambda: mq.health().consumers[0].state == "paused")
        health = mq.health()
        assert (health.live, health.ready) == (True, False)
        assert "5 dead letters in a row" in health.consumers[0].why
        eventually(lambda: len(list(mq.dead_letters("orders", "g"))) == 5)
        eventually(lambda: transport.lag("orders", "g") == 15)

        broken = False
        mq.resume("orders", "g")
        eventually(lambda: transport.lag("orders", "g") == 0)
        assert mq.health().ready
        assert len(list(mq.dead_letters("orders", "g"))) == 5

    assert len(set(done)) == 15


def test_a_success_that_publishes_ends_a_row_of_dead_letters(mq: ReliableMQ) -> None:
    """Dead letters between successes are not in a row, whatever the successes published."""
    done: list[int] = []
    mq.topic("invoices", groups=("ledger",))

    @mq.consumer("orders", group="g", retry=None, dead_letter_limit=2)
    def handle(number: int, ctx: Context) -> None:
        if number % 2:
            raise OSError
        ctx.publish("invoices", number)
        done.append(number)

    with mq:
        for number in range(10):
            mq.publish("orders", number, key="k")
        eventually(lambda: len(done) == 5)
        eventually(lambda: len(list(mq.dead_letters("orders", "g"))) == 5)
        assert mq.health().consumers[0].state == "running"


def test_an_async_handler_is_cancelled_at_its_deadline_and_waited_for(mq: ReliableMQ) -> None:
    """Its lane goes on only after it has really ended, and the run counts as failed."""
    order: list[str] = []

    @mq.consumer("orders", group="g", timeout=0.05, retry=NOW)
    async def handle(number: int, ctx: Context) -> None:
        assert ctx.deadline is not None
        if number == 1:
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)  # cleaning up takes a while
                order.append(f"ended {ctx.attempt}")
        order.append(f"done {number}")

    with mq:
        mq.publish("orders", 1, key="a")
        mq.publish("orders", 2, key="a")
        eventually(lambda: "done 2" in order)
        (letter,) = mq.dead_letters("orders", "g")

    assert order == ["ended 1", "ended 2", "done 2"]
    assert letter.error.startswith("TimeoutError")


def test_a_handler_that_ends_although_cancelled_is_done(mq: ReliableMQ) -> None:
    """Only a normal return counts, and this is one; the next delivery is not cancelled with it."""
    done: list[int] = []

    @mq.consumer("orders", group="g", timeout=0.05, retry=None)
    async def handle(number: int) -> None:
        if number == 1:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
        else:
            await asyncio.sleep(0)
        done.append(number)

    with mq:
        mq.publish("orders", 1, key="a")
        mq.publish("orders", 2, key="a")
        eventually(lambda: done == [1, 2])
        assert list(mq.dead_letters("orders", "g")) == []


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_only_a_normal_return_is_done(mq: ReliableMQ, error: type[BaseException]) -> None:
    """Whatever else leaves a handler is a failed run, and ends the process of nobody."""
    runs: list[int] = []

    @mq.consumer("orders", group="g", retry=NOW)
    def handle(_: bytes, ctx: Context) -> None:
        runs.append(ctx.attempt)
        if ctx.attempt == 1:
            raise error

    with mq:
        mq.publish("orders", b"x")
        eventually(lambda: runs == [1, 2])
        assert list(mq.dead_letters("orders", "g")) == []


def test_a_cancelled_async_handler_is_a_failed_run(mq: ReliableMQ) -> None:
    """A handler that cancels itself, or is cancelled from inside, is not done."""
    runs: list[int] = []

    @mq.consumer("orders", group="g", retry=NOW)
    async def handle(_: bytes, ctx: Context) -> None:
        runs.append(ctx.attempt)
        if ctx.attempt == 1:
            raise asyncio.CancelledError

    with mq:
        mq.publish("orders", b"x")
        eventually(lambda: runs == [1, 2])


def test_a_def_handler_beyond_its_timeout_is_overdue_and_keeps_its_lane(
    mq: ReliableMQ, transport: Watched, events: list[Event]
) -> None:
    """It cannot be stopped: nothing is settled, its key waits, others go on, health tells."""
    release = threading.Event()
    done: list[int] = []

    @mq.consumer("orders", group="g", timeout=0.05, concurrency=2, max_stuck=1)
    def handle(number: int) -> None:
        if number == 1:
            release.wait(20)
        done.append(number)

    with mq:
        for number, key in ((1, "a"), (2, "a"), (3, "b")):
            mq.publish("orders", number, key=key)
        eventually(lambda: any(isinstance(one, Overdue) for one in events))
        eventually(lambda: done == [3])
        assert mq.health().consumers[0].overdue == 1
        assert mq.health().live
        assert transport.lag("orders", "g") == 2
        release.set()
        eventually(lambda: done == [3, 1, 2])
        assert list(mq.dead_letters("orders", "g")) == []


def test_too_many_stuck_handlers_make_the_consumer_unhealthy(mq: ReliableMQ) -> None:
    """More than max_stuck overdue threads: it takes no more, and is no longer live; it says why."""
    release = threading.Event()
    seen: list[ConsumerHealth] = []
    mq.observe(lambda _: seen.append(mq.health().consumers[0]))  # also before it is paused

    @mq.consumer("orders", group="g", timeout=0.02, concurrency=2, max_stuck=0)
    def handle(_: bytes) -> None:
        release.wait(20)

    with mq:
        mq.publish("orders", b"x")
        eventually(lambda: not mq.health().live)
        assert "stuck" in mq.health().consumers[0].why
        eventually(lambda: not all(one.live for one in tuple(seen)))
        assert all("stuck" in one.why for one in tuple(seen) if not one.live)
        release.set()


def test_a_long_retry_of_an_unkeyed_message_goes_through_the_broker(
    mq: ReliableMQ, transport: Watched
) -> None:
    """The copy has the id, the next attempt and the history, and belongs to its group alone."""

    @mq.consumer("orders", group="g")
    def handle(_: bytes) -> None:
        raise Retry("tomorrow", after=3600)

    @mq.consumer("orders", group="other")
    def other(message: Message) -> None:
        got.append(message)

    got: list[Message] = []
    with mq:
        mq.publish("orders", b"x", id="m1")
        eventually(lambda: got)
        group = transport.broker.find("orders").groups["g"]
        eventually(lambda: mq.health().consumers[0].in_hand == 0 and group.lag == 1)

    assert len(got) == 1


def test_a_long_retry_of_a_keyed_message_waits_in_its_lane(mq: ReliableMQ) -> None:
    """Whatever the length, its successors stay behind it; nothing of a lane is given back."""
    done: list[int] = []

    @mq.consumer("orders", group="g")
    def handle(number: int) -> None:
        if number == 1:
            raise Retry("tomorrow", after=3600)
        done.append(number)

    with mq:
        mq.publish("orders", 1, key="a")
        mq.publish("orders", 2, key="a")
        mq.publish("orders", 3, key="b")
        eventually(lambda: done == [3])
        eventually(lambda: mq.health().consumers[0].in_hand == 2)

    assert done == [3]


def test_waiting_keys_may_fill_the_credit_and_then_say_so(
    transport: Watched, events: list[Event]
) -> None:
    """Held keys cost credit; when nothing else is in hand an event tells that it is stalled."""
    mq = ReliableMQ(transport, limits=Limits(credit=3))
    mq.observe(events.append)
    done: list[int] = []

    @mq.consumer("orders", group="g")
    def handle(number: int, ctx: Context) -> None:
        if ctx.attempt == 1:
            raise Retry("wait", after=0.5)
        done.append(number)

    with mq:
        for number in range(6):
            mq.publish("orders", number, key=number)
        eventually(lambda: any(isinstance(one, StalledByKey) for one in events))
        assert mq.health().consumers[0].in_hand == 3
        eventually(lambda: len(done) == 6)


def test_the_credit_is_never_exceeded(transport: Watched) -> None:
    """Deliveries in hand, running or waiting, never pass Limits.credit, nor bytes their limit."""
    mq = ReliableMQ(transport, limits=Limits(credit=4, credit_bytes=100))
    most = 0
    done: list[int] = []

    @mq.consumer("orders", group="g", concurrency=4)
    def handle(body: bytes) -> None:
        nonlocal most
        most = max(most, mq.health().consumers[0].in_hand)
        done.append(len(body))

    with mq:
        for _ in range(50):
            mq.submit("orders", b"x" * 60)
        eventually(lambda: len(done) == 50)

    assert most <= 4


def test_a_failing_order_by_is_a_failed_run_of_that_message(mq: ReliableMQ) -> None:
    """The function is the user's; the message is retried, then dead-lettered, others go on."""
    done: list[int] = []

    def key(message: Message) -> object:
        return msgspec.json.decode(message.body or b"")["customer"]

    @mq.consumer("orders", group="g", order_by=key, retry=NOW)
    def handle(order: dict[str, Any]) -> None:
        done.append(order["n"])

    with mq:
        mq.publish("orders", {"n": 1, "customer": "a"})
        mq.publish("orders", {"n": 2})
        mq.publish("orders", {"n": 3, "customer": "a"})
        eventually(lambda: done == [1, 3])
        eventually(lambda: list(mq.dead_letters("orders", "g")))
        (letter,) = mq.dead_letters("orders", "g")

    assert letter.error == "KeyError: 'customer'"
    assert letter.attempts == 2


def test_partition_order_runs_one_after_another(mq: ReliableMQ) -> None:
    """Keys or not, with order_by="partition" the queue's order is the order of the runs."""
    seen: list[int] = []

    @mq.consumer("orders", group="g", order_by="partition", concurrency=8)
    def handle(number: int) -> None:
        seen.append(number)

    with mq:
        for number in range(200):
            mq.submit("orders", number, key=number % 3 or None)
        eventually(lambda: len(seen) == 200)

    assert seen == list(range(200))


def test_a_member_that_waits_to_take_over_stands_by(transport: Watched) -> None:
    """Of two apps with partition order one works and one is standby, until it takes over."""
    apps = [ReliableMQ(transport) for _ in range(2)]
    got: list[int] = []
    for app in apps:
        app.consumer("orders", group="g", order_by="partition")(_number(got))
        app.start()

    def states() -> list[str]:
        return sorted(app.health().consumers[0].state for app in apps)

    eventually(lambda: states() == ["running", "standby"])
    assert all(app.health().ready for app in apps)
    apps.sort(key=lambda app: app.health().consumers[0].state)
    apps[0].stop()
    eventually(lambda: apps[1].health().consumers[0].state == "running")
    apps[1].publish("orders", 1)
    eventually(lambda: got == [1])
    apps[1].stop()


# ---- batches


def test_a_batch_handler_gets_lists_in_the_order_of_each_key(mq: ReliableMQ) -> None:
    """Full batches at once, the rest after `wait`; a key is never in two batches at a time."""
    batches: list[list[tuple[str, int]]] = []

    @mq.consumer("orders", group="g", batch=Batch(10, wait=0.05), concurrency=2)
    def handle(batch: list[dict[str, Any]]) -> None:
        batches.append([(one["k"], one["n"]) for one in batch])

    with mq:
        for number in range(95):
            mq.submit("orders", {"k": f"k{number % 5}", "n": number}, key=f"k{number % 5}")
        eventually(lambda: sum(len(one) for one in batches) == 95)

    assert max(len(one) for one in batches) <= 10
    assert max(len(one) for one in batches) > 1
    for key in range(5):
        numbers = [n for batch in batches for k, n in batch if k == f"k{key}"]
        assert numbers == sorted(numbers)


def test_batch_failed_settles_the_rest(mq: ReliableMQ, transport: Watched) -> None:
    """Only what it names runs again, alone or with others; what it cannot decode never does."""
    runs: list[list[int]] = []

    @mq.consumer("orders", group="g", batch=Batch(4, wait=0.05), retry=NOW)
    def handle(batch: list[int]) -> None:
        runs.append(batch)
        failed = {index: OSError() for index, number in enumerate(batch) if number % 2}
        if failed:
            raise BatchFailed(failed)

    with mq:
        for body in (0, 1, 2, 3):
            mq.submit("orders", body)
        mq.submit("orders", "no number")
        eventually(lambda: transport.lag("orders", "g") == 0)
        eventually(lambda: len(list(mq.dead_letters("orders", "g"))) == 3)
        letters = list(mq.dead_letters("orders", "g"))

    counts = {number: sum(batch.count(number) for batch in runs) for number in range(4)}
    assert counts == {0: 1, 1: 2, 2: 1, 3: 2}
    assert sorted(letter.reason for letter in letters) == [
        "retries-exhausted",
        "retries-exhausted",
        "undecodable",
    ]


def test_any_other_error_fails_the_whole_batch(mq: ReliableMQ, transport: Watched) -> None:
    """Also in an async handler; each message has its own attempts."""
    runs: list[list[int]] = []

    @mq.consumer("orders", group="g", batch=Batch(3, wait=0.05), retry=NOW)
    async def handle(batch: list[int]) -> None:
        runs.append(batch)
        if len(runs) == 1:
            raise OSError

    with mq:
        for number in range(3):
            mq.submit("orders", number)
        eventually(lambda: transport.lag("orders", "g") == 0)
        assert list(mq.dead_letters("orders", "g")) == []

    assert sorted(number for batch in runs for number in batch) == [0, 0, 1, 1, 2, 2]


# ---- what the broker takes back


def test_revoked_work_that_runs_is_acked_inside_the_revocation(
    mq: ReliableMQ, transport: Watched, broker: MemoryBroker
) -> None:
    """The owner waits for what runs, acks it, and drops what has not started."""
    started, release = threading.Event(), threading.Event()
    runs: list[str] = []

    @mq.consumer("orders", group="g")
    def handle(_: bytes, ctx: Context) -> None:
        runs.append(ctx.id)
        started.set()
        release.wait(20)

    with mq:
        mq.publish("orders", b"x", key="a", id="m1")
        mq.publish("orders", b"x", key="a", id="m2")
        assert started.wait(10)
        eventually(lambda: mq.health().consumers[0].in_hand == 2)
        broker.faults.revoke(transport.subscriptions[0])
        release.set()
        eventually(lambda: transport.lag("orders", "g") == 0)

    assert runs == ["m1", "m2"]


def test_a_lost_lease_is_told_to_the_handler_and_its_late_end_changes_nothing(
    events: list[Event],
) -> None:
    """The message comes again; lost() is true in the old run."""
    holds = msgspec.structs.replace(CAPABILITIES, max_hold=0.2)
    transport = Watched(MemoryBroker(capabilities=holds))
    mq = ReliableMQ(transport)
    mq.observe(events.append)
    started, release = threading.Event(), threading.Event()
    told: list[bool] = []

    @mq.consumer("orders", group="g")
    def handle(_: bytes, ctx: Context) -> None:
        if not told:
            started.set()
            release.wait(20)
        told.append(ctx.lost())

    with mq:
        mq.publish("orders", b"x", key="a")
        assert started.wait(10)
        eventually(lambda: any(isinstance(one, LeasesLost) for one in events))
        assert transport.lag("orders", "g") == 1
        release.set()
        eventually(lambda: transport.lag("orders", "g") == 0)

    assert told == [True, False]


def test_a_suspect_runs_with_nothing_else_in_flight(transport: Watched) -> None:
    """What came twice without an end runs alone, after the innocents are acked."""
    broker = transport.broker
    publisher = ReliableMQ(transport)
    publisher.topic("orders", groups=("g",))
    with publisher:
        for number in range(6):
            publisher.publish("orders", number, key=number, id=f"m{number}")
        for _ in range(2):  # two members that die with the first message in hand
            member = transport.subscribe(
                Subscribe(topics=("orders",), group="g"), lambda leases, deadline: None
            )
            assert [one.message.id for one in member.poll(1, 5).deliveries] == ["m0"]
            broker.faults.drop(member)

    mq = ReliableMQ(transport)
    events: list[Event] = []
    mq.observe(events.append)
    running: set[int] = set()
    order: list[int] = []
    company: list[int] = []

    @mq.consumer("orders", group="g", concurrency=4)
    def handle(number: int) -> None:
        running.add(number)
        order.append(number)
        if number == 0:
            company.extend(running - {0})
            company.append(transport.lag("orders", "g"))
        running.discard(number)

    with mq:
        eventually(lambda: len(order) == 6)
        eventually(lambda: transport.lag("orders", "g") == 0)

    assert order[-1] == 0
    assert company == [1]
    assert [one.redelivered for one in events if isinstance(one, Suspected)] == [2]


def test_a_dead_letter_that_never_fits_is_held_and_reported() -> None:
    """It is neither acked nor retried for ever; the rest goes on, and after a restart it comes."""
    broker = MemoryBroker()

    class Small(MemoryTransport):
        """Takes no dead letter that is larger than its body."""

        def publisher(self) -> Any:
            publisher = super().publisher()
            submit = publisher.submit

            def small(message: Message, to: Any, **options: Any) -> Confirmation:
                if not isinstance(to, DeadLetter):
                    return submit(message, to, **options)
                sizes.append(sum(len(name) + len(value) for name, value in message.headers))
                confirmation = Confirmation(message)
                confirmation.settle(TooLarge("too large", message))
                return confirmation

            publisher.submit = small  # type: ignore[method-assign]
            return publisher

    sizes: list[int] = []
    mq = ReliableMQ(Small(broker))
    events: list[Event] = []
    mq.observe(events.append)
    done: list[int] = []

    @mq.consumer("orders", group="g", retry=None)
    def handle(number: int) -> None:
        if number == 1:
            raise OSError
        done.append(number)

    with mq:
        mq.publish("orders", 1, key="a", id="m1")
        mq.publish("orders", 2, key="a")
        mq.publish("orders", 3, key="b")
        eventually(lambda: any(isinstance(one, Undeadletterable) for one in events))
        eventually(lambda: done == [3])
        assert MemoryTransport(broker).lag("orders", "g") == 2

    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) == 4


# ---- refused at start


@pytest.mark.parametrize(
    ("capabilities", "options", "remedy"),
    [
        ({"key_order": "none"}, {}, "order_by='none'"),
        ({"max_hold": 10.0}, {"timeout": 10}, "below"),
        ({"starts": frozenset()}, {"start_from": "latest"}, "leave it out"),
        (
            {"starts": frozenset({"latest"})},
            {"start_from": datetime.now(timezone.utc)},
            "from a time; leave it out",
        ),
    ],
)
def test_what_the_broker_cannot_honour_is_refused_at_start(
    capabilities: dict[str, Any], options: dict[str, Any], remedy: str
) -> None:
    """Nothing degrades silently: the error names the remedy, and nothing is left running."""
    limited = msgspec.structs.replace(CAPABILITIES, **capabilities)
    mq = ReliableMQ(MemoryTransport(MemoryBroker(capabilities=limited)))

    @mq.consumer("orders", group="g", **options)
    def handle(_: bytes) -> None:
        return None

    with pytest.raises(ConfigurationError, match=remedy):
        mq.start()
    assert not mq.health().ready


@pytest.mark.parametrize("counts", [True, False])
def test_a_broker_that_counts_no_deliveries_is_told_of_at_start(
    counts: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody tells then that a message kills the process again and again."""
    limited = msgspec.structs.replace(CAPABILITIES, counts_redeliveries=counts)
    mq = ReliableMQ(MemoryTransport(MemoryBroker(capabilities=limited)))

    @mq.consumer("orders", group="g")
    def bill(_: bytes) -> None:
        return None

    with mq:
        told = [one for one in caplog.messages if "does not count deliveries" in one]
    assert len(told) == (0 if counts else 1)


def test_a_new_group_can_begin_at_a_time() -> None:
    """What was published before is not for it; that is how one replays from there on."""
    broker = MemoryBroker()
    mq = ReliableMQ(MemoryTransport(broker))
    mq.topic("orders", groups=("g",))
    with mq:
        mq.publish("orders", b"before", key="k")
        began = datetime.now(timezone.utc)
        mq.publish("orders", b"after", key="k")
    seen: list[bytes] = []
    again = ReliableMQ(MemoryTransport(broker))

    @again.consumer("orders", group="g-again", start_from=began)
    def handle(body: bytes) -> None:
        seen.append(body)

    with again:
        eventually(lambda: seen)

    assert seen == [b"after"]


def test_an_unordered_topic_wants_an_unordered_consumer(mq: ReliableMQ) -> None:
    """ordered=False on the topic needs order_by="none"; a small credit is refused, too."""
    mq.topic("orders", ordered=False)
    mq.consumer("orders", group="g")(_nothing)

    with pytest.raises(ConfigurationError, match="order_by='none'"):
        mq.start()

    small = ReliableMQ(MemoryTransport(MemoryBroker()), limits=Limits(credit=2))
    small.consumer("orders", group="g", concurrency=3)(_nothing)
    with pytest.raises(ConfigurationError, match="credit=2"):
        small.start()


def test_starting_twice_is_refused(mq: ReliableMQ) -> None:
    """The second start says so and leaves the first one running."""
    mq.consumer("orders", group="g")(_nothing)
    with mq:
        with pytest.raises(ConfigurationError, match="started already"):
            mq.start()
        eventually(lambda: mq.health().ready)


def _nothing(_: bytes) -> None:
    return None


def _number(got: list[int]) -> Any:
    def handle(number: int) -> None:
        got.append(number)

    return handle


def test_a_consumer_whose_broker_is_away_lives_on(mq: ReliableMQ) -> None:
    """However long that takes: it goes round, is not ready, and nobody needs to restart it."""

    @mq.consumer("orders", group="g")
    def handle(_: bytes) -> None:
        """Never called."""

    with inmemory(mq) as t:
        [consumer] = mq._runtime.consumers  # type: ignore[union-attr]  # it has started
        consumer._round(0.0)
        t.broker.faults.disconnect()
        for _ in range(30):
            t.clock.advance(1.0)
            consumer._round(0.0)
        assert (mq.health().live, mq.health().ready) == (True, False)
        assert mq.health().consumers[0].state == "disconnected"
