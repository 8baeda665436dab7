"""A started app: its transport, its publisher, its consumers and their threads.

`connect` is enough to publish; `start` adds the consumers. Everything an app does to the world
outside comes in through Environment, which tests swap for virtual time and a broker in memory.
"""

from __future__ import annotations

import logging
import os
import random
import socket
import threading
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from reliable_mq.adapters.base import Subscribe
from reliable_mq.batches import Batcher
from reliable_mq.clock import SYSTEM_CLOCK
from reliable_mq.consumer import Consumer
from reliable_mq.errors import ConfigurationError
from reliable_mq.execution import Runner
from reliable_mq.fitting import check_against, credit_of, keyed_of, lane_of, order_of
from reliable_mq.handlers import compile_handler
from reliable_mq.message import Message
from reliable_mq.pipeline import Pipeline
from reliable_mq.settings import open_transport
from reliable_mq.turns import Turns
from reliable_mq.workers import LoopThread, LoopWorkers, ThreadWorkers

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping, Sequence

    from reliable_mq.adapters.base import Publisher, TopicSpec, Topology, Transport
    from reliable_mq.clock import Clock
    from reliable_mq.events import Observers
    from reliable_mq.handlers import Handler
    from reliable_mq.policy import Limits
    from reliable_mq.routes import ConsumerOptions, Declared
    from reliable_mq.watch import ConsumerHealth
    from reliable_mq.workers import Workers

__all__ = ["Environment", "Runtime", "Stopped"]

log = logging.getLogger("reliable_mq.app")

#: Seconds that a thread gets beyond its budget, to leave its group and end.
LAST_SECOND = 1.0


class Stopped(Struct, frozen=True):
    """What a stop left undone.

    unconfirmed: messages without a Receipt, and failures that nobody looked at.
    abandoned: messages whose handlers still ran; they come again.
    stuck: consumers whose thread did not end in time, and why nothing more is known.
    """

    unconfirmed: tuple[Message, ...] = ()
    abandoned: tuple[Message, ...] = ()
    stuck: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.unconfirmed or self.abandoned or self.stuck)


class Environment:
    """Time, chance, threads and brokers: what tests replace."""

    clock: Clock = SYSTEM_CLOCK
    #: Consumers have owner threads; False: somebody steps them by hand.
    threads = True
    runner = Runner

    def __init__(self) -> None:
        self.host = socket.gethostname()

    def pause(self, news: threading.Event, seconds: float) -> None:
        """Wait until there is news, or so long."""
        news.wait(seconds)

    def draw(self) -> float:
        """A number from 0 to 1 that nobody can foresee."""
        return random.random()  # noqa: S311 - it spreads retries, it keeps no secret

    def open(self, url: str) -> Transport:
        """The transport of this URL."""
        return open_transport(url, clock=self.clock)

    def workers(
        self, consumer: Consumer, handler: Handler, count: int, turn: Any, loop: Any
    ) -> Workers:
        """Where the handlers of this consumer run."""
        if handler.is_async:
            return LoopWorkers(loop, count, turn, consumer.waiting, consumer.mailbox)
        name = f"reliable-mq-{consumer.name}"
        return ThreadWorkers(name, count, turn, consumer.waiting, consumer.mailbox)


