"""Bytes <-> objects. Nothing is ever unpickled, and no text of an error shows a body.

What a type becomes when it is published, and what can be read back:

    published                               body              content type
    --------------------------------------  ----------------  ------------------------
    bytes, bytearray, memoryview            as it is          application/octet-stream
    None                                    none (tombstone)  none
    str, with content_type="text/..."       its UTF-8         the one given
    str, dict, list, numbers, dataclass,
      TypedDict, Struct, pydantic model     JSON              application/json

    handler's type                          reads
    --------------------------------------  -------------------------------------------
    Message, bytes                          everything, as it is
    str                                     a JSON string, or the text of any text/*
    all other types                         application/json and everything that ends in +json

The content type is the message's header `content-type`, else the consumer's `content_type=`, else
JSON. Whatever is not on this list is refused. A tombstone is None, and only for `Optional[...]`.
A handler's type is compiled once, when the handler is made; the result is safe on any thread.
"""

from __future__ import annotations

import re
import sys
from functools import lru_cache
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, Union, get_args, get_origin

import msgspec
from msgspec import inspect

from reliable_mq.errors import CodecError, ConfigurationError
from reliable_mq.message import CONTENT_TYPE, Message

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["JSON", "Codec", "JsonCodec", "decoder_for", "encode"]

OCTETS = "application/octet-stream"
APPLICATION_JSON = "application/json"
CONTENT_TYPE_LENGTH = len(CONTENT_TYPE)

Form = Literal["json", "text", "octets"]


class Codec(Protocol):
    """How one consumer or publisher turns objects into bytes and back. Any thread.

    It sees every value but None (a tombstone) and `Message`, bytes included, and decides for itself
    which content types it takes. ValueError, TypeError, LookupError and RecursionError out of it
    mean that this message cannot be read, as does CodecError; anything else, such as an OSError of
    a schema registry, is passed on as it is: it is not the message's fault.
    """

    def encode(self, value: object) -> tuple[bytes, str]:
        """The body, and its content type."""

    def decode(self, body: bytes, content_type: str | None, target: Any) -> object:
        """The object, as the handler's annotation `target` wants it."""


class JsonCodec:
    """The codec that is used where no other is given: JSON, text and bytes, as in the table above.

    Numbers that JSON does not have (NaN, the infinities) become null.
    """

    def encode(self, value: object) -> tuple[bytes, str]:
        """The body, and its content type. Raises: ConfigurationError, CodecError."""
        if isinstance(value, (bytes, bytearray, memoryview)):
            return bytes(value), OCTETS
        return _to_json(value), APPLICATION_JSON

    def decode(self, body: bytes, content_type: str | None, target: Any) -> object:
        """The object. Raises: CodecError; ConfigurationError for a type that is not supported."""
        headers = () if content_type is None else ((CONTENT_TYPE, content_type),)
        try:
            decode = _cached_decoder(target)
        except TypeError:  # an annotation that has no hash
            decode = decoder_for(target, self)
        return decode(Message("", "", None, body, headers))


JSON = JsonCodec()


def encode(
    value: object, codec: Codec = JSON, content_type: str | None = None
) -> tuple[bytes | None, str | None]:
    """The body of a value and its content type, which is `content_type` where that is given.

    Raises:
        ConfigurationError: The type cannot be encoded, or `content_type` says otherwise.
        CodecError: The type can be encoded, but not this value.
    """
    if value is None:
        return None, content_type
    verbatim = isinstance(value, (bytes, bytearray, memoryview))
    if type(codec) is not JsonCodec or content_type is None or verbatim:
        body, natural = codec.encode(value)
        if type(body) is not bytes:
            msg = f"{type(codec).__name__}.encode gave {type(body).__name__} as a body: bytes only"
            raise ConfigurationError(msg)
        return body, natural if content_type is None else content_type
    form = form_of(content_type)
    if form == "json":
        return _to_json(value), content_type
    if form == "text" and isinstance(value, str):
        try:
            return value.encode(), content_type
        except UnicodeEncodeError:
            msg = "this str is no UTF-8 text: it has half of a surrogate pair; nothing was sent"
            raise CodecError(msg) from None
    msg = (
        f"content_type={content_type!r}, but a {type(value).__name__} is sent as JSON: "
        "give the bytes themselves, or a codec="
    )
    raise ConfigurationError(msg)


def decoder_for(
    target: Any, codec: Codec = JSON, assumed_content_type: str | None = None
) -> Callable[[Message], object]:
    """Compile a handler's type into a function that reads messages; it raises CodecError.

    Args:
        target: The annotation of the handler's payload.
        codec: Where it is not the JsonCodec, it reads every body but a tombstone's.
        assumed_content_type: What to assume of messages that do not say it.

    Raises:
        ConfigurationError: Nothing can be read as this type, with the remedy.
    """
    inner, optional = _without_none(target)
    if inner is Message:
        return _as_it_is
    if type(codec) is not JsonCodec:
        return _by_codec(target, codec, assumed_content_type)
    if inner is bytes:
        return _body_or_none if optional else _body
    if any(one in (bytes, bytearray, memoryview, Message) for one in (inner, *_members(inner))):
        msg = (
            f"{name_of(target)}: bytes and Message take every message, so they stand alone "
            "(or with None); bytearray and memoryview are read as bytes"
        )
        raise ConfigurationError(msg)
    return _by_content_type(target, inner, assumed_content_type)


