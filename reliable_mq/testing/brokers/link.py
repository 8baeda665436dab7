"""One connection through a proxy: the client's socket, the broker's, and a pipe each way."""

from __future__ import annotations

import fcntl
import selectors
import socket
import struct
import termios
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from reliable_mq.testing.brokers.base import until
from reliable_mq.testing.brokers.flow import Flow, Pipe

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Link"]

#: Seconds that a socket gets to take what was written to it, before a reset throws it away.
TAKES: Final = 0.2
RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER for no time: close() sends RST, not FIN
#: TCP_CLOSE in the first byte of TCP_INFO: nobody is there any more who could take anything.
GONE: Final = 7


class Link:
    """Registered with a selector until it is closed; the proxy's thread alone touches it.

    What it is asked raises OSError when one of its ends is gone.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        client: socket.socket,
        broker: socket.socket,
        flows: tuple[Flow, Flow],
    ) -> None:
        self._selector = selector
        self._sockets = (client, broker)
        self.pipes = (Pipe(flows[0], client, broker), Pipe(flows[1], broker, client))
        self.pipes[0].blocked = True  # until the broker's side is connected
        for one in self._sockets:
            one.settimeout(0.0)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._watch()

    def ready(self, which: object, events: int, now: float) -> None:
        """Take what a socket has, and note that it can take more."""
        for pipe in self.pipes:
            if pipe.sink is which and events & selectors.EVENT_WRITE:
                pipe.blocked = False
            if pipe.source is which and events & selectors.EVENT_READ and pipe.wants_input():
                pipe.take(now)

    def give(self, now: float) -> bool:
        """Pass on what is due; True when a reset of all connections is due."""
        for pipe in self.pipes:
            if pipe.give(now):
                return True
        self._watch()
        return False

    @property
    def finished(self) -> bool:
        """Whether both ends have said that they are done, and were told so."""
        return all(pipe.finished for pipe in self.pipes)

    def due(self) -> list[float]:
        """When its pipes have something to do by themselves."""
        return [due for pipe in self.pipes if (due := pipe.due()) is not None]

    def close(self, *, reset: bool = False) -> None:
        """Close both ends; with `reset` by RST, once they have what was written to them."""
        for one in self._sockets:
            if reset:
                until(_has_taken(one), TAKES, every=0.001)
                with suppress(OSError):
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            with suppress(KeyError, ValueError):
                self._selector.unregister(one)
            one.close()

    def _watch(self) -> None:
        """Ask the selector for what is wanted now."""
        for one in self._sockets:
            wanted = 0
            for pipe in self.pipes:
                if pipe.source is one and pipe.wants_input():
                    wanted |= selectors.EVENT_READ
                if pipe.sink is one and pipe.blocked:
                    wanted |= selectors.EVENT_WRITE
            key = self._selector.get_map().get(one)
            if key is None:
                if wanted:
                    self._selector.register(one, wanted, self)
            elif not wanted:
                self._selector.unregister(one)
            elif key.events != wanted:
                self._selector.modify(one, wanted, self)


def _has_taken(one: socket.socket) -> Callable[[], bool]:
    """Whether the other end's kernel has all that was written, or never will."""

    def look() -> bool:
        try:
            left = fcntl.ioctl(one, termios.TIOCOUTQ, bytes(4)) != bytes(4)
            return not left or one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == GONE
        except OSError:
            return True

    return look
