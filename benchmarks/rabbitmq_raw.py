"""What pika alone can do, written by hand: the limits, and what fills and empties queues.

Each is one SelectConnection on the thread that calls, and nothing else: no second thread, no copy
for a user, nothing kept for a retry. None of it survives a lost connection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pika
from pika import BlockingConnection

from benchmarks.harness import Meter
from benchmarks.workload import STUCK_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    #: A body and its properties.
    Publish = tuple[bytes, pika.BasicProperties]

__all__ = ["BlockingConnection", "Consumed", "Published", "consume", "publish", "publish_encoded"]

#: Publishes without a confirm, and deliveries without an ack.
WINDOW, PREFETCH = 500, 1_000
#: Deliveries for one ack with `multiple`: a tenth of the prefetch.
TOGETHER = 100


class _Raw:
    """A connection, a channel, and an end: when all is done, or nothing moves any more."""

    def __init__(self, url: str) -> None:
        self.meter = Meter()
        self.channel: Any = None
        self.moved = 0
        self._moved_before = -1
        self._connection = pika.SelectConnection(
            pika.URLParameters(url),
            on_open_callback=lambda connection: connection.channel(on_open_callback=self._opened),
            on_open_error_callback=self._failed,
            on_close_callback=lambda connection, _: connection.ioloop.stop(),
        )

    def run(self) -> None:
        """Until the end."""
        loop = self._connection.ioloop
        loop.call_later(STUCK_SECONDS, self._look)
        loop.start()
        loop.close()

    def ready(self) -> None:
        """The channel is there."""
        raise NotImplementedError

    def begin(self) -> None:
        """The measured part begins."""
        self.meter.__enter__()

    def end(self) -> None:
        """It is over."""
        self.meter.__exit__(None, None, None)
        self._connection.close()

    def _opened(self, channel: Any) -> None:
        self.channel = channel
        self.ready()

    def _failed(self, _connection: Any, error: BaseException) -> None:
        raise error

    def _look(self) -> None:
        if self.moved == self._moved_before:
            self.end()  # the counters tell what is missing
        elif self._connection.is_open:
            self._moved_before = self.moved
            self._connection.ioloop.call_later(STUCK_SECONDS, self._look)


class Published(_Raw):
    """Pipelined confirms: the window is filled, and filled up again with each ack.

    What has no confirm is kept by its tag, as one needs it to tell who was returned or refused.
    The first message opens the way; the others are measured.
    """

    def __init__(self, url: str, exchange: str, messages: Iterable[Publish]) -> None:
        super().__init__(url)
        self._exchange = exchange
        self._messages = iter(messages)
        self._sent = 0
        self._room = 1
        self._open: dict[int, Publish] = {}

    def ready(self) -> None:
        """Publish the first."""
        self.channel.add_on_return_callback(_refuse)
        self.channel.confirm_delivery(self._answered, callback=lambda _: self.fill())

    def fill(self) -> None:
        """Publish as much as there is room for."""
        publish, exchange = self.channel.basic_publish, self._exchange
        while len(self._open) < self._room:
            message = next(self._messages, None)
            if message is None:
                return
            self._sent += 1
            self._open[self._sent] = message
            publish(exchange, exchange, message[0], message[1], mandatory=True)

    def _answered(self, frame: Any) -> None:
        method = frame.method
        assert isinstance(method, pika.spec.Basic.Ack), method
        tag, waiting = method.delivery_tag, self._open
        if method.multiple:
            while waiting and (first := next(iter(waiting))) <= tag:
                del waiting[first]
        else:
            del waiting[tag]
        self.moved = self._sent - len(waiting)
        if self._room == 1:
            self._room = WINDOW
            self.begin()
        self.fill()
        if not self._open:
            self.end()


class Encoded(_Raw):
    """The same of frames that were made before, a burst in one write: what the broker can take."""

    def __init__(self, url: str, exchange: str, messages: Sequence[Publish]) -> None:
        super().__init__(url)
        self.total = len(messages)
        method = pika.spec.Basic.Publish(exchange=exchange, routing_key=exchange, mandatory=True)
        head = pika.frame.Method(1, method).marshal()
        self._frames = [
            head
            + pika.frame.Header(1, len(body), properties).marshal()
            + pika.frame.Body(1, body).marshal()
            for body, properties in messages
        ]
        self._sent = 0
        self._room = 1

    def ready(self) -> None:
        """Publish the first."""
        self.channel.add_on_return_callback(_refuse)
        self.channel.confirm_delivery(self._answered, callback=lambda _: self.fill())

    def fill(self) -> None:
        """Publish as much as there is room for."""
        until = min(self.total, self.moved + self._room)
        if until > self._sent:
            self._connection._output_marshaled_frames([b"".join(self._frames[self._sent : until])])
            self._sent = until

    def _answered(self, frame: Any) -> None:
        method = frame.method
        assert isinstance(method, pika.spec.Basic.Ack), method
        # Counted, not looked up: nobody asks here which of them it was.
        self.moved = max(self.moved, method.delivery_tag) if method.multiple else self.moved + 1
        if self._room == 1:
            self._room = WINDOW
            self.begin()
        self.fill()
        if self.moved >= self.total:
            self.end()


class Consumed(_Raw):
    """Inline: the handler is called where the delivery comes in; acks are said for many at once.

    From the first delivery to the last. `together`: deliveries for one ack; 1 is an ack each.
    """

    def __init__(
        self, url: str, queue: str, total: int, handler: Callable[[bytes], Any], together: int
    ) -> None:
        super().__init__(url)
        self.total = total
        self.bodies: list[bytes] = []
        self._queue = queue
        self._handler = handler
        self._together = together

    def ready(self) -> None:
        """Take what comes."""
        self.channel.basic_qos(prefetch_count=PREFETCH)
        self.channel.basic_consume(self._queue, self._deliver)

    def _deliver(self, channel: Any, method: Any, _properties: Any, body: bytes) -> None:
        if not self.moved:
            self.begin()
        self._handler(body)
        self.moved += 1
        if self.moved % self._together == 0 or self.moved == self.total:
            channel.basic_ack(method.delivery_tag, multiple=self._together > 1)
        if self.moved == self.total:
            # Behind the acks: the broker has them when it answers.
            channel.basic_qos(prefetch_count=PREFETCH, callback=lambda _: self.end())


def publish(url: str, exchange: str, messages: Iterable[Publish]) -> Published:
    """Publish these with pipelined confirms."""
    run = Published(url, exchange, messages)
    run.run()
    return run


def publish_encoded(url: str, exchange: str, messages: Sequence[Publish]) -> Encoded:
    """The same of frames that are made before."""
    run = Encoded(url, exchange, messages)
    run.run()
    return run


def consume(
    url: str,
    queue: str,
    total: int,
    handler: Callable[[bytes], Any] | None = None,
    *,
    together: int = TOGETHER,
) -> Consumed:
    """Take so many messages; without a handler their bodies are kept."""
    run = Consumed(url, queue, total, lambda _: None, together)
    run._handler = handler or run.bodies.append
    run.run()
    return run


def _refuse(_channel: Any, method: Any, *_: object) -> None:
    msg = f"returned: {method.reply_text}"
    raise AssertionError(msg)
