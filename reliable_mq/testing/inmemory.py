"""An app in memory and in virtual time, for users' unit tests.

    with inmemory(mq) as t:
        t.publish("orders", {"id": 1}, key="a")
        t.run_until_idle()
        assert t.dead_letters("orders", "billing") == []

No socket is opened, no thread started, and no time passes but the time that a retry, a delay or a
batch waits for, and that in an instant. Handlers run on the calling thread, one at a time, through
the same pipeline, lanes and settling as against a real broker.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from reliable_mq.adapters.memory import CAPABILITIES, MemoryBroker, MemoryTransport
from reliable_mq.errors import ConfigurationError
from reliable_mq.execution import Runner
from reliable_mq.message import Topic
from reliable_mq.runtime import Environment
from reliable_mq.testing.clock import FakeClock
from reliable_mq.workers import end_tasks

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Coroutine, Iterator
    from types import TracebackType

    from typing_extensions import Self

    from reliable_mq.adapters.base import (
        OnRevoke,
        Publisher,
        Subscribe,
        Subscription,
        Topology,
        Transport,
    )
    from reliable_mq.app import ReliableMQ
    from reliable_mq.clock import Clock
    from reliable_mq.confirmation import Confirmation
    from reliable_mq.consumer import Consumer
    from reliable_mq.deadletter import StoredDeadLetter
    from reliable_mq.execution import Execution
    from reliable_mq.handlers import Handler
    from reliable_mq.message import Delivery, Destination, Message, Receipt

__all__ = ["InMemory", "inmemory"]


def inmemory(mq: ReliableMQ, *, seed: int = 0) -> InMemory:
    """Swap the broker of `mq` for one in memory, in virtual time, until the block ends.

    Args:
        seed: Draws the jitter of backoffs and which handler runs first where several may.

    Raises: ConfigurationError when the app is connected already.
    """
    return InMemory(mq, seed)


class InMemory:
    """The app under test. One thread, or one event loop, at a time."""

    def __init__(self, mq: ReliableMQ, seed: int) -> None:
        #: Every run of a handler, in order: the delivery as the handler's attempt had it.
        self.deliveries: list[Delivery] = []
        #: Every message published to a topic, in order; not retry copies, nor dead letters.
        self.published: list[Message] = []
        #: Rounds after which an app that never gets idle is given up.
        self.rounds = 100_000
        self.clock = FakeClock()
        # Time jumps from one due moment to the next: no consumer is silent meanwhile.
        capabilities = replace(CAPABILITIES, lease_timeout=float("inf"))
        self.broker = MemoryBroker(self.clock, capabilities=capabilities)
        self._mq = mq
        self._environment = _Environment(self, random.Random(seed))
        self._saved: tuple[Any, ...] = ()

    # ---- in and out

    def __enter__(self) -> Self:
        mq = self._mq
        if mq._runtime is not None:  # noqa: SLF001 - the double of the app knows the app
            msg = "inmemory(mq): this app is connected already; use it before anything publishes"
            raise ConfigurationError(msg)
        self._saved = (
            mq._environment,  # noqa: SLF001
            mq._url,  # noqa: SLF001
            mq._topology,  # noqa: SLF001
            mq._producer,  # noqa: SLF001
            dict(mq._overrides),  # noqa: SLF001
        )
        mq._environment, mq._url = self._environment, "memory://"  # noqa: SLF001
        mq._topology = "create"  # noqa: SLF001 - there is nothing yet to compare with
        mq._producer = mq._make_producer()  # noqa: SLF001
        try:
            mq.start()
        except BaseException:
            self._restore()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._mq.stop(timeout=0.0)
        finally:
            self._restore()

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(self, *ending: object) -> None:
        self.__exit__(None, None, None)

    def _restore(self) -> None:
        mq = self._mq
        mq._environment, mq._url, mq._topology, mq._producer, mq._overrides = self._saved  # noqa: SLF001
        self._environment.close()

    # ---- what a test does

    def publish(self, topic: Any, value: Any, **options: Any) -> Receipt:
        """As `mq.publish`; in `async def` tests, too, because nothing here waits."""
        return self._mq.submit(str(topic), value, **options).result(0.0)

    def run_until_idle(self, *, within: float = 86_400.0) -> None:
        """Run handlers until nothing is left to do, letting waits pass in an instant.

        Args:
            within: Virtual seconds that may pass at most; a retry that is due later stays.

        Raises: AssertionError when it never gets idle; ConfigurationError on an event loop.
        """
        if asyncio._get_running_loop() is not None:  # noqa: SLF001 - the public one raises
            msg = "run_until_idle() on an event loop: use `await t.idle()` there"
            raise ConfigurationError(msg)
        until = self.clock.monotonic() + within
        for _ in range(self.rounds):
            if not self._round() and not self._pass_time(until):
                return
        msg = f"not idle after {self.rounds} rounds: does a handler publish what it consumes?"
        raise AssertionError(msg)

    async def idle(self, *, within: float = 86_400.0) -> None:
        """The same on an event loop: `async def` handlers run on it, `def` handlers beside it."""
        until = self.clock.monotonic() + within
        for _ in range(self.rounds):
            if not await self._round_async() and not self._pass_time(until):
                return
        msg = f"not idle after {self.rounds} rounds: does a handler publish what it consumes?"
        raise AssertionError(msg)

    def dead_letters(self, topic: Any, group: str) -> list[StoredDeadLetter]:
        """The dead letters of a group, oldest first."""
        return list(self._mq.dead_letters(topic, group))

    @contextmanager
    def override(self, dependency: Callable[..., Any], fake: Callable[..., Any]) -> Iterator[None]:
        """Inside, `Depends(dependency)` gives what `fake` gives."""
        overrides = self._mq._overrides  # noqa: SLF001
        previous = overrides.get(dependency)
        overrides[dependency] = fake
        try:
            yield
        finally:
            if previous is None:
                del overrides[dependency]
            else:
                overrides[dependency] = previous

    # ---- one round

    @property
    def _consumers(self) -> list[Consumer]:
        return self._mq._connected().consumers  # noqa: SLF001

    def _step(self) -> int:
        """Let every consumer go round once; returns how much work there is."""
        work = 0
        for consumer in self._consumers:
            polled = consumer.step(0.0)
            # What this one is through with may be what another one waits for.
            work += bool(consumer.mailbox or polled.deliveries or polled.settled or polled.lost)
        return work

    def _round(self) -> bool:
        work = self._step()
        turns = self._environment.take_turns()
        for one in turns:
            one.run()
        return bool(work or turns)

    async def _round_async(self) -> bool:
        work = self._step()
        turns = self._environment.take_turns()
        for one in turns:
            await one.run_async()
        await asyncio.sleep(0)
        return bool(work or turns)

    def _pass_time(self, until: float) -> bool:
        """Let time pass until something is due; False if nothing will be, in time."""
        dues = [consumer.next_due() for consumer in self._consumers]
        dues.append(self.broker.next_due())
        # What is overdue waits for something else, such as credit.
        now = self.clock.monotonic()
        due = min((one for one in dues if one is not None and one > now), default=None)
        if due is None or due > until:
            return False
        self.clock.advance(due - now)
        return True


class _Environment(Environment):
    """Virtual time, seeded chance, no threads, one broker in memory."""

    threads = False

    def __init__(self, test: InMemory, dice: random.Random) -> None:
        super().__init__()
        self.clock: Clock = test.clock
        self._test = test
        self._dice = dice
        self._workers: list[_InlineWorkers] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, turn: Coroutine[Any, Any, Any]) -> Any:
        """Run it on the loop of this environment, where what handlers share stays usable."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
        return self._loop.run_until_complete(turn)

    def close(self) -> None:
        """Cancel what handlers left running, and close the loop."""
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.run_until_complete(end_tasks())
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    def pause(self, _: threading.Event, seconds: float) -> None:
        """Waiting is letting time pass."""
        self._test.clock.advance(seconds)

    def draw(self) -> float:
        """As the seed has it."""
        return self._dice.random()

    def open(self, url: str) -> Transport:
        """The broker in memory, whatever the URL."""
        return _Recorded(MemoryTransport(self._test.broker), self._test.published)

    def runner(self, handler: Handler, **options: Any) -> Runner:  # type: ignore[override]
        """A runner that notes every run."""
        return _NotingRunner(handler, self._test.deliveries, **options)

    def workers(
        self, consumer: Consumer, handler: Handler, count: int, turn: Any, loop: Any
    ) -> Any:
        """Workers that run when the test says so."""
        run = self.run if handler.is_async else None
        workers = _InlineWorkers(consumer, turn, run)
        self._workers.append(workers)
        return workers

    def take_turns(self) -> list[_Turn]:
        """What is ready to run, in an order that the seed decides."""
        turns = [turn for workers in self._workers for turn in workers.take()]
        self._dice.shuffle(turns)
        return turns


