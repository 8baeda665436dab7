"""A message as a row, and back.

The checksum covers all that we wrote, so that damage below SQLite, or a careless UPDATE, is seen
before a handler sees it. A row without one was written by another program: what it left out gets
a default, and an id derived from where it stands.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID, uuid5
from zlib import crc32

import msgspec

from reliable_mq.message import Message

if TYPE_CHECKING:
    from reliable_mq.message import Header

__all__ = ["COLUMNS", "Columns", "from_row", "to_row"]

#: The columns that make a Message; with `m` as the name of mq_message in the query. As bytes:
#: damaged text would fail the whole query.
COLUMNS: Final = (
    "CAST(m.id AS BLOB), CAST(m.key AS BLOB), CAST(m.body AS BLOB), CAST(m.headers AS BLOB), "
    "CAST(m.created_at AS REAL), CAST(m.origin AS BLOB), m.crc"
)
Columns = tuple[
    bytes | None,
    bytes | None,
    bytes | None,
    bytes | None,
    float | None,
    bytes | None,
    int | None,
]

_FOREIGN: Final = UUID("52b0c7e4-0d1c-4f0f-8f1e-6a8b54a7c1d2")
_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(tuple[tuple[str, Any], ...]).decode
_decode_json: Final = msgspec.json.Decoder(dict[str, str]).decode


def to_row(message: Message, where: str) -> tuple[Any, ...]:
    """id, key, body, headers, created_at, origin, crc of a message that is to lie in `where`.

    Raises: ValueError, TypeError for what cannot be stored: text that is no Unicode, a header that
        is neither text nor bytes.
    """
    origin = None if message.topic == where else message.topic
    headers = _encode(message.headers) if message.headers else None
    # As it will be read: SQLite keeps NaN as NULL, and -0.0 as 0.
    created: float | None = message.created_at + 0.0
    if math.isnan(message.created_at):
        created = None
    key, body = message.key, message.body
    encoded = None if origin is None else origin.encode()
    crc = _checksum(where, (message.id.encode(), key, headers, created, encoded), body)
    return (message.id, key, body, headers, created, origin, crc)


def from_row(row: Columns, where: str, file: str, position: int) -> Message | None:
    """The message of a row in COLUMNS; None where it is damaged."""
    identifier, key, body, raw, created, origin, crc = row
    envelope = (identifier, key, raw, created, origin)
    if crc is not None and crc != _checksum(where, envelope, body):
        return None
    try:
        headers = _headers(raw)
        topic = where if origin is None else origin.decode()
        if identifier is None:
            name = str(uuid5(_FOREIGN, f"{file}/{where}/{position}"))
        else:
            name = identifier.decode()
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return Message(name, topic, key, body, headers, created or 0.0)


def _headers(raw: bytes | None) -> tuple[Header, ...]:
    if raw is None:
        return ()
    if raw.startswith(b"{"):  # never msgpack's first byte of a list
        return tuple(_decode_json(raw).items())
    return _decode(raw)


def _checksum(where: str, row: tuple[bytes | float | None, ...], body: bytes | None) -> int:
    """Over all of a row but its body, and then the body, which need not be copied for it."""
    rest = _encode((where, row, body is None))
    return crc32(rest) if body is None else crc32(body, crc32(rest))
