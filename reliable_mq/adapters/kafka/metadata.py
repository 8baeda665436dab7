"""What a commit says beside its offset: of which topic it is, and which offsets above are done.

A commit says up to where all is done. What is done behind a gap would run again after a restart or
a move to another member; so it goes along, as a set of bits from the committed offset on, in
base64, compressed where that is shorter (the idea: Confluent's Parallel Consumer, "Offset Map";
the format is ours). The broker takes 4,096 bytes: 24,000 offsets fit whatever their pattern, and
what is beyond is left out, which makes it run again and loses nothing.

A topic that is deleted and made again under the same name keeps the offsets of its groups, which
then mean other messages: the topic's id tells.

    "rmq1" + topic id + "." + "b" or "z" + base64 of the bits, the lowest first

Text of others, or of a later format, says nothing: everything from the committed offset on runs.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["SPAN", "Said", "decode", "encode"]

#: Offsets from the committed one on that fit into LONGEST bytes.
SPAN: Final = 24_000
#: Bytes that a broker takes (`offset.metadata.max.bytes`).
LONGEST: Final = 4_096
PREFIX: Final = "rmq1"
PLAIN, PACKED = "b", "z"


class Said(NamedTuple):
    """What a commit says; "" and nothing where it says nothing."""

    topic_id: str = ""
    done: frozenset[int] = frozenset()


def encode(position: int, done: Iterable[int], topic_id: str = "") -> str:
    """The metadata of a commit at `position`."""
    bits = bytearray(SPAN // 8)
    for offset in done:
        at = offset - position
        if 0 <= at < SPAN:
            bits[at >> 3] |= 1 << (at & 7)
    plain = bytes(bits.rstrip(b"\0"))
    packed = zlib.compress(plain, 6)
    kind, data = (PACKED, packed) if len(packed) < len(plain) else (PLAIN, plain)
    return f"{PREFIX}{topic_id}.{kind}{base64.b64encode(data).decode()}"


def decode(position: int, metadata: str | None) -> Said:
    """What a commit at `position` says. Never raises: others may write what they like."""
    if not metadata or not metadata.startswith(PREFIX) or len(metadata) > LONGEST:
        return Said()
    topic_id, dot, text = metadata[len(PREFIX) :].partition(".")
    data = _bits(text[:1], text[1:])
    if not dot or data is None or len(data) > SPAN // 8:
        return Said()
    bits = int.from_bytes(data, "little")
    done = [position + at for at in range(bits.bit_length()) if data[at >> 3] >> (at & 7) & 1]
    return Said(topic_id, frozenset(done))


def _bits(kind: str, text: str) -> bytes | None:
    try:
        data = base64.b64decode(text, validate=True)
        if kind == PACKED:
            return zlib.decompressobj().decompress(data, SPAN // 8 + 1)
    except (ValueError, binascii.Error, zlib.error):
        return None
    return data if kind == PLAIN else None
