"""One process of a simulation: an app on the broker in memory, its threads stepped by hand."""

from __future__ import annotations

import contextvars
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from reliable_mq import Limits, ReliableMQ
from reliable_mq.adapters.base import Polled
from reliable_mq.adapters.memory import CAPABILITIES, MemoryBroker, MemoryTransport
from reliable_mq.errors import PublishRejected, TooLarge
from reliable_mq.events import Retried, SettleFailed
from reliable_mq.execution import Runner
from reliable_mq.message import Receipt
from reliable_mq.runtime import Environment

if TYPE_CHECKING:
    from reliable_mq.testing.clock import FakeClock
    from tests.simulation.ledger import Ledger
    from tests.simulation.world import Simulation

#: Seconds that a member may go without a poll.
LEASE = 30.0
#: Deliveries that a consumer has in hand at most.
CREDIT = 12


class Line:
    """A member's subscription. Where a poll would wait, the others go on."""

    def __init__(self, member: Member, inner: Any) -> None:
        self.member, self.inner = member, inner
        self.ack, self.nack = inner.ack, inner.nack
        self.wake, self.close = inner.wake, inner.close

    def poll(self, limit: int, timeout: float) -> Polled:
        """See Subscription.poll."""
        polled = self.inner.poll(limit, 0.0)
        if timeout > 0 and not (polled.deliveries or polled.lost or polled.settled):
            self.member.pause(None, timeout)
            polled = self.inner.poll(limit, 0.0)
        if "ack-last" in self.member.world.without:
            self.inner.ack(polled.deliveries)
        return polled


class Outlet:
    """A member's publisher. Where its close would wait, the others go on."""

    def __init__(self, member: Member, inner: Any) -> None:
        self.member, self.inner, self.submit = member, inner, inner.submit

    def close(self, timeout: float) -> Any:
        """See Publisher.close."""
        end = self.member.clock.monotonic() + timeout
        while self.inner.pending and self.member.clock.monotonic() < end:
            self.member.pause(None, 0.5)
        return self.inner.close(0.0)


class Client(MemoryTransport):
    """A member's transport."""

    def __init__(self, member: Member) -> None:
        super().__init__(member.world.broker)
        self.member = member

    def publisher(self) -> Any:
        """See Transport.publisher."""
        return Outlet(self.member, super().publisher())

    def subscribe(self, subscribe: Any, on_revoke: Any) -> Any:
        """See Transport.subscribe."""
        return Line(self.member, super().subscribe(subscribe, on_revoke))


class Workers:
    """The workers of one consumer. Each of their steps is taken when the simulation says so."""

    def __init__(self, member: Member, consumer: Any, turn: Any, count: int) -> None:
        self.member, self.consumer, self.turn, self.count = member, consumer, turn, count
        self.ready = consumer.waiting
        self.begun: list[tuple[Any, Any]] = []
        self.stopped = False
        self.hand_out = self.ready.append

    def start(self) -> None:
        """Nothing to start."""

    def stop(self) -> None:
        """Begin nothing further; what has begun goes on, as threads do."""
        self.stopped = True

    def steps(self) -> int:
        """How many workers could take a step."""
        room = 0 if self.stopped else self.count - len(self.begun)
        return len(self.begun) + max(0, min(room, len(self.ready)))

    def step(self, which: int) -> None:
        """Let one worker begin, go on, or report."""
        if which >= len(self.begun):
            self._begin(self.ready.popleft())
            return
        context, turn = self.begun[which]
        if context is not None:
            try:
                context.run(turn.send, None)
            except StopIteration as stop:
                turn = stop.value
            else:
                return
        del self.begun[which]
        self.consumer.mailbox.put(turn)

    def _begin(self, item: Any) -> None:
        if "lost" in self.member.world.without:
            for lane in item if isinstance(item, list) else [item]:
                for delivery in lane.queue:
                    delivery.lease.lost = False
        context = contextvars.copy_context()
        if self.member.world.is_async:
            self.begun.append((context, self.turn(item)))
        else:  # it runs to its end at once, and the owner hears of it when it hears of it
            self.begun.append((None, context.run(self.turn, item)))

    def run_dry(self) -> bool:
        """Let all of them do what there is to do; whether there was anything."""
        worked = False
        while self.begun or (self.ready and not self.stopped):
            self.step(0)
            worked = True
        return worked

    def close(self) -> None:
        """Forget what was left in the middle."""
        for context, turn in self.begun:
            if context is not None:
                turn.close()


