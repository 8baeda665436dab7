"""A Message as a message of RocketMQ, and back.

    id          message_id; one that is no plain text of 128 characters: its digest, and rmq-id
    body        body; RocketMQ has no empty ones: a placeholder, and rmq-body (empty, null)
    key         rmq-key; on a FIFO topic it is the message group, where it is plain text of less
                than 64 bytes, else its digest is, and rmq-key has it. Without a key: rmq-nokey, and
                a message group of its own
    created_at  rmq-created, and born_timestamp
    headers     properties, with their order in rmq-order. What properties cannot hold (duplicates,
                bytes, empty or with control characters, names that are the broker's) is kept as a
                whole in rmq-headers, and where all that is too much, in front of the body.
                TAGS and KEYS are RocketMQ's own tag and index keys
    digest      rmq-digest: CRC-32 of the bytes sent, which the broker does not check

A message of another program has its message id as its id, and its message group as its key.

A message that cannot be read (damaged, compressed by something that is not known here, too large
when unpacked) comes as it is, with a header that the core refuses: it becomes a dead letter, with
the reason in it, and is neither lost nor delivered for ever.
"""

from __future__ import annotations

import base64
import hashlib
import re
import zlib
from typing import TYPE_CHECKING, Any, Final, TypeGuard

import msgspec

from reliable_mq.adapters.rocketmq.unpack import Unreadable, unpacked
from reliable_mq.adapters.rocketmq.wire import span, types
from reliable_mq.message import NOT_BEFORE, Message

if TYPE_CHECKING:
    from reliable_mq.message import Header

__all__ = ["from_wire", "group_of", "to_wire"]

ID: Final = "rmq-id"
BODY: Final = "rmq-body"
KEY: Final = "rmq-key"
NO_KEY: Final = "rmq-nokey"
CREATED: Final = "rmq-created"
ORDER: Final = "rmq-order"
HEADERS: Final = "rmq-headers"
ENVELOPE: Final = "rmq-envelope"
DIGEST: Final = "rmq-digest"
#: Properties of this adapter: never handed to the core.
OWN: Final = frozenset({ID, BODY, KEY, NO_KEY, CREATED, ORDER, HEADERS, ENVELOPE, DIGEST})
#: Stands for what cannot be read: the core refuses it, and the message is a dead letter.
UNREADABLE: Final = "rmq-unreadable"

TAG: Final = "TAGS"
KEYS: Final = "KEYS"
#: What stands in the body of a message that has none.
PLACEHOLDER: Final = b"-"
#: Bytes of all properties that we write: the proxy takes 16 KiB, with what the broker adds.
MOST: Final = 12 * 1024
#: Properties that the proxy takes are 128.
MOST_HEADERS: Final = 96
#: Epoch seconds beyond which no time is believed: the year 36812.
LATEST: Final = 2.0**40
#: How a body is encoded: as it is; compressed, by whatever.
PLAIN, COMPRESSED = 1, 2

# Names that mean something to the broker, and would not come back as they were.
_NAMES: Final = """
    KEYS TAGS WAIT DELAY RETRY_TOPIC REAL_TOPIC REAL_QID TRAN_MSG PGROUP MIN_OFFSET MAX_OFFSET
    BUYER_ID ORIGIN_MESSAGE_ID TRANSFER_FLAG CORRECTION_FLAG MQ2_FLAG RECONSUME_TIME MSG_REGION
    TRACE_ON UNIQ_KEY EXTEND_UNIQ_INFO MAX_RECONSUME_TIMES CONSUME_START_TIME INNER_NUM
    TRAN_PREPARED_QUEUE_OFFSET TRANSACTION_CHECK_TIMES CHECK_IMMUNITY_TIME_IN_SECONDS SHARDING_KEY
    TIMER_DELIVER_MS TIMER_DELAY_SEC TIMER_DELAY_MS TIMER_OUT_MS POP_CK POP_CK_OFFSET
    FIRST_POP_TIME CORRELATION_ID REPLY_TO_CLIENT TTL ARRIVE_TIME PUSH_REPLY_TIME CLUSTER
    MSG_TYPE INNER_MULTI_DISPATCH INNER_MULTI_QUEUE_OFFSET INNER_BASE DUP_INFO
    LITE_TOPIC PRIORITY __BORNHOST __SHARDINGKEY __STARTDELIVERTIME __transactionId__ id
"""
_RESERVED: Final = frozenset(_NAMES.split())
_plain_id = re.compile(r"[!-~]{1,128}").fullmatch
_plain_group = re.compile(r"[!-~]{1,63}").fullmatch
_plain_tag = re.compile(r"[!-{}~]{1,64}").fullmatch  # a bar has a meaning in subscriptions
_control = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]").search
_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(tuple[tuple[str, Any], ...]).decode
_unpack_envelope = msgspec.msgpack.Decoder(tuple[bytes | None, tuple[tuple[str, Any], ...]]).decode


