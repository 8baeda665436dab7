"""One direction of a proxy: what may go wrong on it, and the bytes on their way."""

from __future__ import annotations

from collections import deque
from socket import SHUT_WR
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from socket import socket

__all__ = ["Flow", "Pipe"]

#: Bytes of one connection that wait in the proxy. Beyond it does not read: the sender is held up.
HOLDS: Final = 64 * 1024 * 1024
CHUNK: Final = 64 * 1024


class Flow:
    """What one direction does to bytes. Any thread sets it; it holds at once, on all connections.

    | | |
    |---|---|
    | `latency` | seconds that each byte takes, more than it would |
    | `rate` | bytes per second of one connection; None: as fast as it goes |
    | `slice` | bytes written at a time; None: as they come |
    | `pause` | seconds between two such writes |
    | `held` | nothing leaves; what comes is kept, also the end of the connection |
    | `swallowed` | what comes is read and thrown away, also the end: a black hole |
    | `reset_after` | so many bytes more, then all connections are reset, and it is None |
    """

    def __init__(self) -> None:
        self.read = 0
        """Bytes that came in, ever."""
        self.passed = 0
        """Bytes that went out, ever: never less than the other end has seen."""
        self._reset_at: int | None = None
        self.clear()

    def clear(self) -> None:
        """Do no harm from now on. What was kept leaves; what was thrown away stays lost."""
        self.latency = 0.0
        self.rate: float | None = None
        self.slice: int | None = None
        self.pause = 0.0
        self.held = False
        self.swallowed = False
        self.reset_after = None

    @property
    def reset_after(self) -> int | None:
        """How many bytes are left until the reset."""
        return None if self._reset_at is None else max(0, self._reset_at - self.passed)

    @reset_after.setter
    def reset_after(self, count: int | None) -> None:
        # A place and not a countdown: so the thread that counts what passed, and may be doing so
        # now, does not write what another thread sets here.
        self._reset_at = None if count is None else self.passed + count


class Pipe:
    """One direction of one connection. The proxy's thread alone touches it."""

    def __init__(self, flow: Flow, source: socket, sink: socket) -> None:
        self.flow = flow
        self.source = source
        self.sink = sink
        self.blocked = False
        """The sink takes no more for now."""
        self.finished = False
        """The end of the source was passed on to the sink."""
        self._kept: deque[tuple[float, bytes]] = deque()  # (came at, bytes)
        self._size = 0
        self._ended = False
        self._free_at = 0.0

    def wants_input(self) -> bool:
        """Whether the source should be read."""
        return not self._ended and self._size < HOLDS

    def take(self, now: float) -> None:
        """Read what the source has; raises OSError where it is gone, unless nobody may know yet."""
        try:
            data = self.source.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            if not (self.flow.held or self.flow.swallowed):
                raise
            data = b""
        self.flow.read += len(data)
        if not data:
            self._ended = True
        elif not self.flow.swallowed:
            self._kept.append((now, data))
            self._size += len(data)

    def give(self, now: float) -> bool:
        """Write what is due; True when the flow's reset is due instead. Raises OSError as take."""
        flow = self.flow
        while self._kept and not self.blocked and not self._waits(now):
            if flow.reset_after == 0:
                return True
            came, data = self._kept.popleft()
            sent = self._send(data[: self._portion()])
            if sent < len(data):
                self._kept.appendleft((came, data[sent:]))
            self._size -= sent
            if sent:
                self._free_at = now + flow.pause + (sent / flow.rate if flow.rate else 0.0)
        if self._ended and not (self._kept or self.finished or flow.held or flow.swallowed):
            self.sink.shutdown(SHUT_WR)
            self.finished = True
        return flow.reset_after == 0

    def due(self) -> float | None:
        """When to come back without being called; None: not before something comes."""
        if not self._kept or self.blocked or self.flow.held:
            return None
        return max(self._free_at, self._kept[0][0] + self.flow.latency)

    def _waits(self, now: float) -> bool:
        due = self.due()
        return due is None or due > now

    def _portion(self) -> int:
        """How many bytes may go in one write."""
        flow = self.flow
        limits = [CHUNK]
        if flow.slice is not None:
            limits.append(flow.slice)
        if flow.rate is not None:
            limits.append(int(flow.rate / 50))  # evenly, in steps of 20 ms
        if (left := flow.reset_after) is not None:
            limits.append(left)
        return max(1, min(limits))

    def _send(self, data: bytes) -> int:
        # Counted before: who has the bytes may look, or set `reset_after`, before `send` is back.
        self.flow.passed += len(data)
        sent = 0
        try:
            sent = self.sink.send(data)
        except BlockingIOError:
            self.blocked = True
        finally:
            self.flow.passed -= len(data) - sent
        return sent
