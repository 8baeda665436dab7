"""One connection that comes back: an I/O thread of its own, and pika's callbacks upon it.

Everything that touches pika runs on that thread; other threads only `call`. A connection that ends,
for whatever reason, is followed by another one, at the next node, until the link is stopped; each
has a number, its generation, so that what belongs to an old one is known as such.
"""

from __future__ import annotations

import logging
import random
import threading
from typing import TYPE_CHECKING, Any, Final, Protocol

import pika
import pika.exceptions
from pika.adapters.select_connection import IOLoop

if TYPE_CHECKING:
    from collections.abc import Callable

    from reliable_mq.adapters.rabbitmq.parameters import Parameters

__all__ = ["Link", "Peer", "cause_of"]

log = logging.getLogger("reliable_mq.rabbitmq")

#: Seconds before the next attempt to connect: doubled with each that fails.
FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 2.0
#: Seconds that a goodbye may take before the socket is closed without one.
GOODBYE: Final = 1.0
#: Seconds in which a socket is closed.
LAST_MOMENT: Final = 0.2


class Peer(Protocol):
    """What is on our side of a link. Called on its I/O thread."""

    def opened(self, connection: pika.SelectConnection) -> None:
        """A connection is there."""

    def closed(self, error: BaseException) -> None:
        """It is gone, or an attempt failed: `error` says why."""

    def shaken(self) -> None:
        """A callback failed, and timers that were due with it may be forgotten: set them again."""


class Link:
    """`call`, `start` and `stop` from any thread; all else on the I/O thread."""

    def __init__(self, parameters: Parameters, peer: Peer, name: str) -> None:
        self.parameters = parameters
        self.loop = IOLoop()
        self.connection: pika.SelectConnection | None = None
        self._peer = peer
        self._attempts = 0
        self._node = random.randrange(len(parameters.nodes))  # noqa: S311 - spreads the load
        self._stopping = False
        self._gate = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=f"reliable-mq-{name}", daemon=True)
        self._hung_up = False
        #: Whatever has a socket: the connection, or the attempt at one.
        self._pending: Any = None

    def start(self) -> None:
        """Start the thread and connect. Raises RuntimeError: no more threads."""
        self._thread.start()

    def call(self, function: Callable[[], object]) -> None:
        """Run it on the I/O thread soon; nothing happens once the link has stopped."""
        with self._gate:  # against the loop's close: its pipe may belong to somebody else by then
            if not self._stopping or self._thread is threading.current_thread():
                self.loop.add_callback_threadsafe(function)

    def later(self, seconds: float, function: Callable[[], object]) -> Any:
        """Run it in so many seconds, unless the link has stopped by then."""
        return self.loop.call_later(seconds, function)

    def on_its_thread(self) -> bool:
        """Whether this is the I/O thread."""
        return threading.current_thread() is self._thread

    def reconnect(self, why: str) -> None:
        """Give this connection up, and make another one."""
        connection = self.connection
        if connection is not None and connection.is_open:
            log.warning("%s: %s; connecting again", self.parameters, why)
            connection.close(320, why[:120])

    def stop(self, timeout: float) -> None:
        """Say goodbye, and end the thread, within so many seconds and a little. Idempotent."""
        if self._thread.ident is None:
            return
        with self._gate:
            if not self._stopping:
                self._stopping = True
                self.loop.add_callback_threadsafe(self._goodbye)
        if not self.on_its_thread():
            self._thread.join(timeout + GOODBYE + 2 * LAST_MOMENT)

    # -- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        self.loop.add_callback_threadsafe(self._connect)
        try:
            while True:
                try:
                    self.loop.start()
                except BaseException as error:  # a bug of ours must not end the thread: a hang
                    if self._hung_up:
                        return  # pika asks why its socket is gone
                    log.exception("%s: an I/O callback failed", self.parameters)
                    self._recover(error)
                else:
                    return
        finally:
            with self._gate:
                self._stopping = True
                self.loop.close()

    def _recover(self, error: BaseException) -> None:
        """A callback failed, of ours or of pika's: go on with another connection."""
        try:
            if self.connection is not None:
                self.reconnect("an I/O callback failed")
            else:
                # Where there is no thread left to look a name up, pika's attempt fails and nobody
                # is told; or the timer for the next attempt went with the callback.
                self._pending = None
                self._failed(None, error)
            self._peer.shaken()
        except Exception:  # pika would not even close it: leave it to its heartbeat
            log.exception("%s: a connection cannot be closed", self.parameters)
            self._pending = None
            self._failed(None, error)

    def _connect(self) -> None:
        if self._stopping or self._pending is not None:
            return
        nodes = self.parameters.nodes
        node = nodes[self._node % len(nodes)]
        self._node += 1
        try:
            self._pending = pika.SelectConnection(
                node,
                on_open_callback=self._opened,
                on_open_error_callback=self._failed,
                on_close_callback=self._closed,
                custom_ioloop=self.loop,
            )
        except Exception as error:  # noqa: BLE001 - no file descriptor left, a bad certificate
            self._pending = None
            self._failed(None, error)

    def _opened(self, connection: pika.SelectConnection) -> None:
        if connection is not self._pending:
            connection.close()  # of an attempt that counts as failed
            return
        self._attempts = 0
        self.connection = connection
        if self._stopping:
            self._goodbye()
            return
        self._peer.opened(connection)

    def _failed(self, connection: Any, error: BaseException) -> None:
        if connection is self._pending:
            self._attempts += 1
            self._gone(error)

    def _closed(self, connection: Any, error: BaseException) -> None:
        if connection is self._pending:
            self._gone(error)

    def _gone(self, error: BaseException) -> None:
        self.connection = self._pending = None
        try:
            self._peer.closed(error)
        except Exception:  # there is no connection whose end would bring us here again
            log.exception("%s: a callback failed", self.parameters)
        if self._stopping:
            self.loop.stop()
            return
        level = logging.WARNING if self._attempts in (0, 1) else logging.DEBUG
        log.log(level, "%s: no connection: %s", self.parameters, cause_of(error))
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(self._attempts, 10))
        self.loop.call_later(pause * random.uniform(0.5, 1.0), self._connect)  # noqa: S311 - as above

    def _goodbye(self) -> None:
        """End what has a socket, in whatever state it is; its end ends the loop."""
        pending = self._pending
        if pending is None or pending.is_closed:
            self.loop.stop()
        elif self.connection is None:
            self._hang_up()
        else:
            self.loop.call_later(GOODBYE, self._hang_up)
            if not pending.is_closing:
                pending.close()

    def _hang_up(self) -> None:
        """Close the socket without a goodbye: nobody answers it, or it is not time for one yet."""
        self._hung_up = True
        self.loop.call_later(LAST_MOMENT, self.loop.stop)
        # Private, as pika fails to close what has TCP and is not through with AMQP's handshake.
        transport = getattr(self._pending, "_transport", None)
        if transport is not None:
            transport.abort()
        elif self._pending is not None and not self._pending.is_closed:
            self._pending.close()


def cause_of(error: BaseException) -> str:
    """What went wrong, in words, without a secret: pika wraps it several times."""
    while True:
        inner = getattr(error, "exceptions", None) or ()
        if inner:
            error = inner[-1]
            continue
        arguments = [one for one in error.args if isinstance(one, BaseException)]
        if not arguments:
            break
        error = arguments[-1]
    text = str(error) or repr(error)
    name = type(error).__name__
    return text if name in text else f"{name}: {text}"
