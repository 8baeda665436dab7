"""One way to a proxy that heals: a channel, the telemetry stream and a heartbeat on it.

    open ──> telemetry: settings out, settings in ──> answered ──> receive may begin
      ▲             └─ ends, for whatever reason: opened again, settings first, for ever
      └─ heartbeats fail, or nothing connects: the channel is thrown away, the next address tried

The proxy keeps nothing of us over its restart: who receives without having sent its settings on
this connection is refused, so `answered` is what receiving waits for. gRPC's own pings find no dead
connection here (the proxy forbids frequent ones); heartbeats do.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

import grpc
from grpc import aio

from reliable_mq.adapters.rocketmq.answers import text_of
from reliable_mq.adapters.rocketmq.wire import Code, calls
from reliable_mq.errors import ConnectionFailed

if TYPE_CHECKING:
    from collections.abc import Callable

    from reliable_mq.adapters.rocketmq.config import Address
    from reliable_mq.adapters.rocketmq.identity import Identity
    from reliable_mq.adapters.rocketmq.io import Io

__all__ = ["CallFailed", "Connection"]

log = logging.getLogger("reliable_mq.rocketmq")

#: Seconds between two heartbeats, and what one may take.
HEARTBEAT: Final = 5.0
HEARTBEAT_WITHIN: Final = 3.0
#: Heartbeats that fail, one after the other, before the channel is thrown away.
DEAD_AFTER: Final = 2
#: Seconds between two attempts: at first, and at most.
PAUSE, LONGEST_PAUSE = 0.1, 1.0
#: Seconds that the settings may stay without an answer.
SETTINGS_WITHIN: Final = 3.0
#: Bytes of one message that is received: the largest body, and what stands around it.
LARGEST: Final = 16 * 1024 * 1024

RECEIVE: Final = "ReceiveMessage"

OPTIONS: Final = (
    ("grpc.enable_retries", 0),  # ours keep the order of a message group
    ("grpc.use_local_subchannel_pool", 1),  # a new channel is a new connection
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),  # also what one attempt to connect may take
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.max_receive_message_length", LARGEST),
    ("grpc.max_send_message_length", LARGEST),
)


class CallFailed(ConnectionFailed):
    """A call without an answer. `sent`: the broker may have got it, and done it."""

    def __init__(self, text: str, *, sent: bool) -> None:
        super().__init__(text)
        self.sent = sent


class Connection:
    """To one place of the route, which may have several addresses. The loop's thread only.

    Args:
        settings: Writes what the proxy is told first.
        commanded: Gets every command of the proxy but its settings.
    """

    def __init__(
        self,
        io: Io,
        identity: Identity,
        addresses: tuple[Address, ...],
        settings: Callable[[], Any],
        commanded: Callable[[Any], object] = lambda _: None,
    ) -> None:
        self._io = io
        self._identity = identity
        self._addresses = addresses
        self._settings = settings
        self._commanded = commanded
        self._turn = 0
        self._failures = 0
        self._closed = False
        self._resend = asyncio.Event()
        #: Set while the proxy has answered our settings on the stream that is open.
        self.answered = asyncio.Event()
        #: What it answered; None until it did for the first time.
        self.theirs: Any = None
        #: What went wrong last, with the address; "" while it is answered.
        self.reason = f"{self.place} is not connected yet"
        self._channel: Any = None
        self._calls: dict[str, Any] = {}
        self._open()
        self._tasks = [
            io.start(self._talk(), f"telemetry of {self.place}"),
            io.start(self._beat(), f"heartbeat of {self.place}"),
        ]

    @property
    def place(self) -> str:
        """The address in use."""
        host, port = self._addresses[self._turn % len(self._addresses)]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def is_up(self) -> bool:
        """Whether a request would go out now."""
        return bool(self._channel.get_state() == grpc.ChannelConnectivity.READY)

    async def up(self, timeout: float) -> bool:
        """Wait until a request would go out, at most so long. Whether it would."""
        end = asyncio.get_running_loop().time() + timeout
        while not self._closed:
            state = self._channel.get_state(try_to_connect=True)
            if state == grpc.ChannelConnectivity.READY:
                return True
            left = end - asyncio.get_running_loop().time()
            if left <= 0:
                return False
            try:
                # Not for long at a time: the channel may be another one afterwards.
                await asyncio.wait_for(
                    self._channel.wait_for_state_change(state), min(left, LONGEST_PAUSE)
                )
            except (asyncio.TimeoutError, aio.UsageError):
                continue
        return False

    async def ask(self, name: str, request: Any, timeout: float) -> Any:
        """One request, one answer, whatever its status. Raises CallFailed."""
        try:
            return await self._calls[name](
                request, timeout=timeout, metadata=self._identity.metadata()
            )
        except aio.AioRpcError as error:
            raise self._failed(name, error) from error
        except (aio.UsageError, asyncio.InvalidStateError) as error:  # closed under its feet
            text = f"{self.place}: the connection was closed"
            raise CallFailed(text, sent=True) from error

    async def receive(self, request: Any, timeout: float) -> tuple[Any, list[Any]]:
        """The status and the messages of one receive. Raises CallFailed.

        What had come before it failed is returned, with the status None.
        """
        messages: list[Any] = []
        status = None
        try:
            call = self._calls[RECEIVE](
                request, timeout=timeout, metadata=self._identity.metadata()
            )
            async for answer in call:
                content = answer.WhichOneof("content")
                if content == "message":
                    messages.append(answer.message)
                elif content == "status":
                    status = answer.status
        except aio.AioRpcError as error:
            if not messages:
                raise self._failed(RECEIVE, error) from error
        except (aio.UsageError, asyncio.InvalidStateError) as error:
            if not messages:
                text = f"{self.place}: the connection was closed"
                raise CallFailed(text, sent=True) from error
        return status, messages

    def tell_settings(self) -> None:
        """Send the settings again: there is more in them now."""
        self._resend.set()

    async def close(self) -> None:
        """End the stream, the heartbeat and the channel. Idempotent."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._channel.close()

    # -- the channel ---------------------------------------------------------------------------

    def _open(self) -> None:
        options: list[tuple[str, Any]] = [*OPTIONS]
        config = self._identity.config
        if config.tls is None:
            self._channel = aio.insecure_channel(self.place, options)
        else:
            if config.server_hostname:
                options.append(("grpc.ssl_target_name_override", config.server_hostname))
            self._channel = aio.secure_channel(self.place, config.tls, options)
        for name, call in calls().items():
            up = "stream" if call.streams_up else "unary"
            down = "stream" if call.streams_down else "unary"
            make = getattr(self._channel, f"{up}_{down}")
            self._calls[name] = make(
                call.path,
                request_serializer=call.request.SerializeToString,
                response_deserializer=call.response.FromString,
            )

    async def _renew(self, why: str) -> None:
        """Throw the channel away, and with it all that waits on it; the next address."""
        log.info("%s: %s; a new connection is made", self.place, why)
        old = self._channel
        self._failures = 0
        self._turn += 1
        self._open()
        self.answered.clear()
        self._io.start(old.close(), "closing a channel")

    def _failed(self, name: str, error: aio.AioRpcError) -> CallFailed:
        code = error.code()
        words = " ".join((error.details() or "").split())[:160]
        # A connection that was refused has carried nothing; of all others nobody knows.
        refused = code == grpc.StatusCode.UNAVAILABLE and "refused" in words
        return CallFailed(f"{self.place}: {name}: {code.name} {words}".strip(), sent=not refused)

    # -- telemetry -----------------------------------------------------------------------------

    async def _talk(self) -> None:
        pause = PAUSE
        while not self._closed:
            channel = self._channel
            try:
                await self._talk_once()
            except aio.AioRpcError as error:
                self.reason = f"{self.place}: {error.code().name} {error.details()}"[:200]
            except (aio.UsageError, asyncio.InvalidStateError, asyncio.TimeoutError) as error:
                self.reason = f"{self.place}: {type(error).__name__}"
            pause = PAUSE if self.answered.is_set() else min(2 * pause, LONGEST_PAUSE)
            self.answered.clear()
            if len(self._addresses) > 1 and channel is self._channel and not self.is_up():
                await self._renew(self.reason)
            await asyncio.sleep(pause)

    async def _talk_once(self) -> None:
        stream = self._calls["Telemetry"](metadata=self._identity.metadata())
        listening = None
        try:
            await self._tell(stream)
            listening = asyncio.ensure_future(self._listen(stream))
            await _either(listening, self.answered, SETTINGS_WITHIN)
            while not listening.done() and self.answered.is_set():
                await _either(listening, self._resend)
                if self._resend.is_set() and not listening.done():
                    self._resend.clear()
                    await self._tell(stream)
            if listening.done():
                listening.result()  # raises what ended it
                self.reason = self.reason or f"{self.place}: the proxy ended the stream"
        finally:
            if listening is not None:
                listening.cancel()
                await asyncio.gather(listening, return_exceptions=True)
            stream.cancel()

    async def _tell(self, stream: Any) -> None:
        command = calls()["Telemetry"].request(settings=self._settings())
        await asyncio.wait_for(stream.write(command), SETTINGS_WITHIN)

    async def _listen(self, stream: Any) -> None:
        async for command in stream:
            if command.HasField("settings"):
                self.theirs = command.settings
                self.reason = ""
                self.answered.set()
            elif command.WhichOneof("command") is not None:
                self._commanded(command)
            elif command.status.code not in (0, Code.OK):
                self.reason = f"{self.place}: {text_of(command.status)}"
                return

    # -- the heartbeat -------------------------------------------------------------------------

    async def _beat(self) -> None:
        while not self._closed:
            await asyncio.sleep(HEARTBEAT)
            try:
                answer = await self.ask("Heartbeat", self._identity.heartbeat(), HEARTBEAT_WITHIN)
            except CallFailed as error:
                self._failures += 1
                self.reason = str(error)
            else:
                self._failures = 0
                if answer.status.code != Code.OK:
                    log.debug("%s: heartbeat: %s", self.place, text_of(answer.status))
            if self._failures >= DEAD_AFTER:
                await self._renew(self.reason)


async def _either(
    task: asyncio.Future[Any], event: asyncio.Event, timeout: float | None = None
) -> None:
    """Wait until one of them has come, or the time is over."""
    waiting = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait((task, waiting), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
