"""Where RocketMQ's proxy sends the clients of a topic: one gRPC request, written by hand.

So that a broker is looked at by something else than the client under test, this knows the few
fields of `apache.rocketmq.v2` that it uses, by their numbers, and nothing of the adapter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from reliable_mq.testing.brokers.base import BrokerFailed, Missing

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "METADATA",
    "SERVICE",
    "UNKNOWN_TOPIC",
    "Route",
    "fields",
    "open_channel",
    "query",
    "write",
]

SERVICE: Final = "/apache.rocketmq.v2.MessagingService"

#: The proxy answers nobody who does not name itself.
METADATA: Final = (("x-mq-client-id", "reliable-mq-testing"),)

#: Connections are not shared with other channels of this process, and nothing is tried again.
OPTIONS: Final = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0))

OK: Final = 20000
UNKNOWN_TOPIC: Final = 40402

IPV4: Final = 1
VARINT, BYTES = 0, 2


class Route(NamedTuple):
    """What a client is told of a topic: a status, and of each queue host:port and what it takes."""

    code: int
    message: str
    addresses: tuple[str, ...]
    kinds: tuple[int, ...]

    @property
    def known(self) -> bool:
        """Whether there is a way to the topic."""
        return self.code == OK and bool(self.addresses)


def open_channel(address: str) -> Any:
    """A channel of grpcio to host:port; close it. `Missing` without grpcio."""
    try:
        import grpc
    except ImportError as error:
        msg = "grpcio is missing, which asks RocketMQ whether it is ready: pip install grpcio"
        raise Missing(msg) from error
    return grpc.insecure_channel(address, options=OPTIONS)


def query(address: str, topic: str, *, within: float = 3.0) -> Route:
    """Ask the proxy at host:port for a topic; `BrokerFailed` where it does not answer in time."""
    with open_channel(address) as channel:
        import grpc

        host, _, port = address.rpartition(":")
        dialled = write(1, IPV4) + write(2, write(1, host) + write(2, int(port)))
        request = write(1, write(2, topic)) + write(2, dialled)
        try:
            answer = channel.unary_unary(f"{SERVICE}/QueryRoute")(
                request, timeout=within, metadata=METADATA
            )
        except grpc.RpcError as error:
            msg = f"RocketMQ's proxy at {address} does not tell the way to {topic!r}: {error!r}"
            raise BrokerFailed(msg) from error
    return _route(answer)


def _route(answer: bytes) -> Route:
    code, message, addresses, kinds = 0, "", [], []
    for number, value in fields(answer):
        if number == 1:
            status = dict(fields(value))
            code, message = status.get(1, 0), bytes(status.get(2, b"")).decode()
        elif number == 2:
            queue = dict(fields(value))
            kinds.append(_first(queue.get(5, 0)))
            broker = dict(fields(queue[4]))
            where = dict(fields(dict(fields(broker[3]))[2]))
            addresses.append(f"{where[1].decode()}:{where[2]}")
    return Route(code, message, tuple(addresses), tuple(kinds))


def _first(numbers: int | bytes) -> int:
    """The first of a list of numbers, which is a field of bytes where it is packed."""
    return numbers if isinstance(numbers, int) else _read_varint(numbers, 0)[0]


# -- protobuf ----------------------------------------------------------------------------------


def write(number: int, value: int | str | bytes) -> bytes:
    """A field: a number, a text, or the bytes of another message."""
    if isinstance(value, int):
        return _varint(number << 3 | VARINT) + _varint(value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | BYTES) + _varint(len(data)) + data


def fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a message, by their numbers: integers, and bytes. Others end it by an error."""
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        value, at = _read_varint(data, at)
        if tag & 7 == BYTES:
            yield tag >> 3, data[at : at + value]
            at += value
        elif tag & 7 == VARINT:
            yield tag >> 3, value
        else:
            msg = f"field {tag >> 3} of RocketMQ's answer is of a kind that is not used there"
            raise BrokerFailed(msg)


def _varint(value: int) -> bytes:
    data = bytearray()
    while value > 127:
        data.append(value & 127 | 128)
        value >>= 7
    return bytes([*data, value])


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        shift += 7
        at += 1
        if data[at - 1] < 128:
            return value, at
