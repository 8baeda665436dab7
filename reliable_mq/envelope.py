"""Messages made and checked, and our headers read: what we write, and what we believe.

Writing: `build` makes a Message of what a user gave, `check` looks at one that exists already. A
value of the wrong type is a ConfigurationError; a message that no broker could carry is a
PublishRejected, which keeps it. Headers that begin with `rmq-` are ours, and refused.

Reading: `ours` believes nothing that it did not check. What was published by somebody else may
carry any header; one that looks like ours and cannot be is a ForgedHeader, a dead letter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NoReturn
from uuid import UUID

import msgspec
from msgspec import Struct

from reliable_mq import message as wire
from reliable_mq.codec import APPLICATION_JSON, JSON, OCTETS, encode
from reliable_mq.errors import (
    CodecError,
    ConfigurationError,
    PublishRejected,
    ReliableMQError,
    TooLarge,
)
from reliable_mq.ids import IdSource, derived_id
from reliable_mq.message import CONTENT_TYPE, PREFIX, Header, Message
from reliable_mq.outcome import LONGEST

if TYPE_CHECKING:
    from collections.abc import Callable

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
Headers = Mapping[str, bytes | str] | Sequence[tuple[str, bytes | str]] | None

#: Characters of an id, a topic or a group.
NAME_CHARACTERS = 200
#: Bytes of a key.
KEY_BYTES = 8 * 1024
#: How many headers a user may give, and their bytes, names included.
HEADERS = 64
HEADER_BYTES = 8 * 1024
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
_valid_name = re.compile(r"[A-Za-z0-9_.-]{1,64}").fullmatch
_unsafe = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]").search


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
    if headers is not None:
        packed = _pairs(headers)
        declared = _header_content_type(packed, content_type)
        content_type = declared or content_type
    body: bytes | None
    natural: str | None = OCTETS
    if type(value) is bytes and content_type is None and codec is JSON:
        body = value
    else:
        body, natural = encode(value, codec, content_type)
    if natural is not None and declared is None:
        packed += _PLAIN.get(natural) or ((CONTENT_TYPE, natural),)
    if type(key) is str and key.isascii():  # the usual one, in half the time
        wire_key: bytes | None = key.encode()
    else:
        wire_key = key if key is None or type(key) is bytes else _key_bytes(key)
    message = Message(id, topic, wire_key, body, packed, now)
    check(message, None)
    return message


def check(message: Message, max_body: int | None) -> None:
    """See that a message can be sent. Any thread.

    Args:
        message: What `build` made, or anybody else.
        max_body: Bytes of the largest body that the broker takes; None: not known here.

    Raises:
        ConfigurationError: A field has the wrong type.
        PublishRejected: Its id, topic, key or headers are over a limit or not well-formed.
        TooLarge: Its body has more than `max_body` bytes.
    """
    id, topic, key, body = message.id, message.topic, message.key, message.body
    headers = message.headers
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
            _wrong_type("key", key, "bytes, or None for no key")
        if len(key) > KEY_BYTES:
            why = f"key has {len(key)} bytes and the limit is {KEY_BYTES}; use a digest of it"
            raise _rejected(message, why)
    if headers is not _BINARY and headers is not _JSON and headers != ():
        _check_headers(message)
    if body is not None:
        _check_body(message, body, max_body)


def _check_name(message: Message, what: str, name: object) -> None:
    if not isinstance(name, str):
        _wrong_type(what, name, "a str")
    if not (0 < len(name) <= NAME_CHARACTERS and name.isprintable()):
        why = f"{what} must have 1 to {NAME_CHARACTERS} characters, all of them printable"
        raise _rejected(message, why)


def _check_names(message: Message) -> None:
    for what, name in (("id", message.id), ("topic", message.topic)):
        if not isinstance(name, str):
            _wrong_type(what, name, "a str")
        if not (0 < len(name) <= NAME_CHARACTERS and name.isprintable()):
            why = f"{what} must have 1 to {NAME_CHARACTERS} characters, all of them printable"
            raise _rejected(message, why)


def _check_body(message: Message, body: object, max_body: int | None) -> None:
    if not isinstance(body, bytes):
        _wrong_type("body", body, "bytes, or None for a tombstone")
    if max_body is not None and len(body) > max_body:
        text = (
            f"message {message.id!r} to {message.topic!r} was not sent: its body has {len(body)} "
            f"bytes and the limit is {max_body}; store it elsewhere and send its address, or raise "
            "the limit"
        )
        raise TooLarge(text, message)


def _wrong_type(what: str, value: object, wanted: str) -> NoReturn:
    msg = f"{what} is a {type(value).__name__}; it must be {wanted}"
    raise ConfigurationError(msg)


def _rejected(message: Message, why: str) -> PublishRejected:
    text = f"message {message.id!r:.80} to {message.topic!r:.80} was not sent: its {why}"
    return PublishRejected(text, message)


def _pairs(headers: Any) -> tuple[Header, ...]:
    try:
        # Asking whether something is a Mapping costs as much as all the rest.
        usual = type(headers) in (list, tuple)
        items = headers.items() if not usual and isinstance(headers, Mapping) else headers
        pairs = tuple([(name, value) for name, value in items])
    except (TypeError, ValueError):
        _wrong_type("headers=", headers, "a mapping or a sequence of pairs")
    for name, value in pairs:
        if type(name) is not str or (type(value) is not str and type(value) is not bytes):
            _check_header_types(name, value)
    return pairs


def _check_header_types(name: object, value: object) -> None:
    if not isinstance(name, str):
        _wrong_type("the name of a header", name, "a str")
    if not isinstance(value, (str, bytes)):
        _wrong_type(f"header {name!r:.80}", value, "a str or bytes")


def _header_content_type(headers: tuple[Header, ...], content_type: str | None) -> str | None:
    """The content type that the headers name, which nothing else may contradict."""
    length = len(CONTENT_TYPE)
    given = [
        value for name, value in headers if len(name) == length and name.lower() == CONTENT_TYPE
    ]
    if not given:
        return None
    text = given[0].decode("latin-1") if isinstance(given[0], bytes) else given[0]
    if len(given) > 1 or content_type not in (None, text):
        msg = f"headers= say content-type {given}, content_type= says {content_type!r}: say it once"
        raise ConfigurationError(msg)
    return text


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
        _wrong_type("key=", key, "a str, int, UUID or bytes, or None for no key")
    try:
        return text.encode()
    except UnicodeEncodeError:
        msg = "key= is no UTF-8 text: it has half of a surrogate pair; nothing was sent"
    raise CodecError(msg)


@lru_cache(maxsize=1024)
def _wrong_with(header_name: str) -> str:
    if not _valid_name(header_name):
        return "a name has 1 to 64 of the characters A-Z a-z 0-9 _ . -"
    if header_name[:4].lower() == PREFIX:
        return f"names that begin with {PREFIX!r} are the library's own"
    return ""


def _check_headers(message: Message) -> None:
    if type(message.headers) is not tuple:
        _wrong_type("headers", message.headers, "a tuple of pairs")
    size = 0
    for name, value in message.headers:
        if type(name) is str and (
            type(value) is bytes or (type(value) is str and value.isascii() and value.isprintable())
        ):
            if not _wrong_with(name):  # the usual one, in half the time
                size += len(name) + len(value)
                continue
        else:
            _check_header_types(name, value)
        why = _wrong_with(name)
        if not why and isinstance(value, str) and not value.isprintable() and _unsafe(value):
            why = "a str value has no control characters; give bytes if it is binary"
        if why:
            raise _rejected(message, f"header {name!r:.80} is not allowed: {why}")
        size += len(name) + len(value if isinstance(value, bytes) else value.encode())
    count = len(message.headers)
    if count > HEADERS or size > HEADER_BYTES:
        why = f"{count} headers have {size} bytes; the limits are {HEADERS} and {HEADER_BYTES}"
        raise _rejected(message, why)


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