def _as_it_is(message: Message) -> Message:
    return message


def _body_or_none(message: Message) -> bytes | None:
    return message.body


def _body(message: Message) -> bytes:
    body = message.body
    if body is None:
        raise _unreadable(message, bytes, _NO_BODY)
    return body


def _guarded(
    target: Any,
    read: Callable[[bytes, str | bytes | None], object],
    blame: tuple[type[Exception], ...],
) -> Callable[[Message], object]:
    """`read` with tombstones sorted out, and with the errors in `blame` as CodecErrors."""
    takes_none = _without_none(target)[1]

    def decode(message: Message) -> object:
        body = message.body
        if body is None:
            if takes_none:
                return None
            raise _unreadable(message, target, _NO_BODY)
        declared = None
        for name, value in message.headers:  # in whatever case others write it; the last one counts
            if len(name) == CONTENT_TYPE_LENGTH and name.lower() == CONTENT_TYPE:
                declared = value
        try:
            return read(body, declared)
        except CodecError:
            raise
        except blame as error:
            why = _reason(error, target)
        # Outside the except block: the original error shows parts of the body, and would go
        # wherever this one is logged or stored, as its context.
        raise _unreadable(message, target, why)

    return decode


def _by_codec(target: Any, codec: Codec, assumed: str | None) -> Callable[[Message], object]:
    def read(body: bytes, declared: str | bytes | None) -> object:
        if isinstance(declared, bytes):
            declared = declared.decode("latin-1")
        return codec.decode(body, declared or assumed, target)

    return _guarded(target, read, (ValueError, TypeError, LookupError, RecursionError))


def _by_content_type(target: Any, inner: Any, assumed: str | None) -> Callable[[Message], object]:
    read_json = _json_reader(Any if target is object else target)
    takes_text = _is_text(inner)
    as_it_is = inner is str
    assumed_form = form_of(assumed or APPLICATION_JSON)
    if assumed_form != "json" and not (assumed_form == "text" and takes_text):
        msg = f"content_type={assumed!r} cannot be read as {name_of(target)}; give a codec="
        raise ConfigurationError(msg)

    def read(body: bytes, declared: str | bytes | None) -> object:
        form = form_of(declared) if declared else assumed_form
        if form == "json":
            return read_json(body)
        if form == "text" and takes_text:
            return body.decode() if as_it_is else msgspec.convert(body.decode(), target)
        raise _OtherContentType(declared)

    return _guarded(target, read, (Exception,))  # validators of the user's type may raise anything


class _OtherContentType(Exception):
    """Not on the list, or not for this type."""


_cached_decoder = lru_cache(maxsize=256)(decoder_for)


_TYPE = re.compile(r"([\w!#$&^.-]+)/([\w!#$&^.+-]+)", re.ASCII)
_CHARSETS = {"utf-8", "utf8", "us-ascii"}


@lru_cache(maxsize=256)
def form_of(content_type: str | bytes) -> Form | None:
    """What a content type says about a body; None for everything that is not on the list."""
    text = content_type.decode("latin-1") if isinstance(content_type, bytes) else content_type
    essence, *parameters = text[:200].lower().split(";")
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "charset" and value.strip(' "') not in _CHARSETS:
            return None
    match = _TYPE.fullmatch(essence.strip())
    if match is None:
        return None
    if match[0] == APPLICATION_JSON or match[2].endswith("+json"):
        return "json"
    if match[1] == "text":
        return "text"
    return "octets" if match[0] == OCTETS else None


def _without_none(target: Any) -> tuple[Any, bool]:
    """The annotation without None, and whether it had it."""
    if get_origin(target) is Annotated:
        inner, optional = _without_none(get_args(target)[0])
        return (inner if inner is Message or inner is bytes else target), optional
    if target is None or target is type(None) or target is Any or target is object:
        return target, True
    members = _members(target)
    others = tuple(one for one in members if one is not type(None))
    if len(others) == len(members):
        return target, False
    return Union[others], True  # noqa: UP007 - built at run time


def _members(target: Any) -> tuple[Any, ...]:
    return get_args(target) if get_origin(target) in (Union, UnionType) else ()


def _is_text(inner: Any) -> bool:
    while get_origin(inner) is Annotated:
        inner = get_args(inner)[0]
    inner = getattr(inner, "__supertype__", inner)
    return inner in (str, Any, object) or str in _members(inner)


