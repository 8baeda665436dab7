"""One client of the broker: an identity, and its connections, one to each place of the routes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from reliable_mq.adapters.rocketmq.connection import CallFailed, Connection
from reliable_mq.adapters.rocketmq.identity import Identity
from reliable_mq.adapters.rocketmq.routes import Routes

if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from reliable_mq.adapters.rocketmq.config import Address, Config
    from reliable_mq.adapters.rocketmq.io import Io
    from reliable_mq.clock import Clock

__all__ = ["Client"]

#: Connections of one client: a cluster of more brokers has proxies in front of all of them.
MOST: Final = 64
#: Seconds that leaving may take.
LEAVING: Final = 1.0


class Client:
    """A producer (`group` None), or a member of a group. The loop's thread only.

    Args:
        topics: Those that its settings name; more may be added by `use`.
        made: Topics that we have made: they are there, or will be in a moment.
    """

    def __init__(
        self,
        io: Io,
        config: Config,
        clock: Clock,
        *,
        group: str | None = None,
        topics: tuple[str, ...] = (),
        made: Container[str] = (),
        commanded: Callable[[Any], object] = lambda _: None,
    ) -> None:
        self.config = config
        self.group = group
        self._io = io
        self._identity = Identity(config, group, clock.now)
        self._topics = dict.fromkeys(topics)
        self._commanded = commanded
        self._connections: dict[tuple[Address, ...], Connection] = {}
        self.routes = Routes(config, self._query, clock.monotonic, made)

    @property
    def trouble(self) -> str:
        """What is wrong with a connection; "" while all are well."""
        for connection in self._connections.values():
            if not connection.answered.is_set():
                return connection.reason or f"{connection.place}: our settings have no answer"
        return ""

    def access(self) -> Connection:
        """The connection to our way in, which knows every route."""
        return self.connection(self.config.proxies)

    def connection(self, addresses: tuple[Address, ...]) -> Connection:
        """The connection to a place, made when it is first asked for."""
        found = self._connections.get(addresses)
        if found is None:
            if len(self._connections) >= MOST:
                text = f"{self.config}: a route of more than {MOST} places"
                raise CallFailed(text, sent=False)
            found = self._connections[addresses] = Connection(
                self._io, self._identity, addresses, self._settings, self._commanded
            )
        return found

    def use(self, topic: str) -> None:
        """Name a topic in the settings: of those that are named the broker asks."""
        if topic not in self._topics:
            self._topics[topic] = None
            for connection in self._connections.values():
                connection.tell_settings()

    async def close(self) -> None:
        """Tell the broker that we leave, and close all connections. Idempotent."""
        connections = list(self._connections.values())
        self._connections.clear()
        await asyncio.gather(*(self._leave(one) for one in connections), return_exceptions=True)

    async def _leave(self, connection: Connection) -> None:
        try:
            if connection.is_up():
                await connection.ask(
                    "NotifyClientTermination", self._identity.termination(), LEAVING
                )
        except CallFailed:
            pass  # it notices that we are gone
        finally:
            await connection.close()

    def _settings(self) -> Any:
        return self._identity.settings(list(self._topics))

    async def _query(self, request: Any) -> Any:
        access = self.access()
        timeout = self.config.options.request_timeout
        if not await access.up(timeout):
            text = f"{self.config} cannot be reached: {access.reason or 'nobody answers'}"
            raise CallFailed(text, sent=False)
        return await access.ask("QueryRoute", request, timeout)
