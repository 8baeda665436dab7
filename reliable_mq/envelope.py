"""Messages made and checked, and our headers read: what we write, and what we believe.

Writing: `build` makes a Message of what a user gave, `check` looks at one that exists already. A
value of the wrong type is a ConfigurationError; a message that no broker could carry is a
PublishRejected, which keeps it. Headers that begin with `rmq-` are ours, and refused.

Reading: `ours` believes nothing that it did not check. What was published by somebody else may
carry any header; one that looks like ours and cannot be is a ForgedHeader, a dead letter.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final
from uuid import UUID

import msgspec
from msgspec import Struct

from reliable_mq import message as wire
from reliable_mq.codec import APPLICATION_JSON, JSON, OCTETS, encode
from reliable_mq.errors import (
    CodecError,
    ReliableMQError,
    TooLarge,
)
from reliable_mq.headers import Headers, check_headers, pack, rejected, wrong_type
from reliable_mq.ids import IdSource, derived_id
from reliable_mq.message import CONTENT_TYPE, PREFIX, Header, Message
from reliable_mq.outcome import LONGEST

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from reliable_mq.codec import Codec

__all__ = [
    "Control",
    "ForgedHeader",
    "Headers",
    "IdSource",
    "Key",
    "build",
    "check",
    "derived_id",
    "ours",
]

Key = str | int | UUID | bytes | None

#: Characters of an id, a topic or a group.
NAME_CHARACTERS = 200
#: Bytes of a key.
KEY_BYTES = 8 * 1024
#: Bytes of our own headers that are believed. What we write is half of that at most, so that a
#: header added on the way never makes a good message a forged one.
OUR_BYTES = 16 * 1024
#: The most a header may say; more is cut to this.
MOST_ATTEMPTS = 10_000
LONGEST_DELAY = LONGEST

#: The headers of most messages, made once.
_BINARY: Final[tuple[Header, ...]] = ((CONTENT_TYPE, OCTETS),)
_JSON: Final[tuple[Header, ...]] = ((CONTENT_TYPE, APPLICATION_JSON),)
_PLAIN = {OCTETS: _BINARY, APPLICATION_JSON: _JSON}


def build(
    topic: str,
    value: object,
    *,
    id: str,
    now: float,
    key: Key = None,
    headers: Headers = None,
    content_type: str | None = None,
    codec: Codec = JSON,
) -> Message:
    """A Message of what a user gave, checked in all but the size of its body. Any thread.

    Args:
        topic: 1 to 200 printable characters; the broker may allow fewer.
        id: 1 to 200 printable characters.
        value: Becomes the body; see `reliable_mq.codec`.
        now: Epoch seconds.
        key: str, int and UUID become the UTF-8 of their text, bytes stay; None is no key.
        headers: Names and values; as pairs, a name may come more than once.
        content_type: What to say of the body; in place of, never beside a header `content-type`.
        codec: Turns the value into bytes.

    Raises:
        ConfigurationError: A type that does not fit, or two answers to one question.
        CodecError: The value cannot be encoded.
        PublishRejected: No broker could carry it, or it has a header of ours; see `check`.
    """
    packed: tuple[Header, ...] = ()
    declared = None
    checked = True
    if headers is not None:
        packed, declared, checked = pack(headers, content_type)
        content_type = declared or content_type
    body: bytes | None
    natural: str | None = OCTETS
    if type(value) is bytes and content_type is None and codec is JSON:
        body = value
    else:
        body, natural = encode(value, codec, content_type)
    if natural is not None and declared is None:
        plain = _PLAIN.get(natural)
        packed += plain or ((CONTENT_TYPE, natural),)
        checked = checked and plain is not None
    if type(key) is str and key.isascii():  # the usual one, in half the time
        wire_key: bytes | None = key.encode()
    else:
        wire_key = key if key is None or type(key) is bytes else _key_bytes(key)
    message = Message(id, topic, wire_key, body, packed, now)
    check(message, None, headers=not checked)
    return message


def check(message: Message, max_body: int | None, *, headers: bool = True) -> None:
    """See that a message can be sent. Any thread.

    Args:
        message: What `build` made, or anybody else.
        max_body: Bytes of the largest body that the broker takes; None: not known here.
        headers: Whether nobody has looked at the headers yet.

    Raises:
        ConfigurationError: A field has the wrong type.
        PublishRejected: Its id, topic, key or headers are over a limit or not well-formed.
        TooLarge: Its body has more than `max_body` bytes.
    """
    id, topic, key, body = message.id, message.topic, message.key, message.body
    if not (
        type(id) is type(topic) is str
        and 0 < len(id) <= NAME_CHARACTERS
        and 0 < len(topic) <= NAME_CHARACTERS
        and id.isprintable()
        and topic.isprintable()
    ):
        _check_names(message)
    if key is not None:
        if type(key) is not bytes:
            wrong_type("key", key, "bytes, or None for no key")
        if len(key) > KEY_BYTES:
            why = f"key has {len(key)} bytes and the limit is {KEY_BYTES}; use a digest of it"
            raise rejected(message, why)
    packed = message.headers
    if headers and packed is not _BINARY and packed is not _JSON and packed != ():
        check_headers(message)
    if body is not None:
        _check_body(message, body, max_body)


def _check_names(message: Message) -> None:
    for what, name in (("id", message.id), ("topic", message.topic)):
        if not isinstance(name, str):
            wrong_type(what, name, "a str")
        if not (0 < len(name) <= NAME_CHARACTERS and name.isprintable()):
            why = f"{what} must have 1 to {NAME_CHARACTERS} characters, all of them printable"
            raise rejected(message, why)


def _check_body(message: Message, body: object, max_body: int | None) -> None:
    if not isinstance(body, bytes):
        wrong_type("body", body, "bytes, or None for a tombstone")
    if max_body is not None and len(body) > max_body:
        text = (
            f"message {message.id!r} to {message.topic!r} was not sent: its body has {len(body)} "
            f"bytes and the limit is {max_body}; store it elsewhere and send its address, or raise "
            "the limit"
        )
        raise TooLarge(text, message)


def _key_bytes(key: object) -> bytes:
    if type(key) is str and key.isascii():
        return key.encode()
    if isinstance(key, (bytes, bytearray, memoryview)):
        return bytes(key)
    # Not str(key): for an enum that is also a str or an int it would give the name of the member,
    # and not on every version of Python.
    if isinstance(key, str):
        text = str.__str__(key)
    elif isinstance(key, int) and not isinstance(key, bool):
        text = int.__repr__(key)
    elif isinstance(key, UUID):
        text = str(key)
    else:
        wrong_type("key=", key, "a str, int, UUID or bytes, or None for no key")
    try:
        return text.encode()
    except UnicodeEncodeError:
        msg = "key= is no UTF-8 text: it has half of a surrogate pair; nothing was sent"
    raise CodecError(msg)


class ForgedHeader(ReliableMQError):
    """A header that looks like ours and cannot be; the message becomes a dead letter."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"header {name[:64]!r} {why}: this library did not write it")
        self.name = name


