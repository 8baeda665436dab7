"""Which offsets above the committed one are done, as the metadata of the commit.

A commit says up to where all is done. What is done behind a gap would run again after a restart or
a move to another member; so it goes along, as a set of bits from the committed offset on, in
base64, compressed where that is shorter (the idea: Confluent's Parallel Consumer, "Offset Map";
the format is ours). The broker takes 4,096 bytes: 24,000 offsets fit whatever their pattern, and
what is beyond is left out, which makes it run again and loses nothing.

    "rmq1" + "b" or "z" + base64 of the bits, the lowest first

Text of others, or of a later format, says nothing: everything from the committed offset on runs.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["SPAN", "decode", "encode"]

#: Offsets from the committed one on that fit into LONGEST bytes.
SPAN: Final = 24_000
#: Bytes that a broker takes (`offset.metadata.max.bytes`).
LONGEST: Final = 4_096
PREFIX: Final = "rmq1"
PLAIN, PACKED = "b", "z"


def encode(position: int, done: Iterable[int]) -> str:
    """The metadata of a commit at `position`; "" where nothing above it is done."""
    bits = 0
    for offset in done:
        if position <= offset < position + SPAN:
            bits |= 1 << (offset - position)
    if not bits:
        return ""
    plain = bits.to_bytes((bits.bit_length() + 7) // 8, "little")
    packed = zlib.compress(plain, 6)
    kind, data = (PACKED, packed) if len(packed) < len(plain) else (PLAIN, plain)
    return f"{PREFIX}{kind}{base64.b64encode(data).decode()}"


def decode(position: int, metadata: str | None) -> frozenset[int]:
    """What is done above a commit at `position`. Never raises: others may write what they like."""
    if not metadata or not metadata.startswith(PREFIX) or len(metadata) > LONGEST:
        return frozenset()
    kind, text = metadata[len(PREFIX) : len(PREFIX) + 1], metadata[len(PREFIX) + 1 :]
    try:
        data = base64.b64decode(text, validate=True)
        if kind == PACKED:
            unpacking = zlib.decompressobj()
            data = unpacking.decompress(data, SPAN // 8 + 1)
        elif kind != PLAIN:
            return frozenset()
    except (ValueError, binascii.Error, zlib.error):
        return frozenset()
    if len(data) > SPAN // 8:
        return frozenset()
    bits = int.from_bytes(data, "little")
    return frozenset(position + index for index in range(bits.bit_length()) if bits >> index & 1)
