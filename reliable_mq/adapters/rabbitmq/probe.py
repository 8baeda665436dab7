"""Asks the broker whether a route is there, on a channel of its own: an answer "no" closes it.

Publishing creates nothing but delay queues, and those only where their target is.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import pika.exceptions

from reliable_mq.adapters.rabbitmq.arguments import delay_arguments
from reliable_mq.adapters.rabbitmq.names import delay_queue

if TYPE_CHECKING:
    from collections.abc import Callable

    from reliable_mq.adapters.rabbitmq.names import Route

__all__ = ["Probe"]


class Probe:
    """One connection's. The I/O thread only.

    Args:
        answer: Called with each route, and why it is not there; "" where it is.
    """

    def __init__(
        self, connection: pika.SelectConnection, answer: Callable[[Route, str], object]
    ) -> None:
        self._connection = connection
        self._answer = answer
        self._questions: deque[Route] = deque()
        self._asked: set[Route] = set()
        self._channel: Any = None
        self._opening = False

    def ask(self, route: Route) -> None:
        """The answer comes later, or never, when the connection ends first."""
        if route in self._asked:
            return
        self._asked.add(route)
        self._questions.append(route)
        if len(self._questions) == 1:
            self._next()

    def _next(self) -> None:
        if not self._questions:
            return
        if self._channel is None:
            if not self._opening:
                self._opening = True
                self._connection.channel(on_open_callback=self._opened)
            return
        route = self._questions[0]
        address, channel = route.address, self._channel
        if address.exchange:
            channel.exchange_declare(address.exchange, passive=True, callback=self._target_is_there)
        else:
            channel.queue_declare(address.routing_key, passive=True, callback=self._target_is_there)

    def _opened(self, channel: Any) -> None:
        self._opening = False
        self._channel = channel
        channel.add_on_close_callback(self._closed)
        self._next()

    def _target_is_there(self, _: object) -> None:
        route = self._questions[0]
        if route.step is None:
            self._done("")
            return
        self._channel.queue_declare(
            delay_queue(route.address, route.step),
            durable=True,
            arguments=delay_arguments(route.address, route.step),
            callback=lambda _: self._done(""),
        )

    def _closed(self, _channel: Any, error: BaseException) -> None:
        self._channel = None
        if isinstance(error, pika.exceptions.ChannelClosedByBroker) and self._questions:
            self._done(error.reply_text)

    def _done(self, why: str) -> None:
        route = self._questions.popleft()
        self._asked.discard(route)
        self._next()  # first: who hears the answer may ask again
        self._answer(route, why)
