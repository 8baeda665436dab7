"""Where topics are, and what they take: asked of the proxy, kept for a while.

A topic that is not there may be one of which the proxy does not know yet: after its start it needs
some seconds, and what it has once not found it may not look for again for 20. So one that was there
before, or that we have made, is looked for again until `PATIENCE` is over.
"""

from __future__ import annotations

import asyncio
import zlib
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from reliable_mq.adapters.rocketmq.answers import NOT_FOUND, Said, meaning, text_of
from reliable_mq.adapters.rocketmq.config import Address
from reliable_mq.adapters.rocketmq.wire import Code, Kind, types
from reliable_mq.errors import ConnectionFailed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Container

    from reliable_mq.adapters.rocketmq.config import Config

__all__ = ["Missing", "Place", "Route", "Routes"]

#: Seconds for which a route is believed.
FRESH: Final = 30.0
#: Seconds for which a topic that was there before is looked for; and of any other, and the pause.
PATIENCE: Final = 15.0
SHORT_PATIENCE: Final = 1.0
PAUSE: Final = 0.25
#: Routes that are kept.
MOST: Final = 10_000


class Place(Struct, frozen=True):
    """A broker, and the addresses of the proxy in front of it."""

    broker: str
    addresses: tuple[Address, ...]


class Route(Struct, frozen=True):
    """One topic. `kinds`: the types of messages it takes; `queues`: how many there are in all."""

    places: tuple[Place, ...]
    kinds: frozenset[int]
    queues: int
    asked_at: float

    def takes(self, kind: int) -> bool:
        """Whether it takes messages of this type; one that says nothing takes normal ones."""
        return kind in self.kinds if self.kinds else kind == Kind.NORMAL

    def place_for(self, group: str) -> Place:
        """Where messages of this group go: always the same broker."""
        return self.places[zlib.crc32(group.encode()) % len(self.places)]


class Missing(Exception):
    """The topic is not there; `status` is the broker's answer."""

    def __init__(self, topic: str, status: Any) -> None:
        super().__init__(f"topic {topic!r} is missing: {text_of(status)}")
        self.status = status


class Routes:
    """Of one client. The loop's thread only.

    Args:
        ask: One QueryRoute, answered by any proxy; raises CallFailed.
        made: Topics that we have made; another thread may add to it.
    """

    def __init__(
        self,
        config: Config,
        ask: Callable[[Any], Awaitable[Any]],
        monotonic: Callable[[], float],
        made: Container[str] = (),
    ) -> None:
        self._config = config
        self._ask = ask
        self._monotonic = monotonic
        self._made = made
        self._known: dict[str, Route] = {}
        self._seen: set[str] = set()
        self._gone: set[str] = set()
        self._asking: dict[str, asyncio.Future[Route]] = {}

    def forget(self, topic: str) -> None:
        """Something was wrong with its route: ask again."""
        self._known.pop(topic, None)

    def known(self, topic: str) -> Route | None:
        """Its route, if it is fresh."""
        route = self._known.get(topic)
        if route is not None and self._monotonic() - route.asked_at < FRESH:
            return route
        return None

    async def find(self, topic: str, *, patience: float | None = None) -> Route:
        """Its route. One question at a time for each topic, whoever waits for it.

        Raises: Missing; CallFailed and ConnectionFailed when nobody answers.
        """
        route = self.known(topic)
        if route is not None:
            return route
        asking = self._asking.get(topic)
        if asking is None:
            asking = asyncio.ensure_future(self._find(topic, patience))
            self._asking[topic] = asking
            asking.add_done_callback(lambda _: self._asking.pop(topic, None))
        return await asyncio.shield(asking)

    async def _find(self, topic: str, patience: float | None) -> Route:
        if patience is None:
            expected = topic in self._seen or (topic in self._made and topic not in self._gone)
            patience = PATIENCE if expected else SHORT_PATIENCE
        end = self._monotonic() + patience
        while True:
            answer = await self._ask(self._request(topic))
            code = answer.status.code
            if code == Code.OK and answer.message_queues:
                return self._keep(topic, answer)
            if code not in NOT_FOUND:
                if meaning(code) is Said.REFUSED:  # no topic can have this name, or not for us
                    raise Missing(topic, answer.status)
                text = f"{self._config}: the route of {topic!r}: {text_of(answer.status)}"
                raise ConnectionFailed(text)
            if self._monotonic() >= end:
                self._seen.discard(topic)
                self._gone.add(topic)
                raise Missing(topic, answer.status)
            await asyncio.sleep(PAUSE)

    def _request(self, topic: str) -> Any:
        return types().QueryRouteRequest(
            topic=self._config.resource(topic), endpoints=self._config.endpoints()
        )

    def _keep(self, topic: str, answer: Any) -> Route:
        places: dict[str, Place] = {}
        kinds: set[int] = set()
        for queue in answer.message_queues:
            kinds.update(queue.accept_message_types)
            addresses = tuple((one.host, one.port) for one in queue.broker.endpoints.addresses)
            if addresses and queue.broker.id == 0:
                places.setdefault(queue.broker.name, Place(queue.broker.name, addresses))
        if not places:
            text = f"{self._config}: no broker of topic {topic!r} takes messages now"
            raise ConnectionFailed(text)
        ordered = tuple(places[name] for name in sorted(places))
        queues = len(answer.message_queues)
        route = Route(ordered, frozenset(kinds), queues, self._monotonic())
        if len(self._known) >= MOST:
            self._known.clear()
            self._seen.clear()
            self._gone.clear()
        self._known[topic] = route
        self._seen.add(topic)
        self._gone.discard(topic)
        return route
