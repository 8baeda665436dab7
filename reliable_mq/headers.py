"""The headers that a user gives: taken as pairs, and checked.

Most messages carry the same few names, in the same way; a name that was found good once is not
looked at again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NoReturn

from reliable_mq.errors import ConfigurationError, PublishRejected
from reliable_mq.message import CONTENT_TYPE, PREFIX

if TYPE_CHECKING:
    from reliable_mq.message import Header, Message

__all__ = ["HEADERS", "HEADER_BYTES", "Headers", "check_headers", "pack", "rejected", "wrong_type"]

Headers = Mapping[str, bytes | str] | Sequence[tuple[str, bytes | str]] | None

#: How many headers a user may give, and their bytes, names included.
HEADERS: Final = 64
HEADER_BYTES: Final = 8 * 1024
#: Bytes of them that leave room for a content type.
USUAL_BYTES: Final = HEADER_BYTES - 256
PAIR: Final = 2
#: Names that are remembered.
NAMES: Final = 1024

#: Names that were found good, but for content-type: headers may say that once, and we may.
_good: set[str] = set()
_valid_name = re.compile(r"[A-Za-z0-9_.-]{1,64}").fullmatch
_unsafe = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]").search


def pack(headers: Any, content_type: str | None) -> tuple[tuple[Header, ...], str | None, bool]:
    """The pairs, the content type that they name, and whether all is checked. Any thread.

    Raises: ConfigurationError for what is no pairs of names and values, and for another content
        type than `content_type`.
    """
    kind = type(headers)
    if kind is list or kind is tuple or kind is dict:
        pairs = tuple(headers.items() if kind is dict else headers)
        if _are_usual(pairs):
            return pairs, None, True
    pairs = _pairs(headers)
    return pairs, _content_type_in(pairs, content_type), False


def _are_usual(headers: tuple[Any, ...]) -> bool:
    """Whether they are as nearly everybody gives them, and need no closer look.

    That is: tuples of a name that was found good before, and of bytes or plain text.
    """
    size = 0
    for pair in headers:
        if type(pair) is not tuple or len(pair) != PAIR:
            return False
        name, value = pair
        if type(name) is not str or name not in _good:
            return False
        if not (
            type(value) is bytes or (type(value) is str and value.isascii() and value.isprintable())
        ):
            return False
        size += len(name) + len(value)
    return len(headers) < HEADERS and size <= USUAL_BYTES


def _pairs(headers: Any) -> tuple[Header, ...]:
    try:
        # Asking whether something is a Mapping costs as much as all the rest.
        usual = type(headers) in (list, tuple)
        items = headers.items() if not usual and isinstance(headers, Mapping) else headers
        pairs = tuple([(name, value) for name, value in items])
    except (TypeError, ValueError):
        wrong_type("headers=", headers, "a mapping or a sequence of pairs")
    for name, value in pairs:
        if type(name) is not str or (type(value) is not str and type(value) is not bytes):
            _check_header_types(name, value)
    return pairs


def _content_type_in(headers: tuple[Header, ...], content_type: str | None) -> str | None:
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


def check_headers(message: Message) -> None:
    """See that the headers of a message can be sent. Any thread.

    Raises: ConfigurationError for a wrong type; PublishRejected for one that is not allowed, for
        too many, and for too many bytes.
    """
    if type(message.headers) is not tuple:
        wrong_type("headers", message.headers, "a tuple of pairs")
    size = 0
    for name, value in message.headers:
        if type(name) is str and (
            type(value) is bytes or (type(value) is str and value.isascii() and value.isprintable())
        ):
            if not _wrong_with(name):  # the usual one, in half the time
                size += len(name) + len(value)
                if len(_good) < NAMES and name.lower() != CONTENT_TYPE:
                    _good.add(name)
                continue
        else:
            _check_header_types(name, value)
        why = _wrong_with(name)
        if not why and isinstance(value, str) and not value.isprintable() and _unsafe(value):
            why = "a str value has no control characters; give bytes if it is binary"
        if why:
            raise rejected(message, f"header {name!r:.80} is not allowed: {why}")
        size += len(name) + len(value if isinstance(value, bytes) else value.encode())
    count = len(message.headers)
    if count > HEADERS or size > HEADER_BYTES:
        why = f"{count} headers have {size} bytes; the limits are {HEADERS} and {HEADER_BYTES}"
        raise rejected(message, why)


def _check_header_types(name: object, value: object) -> None:
    if not isinstance(name, str):
        wrong_type("the name of a header", name, "a str")
    if not isinstance(value, (str, bytes)):
        wrong_type(f"header {name!r:.80}", value, "a str or bytes")


@lru_cache(maxsize=NAMES)
def _wrong_with(header_name: str) -> str:
    if not _valid_name(header_name):
        return "a name has 1 to 64 of the characters A-Z a-z 0-9 _ . -"
    if header_name[:4].lower() == PREFIX:
        return f"names that begin with {PREFIX!r} are the library's own"
    return ""


def wrong_type(what: str, value: object, wanted: str) -> NoReturn:
    """Raise the ConfigurationError for a value of a type that does not fit."""
    msg = f"{what} is a {type(value).__name__}; it must be {wanted}"
    raise ConfigurationError(msg)


def rejected(message: Message, why: str) -> PublishRejected:
    """The ending of a message that no broker could carry."""
    text = f"message {message.id!r:.80} to {message.topic!r:.80} was not sent: its {why}"
    return PublishRejected(text, message)
