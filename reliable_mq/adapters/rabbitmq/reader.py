"""In front of pika: frames that come in thousands are read here, and pika reads all others.

pika makes several objects of each frame, looks for callbacks in several places, and copies what it
has buffered behind it. Acks and deliveries are as regular as frames can be, so a run of them is
read where it lies: a delivery costs less than half. What is unusual in any way, such as a body in
several frames, is pika's, and so is all that ends a connection; where a release of pika is made
otherwise, it reads everything.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Any, Final

import pika

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Delivered", "Reader", "acks", "deliveries", "readable"]

#: Queue, delivery tag, whether it came before, properties (bytes: as they came), body.
Delivered = tuple[str, int, bool, Any, bytes]

# AMQP 0-9-1: a frame is type, channel, size, payload, end. Method frames begin with class, method.
_ack = Struct(">BHIHHQBB")
_method = Struct(">BHIHHB")
_tag = Struct(">QB")
_header = Struct(">BHIHHQ")
_frame = Struct(">BHI")
METHOD, HEADER, BODY, END = 1, 2, 3, 0xCE
BASIC, DELIVER, ACK = 60, 60, 80
#: Bytes of a frame besides its payload; of an ack.
OVERHEAD: Final = 8
ACK_SIZE: Final = 13
#: Where the properties of a header frame begin.
PROPERTIES: Final = 19
#: Bytes of one read from the socket. pika's own 4 KiB are for its buffer, which it copies.
READ: Final = 64 * 1024


class Reader:
    """What a connection receives, in its order. The I/O thread only.

    take: gets what has come and where a frame begins, and returns where it stopped; ~place, where
        it knows what begins there, and not all of that has come.
    """

    def __init__(self, connection: Any, take: Callable[[bytes, int], int]) -> None:
        self._connection = connection
        self._take = take
        self._pika: Callable[[bytes], None] = connection._on_data_available  # noqa: SLF001
        self._rest = b""

    @classmethod
    def install(cls, connection: pika.SelectConnection, take: Callable[[bytes, int], int]) -> None:
        """Read for this connection from now on, if pika is made as we know it."""
        parts = ("_on_data_available", "_frame_buffer", "bytes_received")
        if all(hasattr(connection, name) for name in parts):
            connection._on_data_available = cls(connection, take).received  # noqa: SLF001
            transport: Any = getattr(connection, "_transport", None)
            if hasattr(transport, "_MAX_RECV_BYTES"):
                transport._MAX_RECV_BYTES = READ  # noqa: SLF001

    def received(self, data: bytes) -> None:
        """Called by the connection with what came from the socket."""
        connection, take = self._connection, self._take
        begun = connection._frame_buffer  # noqa: SLF001 - of the handshake, at the first time
        if begun or self._rest:
            data = b"".join((begun, self._rest, data))
            connection._frame_buffer = self._rest = b""  # noqa: SLF001
        at, size = 0, len(data)
        while size - at >= OVERHEAD:
            taken = take(data, at)
            place = ~taken if taken < 0 else taken
            connection.bytes_received += place - at  # heartbeats look at it
            at = place
            if taken < 0 or size - at < OVERHEAD:
                break
            end = at + OVERHEAD + int.from_bytes(data[at + 3 : at + 7], "big")
            if end > size:
                break
            frame = data[at:end]
            self._pika(readable(frame) if frame[0] == HEADER else frame)
            at = end
            if connection.is_closed:
                return
        self._rest = data[at:]


def readable(frame: bytes) -> bytes:
    """A header frame as it is, or without its properties where pika fails over them.

    Anybody may send a time beyond the year 9999. pika would give the connection up, and the message
    would come again on the next one, for ever, in front of all others.
    """
    try:
        pika.BasicProperties().decode(frame[PROPERTIES:-1])
    except Exception:  # noqa: BLE001 - of whatever kind
        size = (PROPERTIES - 7 + 2).to_bytes(4, "big")
        return b"".join((frame[:3], size, frame[7:PROPERTIES], b"\0\0", frame[-1:]))
    return frame


def acks(data: bytes, at: int, channel: int, found: list[tuple[int, bool]]) -> int:
    """Read acks of a channel: (tag, multiple). Returns where the first other thing begins."""
    last = len(data) - _ack.size
    while at <= last:
        kind, number, size, group, method, tag, bits, end = _ack.unpack_from(data, at)
        if (kind, number, size, group, method, end) != (METHOD, channel, ACK_SIZE, BASIC, ACK, END):
            break
        found.append((tag, bool(bits & 1)))
        at += _ack.size
    return at


def deliveries(  # noqa: C901 - one pass over three frames, for speed
    data: bytes, at: int, channel: int, consumers: Mapping[bytes, str], found: list[Delivered]
) -> int:
    """Read deliveries of a channel; ~place where one is not all there yet.

    consumers: queues by the tags of those who consume them.
    """
    size = len(data)
    while size - at >= _method.size:
        kind, number, length, group, method, name = _method.unpack_from(data, at)
        if kind != METHOD or method != DELIVER or group != BASIC or number != channel:
            break
        header = at + OVERHEAD + length
        if size - header < _header.size:
            return ~at
        kind, number, length, group, _, body_size = _header.unpack_from(data, header)
        if kind != HEADER or number != channel:
            break  # something in between
        body = header + OVERHEAD + length
        if not body_size:
            if size < body:
                return ~at
            end, content = body, b""
        else:
            if size - body < OVERHEAD:
                return ~at
            kind, number, length = _frame.unpack_from(data, body)
            if kind != BODY or number != channel or length != body_size:
                break  # in several frames
            end = body + OVERHEAD + body_size
            if size < end:
                return ~at
            content = data[body + 7 : end - 1]
        if not data[header - 1] == data[body - 1] == data[end - 1] == END:
            break  # pika says what that is
        name += at + _method.size
        queue = consumers.get(data[at + _method.size : name])
        if queue is None:
            break
        tag, bits = _tag.unpack_from(data, name)
        found.append((queue, tag, bool(bits & 1), data[header + _header.size : body - 1], content))
        at = end
    return at
