"""ReliableMQ: what a user holds. It declares, publishes, starts and stops, and is asked how it is.

Constructing and decorating open no socket, thread or file and read no environment; the first
publish or `start` does.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import threading
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Literal

from msgspec import Struct

from reliable_mq.adapters.base import DeadLetterStore, Topology, Transport
from reliable_mq.deadletter import DeadLetters
from reliable_mq.errors import ConfigurationError, ReliableMQError
from reliable_mq.events import Observers
from reliable_mq.fitting import topology_of
from reliable_mq.operate import Halted, ask, no_consumer
from reliable_mq.outcome import seconds
from reliable_mq.policy import Limits
from reliable_mq.producer import Producer
from reliable_mq.publishing import Publishing
from reliable_mq.refusals import refuse_all, unknown
from reliable_mq.routes import Routes
from reliable_mq.runtime import Environment, Runtime, Stopped
from reliable_mq.settings import DEFAULT_PUBLISH_TIMEOUT, read_settings
from reliable_mq.topics import Topics
from reliable_mq.watch import ConsumerHealth

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from datetime import timedelta
    from types import TracebackType

    from typing_extensions import Self

    from reliable_mq.adapters.base import Publisher, TopicSpec
    from reliable_mq.context import Context
    from reliable_mq.events import Event
    from reliable_mq.message import Named

__all__ = ["Health", "ReliableMQ"]

log = logging.getLogger("reliable_mq.app")

#: Seconds that the end of the process waits for confirms when nobody called `stop`.
AT_EXIT = 5.0


class Health(Struct, frozen=True, kw_only=True):
    """How an app is doing. No I/O was done to find out.

    live: restart the process when this is false. ready: send it work only while this is true.
    unconfirmed: messages on their way. unseen: publishes that failed and nobody looked at.
    """

    live: bool
    ready: bool
    unconfirmed: int = 0
    unseen: int = 0
    consumers: tuple[ConsumerHealth, ...] = ()


class ReliableMQ(Routes, Publishing, Topics):
    """Publishes to and consumes from one broker. Any thread, unless a method says otherwise.

    Args:
        url: `sqlite:///file.db`, `memory://`, or a Transport; None: RELIABLE_MQ_URL, read at first
            use.
        name: Tells apps of one process apart: with "legacy" the variable is RELIABLE_MQ_LEGACY_URL.
        topology: "create" makes what is declared and missing and never alters anything; "check"
            only compares.
        publish_timeout: Seconds a publish waits for its confirm.
        limits: How far every buffer may fill.

    Raises: ConfigurationError for an option that cannot be, or is not built yet.
    """

    def __init__(
        self,
        url: str | Transport | None = None,
        *,
        name: str = "",
        store: None = None,
        inbox: None = None,
        outbox: None = None,
        spool: None = None,
        topology: Literal["create", "check"] | None = None,
        publish_timeout: float | timedelta | None = None,
        audit: bool = False,
        native: Mapping[str, Any] | None = None,
        limits: Limits | None = None,
        **others: Any,
    ) -> None:
        super().__init__()
        for option in others:
            raise unknown(ReliableMQ.__init__, "ReliableMQ", option)
        later = {"store": store, "inbox": inbox, "outbox": outbox, "spool": spool}
        refuse_all("ReliableMQ", **later, audit=audit or None, native=native or None)
        self.name = name
        self._url = url
        self._topology = topology
        self._publish_timeout = (
            None if publish_timeout is None else seconds("publish_timeout", publish_timeout)
        )
        self._limits = limits or Limits()
        self._topics: dict[str, TopicSpec] = {}
        self._around: list[Any] = []
        self._overrides: dict[Any, Any] = {}
        self._observers = Observers()
        self._environment = Environment()
        self._lock = threading.RLock()
        self._stopping = threading.RLock()
        self._runtime: Runtime | None = None
        self._producer = self._make_producer()

    def _make_producer(self) -> Producer:
        return Producer(
            self._connect_producer,
            publish_timeout=self._publish_timeout or DEFAULT_PUBLISH_TIMEOUT,
            limits=self._limits,
            clock=self._environment.clock,
            observers=self._observers,
        )

    def _connect_producer(self) -> tuple[Publisher, int]:
        runtime = self._connected()
        return runtime.publisher, runtime.transport.capabilities.max_body

    # ---- declaring

    def _topics_changed(self) -> None:
        if self._runtime is not None:
            self._declare(self._connected())

    def _may_declare(self) -> None:
        if self._runtime is not None and self._runtime.consumers:
            msg = "this app is started already: declare its consumers before start()"
            raise ConfigurationError(msg)

    def include(self, routes: Routes) -> None:
        """Add the consumers of a module that has no app."""
        self.declared += routes.declared

    def observe(self, observer: Callable[[Event], object]) -> Callable[[Event], object]:
        """Let `observer` hear every event; what it raises is logged and changes nothing."""
        self._observers.add(observer)
        return observer

    def around(self, manager: Callable[[Context], Any]) -> Any:
        """Run every handler inside `manager(context)`; what it raises is the handler's failure."""
        self._around.append(manager)
        return manager

    # ---- life

    def start(self, consume: bool = True) -> None:  # noqa: FBT001, FBT002 - the design's signature
        """Connect, and start the consumers; `async def` handlers run on a loop of ours.

        Raises: ConfigurationError, TransportError; then nothing is left running.
        """
        self._start(consume=consume, loop=None)

    def stop(self, timeout: float | timedelta = 25.0) -> Stopped:
        """Drain within `timeout` seconds, then close; what runs then is abandoned and comes again.

        Idempotent; while another stop goes on it waits for that, `timeout` seconds at most. It
        touches no signal handler.
        """
        budget = seconds("timeout", timeout)
        _connected_apps.discard(self)
        if not self._stopping.acquire(timeout=budget):
            log.warning("another stop of this app goes on; this one has waited for %.1f s", budget)
            return Stopped(stuck=("another stop of this app goes on",))
        try:
            runtime = self._runtime
            if runtime is None:
                return Stopped()
            stopped = self._stop(runtime, budget)
        finally:
            self._stopping.release()
        if stopped:
            log.error(
                "stopped with %d messages unconfirmed %s and %d handlers abandoned %s; stuck: %s",
                len(stopped.unconfirmed),
                [one.id for one in stopped.unconfirmed[:10]],
                len(stopped.abandoned),
                [one.id for one in stopped.abandoned[:10]],
                ", ".join(stopped.stuck) or "nothing",
            )
        return stopped

    def _stop(self, runtime: Runtime, timeout: float) -> Stopped:
        clock = self._environment.clock
        deadline = clock.monotonic() + timeout
        abandoned = runtime.stop(timeout)
        left = max(1.0, deadline - clock.monotonic())
        unconfirmed = self._producer.close(runtime.publisher, left)
        # Only now: handlers that publish while they drain still find the connection.
        self._runtime = None
        self._producer.disconnect()
        try:
            runtime.transport.close()
        except ReliableMQError:
            log.warning("closing the transport failed", exc_info=True)
        return Stopped(tuple(unconfirmed), tuple(abandoned), runtime.stuck())

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, lambda: self._start(consume=True, loop=loop))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self.stop)

    @asynccontextmanager
    async def publishing(self) -> AsyncIterator[ReliableMQ]:
        """For an app whose consumers run elsewhere: connected inside, closed behind."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, lambda: self._start(consume=False, loop=loop))
        try:
            yield self
        finally:
            await loop.run_in_executor(None, self.stop)

    def run(self, *, drain: float | timedelta = 25.0) -> None:
        """Be a process of its own until SIGTERM or SIGINT; see `reliable_mq.run`."""
        from reliable_mq.process import run

        run(self, drain=drain)

    # ---- asking and operating

    def health(self) -> Health:
        """How it is doing; no I/O, safe in a probe. Before `start` it is live and not ready."""
        runtime = self._runtime
        if runtime is None:
            return Health(live=True, ready=False)
        consumers = runtime.health()
        return Health(
            live=all(one.live for one in consumers),
            ready=all(one.ready for one in consumers),
            unconfirmed=self._producer.unconfirmed(),
            unseen=self._producer.unseen(),
            consumers=consumers,
        )

    def dead_letters(self, topic: str | Named, group: str) -> DeadLetters:
        """The dead letters of a group: iterate, `.replay(...)`, `.discard(ids)`.

        Raises: ConfigurationError when this broker cannot show them.
        """
        transport = self._connected().transport
        if not isinstance(transport, DeadLetterStore):
            msg = f"{transport.capabilities.name} cannot show dead letters"
            raise ConfigurationError(msg)
        return DeadLetters(
            transport,
            self._producer.send_and_wait,
            str(topic),
            group,
            new_id=self._producer.new_id,
            sleep=time.sleep,
        )

    def halted(self, topic: str | Named, group: str) -> Halted:
        """The keys that on_failure="block" halted: iterate, `.retry(key)`, `.skip(key)`."""
        return Halted(self._consumers(str(topic), group), str(topic))

    def resume(self, topic: str | Named, group: str) -> None:
        """Set a paused consumer going again, as after `dead_letter_limit`."""
        for consumer in self._consumers(str(topic), group):
            ask(consumer, lambda settler, _: settler.unpause())

    def _consumers(self, topic: str, group: str) -> Any:
        found = self._connected().find(topic, group)
        if not found:
            raise no_consumer(topic, group)
        return found

    # ---- connecting

    def _connected(self) -> Runtime:
        """The runtime, made at first use."""
        runtime = self._runtime
        if runtime is None:
            with self._lock:
                if self._runtime is None:
                    self._runtime = self._connect()
                runtime = self._runtime
        runtime.check_pid()
        return runtime

    def _connect(self) -> Runtime:
        if isinstance(self._url, (str, type(None))):
            settings = read_settings(
                self._url, self._topology, self._publish_timeout, name=self.name
            )
            transport = self._environment.open(settings.url)
            mode, timeout = settings.topology, settings.publish_timeout
        else:
            transport = self._url
            mode = self._topology or "create"
            timeout = self._publish_timeout or DEFAULT_PUBLISH_TIMEOUT
        self._producer.publish_timeout = timeout
        _connected_apps.add(self)
        topology: Topology = topology_of(self._topics, self.declared, mode)
        return Runtime(
            transport,
            topology,
            self._environment,
            limits=self._limits,
            publish_timeout=timeout,
            observers=self._observers,
        )

    def _declare(self, runtime: Runtime) -> None:
        """What was declared after the first publish connected."""
        runtime.declare(topology_of(self._topics, self.declared, runtime.topology.mode))

    def _start(self, *, consume: bool, loop: asyncio.AbstractEventLoop | None) -> None:
        with self._lock:
            runtime = self._connected()
            if runtime.consumers:
                msg = "this app is started already; stop it first"
                raise ConfigurationError(msg)
            try:
                if consume:
                    self._declare(runtime)
                    runtime.start(
                        self.declared, around=self._around, overrides=self._overrides, loop=loop
                    )
            except BaseException:
                self.stop(timeout=0.0)
                raise


#: Apps that nobody has stopped. Held, so that one which is dropped still confirms what it sent.
_connected_apps: set[ReliableMQ] = set()


@atexit.register
def _stop_forgotten() -> None:
    """Nobody may forget `stop`: at the end of the process what is on its way gets its chance."""
    for app in list(_connected_apps):
        app.stop(timeout=AT_EXIT)


if hasattr(os, "register_at_fork"):  # pragma: no branch - all but Windows
    # The child of a fork has neither the threads nor the connections: there is nothing to stop.
    os.register_at_fork(after_in_child=_connected_apps.clear)
