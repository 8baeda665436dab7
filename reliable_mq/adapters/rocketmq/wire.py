"""RocketMQ's protocol as classes of protobuf, and its calls as names.

The compiled description of rocketmq.proto lies beside this file and is loaded into a pool of its
own: the classes that protoc generates would go to the pool that the whole process shares, where
those of the official client cannot be loaded beside them, and want a protobuf as new as the
compiler.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from msgspec import Struct

__all__ = ["COMPILED", "PACKAGE", "SERVICE", "Call", "Code", "Kind", "calls", "span", "types"]

PACKAGE: Final = "apache.rocketmq.v2"
SERVICE: Final = f"{PACKAGE}.MessagingService"
#: rocketmq.proto, compiled by `make protos`.
COMPILED: Final = Path(__file__).with_name("rocketmq.binpb")

NANOS: Final = 1_000_000_000


class Kind:
    """Types of messages, and of topics: a topic takes one type alone."""

    NORMAL = 1
    FIFO = 2
    DELAY = 3
    TRANSACTION = 4
    LITE = 5
    PRIORITY = 6


class Code:
    """Answers of the broker that somebody here asks for by name."""

    OK = 20000
    INVALID_HANDLE = 40013
    WRONG_TYPE = 40014
    NO_MESSAGE = 40401
    TOPIC_NOT_FOUND = 40402
    GROUP_NOT_FOUND = 40403
    TOO_LARGE = 41301
    TOO_MANY_REQUESTS = 42900
    INTERNAL = 50001


class Call(Struct, frozen=True):
    """One call of the service: its path, and how many messages go each way."""

    path: str
    request: Any
    response: Any
    streams_up: bool
    streams_down: bool


class _Types:
    """Every message class, by its short name."""

    def __init__(self, pool: Any, names: list[str]) -> None:
        for name in names:
            found = pool.FindMessageTypeByName(f"{PACKAGE}.{name}")
            setattr(self, name, message_factory.GetMessageClass(found))

    def __getattr__(self, name: str) -> Any:  # for type checkers: all of them are set above
        raise AttributeError(name)


@lru_cache(maxsize=1)
def _loaded() -> tuple[_Types, dict[str, Call]]:
    files = descriptor_pb2.FileDescriptorSet.FromString(COMPILED.read_bytes())
    pool = descriptor_pool.DescriptorPool()
    names = []
    for file in files.file:
        pool.Add(file)
        names += [message.name for message in file.message_type]
    types = _Types(pool, names)
    service = pool.FindServiceByName(SERVICE)
    found = {}
    for method in service.methods:
        found[method.name] = Call(
            path=f"/{SERVICE}/{method.name}",
            request=getattr(types, method.input_type.name),
            response=getattr(types, method.output_type.name),
            streams_up=method.client_streaming,
            streams_down=method.server_streaming,
        )
    return types, found


def types() -> _Types:
    """The classes of messages. Any thread; the first call loads them, about 30 ms."""
    return _loaded()[0]


def calls() -> dict[str, Call]:
    """The calls of the service, by name."""
    return _loaded()[1]


def span(seconds: float, into: Any) -> None:
    """Write a time, or a length of it, into a message of protobuf."""
    nanos = round(seconds * NANOS)
    into.seconds, into.nanos = divmod(nanos, NANOS)