def to_wire(message: Message, due: float | None = None) -> Any:
    """What is sent, but for its topic and its type. `due`: epoch seconds, kept in rmq-not-before.

    Raises: ValueError for a header that cannot be sent.
    """
    wire = types().Message()
    system = wire.system_properties
    properties: dict[str, str] = {CREATED: repr(message.created_at)}
    if _plain_id(message.id):
        system.message_id = message.id
    else:
        system.message_id = hashlib.sha256(message.id.encode()).hexdigest()
        properties[ID] = _text_of(message.id.encode())
    headers = message.headers
    if due is not None:
        kept = tuple(pair for pair in headers if pair[0] != NOT_BEFORE)
        headers = (*kept, (NOT_BEFORE, repr(due)))
    body = message.body
    if not body:
        properties[BODY] = "null" if body is None else "empty"
        body = PLACEHOLDER
    if message.key is None:
        properties[NO_KEY] = "1"
    else:
        properties[KEY] = _text_of(message.key)
    _add_headers(headers, properties, system)
    if sum(len(name) + len(value) for name, value in properties.items()) * 3 > MOST:
        size = sum(len(name) + len(value.encode()) for name, value in properties.items())
        if size > MOST or len(properties) > MOST_HEADERS:
            body = _add_envelope(message.key, headers, body, properties)
    properties[DIGEST] = f"{zlib.crc32(body):08x}"
    wire.user_properties.update(properties)
    wire.body = body
    system.body_encoding = PLAIN
    if message.created_at > 0:
        span(min(message.created_at, LATEST), system.born_timestamp)
    return wire


def group_of(message: Message) -> str:
    """The message group of a message on a FIFO topic."""
    key = message.key
    if key is None:  # one of its own, so that it waits for nobody
        return "-" + hashlib.sha256(message.id.encode()).hexdigest()[:24]
    if key.isascii() and _plain_group(key.decode()):
        return key.decode()
    return "#" + hashlib.sha256(key).hexdigest()[:40]


def from_wire(topic: str, wire: Any) -> Message:
    """The message that has come, as one of `topic`. Never raises."""
    system, properties = wire.system_properties, dict(wire.user_properties)
    body: bytes | None = wire.body
    key = _key_of(properties, system)
    why = ""
    try:
        headers = _headers_of(properties, system)
        digest = properties.get(DIGEST)
        if digest is not None and digest != f"{zlib.crc32(wire.body):08x}":
            why = "its bytes are not those that were sent"
        elif ENVELOPE in properties:
            key, headers, body = _from_envelope(wire.body, properties[ENVELOPE])
        elif system.body_encoding == COMPRESSED:
            body = unpacked(wire.body)
    except Unreadable as error:
        why, headers = str(error), ()
    except (ValueError, msgspec.DecodeError):
        why, headers = "its properties cannot be decoded", ()
    if why:
        headers = (*headers, (UNREADABLE, why))
    elif properties.get(BODY) in ("null", "empty"):
        body = None if properties[BODY] == "null" else b""
    return Message(
        _id_of(properties, system), topic, key, body, headers, _created(properties, wire)
    )