class _InlineWorkers:
    """Keeps what it is handed until the test runs it."""

    def __init__(self, consumer: Consumer, turn: Any, run: Callable[[Any], Any] | None) -> None:
        self._consumer = consumer
        self._turn = turn
        self._run = run
        self._waiting = consumer.waiting

    def start(self) -> None:
        """Nothing to start."""

    def stop(self) -> None:
        """Run nothing further."""
        self._waiting.clear()

    def hand_out(self, item: Any) -> None:
        """Keep it."""
        self._waiting.append(item)

    def take(self) -> list[_Turn]:
        """All that is ready."""
        ready = [self._waiting.popleft() for _ in range(len(self._waiting))]
        return [_Turn(self._consumer, self._turn, item, self._run) for item in ready]


class _Turn:
    """One turn of one lane or bundle. `run`: runs a coroutine; None for `def` handlers."""

    def __init__(
        self, consumer: Consumer, turn: Any, item: Any, run: Callable[[Any], Any] | None
    ) -> None:
        self._consumer = consumer
        self._turn = turn
        self._item = item
        self._run = run

    def run(self) -> None:
        """On this thread."""
        report = self._turn(self._item)
        self._consumer.mailbox.put(report if self._run is None else self._run(report))

    async def run_async(self) -> None:
        """An `async def` handler on this loop; a `def` on another thread, as it might publish."""
        if self._run is not None:
            report = await self._turn(self._item)
        else:
            loop = asyncio.get_running_loop()
            report = await loop.run_in_executor(None, self._turn, self._item)
        self._consumer.mailbox.put(report)


