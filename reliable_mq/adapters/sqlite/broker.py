"""What every part of the transport knows of the broker: the file, the clock, the limits."""

from __future__ import annotations

from msgspec import Struct

from reliable_mq.adapters.sqlite.bell import Bell
from reliable_mq.adapters.sqlite.connection import Connect, Connection
from reliable_mq.clock import Clock

__all__ = ["Broker"]


class Broker(Struct, frozen=True, kw_only=True):
    """One for each transport. Opens nothing."""

    path: str
    clock: Clock
    connect: Connect
    lease_timeout: float
    retention: float
    max_body: int
    boot_id: str
    bell: Bell

    def connection(self) -> Connection:
        """A new connection, not opened yet."""
        return Connection(self.path, self.connect)
