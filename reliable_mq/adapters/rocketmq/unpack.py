"""Compressed bodies: those that other programs send, told by their first bytes.

The broker flags them all as gzip, whatever they are: Java's clients write zlib, and LZ4 or
Zstandard where they are told to.
"""

from __future__ import annotations

import zlib
from typing import Final

__all__ = ["LARGEST", "Unreadable", "unpacked"]

#: Bytes that a body may have when it is unpacked: more is a bomb, or nothing for a message.
LARGEST: Final = 64 * 1024 * 1024
#: zlib's number for "zlib or gzip, whichever header there is".
ANY_HEADER: Final = 47
DEFLATE: Final = 0x08
LZ4: Final = b"\x04\x22\x4d\x18"
ZSTANDARD: Final = b"\x28\xb5\x2f\xfd"


class Unreadable(ValueError):
    """A body that cannot be had back; the text says why."""


def unpacked(body: bytes, largest: int = LARGEST) -> bytes:
    """The body that was compressed. Raises Unreadable."""
    if body.startswith((LZ4, ZSTANDARD)):
        name = "LZ4" if body.startswith(LZ4) else "Zstandard"
        text = f"its body is compressed with {name}; let its producer use zlib"
        raise Unreadable(text)
    if not (body.startswith(b"\x1f\x8b") or _begins_as_zlib(body)):
        text = "its body is said to be compressed, and is neither zlib nor gzip"
        raise Unreadable(text)
    try:
        inflate = zlib.decompressobj(ANY_HEADER)
        found = inflate.decompress(body, largest)
        if inflate.unconsumed_tail:
            text = f"its body has more than {largest} bytes when it is unpacked"
            raise Unreadable(text)
        if not inflate.eof:
            text = "its compressed body is cut off"
            raise Unreadable(text)
    except zlib.error as error:
        text = f"its compressed body is damaged: {error}"
        raise Unreadable(text) from error
    return found


def _begins_as_zlib(body: bytes) -> bool:
    """RFC 1950: deflate with a window of 32 KiB at most, and a check of these two bytes."""
    deflate = body[:1] != b"" and body[0] & 0x8F == DEFLATE
    return deflate and len(body) > 1 and int.from_bytes(body[:2], "big") % 31 == 0