class Control(Struct, frozen=True, gc=False):
    """What our headers of a message say, checked.

    attempt: which run this copy stands for. not_before: epoch seconds. generation: replays so far.
    group: the only group it is for, None for all. history: JSON list of its failed runs.
    """

    attempt: int = 1
    not_before: float | None = None
    generation: int = 0
    group: str | None = None
    history: str | None = None


_NOTHING: Final = Control()

#: Every header of ours that a delivery can carry. What an adapter adds for itself, such as the key
#: on RabbitMQ, it takes off again.
_KNOWN = """
    rmq-attempt rmq-not-before rmq-group rmq-history rmq-generation rmq-replay-id rmq-replay-count
    rmq-dl-schema rmq-dl-reason rmq-dl-exception-type rmq-dl-exception-mro rmq-dl-exception-message
    rmq-dl-exception-stack rmq-dl-cause-type rmq-dl-handler rmq-dl-subscription
    rmq-dl-consumer-group rmq-dl-host rmq-dl-library-version rmq-dl-failed-at
    rmq-dl-first-failed-at rmq-dl-attempts rmq-dl-attempts-inline rmq-dl-attempts-delayed
    rmq-dl-attempts-broker rmq-dl-redelivered rmq-dl-history
    rmq-orig-broker rmq-orig-topic rmq-orig-partition rmq-orig-queue rmq-orig-offset
    rmq-orig-position rmq-orig-delivery-tag rmq-orig-exchange rmq-orig-routing-key rmq-orig-key
    rmq-orig-timestamp rmq-orig-timestamp-type rmq-orig-message-id rmq-orig-content-type
"""
KNOWN: Final = frozenset(_KNOWN.split())


def ours(message: Message, *, now: float = 253_402_300_800.0) -> Control:
    """What our headers say. Any thread; a message without any costs a look at the names.

    The attempt is cut to 1 … 10 000 and not-before to 30 days from `now` (epoch seconds).

    Raises:
        ForgedHeader: Something under `rmq-` that this library does not write.
    """
    for name, _ in message.headers:
        if "rmq-" <= name < "rmq.":  # begins with "rmq-", in half the time of startswith
            return _read(message.headers, now + LONGEST_DELAY)
    return _NOTHING


def _read(headers: tuple[Header, ...], latest: float) -> Control:
    found: dict[str, str] = {}
    size = 0
    for name, value in headers:
        if not name.startswith(PREFIX):
            continue
        if name not in KNOWN:
            raise ForgedHeader(name, "is not known")
        if name in found:
            raise ForgedHeader(name, "comes twice")
        if not isinstance(value, str):
            raise ForgedHeader(name, "is no text")
        size += len(name) + len(value)
        if size > OUR_BYTES:
            raise ForgedHeader(name, f"and those before it have more than {OUR_BYTES} characters")
        found[name] = value
    group = found.get(wire.GROUP)
    if group is not None and not (0 < len(group) <= NAME_CHARACTERS and group.isprintable()):
        raise ForgedHeader(wire.GROUP, "is no name of a group")
    history = found.get(wire.HISTORY)
    if history is not None:
        try:
            _failures.decode(history)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            raise ForgedHeader(wire.HISTORY, "is no list of failed runs") from None
    return Control(
        int(_number(found, wire.ATTEMPT, _integer, 1, MOST_ATTEMPTS)),
        _number(found, wire.NOT_BEFORE, _decimal, 0, latest) if wire.NOT_BEFORE in found else None,
        int(_number(found, wire.GENERATION, _integer, 0, MOST_ATTEMPTS)),
        group,
        history,
    )


_integer = re.compile(r"-?[0-9]+").fullmatch
_decimal = re.compile(r"-?[0-9]+(\.[0-9]+)?").fullmatch
_failures = msgspec.json.Decoder(list[dict[str, str | float | None]])


def _number(
    found: Mapping[str, str],
    name: str,
    valid: Callable[[str], object],
    least: float,
    most: float,
) -> float:
    text = found.get(name)
    if text is None:
        return least
    if not valid(text):
        raise ForgedHeader(name, "is no number")
    return min(max(float(text), least), most)
