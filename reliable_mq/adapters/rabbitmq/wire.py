"""A Message as AMQP properties and headers, and back.

    id          message_id               key         header rmq-key: text if it is UTF-8, else bytes
    body        body; a tombstone has    created_at  header rmq-created, and timestamp in whole
                header rmq-tombstone                 seconds for others
    headers     headers, text as longstr ('S') and bytes as byte array ('x'); content-type is the
                property. What a table cannot hold (order, duplicates) is kept in rmq-headers.

A message of another program: message_id is its id; without one, the id is derived from the queue
and the content, and is weak. Headers whose values are no text come as their text.
"""

from __future__ import annotations

import hashlib
from struct import Struct
from typing import TYPE_CHECKING, Any, Final

import msgspec

from reliable_mq.adapters.rabbitmq.properties import encode
from reliable_mq.errors import TransportError
from reliable_mq.message import CONTENT_TYPE, NOT_BEFORE, PREFIX, Message

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pika

    from reliable_mq.adapters.rabbitmq.properties import Properties
    from reliable_mq.message import Header

__all__ = ["from_wire", "marshal", "properties_of"]

KEY: Final = "rmq-key"
CREATED: Final = "rmq-created"
TOMBSTONE: Final = "rmq-tombstone"
HEADERS: Final = "rmq-headers"
ID: Final = "rmq-id"
#: Headers of this adapter: never handed to the core.
OWN: Final = frozenset({KEY, CREATED, TOMBSTONE, HEADERS, ID})
DEATHS: Final = ("exchange", "queue", "reason")
#: Headers that the broker adds: what they say is not the message's.
BROKERS: Final = frozenset(
    {
        "x-death",
        "x-delivery-count",
        "x-acquired-count",
        *(f"x-{which}-death-{what}" for which in ("first", "last") for what in DEATHS),
    }
)
#: Bytes of a short string in AMQP.
SHORT: Final = 255
#: What a frame has besides its payload, and a header frame besides its properties.
OVERHEAD: Final = 8
HEADER_SIZE: Final = 12
END: Final = b"\xce"

# Type, channel and size of a frame; class, weight and size of the body: AMQP 0-9-1, section 4.2.
_frame = Struct(">BHI")
_header = Struct(">BHIHHQ")
_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(tuple[tuple[str, Any], ...]).decode


def properties_of(message: Message, due: float | None = None) -> Properties:
    """What says everything of a message but its body. `due`: not before this time.

    Raises: TypeError, ValueError for a header that cannot be sent.
    """
    table: dict[str, Any] = {CREATED: repr(message.created_at)}
    content_type: Any = None
    for at, (name, value) in enumerate(message.headers):
        if at == 0 and name == CONTENT_TYPE and _is_short_text(value):
            content_type = value
        elif name in table or name == CONTENT_TYPE or not _is_short(name):
            table[HEADERS] = _pack(message.headers)
            if name == CONTENT_TYPE and content_type is None and _is_short_text(value):
                content_type = value
        else:
            table[name] = value
    key = message.key
    if key is not None:
        try:
            table[KEY] = key.decode()
        except UnicodeDecodeError:
            table[KEY] = key
    if message.body is None:
        table[TOMBSTONE] = "1"
    id = message.id
    if not _is_short(id):
        table[ID], id = id, hashlib.sha256(id.encode()).hexdigest()
    if due is not None:
        table[NOT_BEFORE] = repr(due)
    timestamp = int(message.created_at) if message.created_at > 0 else None
    return encode(content_type, table, id, timestamp)


def from_wire(
    topic: str, queue: str, properties: Properties | pika.BasicProperties, body: bytes
) -> tuple[Message, bool]:
    """The message, and whether its id is weak."""
    table: Mapping[str, Any] = properties.headers or {}
    weak = not properties.message_id
    if weak:
        named = sorted((name, str(value)) for name, value in table.items() if name not in BROKERS)
        digest = hashlib.sha256(repr((queue, named)).encode() + body)
        id = f"weak-{digest.hexdigest()[:32]}"
    else:
        id = _text(table[ID]) if ID in table else str(properties.message_id)
    key = table.get(KEY)
    created = table.get(CREATED)
    return (
        Message(
            id=id,
            topic=topic,
            key=key.encode() if isinstance(key, str) else key if isinstance(key, bytes) else None,
            body=None if TOMBSTONE in table else body,
            headers=_headers(table, properties.content_type),
            created_at=_seconds(created, properties.timestamp),
        ),
        weak,
    )


def _headers(table: Mapping[str, Any], content_type: str | None) -> tuple[Header, ...]:
    packed = table.get(HEADERS)
    if isinstance(packed, bytes):
        try:
            pairs = _unpack(packed)
            if all(isinstance(value, (bytes, str)) for _, value in pairs):
                return pairs
        except msgspec.DecodeError:
            pass  # somebody else's, of the same name
    headers: list[Header] = []
    if content_type:
        headers.append((CONTENT_TYPE, content_type))
    headers += [
        (name, _value(name, value))
        for name, value in table.items()
        if name not in OWN and name not in BROKERS
    ]
    return tuple(headers)


def _value(name: str, value: object) -> bytes | str:
    if isinstance(value, (bytes, str)):
        # Ours are text: whatever else claims to be one is refused by the core.
        return value if not name.startswith(PREFIX) else _text(value)
    return str(value)


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _seconds(created: object, timestamp: object) -> float:
    try:
        return float(created) if isinstance(created, str) else float(timestamp or 0)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return 0.0


def _is_short_text(value: bytes | str) -> bool:
    return isinstance(value, str) and len(value) > 0 and _is_short(value)


def _is_short(text: str) -> bool:
    return len(text) * 4 <= SHORT or len(text.encode()) <= SHORT


def marshal(channel: int, publish: bytes, properties: bytes, body: bytes, frame_max: int) -> bytes:
    """The frames of one publish; `publish` is its method frame.

    Raises: TransportError when the header does not fit a frame, which would end the connection.
    """
    size = HEADER_SIZE + len(properties)
    if size + OVERHEAD > frame_max:
        text = f"{size} bytes of properties and headers are more than a frame of {frame_max}"
        raise TransportError(text)
    head = _header.pack(2, channel, size, 60, 0, len(body))
    if not body:
        return b"".join((publish, head, properties, END))
    most = frame_max - OVERHEAD
    if len(body) <= most:
        first = _frame.pack(3, channel, len(body))
        return b"".join((publish, head, properties, END, first, body, END))
    parts = [publish, head, properties, END]
    for start in range(0, len(body), most):
        piece = body[start : start + most]
        parts += (_frame.pack(3, channel, len(piece)), piece, END)
    return b"".join(parts)
