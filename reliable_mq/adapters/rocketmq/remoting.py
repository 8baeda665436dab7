"""RocketMQ's older protocol, as far as administration needs it: one request, one answer, blocking.

    length of all that follows | length of the header | header, JSON | body

The proxy has no calls to make topics and groups or to move positions; name servers and brokers do.
"""

from __future__ import annotations

import json
import re
import socket
import struct
from itertools import count
from typing import TYPE_CHECKING, Any, Final

from reliable_mq.errors import ConnectionFailed

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from reliable_mq.adapters.rocketmq.config import Address

__all__ = ["Peer", "Refused", "parsed"]

#: Bytes of the largest answer that is believed.
LARGEST: Final = 64 * 1024 * 1024
#: The lengths in front: the second one's first byte says how the header is written, 0 is JSON.
_lengths = struct.Struct(">ii")
_one = struct.Struct(">i")
#: Keys of JSON objects that are numbers, or objects themselves: theirs is not quite JSON.
_bare_key = re.compile(r"([{,]\s*)(-?\d+)(\s*:)")


class Refused(Exception):
    """The answer is no: its code, and the broker's words."""

    def __init__(self, code: int, remark: str) -> None:
        super().__init__(f"{code} {remark}"[:200])
        self.code = code


class Peer:
    """A name server or a broker; one thread at a time. Use it as a context manager.

    Raises: ConnectionFailed, from every method.
    """

    def __init__(self, address: Address, timeout: float) -> None:
        #: Its address, as positions have it.
        self.name = f"{address[0]}:{address[1]}"
        self._numbers = count(1)
        try:
            self._socket = socket.create_connection(address, timeout)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            text = f"{self.name} cannot be reached: {error}"
            raise ConnectionFailed(text) from error

    def __enter__(self) -> Peer:  # noqa: PYI034 - Self is of Python 3.11
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()

    def ask(self, code: int, fields: Mapping[str, Any] | None = None, body: bytes = b"") -> Answer:
        """One request. Raises Refused where the answer is no."""
        number = next(self._numbers)
        header = json.dumps(
            {
                "code": code,
                "flag": 0,
                "language": "PYTHON",
                "version": 0,
                "opaque": number,
                "serializeTypeCurrentRPC": "JSON",
                "extFields": {name: _text(value) for name, value in (fields or {}).items()},
            }
        ).encode()
        try:
            self._socket.sendall(_lengths.pack(4 + len(header) + len(body), len(header)))
            self._socket.sendall(header + body)
            while True:
                answer, body = self._read_one()
                if answer.get("opaque") == number:
                    break
        except (OSError, ValueError, struct.error) as error:
            text = (
                f"{self.name} did not answer request {code}: {str(error) or type(error).__name__}"
            )
            raise ConnectionFailed(text) from error
        if answer.get("code"):
            raise Refused(int(answer["code"]), str(answer.get("remark") or ""))
        return Answer(answer.get("extFields") or {}, body)

    def _read_one(self) -> tuple[dict[str, Any], bytes]:
        (size,) = _one.unpack(self._read(_one.size))
        if not _one.size <= size <= LARGEST:
            text = f"an answer of {size} bytes"
            raise ValueError(text)
        data = self._read(size)
        length = _one.unpack(data[:4])[0] & 0xFFFFFF
        return json.loads(data[4 : 4 + length]), data[4 + length :]

    def _read(self, size: int) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            part = self._socket.recv(min(size - len(parts), 1 << 20))
            if not part:
                text = "the connection was closed"
                raise ConnectionError(text)
            parts += part
        return bytes(parts)


class Answer:
    """The fields of an answer's header, and its body."""

    __slots__ = ("body", "fields")

    def __init__(self, fields: Mapping[str, Any], body: bytes) -> None:
        self.fields = fields
        self.body = body


def parsed(body: bytes) -> Any:
    """Their JSON: keys may be bare numbers. Raises ValueError."""
    text = body.decode()
    try:
        return json.loads(text)
    except ValueError:
        return json.loads(_bare_key.sub(r'\1"\2"\3', text))


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