class _NotingRunner(Runner):
    """Notes every delivery that it runs."""

    def __init__(self, handler: Handler, noted: list[Delivery], **options: Any) -> None:
        super().__init__(handler, **options)
        self._noted = noted

    def run(self, delivery: Delivery) -> Execution | None:
        self._noted.append(delivery)
        return super().run(delivery)

    async def run_async(self, delivery: Delivery) -> Execution | None:
        self._noted.append(delivery)
        return await super().run_async(delivery)

    def run_batch(self, deliveries: Any) -> list[Execution | None]:
        self._noted += deliveries
        return super().run_batch(deliveries)

    async def run_batch_async(self, deliveries: Any) -> list[Execution | None]:
        self._noted += deliveries
        return await super().run_batch_async(deliveries)


class _Recorded:
    """A transport whose publishers note what goes to topics."""

    def __init__(self, transport: MemoryTransport, published: list[Message]) -> None:
        self._transport = transport
        self._published = published
        self.capabilities = transport.capabilities
        self.browse = transport.browse
        self.discard = transport.discard
        self.close = transport.close

    def ensure(self, topology: Topology) -> None:
        self._transport.ensure(topology)

    def publisher(self) -> Publisher:
        return _RecordedPublisher(self._transport.publisher(), self._published)

    def subscribe(self, subscribe: Subscribe, on_revoke: OnRevoke) -> Subscription:
        return self._transport.subscribe(subscribe, on_revoke)


class _RecordedPublisher:
    def __init__(self, publisher: Publisher, published: list[Message]) -> None:
        self._publisher = publisher
        self._published = published
        self.close = publisher.close

    def submit(self, message: Message, to: Destination, **options: Any) -> Confirmation:
        confirmation = self._publisher.submit(message, to, **options)
        if isinstance(to, Topic) and confirmation.done() and not confirmation.unseen:
            self._published.append(message)
        return confirmation
