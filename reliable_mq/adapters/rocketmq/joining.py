"""Before anything is received: which topics there are, in which order, and where a group begins."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from reliable_mq.adapters.rocketmq.client import Client
from reliable_mq.adapters.rocketmq.io import the_io
from reliable_mq.adapters.rocketmq.names import check_group, check_topic, free_group
from reliable_mq.adapters.rocketmq.routes import Missing
from reliable_mq.adapters.rocketmq.sources import sources_of
from reliable_mq.adapters.rocketmq.wire import Kind
from reliable_mq.errors import ConfigurationError, ConnectionFailed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reliable_mq.adapters.base import Subscribe
    from reliable_mq.adapters.rocketmq.admin import Admin
    from reliable_mq.adapters.rocketmq.config import Config
    from reliable_mq.adapters.rocketmq.io import Io
    from reliable_mq.adapters.rocketmq.sources import Source
    from reliable_mq.adapters.rocketmq.topology import Topics
    from reliable_mq.clock import Clock

__all__ = ["Joining"]

#: Seconds until the proxy knows a topic that was made: where somebody asked for it before, 20.
KNOWN_WITHIN: Final = 25.0
#: Seconds of one question for whether a group keeps order.
SETTINGS_WITHIN: Final = 5.0


class Joining:
    """Of one transport; any thread. Its own client asks for routes only."""

    def __init__(self, config: Config, clock: Clock, admin: Admin, topics: Topics) -> None:
        self._config = config
        self._clock = clock
        self._admin = admin
        self._topics = topics
        self._client: Client | None = None

    def wait_known(self, names: Sequence[str]) -> None:
        """Wait until the proxy knows these topics, which were made a moment ago.

        Raises: ConnectionFailed when it does not.
        """
        io = the_io()

        async def wait() -> None:
            routes = self._asker(io).routes
            for name in names:
                routes.forget(name)
            await asyncio.gather(*(routes.find(name, patience=KNOWN_WITHIN) for name in names))

        try:
            io.run(wait(), KNOWN_WITHIN + self._config.options.connect_timeout)
        except Missing as missing:
            text = f"{self._config}: {missing}, though it was made: the proxy does not see it"
            raise ConnectionFailed(text) from missing

    def sources(self, subscribe: Subscribe) -> list[Source]:
        """What a member reads, with its positions in place.

        Raises: ConfigurationError when a topic is missing, or keeps less order than is asked for.
        """
        check_group(subscribe.group)
        for topic in subscribe.topics:
            check_topic(topic)
        io = the_io()
        timeout = self._config.options.connect_timeout
        fifo = io.run(self._fifo(io, subscribe.topics), timeout + 2 * len(subscribe.topics))
        if subscribe.order != "none":
            loose = [topic for topic in subscribe.topics if not fifo[topic]]
            if loose:
                text = (
                    f"topics {', '.join(map(repr, loose))} keep no order (message.type is not "
                    "FIFO): make them anew as ordered ones, or use order_by='none'"
                )
                raise ConfigurationError(text)
        group_is_fifo = io.run(self._group_is_fifo(io, subscribe), timeout)
        if any(fifo.values()) and not group_is_fifo:
            text = (
                f"group {subscribe.group!r} does not keep order, and reads a FIFO topic: declare "
                "it with the topic, or run: mqadmin updateSubGroup -n NAMESRV -c CLUSTER "
                f"-g {subscribe.group} -o true"
            )
            raise ConfigurationError(text)
        free = free_group(subscribe.group) if group_is_fifo else subscribe.group
        if self._admin.is_there:
            for topic in subscribe.topics:
                self._topics.place(topic, subscribe.group, subscribe.start, ordered=fifo[topic])
        elif subscribe.start is not None:
            self._admin.need(
                f"start_from={subscribe.start!r}",
                f"resetOffsetByTime -n NAMESRV -g {subscribe.group} -t {subscribe.topics[0]} -s …",
            )
        return sources_of(subscribe, fifo, free)

    def close(self) -> None:
        """Close the connection that asks. Idempotent."""
        client, self._client = self._client, None
        if client is not None:
            the_io().spawn(client.close(), "closing a transport")

    def _asker(self, io: Io) -> Client:
        """RocketMQ's thread."""
        if self._client is None:
            self._client = Client(io, self._config, self._clock)
        return self._client

    async def _fifo(self, io: Io, topics: Sequence[str]) -> dict[str, bool]:
        found = {}
        missing = []
        for topic in topics:
            try:
                route = await self._asker(io).routes.find(topic)
                found[topic] = route.takes(Kind.FIFO)
            except Missing:
                missing.append(topic)
        if missing:
            text = f"topics {', '.join(map(repr, missing))} are missing: declare them, mq.topic(…)"
            raise ConfigurationError(text)
        return found

    async def _group_is_fifo(self, io: Io, subscribe: Subscribe) -> bool:
        """The proxy says so in its settings."""
        client = Client(
            io, self._config, self._clock, group=subscribe.group, topics=subscribe.topics
        )
        try:
            connection = client.access()
            await asyncio.wait_for(connection.answered.wait(), SETTINGS_WITHIN)
            theirs: Any = connection.theirs
            return bool(theirs.subscription.fifo)
        except (asyncio.TimeoutError, TimeoutError):
            text = f"{self._config}: {client.trouble}"
            raise ConnectionFailed(text) from None
        finally:
            await client.close()