# -- there ---------------------------------------------------------------------------------------


def _add_headers(headers: tuple[Header, ...], properties: dict[str, str], system: Any) -> None:
    names = []
    whole = True
    for name, value in headers:
        if name == TAG and not system.tag and _is_text(value) and _plain_tag(value):
            system.tag = value
        elif name == KEYS and not system.keys and _are_keys(value):
            system.keys.extend(value.split())
        elif _is_text(value) and name not in properties and not _is_theirs(name):
            properties[name] = value
        else:
            whole = False
            continue
        names.append(name)
    if not whole:
        properties[HEADERS] = base64.b64encode(_pack(headers)).decode()
    elif len(names) > 1:
        properties[ORDER] = ",".join(names)


def _add_envelope(
    key: bytes | None, headers: tuple[Header, ...], body: bytes, properties: dict[str, str]
) -> bytes:
    """All that is too much for properties goes in front of the body; returns that body."""
    for name in [name for name in properties if name not in OWN]:
        del properties[name]
    for name in (KEY, HEADERS, ORDER):
        properties.pop(name, None)
    packed = _pack((key, headers))
    properties[ENVELOPE] = str(len(packed))
    return packed + body


def _is_text(value: bytes | str) -> TypeGuard[str]:
    return isinstance(value, str) and value.strip() != "" and not _control(value)


def _are_keys(value: bytes | str) -> TypeGuard[str]:
    return _is_text(value) and value == " ".join(value.split())


def _is_theirs(name: str) -> bool:
    return name in _RESERVED or name in OWN or "," in name or bool(_control(name)) or not name


def _text_of(value: bytes) -> str:
    """Bytes as the value of a property: as they are where that is plain, else in base64."""
    if value.isascii() and _plain_id(text := value.decode()):
        return f"t{text}"
    return "b" + base64.b64encode(value).decode()


# -- and back ------------------------------------------------------------------------------------


def _bytes_of(text: str) -> bytes:
    if text[:1] == "t":
        return text[1:].encode()
    return base64.b64decode(text[1:], validate=True)


def _id_of(properties: dict[str, str], system: Any) -> str:
    try:
        return _bytes_of(properties[ID]).decode()
    except (KeyError, ValueError):
        return str(system.message_id)


def _key_of(properties: dict[str, str], system: Any) -> bytes | None:
    if KEY in properties:
        try:
            return _bytes_of(properties[KEY])
        except ValueError:
            return properties[KEY].encode()
    if NO_KEY in properties or not system.message_group:
        return None
    return str(system.message_group).encode()


def _headers_of(properties: dict[str, str], system: Any) -> tuple[Header, ...]:
    if HEADERS in properties:
        return _checked(_unpack(base64.b64decode(properties[HEADERS], validate=True)))
    found: dict[str, str] = {}
    if system.tag:
        found[TAG] = system.tag
    if system.keys:
        found[KEYS] = " ".join(system.keys)
    found.update(
        (name, value)
        for name, value in sorted(properties.items())
        if name not in OWN and name not in _RESERVED
    )
    order = properties.get(ORDER, "").split(",")
    first = tuple((name, found.pop(name)) for name in order if name in found)
    return (*first, *found.items())


def _from_envelope(wire: bytes, length: str) -> tuple[bytes | None, tuple[Header, ...], bytes]:
    size = int(length)
    key, headers = _unpack_envelope(wire[:size])
    return key, _checked(headers), wire[size:]


def _checked(headers: tuple[tuple[str, Any], ...]) -> tuple[Header, ...]:
    if not all(isinstance(value, (bytes, str)) for _, value in headers):
        text = "a value that is no text"
        raise ValueError(text)
    return headers


def _created(properties: dict[str, str], wire: Any) -> float:
    try:
        seconds = float(properties.get(CREATED, ""))
    except ValueError:
        seconds = -1.0  # somebody else's
    if 0.0 <= seconds < LATEST:
        return seconds
    born = wire.system_properties.born_timestamp
    return float(born.seconds + born.nanos / 1e9)