def _json_reader(target: Any) -> Callable[[bytes], object]:
    if _mentions_pydantic(target):
        model_validate_json = getattr(target, "model_validate_json", None)
        if model_validate_json is not None:
            return model_validate_json  # type: ignore[no-any-return]  # pydantic's, untyped here
        # A model exists, so its library has been imported, by whoever defined it.
        adapter = sys.modules["pydantic"].TypeAdapter(target)
        return adapter.validate_json  # type: ignore[no-any-return]  # as above
    try:
        foreign = next(_foreign_types(inspect.type_info(target), set()), None)
        decode = msgspec.json.Decoder(target).decode
    except (TypeError, NameError, ValueError) as error:
        msg = f"{name_of(target)} cannot be read from JSON: {error}"
        raise ConfigurationError(msg) from error
    if foreign is not None:
        msg = (
            f"{name_of(target)} cannot be read from JSON because of {name_of(foreign)}: use a "
            "dataclass, TypedDict, msgspec.Struct or pydantic model, or give a codec="
        )
        raise ConfigurationError(msg)
    return decode


def _mentions_pydantic(target: Any) -> bool:
    if hasattr(target, "model_validate_json") or hasattr(target, "__pydantic_validator__"):
        return True
    return any(_mentions_pydantic(one) for one in get_args(target))


def _foreign_types(node: object, seen: set[int]) -> Iterator[type]:
    """Types that msgspec would accept here and then fail on with every message."""
    if isinstance(node, inspect.CustomType):
        yield node.cls
    if isinstance(node, (inspect.Type, inspect.Field)) and id(node) not in seen:
        seen.add(id(node))  # types may contain themselves
        for name in node.__struct_fields__:
            value = getattr(node, name)
            for child in value if isinstance(value, tuple) else (value,):
                yield from _foreign_types(child, seen)


def name_of(target: Any) -> str:
    """A type as it is named in a text."""
    if isinstance(target, type) and not get_args(target):
        return target.__qualname__
    return str(target).replace("typing.", "")


def _to_json(value: object) -> bytes:
    try:
        dump = getattr(type(value), "model_dump_json", None)
        if dump is not None:  # pydantic: by alias, because that is how it is read again
            text: str = dump(value, by_alias=True)
            return text.encode()
        return _encode(value)
    except TypeError as error:
        msg = f"a {type(value).__name__} cannot be sent as JSON: {error}; give bytes, or a codec="
        raise ConfigurationError(msg) from error
    except Exception as error:  # noqa: BLE001 - serializers of the user's type may raise anything
        why = type(error).__name__
    msg = f"this {type(value).__name__} cannot be encoded as JSON ({why}); nothing was sent"
    raise CodecError(msg)


def _model_to_builtins(value: Any) -> object:
    """A pydantic model somewhere inside another value."""
    dump = getattr(type(value), "model_dump", None)
    if dump is None:
        msg = f"objects of type {type(value).__name__} are not supported"
        raise TypeError(msg)
    return dump(value, mode="json", by_alias=True)


_encode = msgspec.json.Encoder(enc_hook=_model_to_builtins).encode

#: Texts of msgspec that quote nothing but the type; in paths it writes `[...]` for keys of a body.
_HARMLESS = re.compile(
    r"Expected `|Object missing required field|Invalid (?!enum value|value)"
    r"|Number out of range|Integer value out of range|JSON is malformed|Input data was truncated"
)
_PATH = re.compile(r" - at `(\$[^`]*)`$")


def _reason(error: Exception, target: Any) -> str:
    """Why a body cannot be read, without quoting any of it."""
    why = f"its type refused it with {type(error.__cause__ or error).__name__}"
    if isinstance(error, _OtherContentType):
        why = f"its content type is {str(error)[:80]!r}; give the consumer a codec= that reads it"
    elif isinstance(error, RecursionError):
        why = "it is nested too deeply"
    elif isinstance(error, UnicodeDecodeError):
        why = f"it is not valid UTF-8 (byte {error.start})"
    elif isinstance(error, msgspec.DecodeError) and error.__cause__ is None:
        text = str(error)
        path = _PATH.search(text)
        refused = "a value that its type does not allow" + (f" at {path[1]}" if path else "")
        why = text if _HARMLESS.match(text) else refused
    elif hasattr(error, "errors") and hasattr(error, "error_count"):  # pydantic's ValidationError
        why = f"{error.error_count()} errors: {', '.join(_pydantic_errors(error, target))}"
    return why


def _pydantic_errors(error: Any, target: Any) -> Iterator[str]:
    fields = getattr(target, "model_fields", {})
    names = {*fields, *(field.alias for field in fields.values())}
    for one in error.errors(include_url=False, include_context=False, include_input=False)[:3]:
        where = one["loc"][0] if one["loc"] else None
        yield f"{one['type']} at {where!r}" if where in names else one["type"]


def _unreadable(message: Message, target: Any, why: str) -> CodecError:
    which = f"message {message.id!r} of {message.topic!r}" if message.topic else "the body"
    return CodecError(f"{which} cannot be read as {name_of(target)}: {why}", message.body)


_NO_BODY = "it is a tombstone (no body); annotate the payload with `| None` to take those"
