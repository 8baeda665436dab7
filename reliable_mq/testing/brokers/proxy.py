"""A TCP proxy on this machine, for what a network does to a connection: all of it at a test's word.

The broker behind it stays well. So what a client sees is the network's doing, and a second client
that goes past the proxy can tell what the broker has really got.
"""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections import deque
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit, urlunsplit

from reliable_mq.testing.brokers.base import until
from reliable_mq.testing.brokers.flow import Flow
from reliable_mq.testing.brokers.link import Link
from reliable_mq.testing.brokers.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from typing_extensions import Self

__all__ = ["Proxy"]

#: Ports of URLs that name none.
USUAL: Final = {"amqp": 5672, "amqps": 5671, "kafka": 9092}


class Proxy:
    """Between clients (`url`) and one broker, until `close`.

    `up` is what flows from the clients to the broker, `down` what it answers: each a `Flow`, whose
    fields are set at any time. Every method may be called from any thread, and what it says has
    happened when it returns. The connections belong to a thread of the proxy.
    """

    def __init__(self, url: str, *, port: int = 0) -> None:
        parts = urlsplit(url)
        if parts.hostname is None or "," in parts.netloc:
            msg = "a proxy stands before one broker: it takes the URL of one node"
            raise ValueError(msg)
        self._family, self._target = _resolve(parts.hostname, parts.port or USUAL[parts.scheme])
        self._host = "localhost" if parts.scheme.endswith("s") else "127.0.0.1"
        self.port = port or free_port()
        user, at, _ = parts.netloc.rpartition("@")
        self.url = urlunsplit(parts._replace(netloc=f"{user}{at}{self._host}:{self.port}"))
        self.up = Flow()
        self.down = Flow()
        self.accepted = 0
        """Connections that clients opened, ever."""
        self._links: set[Link] = set()
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.settimeout(0.0)
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._orders: deque[tuple[Callable[[], None], threading.Event]] = deque()
        self._closed = False
        self._listener: socket.socket | None = None
        self._listen()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()

    # -- faults --------------------------------------------------------------------------------

    def cut(self, *, refuse: bool = True) -> None:
        """Reset all connections, and refuse new ones until `restore`, unless `refuse=False`."""
        if refuse:
            self._order(self._refuse)
        self._order(self._reset)

    def restore(self) -> None:
        """Take connections again and clear both flows: a network that is well."""
        self.up.clear()
        self.down.clear()
        self._order(self._listen)

    def hold(self) -> None:
        """Let nothing through, either way, and lose nothing: a partition. `restore` ends it."""
        self.up.held = self.down.held = True
        self._order(lambda: None)

    def swallow(self) -> None:
        """Take everything and deliver nothing: connections that are dead, and do not know it."""
        self.up.swallowed = self.down.swallowed = True
        self._order(lambda: None)

    @property
    def connections(self) -> int:
        """How many are open now."""
        return len(self._links)

    def comes_to(self, state: Callable[[Proxy], bool], within: float = 10.0) -> bool:
        """Wait until this is true of the proxy; whether it came in time."""
        return until(lambda: state(self), within, every=0.005)

    def close(self) -> None:
        """End it, and all connections. Twice is once."""
        if not self._closed:
            self._order(self._end)
            self._thread.join()
            self._wake_write.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Proxy {self._host}:{self.port} -> {self._target[0]}:{self._target[1]}>"

    # -- on the proxy's thread -----------------------------------------------------------------

    def _order(self, what: Callable[[], None]) -> None:
        """Let the thread do this, and wait until it has."""
        done = threading.Event()
        self._orders.append((what, done))
        with suppress(OSError):
            self._wake_write.send(b"!")
        if not done.wait(10.0) and not self._closed:
            msg = f"{self!r} does not answer"
            raise RuntimeError(msg)

    def _run(self) -> None:
        while not self._closed:
            events = self._selector.select(self._patience())
            now = time.monotonic()
            for key, mask in events:
                if isinstance(key.data, Link):
                    self._safely(key.data, partial(key.data.ready, key.fileobj, mask, now))
                elif key.fileobj is self._wake_read:
                    self._wake_read.recv(4096)
                else:
                    self._accept()
            while self._orders:
                what, done = self._orders.popleft()
                what()
                done.set()
            for link in list(self._links):
                self._safely(link, partial(self._pass_on, link))

    def _patience(self) -> float:
        """Seconds until something is due. Flows are set without a word, so that it looks often."""
        now = time.monotonic()
        dues = [due - now for link in self._links for due in link.due()]
        return max(0.0, min([0.02 if self._links else 0.5, *dues]))

    def _safely(self, link: Link, what: Callable[[], None]) -> None:
        """Do this with a connection; where one end is gone, the other is reset."""
        if link not in self._links:
            return  # reset by what came before
        try:
            what()
        except OSError:
            self._drop(link, reset=True)

    def _pass_on(self, link: Link) -> None:
        if link.give(time.monotonic()):
            for flow in (self.up, self.down):
                if flow.reset_after == 0:
                    flow.reset_after = None
            self._reset()
        elif link.finished:
            self._drop(link, reset=False)

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            client, _ = self._listener.accept()
        except OSError:
            return  # gone before it was taken
        self.accepted += 1
        broker = socket.socket(self._family)
        broker.settimeout(0.0)
        broker.connect_ex(self._target)  # in progress; a refusal shows when it is used
        self._links.add(Link(self._selector, client, broker, (self.up, self.down)))

    def _drop(self, link: Link, *, reset: bool) -> None:
        self._links.discard(link)
        link.close(reset=reset)

    def _reset(self) -> None:
        while self._links:
            self._drop(next(iter(self._links)), reset=True)

    def _listen(self) -> None:
        if self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self.port), backlog=128)
            self._listener.settimeout(0.0)
            self._selector.register(self._listener, selectors.EVENT_READ)

    def _refuse(self) -> None:
        if self._listener is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None

    def _end(self) -> None:
        self._refuse()
        self._reset()
        self._closed = True
        self._selector.close()
        self._wake_read.close()


def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, Any]:
    """The address of a broker; the one of IPv4 where there are several, as ours listen there."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    found.sort(key=lambda one: one[0] != socket.AF_INET)
    return found[0][0], found[0][4]