class Runtime:
    """One app, connected. Made by its app, used from any thread, gone after `stop`."""

    def __init__(
        self,
        transport: Transport,
        topology: Topology,
        environment: Environment,
        *,
        limits: Limits,
        publish_timeout: float,
        observers: Observers,
    ) -> None:
        self.transport = transport
        self.topology = topology
        self.consumers: list[Consumer] = []
        self._environment = environment
        self._limits = limits
        self._publish_timeout = publish_timeout
        self._observers = observers
        self._pid = os.getpid()
        self._threads: list[threading.Thread] = []
        self._loop: LoopThread | None = None
        transport.ensure(topology)
        self.publisher: Publisher = transport.publisher()

    def declare(self, topology: Topology) -> None:
        """Make or compare what has been declared since. Raises: ConfigurationError."""
        if topology != self.topology:
            self.transport.ensure(topology)
            self.topology = topology

    def check_pid(self) -> None:
        """Raise in the child of a fork: threads and connections did not come along."""
        if os.getpid() != self._pid:
            msg = "this app was connected before a fork; make or start it in the child instead"
            raise ConfigurationError(msg)

    # ---- consumers

    def start(
        self,
        declared: Sequence[Declared],
        *,
        around: Sequence[Any],
        overrides: Mapping[Any, Any],
        loop: asyncio.AbstractEventLoop | None,
    ) -> None:
        """Join the groups and start the threads; `loop` runs `async def` handlers.

        Raises: ConfigurationError when a consumer asks for what the broker cannot do.
        """
        try:
            for one in declared:
                handler = compile_handler(
                    one.function,
                    codec=one.options.codec,
                    content_type=one.options.content_type,
                    batch=one.options.batch is not None,
                    around=around,
                    overrides=overrides,
                )
                self._open(handler, one.options, loop)
        except BaseException:
            for consumer in self.consumers:
                consumer.close()
            self._stop_loop()
            raise
        if not self._environment.threads:
            return
        for consumer in self.consumers:
            thread = threading.Thread(
                target=consumer.own, name=f"reliable-mq-{consumer.name}-owner", daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def stop(self, timeout: float) -> list[Message]:
        """Drain the consumers within `timeout` seconds; returns what was abandoned."""
        deadline = self._environment.clock.monotonic() + timeout
        for consumer in self.consumers:
            consumer.stop_soon(deadline)
        # A second over, for all of them: an owner ends by the deadline and then leaves its group.
        for thread in self._threads:
            thread.join(max(0.0, deadline + LAST_SECOND - self._environment.clock.monotonic()))
        if not self._environment.threads:
            for consumer in self.consumers:
                consumer.drain(deadline)
                consumer.close()
        self._stop_loop()
        return [one.message for consumer in self.consumers for one in consumer.left_running()]

    def stuck(self) -> tuple[str, ...]:
        """Consumers whose owner thread goes on although it was told to stop."""
        alive = [thread.is_alive() for thread in self._threads]
        return tuple(
            consumer.name for consumer, on in zip(self.consumers, alive, strict=False) if on
        )

    def health(self) -> tuple[ConsumerHealth, ...]:
        """How the consumers are doing."""
        return tuple(consumer.health() for consumer in self.consumers)

    def find(self, topic: str, group: str) -> list[Consumer]:
        """This app's consumers of a topic in a group."""
        return [
            consumer
            for consumer in self.consumers
            if consumer.subscribe.group == group and topic in consumer.subscribe.topics
        ]

    def _open(
        self, handler: Handler, options: ConsumerOptions, loop: asyncio.AbstractEventLoop | None
    ) -> None:
        capabilities = self.transport.capabilities
        check_against(options, handler.name, capabilities, self._topics(), self._limits)
        environment = self._environment
        runner = self._environment.runner(
            handler,
            group=options.group,
            timeout=options.timeout,
            max_body=capabilities.max_body,
            limits=self._limits,
            clock=environment.clock,
            observers=self._observers,
        )
        pipeline = Pipeline(
            handler=handler.name,
            group=options.group,
            policy=options.retry,
            on_failure=options.on_failure,
            keyed=keyed_of(options.order_by),
            max_hold=capabilities.max_hold,
            stories=self._limits.stories,
            clock=environment.clock,
            draw=environment.draw,
            host=environment.host,
            observers=self._observers,
        )
        credit = credit_of(options, self._limits)
        consumer = Consumer(
            f"{options.group}-{handler.name}",
            Subscribe(
                topics=options.topics,
                group=options.group,
                order=order_of(options.order_by),
                start=options.start_from,
                credit=credit,
            ),
            pipeline,
            lane_of=lane_of(options.order_by),
            credit=credit,
            credit_bytes=self._limits.credit_bytes,
            timeout=None if handler.is_async else options.timeout,
            dead_letter_limit=options.dead_letter_limit,
            max_stuck=options.max_stuck,
            transport=self.transport,
            publisher=lambda: self.publisher,
            publish_timeout=self._publish_timeout,
            clock=environment.clock,
            draw=environment.draw,
            observers=self._observers,
            pause=environment.pause,
        )
        if handler.is_async and loop is None and environment.threads:
            loop = self._own_loop()
        turns = Turns(
            consumer.gate,
            consumer.waiting,
            consumer.mailbox.put,
            runner,
            batch=options.batch,
            timed=options.timeout is not None,
            clock=environment.clock,
        )
        workers = environment.workers(consumer, handler, options.concurrency, turns.turn, loop)
        if options.batch is not None:
            workers = Batcher(workers, options.batch, environment.clock, consumer.call_at)
        self.consumers.append(consumer)  # first: what opens halfway has to be closed, too
        consumer.open(workers)

    def _topics(self) -> dict[str, TopicSpec]:
        return {topic.name: topic for topic in self.topology.topics}

    def _own_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = LoopThread()
        return self._loop.loop

    def _stop_loop(self) -> None:
        if self._loop is not None:
            self._loop.stop(LAST_SECOND)
            self._loop = None
