"""The channel that publishes: confirm mode, one write for a burst, and what the broker answers.

pika has no call that hands several messages to the socket at once, and one write a message costs
most of the speed; so the frames go to the connection's own output, which is private. Where a
release of pika has no such thing, each message is published by itself.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final, Protocol

import pika
import pika.exceptions

from reliable_mq.adapters.rabbitmq.probe import Probe
from reliable_mq.adapters.rabbitmq.properties import by_pika
from reliable_mq.adapters.rabbitmq.reader import Reader, acks
from reliable_mq.adapters.rabbitmq.wire import marshal
from reliable_mq.errors import TransportError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reliable_mq.adapters.rabbitmq.names import Route
    from reliable_mq.adapters.rabbitmq.window import Entry, Window

__all__ = ["PublishChannel"]

log = logging.getLogger("reliable_mq.rabbitmq")

#: Bytes of one write.
BURST: Final = 128 * 1024


class Sender(Protocol):
    """What hears the answers. On the I/O thread."""

    def ready(self) -> None: ...
    def blocked(self, why: str) -> None: ...
    def channel_closed(self, why: str) -> None: ...
    def channel_lost(self) -> None: ...
    def unsendable(self, entry: Entry, why: str) -> None: ...
    def acked(self, acks: Sequence[tuple[int, bool]]) -> None: ...
    def nacked(self, tag: int, *, multiple: bool) -> None: ...
    def returned(self, id: str, exchange: str, routing_key: str, why: str) -> None: ...
    def answered(self, route: Route, why: str) -> None: ...


class PublishChannel:
    """One connection's, through as many channels as the broker closes. The I/O thread only."""

    def __init__(self, connection: pika.SelectConnection, sender: Sender) -> None:
        self._connection = connection
        self._sender = sender
        self._channel: Any = None
        self._blocked = False
        self._probe = Probe(connection, sender.answered)
        #: Method frames of addresses, of the channel that is open.
        self._methods: dict[Any, bytes] = {}
        self._emit = getattr(connection, "_output_marshaled_frames", None)
        Reader.install(connection, self._take)
        connection.add_on_connection_blocked_callback(self._block)
        connection.add_on_connection_unblocked_callback(self._unblock)
        self._open()

    def send(self, window: Window) -> None:
        """Send what the window gives."""
        while self._channel is not None and not self._blocked:
            frames: list[bytes] = []
            size = 0
            while size < BURST and (entry := window.next()) is not None:
                size += self._add(frames, entry)
            if frames and self._channel is not None and self._emit is not None:
                self._emit([b"".join(frames)])
            if size < BURST:
                break
        for route in window.questions():
            self._probe.ask(route)

    def _add(self, frames: list[bytes], entry: Entry) -> int:
        message, address = entry.confirmation.message, entry.address
        body = message.body or b""
        if self._emit is None:
            properties = by_pika(entry.properties.encoded)
            self._channel.basic_publish(
                address.exchange, address.routing_key, body, properties, mandatory=True
            )
            return len(body) + 1
        number = self._channel.channel_number
        method = self._methods.get(address)
        if method is None:
            publish = pika.spec.Basic.Publish(
                exchange=address.exchange, routing_key=address.routing_key, mandatory=True
            )
            method = self._methods[address] = pika.frame.Method(number, publish).marshal()
        frame_max = self._connection.params.frame_max
        try:
            data = marshal(number, method, entry.properties.encoded, body, frame_max)
        except TransportError as error:
            # The window has counted it as sent, so its tags are not the broker's any more.
            self._sender.unsendable(entry, str(error))
            self._channel.close()
            self._channel = None
            return BURST
        frames.append(data)
        return len(data)

    # -- the channel ---------------------------------------------------------------------------

    def _open(self) -> None:
        self._connection.channel(on_open_callback=self._opened)

    def _opened(self, channel: Any) -> None:
        channel.add_on_close_callback(self._closed)
        channel.add_on_return_callback(self._returned)
        channel.confirm_delivery(self._answered, callback=lambda _: self._ready(channel))

    def _ready(self, channel: Any) -> None:
        self._channel = channel
        self._methods.clear()
        self._sender.ready()

    def _closed(self, _channel: Any, error: BaseException) -> None:
        self._channel = None
        if not self._connection.is_open:
            return  # the link says so
        if isinstance(error, pika.exceptions.ChannelClosedByBroker):
            self._sender.channel_closed(error.reply_text)
        else:
            self._sender.channel_lost()
        self._open()

    def _answered(self, frame: Any) -> None:
        method = frame.method
        if isinstance(method, pika.spec.Basic.Ack):
            self._sender.acked([(method.delivery_tag, method.multiple)])
        else:
            self._sender.nacked(method.delivery_tag, multiple=method.multiple)

    def _take(self, data: bytes, at: int) -> int:
        """Acks that need not go through pika: see Reader."""
        channel = self._channel
        if channel is None or not channel.is_open:
            return at
        found: list[tuple[int, bool]] = []
        place = acks(data, at, channel.channel_number, found)
        if found:
            self._sender.acked(found)
        return place

    def _returned(self, _channel: Any, method: Any, properties: Any, _body: bytes) -> None:
        self._sender.returned(
            properties.message_id or "", method.exchange, method.routing_key, method.reply_text
        )

    def _block(self, _connection: Any, _frame: Any) -> None:
        self._blocked = True
        why = "the broker blocks publishing: it is short of memory or disk"
        log.warning(why)
        self._sender.blocked(why)

    def _unblock(self, _connection: Any, _frame: Any) -> None:
        self._blocked = False
        log.info("the broker takes messages again")
        self._sender.ready()