class WatchedRunner(Runner):
    """Tells the ledger which deliveries are run."""

    member: Member

    def run(self, delivery: Any) -> Any:
        """See Runner.run."""
        with self.member.watch(self, [delivery]):
            return super().run(delivery)

    async def run_async(self, delivery: Any) -> Any:
        """See Runner.run_async."""
        with self.member.watch(self, [delivery]):
            return await super().run_async(delivery)

    def run_batch(self, deliveries: Any) -> Any:
        """See Runner.run_batch."""
        with self.member.watch(self, deliveries):
            return super().run_batch(deliveries)

    async def run_batch_async(self, deliveries: Any) -> Any:
        """See Runner.run_batch_async."""
        with self.member.watch(self, deliveries):
            return await super().run_batch_async(deliveries)


class Member(Environment):
    """One process: an app with its consumers, stepped by hand."""

    threads = False

    def __init__(self, world: Simulation, name: str) -> None:
        self.world, self.name, self.host = world, name, name
        self.clock = world.clock
        self.all: list[Workers] = []
        self.stalled = False
        limits = Limits(credit=max(CREDIT, world.size), window=50)
        self.app = ReliableMQ(Client(self), limits=limits, publish_timeout=5.0)
        self.app._environment = self
        self.app._producer = self.app._make_producer()
        if world.observed:
            self.app.observe(self._hear)
        world.declare(self)

    def start(self) -> Member:
        """Join the groups."""
        self.app.start()
        self.runtime = self.app._connected()
        self.consumers = self.runtime.consumers
        return self

    # ---- what the app asks of its environment

    def pause(self, news: Any, seconds: float) -> None:
        """The owner waits: workers, and everybody else, go on."""
        self.world.meanwhile(self, seconds)

    def draw(self) -> float:
        """What the seed decides."""
        return self.world.dice.random()

    def runner(self, handler: Any, **options: Any) -> Runner:  # type: ignore[override]
        """A runner that is watched."""
        runner = WatchedRunner(handler, **options)
        runner.member = self
        return runner

    def workers(self, consumer: Any, handler: Any, count: int, turn: Any, loop: Any) -> Any:
        """Workers that are stepped by hand; a negative control gets its hands on the consumer."""
        self.all.append(Workers(self, consumer, turn, count))
        for part, broken in self.world.broken.items():
            owner = consumer._settler if part == "_pipeline" else consumer
            getattr(owner, part).__class__ = broken
        return self.all[-1]

    # ---- what happens to it

    def watch(self, runner: Any, deliveries: Any) -> Any:
        """For as long as these are run."""
        return self.world.ledger.running(self, runner._group, deliveries)

    def step(self) -> None:
        """One round of each of its owners."""
        for consumer in self.consumers:
            consumer._round(0.0)
            if consumer._in_hand.count > consumer._in_hand.credit:
                self.world.ledger.breaks(f"{self.name} has {consumer._in_hand.count} in hand")
            held = [one for lane in consumer._lanes for one in (*lane.queue, *lane.again)]
            told = not self.world.broker.faults.disconnected
            if told and any(one.lease.lost for one in held):
                self.world.ledger.breaks(f"{self.name} has lost ones in hand")

    def crash(self) -> None:
        """Its process is killed: nothing of it is ever heard again."""
        for consumer in self.consumers:
            self.world.broker.faults.drop(consumer._subscription.inner)
        self.world.broker.forget(self.runtime.publisher.inner)
        self.world.graveyard.append(self)

    def forget(self) -> None:
        """The simulation is over, whatever was left in the middle."""
        self.app._runtime = None
        for workers in self.all:
            workers.close()

    def idle(self) -> bool:
        """Whether nothing is left in hand, and nothing is remembered for nothing."""
        return all(
            consumer.idle() and not (len(consumer._lanes) or consumer._in_hand.count)
            for consumer in self.consumers
        )

    def _hear(self, event: Any) -> None:
        rejected = isinstance(event, Retried) and isinstance(event.error, PublishRejected)
        if rejected or isinstance(event, SettleFailed):
            self.world.ledger.set_back.add(event.message.id)


class Broker(MemoryBroker):
    """Tells the ledger what is stored, and refuses what the ledger finds too large."""

    def __init__(self, clock: FakeClock, ledger: Ledger, max_hold: float | None) -> None:
        capabilities = replace(CAPABILITIES, lease_timeout=LEASE, max_hold=max_hold)
        super().__init__(clock, capabilities=capabilities)
        self._ledger = ledger

    def store(self, message: Any, to: Any, not_before: Any) -> Any:
        """See MemoryBroker.store."""
        if self._ledger.refuses(message, to):
            return TooLarge("too large", message)
        outcome = super().store(message, to, not_before)
        if isinstance(outcome, Receipt):
            self._ledger.stored(message, to)
        return outcome

    def forget(self, publisher: Any) -> None:
        """Its process is dead."""
        self._pending.pop(publisher, None)
