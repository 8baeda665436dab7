"""RocketMQ's remoting protocol: what `mqadmin` says to a broker or a name server, without its JVM.

A frame is its length (four bytes, without themselves), the length of its header (three bytes, after
one that tells how the header is written: 0 is JSON), the header, and a body. A request and its
answer have the same `opaque`; an answer with a `code` other than 0 is a refusal, and its `remark`
says why.
"""

from __future__ import annotations

import json
import socket
import struct
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Refused", "ask"]

LENGTHS: Final = struct.Struct(">iBBH")  # of all, how, of the header: its high byte and the rest
JSON: Final = 0

#: Marks the one request of a connection, and its answer.
OPAQUE: Final = 1

#: Longer than any answer of a test's broker: what claims more is no answer of RocketMQ.
LONGEST: Final = 64 << 20


class Refused(RuntimeError):
    """The server understood, and would not; `code` and `remark` are its own."""

    def __init__(self, address: str, request: int, code: int, remark: str) -> None:
        self.code = code
        self.remark = remark
        super().__init__(f"RocketMQ at {address} refused request {request}: {code}, {remark}")


def ask(
    address: str,
    request: int,
    fields: Mapping[str, object] | None = None,
    body: bytes = b"",
    *,
    within: float = 5.0,
) -> bytes:
    """Make a request by its number, on a connection of its own; the body of the answer.

    From any thread. Raises `Refused`, and OSError: a ConnectionError where nobody listens or the
    connection ends, a TimeoutError when all of it took longer than `within` seconds.
    """
    end = time.monotonic() + within
    host, _, port = address.rpartition(":")
    with closing(socket.create_connection((host, int(port)), within)) as connection:
        connection.sendall(_frame(request, fields or {}, body))
        while True:
            header, answer = _read(connection, end)
            if header.get("opaque") == OPAQUE:
                break  # a server may also ask on its own account: that has another
    if header["code"]:
        raise Refused(address, request, header["code"], str(header.get("remark")))
    return answer


def _frame(request: int, fields: Mapping[str, object], body: bytes) -> bytes:
    header = json.dumps(
        {
            "code": request,
            "language": "PYTHON",
            "version": 0,
            "opaque": OPAQUE,
            "flag": 0,
            "extFields": {key: _text(value) for key, value in fields.items()},
        }
    ).encode()
    high, rest = divmod(len(header), 1 << 16)
    return LENGTHS.pack(4 + len(header) + len(body), JSON, high, rest) + header + body


def _text(value: object) -> str:
    """As Java writes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _read(connection: socket.socket, end: float) -> tuple[dict[str, Any], bytes]:
    length, how, high, rest = LENGTHS.unpack(_exactly(connection, LENGTHS.size, end))
    size = (high << 16) + rest
    if how != JSON or not size + 4 <= length <= LONGEST:
        msg = f"no answer of RocketMQ: {length} bytes with a header of {size}, written as {how}"
        raise ConnectionError(msg)
    header = json.loads(_exactly(connection, size, end))
    return header, _exactly(connection, length - 4 - size, end)


def _exactly(connection: socket.socket, size: int, end: float) -> bytes:
    data = bytearray()
    while len(data) < size:
        connection.settimeout(max(0.001, end - time.monotonic()))
        if not (more := connection.recv(size - len(data))):
            msg = "the connection ended before the answer did"
            raise ConnectionError(msg)
        data += more
    return bytes(data)
