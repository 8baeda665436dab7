"""AMQP's message properties as bytes, for the few that every message has; pika reads all others.

pika takes and gives an object with fourteen fields and a dict, and goes through all of them for
each message: that is most of what publishing and consuming costs. What comes out here is the same
byte for byte, and a shape that is not known here is left to pika.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from struct import Struct as Layout
from typing import Any, Final

import pika
from msgspec import Struct

__all__ = ["Properties", "by_pika", "encode", "read"]

# Presence flags, AMQP 0-9-1: section 4.2.6.1.
CONTENT_TYPE: Final = 1 << 15
HEADERS: Final = 1 << 13
DELIVERY_MODE: Final = 1 << 12
MESSAGE_ID: Final = 1 << 7
TIMESTAMP: Final = 1 << 6
OTHERS: Final = 0xFFFF ^ (CONTENT_TYPE | HEADERS | DELIVERY_MODE | MESSAGE_ID | TIMESTAMP)
#: Kinds of values in a table: text, bytes, a number.
TEXT, BYTES, LONG = ord("S"), ord("x"), ord("l")

#: The first byte of a short string.
LENGTHS: Final = [bytes((length,)) for length in range(256)]

_head = Layout(">H").pack
_size = Layout(">I").pack
_time = Layout(">Q").pack
_read_long = Layout(">q").unpack_from
_read_time = Layout(">Q").unpack_from


class Properties(Struct, frozen=True, gc=False):
    """Those of pika's BasicProperties that this adapter writes and reads; `encoded`: all of it."""

    content_type: str | None
    headers: Mapping[str, Any]
    message_id: str | None
    timestamp: int | None
    encoded: bytes


def encode(
    content_type: str | None, headers: Mapping[str, Any], message_id: str, timestamp: int | None
) -> Properties:
    """Of a persistent message. Raises TypeError, ValueError: something in it cannot be sent.

    Short strings are at most 255 bytes: the caller sees to that.
    """
    table: list[bytes] = []
    add = table.append
    for name, value in headers.items():
        add(_name(name))
        if isinstance(value, str):
            data = value.encode()
            add(b"S")
        else:
            data = value
            add(b"x")
        add(_size(len(data)))
        add(data)
    rows = b"".join(table)
    flags, first, last = HEADERS | DELIVERY_MODE | MESSAGE_ID, b"", b""
    if content_type is not None:
        flags |= CONTENT_TYPE
        first = _name(content_type)
    if timestamp is not None:
        flags |= TIMESTAMP
        last = _time(timestamp)
    id = message_id.encode()
    encoded = b"".join(
        (_head(flags), first, _size(len(rows)), rows, b"\x02", LENGTHS[len(id)], id, last)
    )
    return Properties(content_type, headers, message_id, timestamp, encoded)


def read(data: bytes) -> Properties | pika.BasicProperties:
    """What `encode`, or somebody else, has written."""
    try:
        found = _read(data)
    except (IndexError, UnicodeDecodeError):
        found = None
    return by_pika(data) if found is None else found


def _read(data: bytes) -> Properties | None:
    flags = data[0] << 8 | data[1]
    if flags & OTHERS:
        return None
    content_type = message_id = timestamp = None
    headers: dict[str, Any] = {}
    at = 2
    if flags & CONTENT_TYPE:
        end = at + 1 + data[at]
        content_type = data[at + 1 : end].decode()
        at = end
    if flags & HEADERS:
        end = at + 4 + int.from_bytes(data[at : at + 4], "big")
        found = _table(data, at + 4, end)
        if found is None:
            return None
        headers, at = found, end
    if flags & DELIVERY_MODE:
        at += 1
    if flags & MESSAGE_ID:
        end = at + 1 + data[at]
        message_id = data[at + 1 : end].decode()
        at = end
    if flags & TIMESTAMP:
        (timestamp,) = _read_time(data, at)
    return Properties(content_type, headers, message_id, timestamp, data)


def _table(data: bytes, at: int, table_end: int) -> dict[str, Any] | None:
    table: dict[str, Any] = {}
    while at < table_end:
        end = at + 1 + data[at]
        name = data[at + 1 : end].decode()
        kind = data[end]
        if kind == LONG:
            (table[name],) = _read_long(data, end + 1)
            at = end + 9
            continue
        at = end + 5 + int.from_bytes(data[end + 1 : end + 5], "big")
        if kind == TEXT:
            table[name] = data[end + 5 : at].decode()
        elif kind == BYTES:
            table[name] = data[end + 5 : at]
        else:
            return None
    return table


def by_pika(data: bytes) -> pika.BasicProperties:
    """What pika makes of them."""
    properties = pika.BasicProperties()
    properties.decode(data)
    return properties


@lru_cache(1_000)
def _name(text: str) -> bytes:
    """A short string of which there are few."""
    data = text.encode()
    return bytes((len(data),)) + data
