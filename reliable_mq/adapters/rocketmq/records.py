"""What lies in a topic, read by offset and taken from nobody: the older protocol's pull.

A record is laid out as the broker has it in its log; see `_layout`. Its properties are one text,
`name 0x01 value 0x02 …`, of which some are fields of the message in the newer protocol.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from reliable_mq.adapters.rocketmq.remoting import Refused
from reliable_mq.adapters.rocketmq.wire import types
from reliable_mq.errors import TransportError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reliable_mq.adapters.rocketmq.remoting import Peer

__all__ = ["Record", "decoded", "pull"]

PULL: Final = 11
#: Answers to a pull that bring nothing: the end, nothing that fits, an offset that is gone.
NOTHING_THERE, ASK_ELSEWHERE, OFFSET_MOVED = 19, 20, 21
#: The request carries what it subscribes to, which is everything.
WITH_SUBSCRIPTION: Final = 4
#: Records of one request.
AT_ONCE: Final = 32

# size, magic, CRC, queue, flag, offset in the queue, offset in the log, system flags, time of birth
_layout = struct.Struct(">iiiiiqqiq")
_time = struct.Struct(">q")
# times it was consumed, offset of its transaction, length of the body
_rest = struct.Struct(">iqi")
_short, _byte = struct.Struct(">h"), struct.Struct(">B")
#: Magic of records whose topic has a length of two bytes.
LONG_TOPIC: Final = -626843477
#: System flags: the body is compressed; the host of birth, or of the store, is IPv6.
COMPRESSED, BORN_V6, STORED_V6 = 1, 1 << 4, 1 << 5
#: Bytes of an address with its port.
V4, V6 = 8, 20

#: Properties that are fields of a message in the newer protocol.
MESSAGE_ID, TAG, KEYS, GROUP = "UNIQ_KEY", "TAGS", "KEYS", "__SHARDINGKEY"


class Record(Struct, frozen=True):
    """One record: its queue and offset, and itself as a message of the newer protocol."""

    queue: int
    offset: int
    wire: Any


def pull(
    peer: Peer, topic: str, group: str, *, queue: int, begin: int, end: int
) -> Iterator[Record]:
    """The records of a queue from one offset on, before another.

    Raises: Refused, ConnectionFailed; TransportError when a record cannot be read.
    """
    offset = begin
    while offset < end:
        fields = {
            "consumerGroup": group,
            "topic": topic,
            "queueId": queue,
            "queueOffset": offset,
            "maxMsgNums": AT_ONCE,
            "sysFlag": WITH_SUBSCRIPTION,
            "commitOffset": 0,
            "suspendTimeoutMillis": 0,
            "subscription": "*",
            "subVersion": 0,
            "expressionType": "TAG",
        }
        try:
            answer = peer.ask(PULL, fields)
        except Refused as error:
            if error.code in (NOTHING_THERE, ASK_ELSEWHERE, OFFSET_MOVED):
                return
            raise
        found = list(decoded(answer.body))
        for record in found:
            if record.offset < end:
                yield record
        after = int(answer.fields.get("nextBeginOffset", 0))
        if after <= offset:
            return
        offset = after


def decoded(data: bytes) -> Iterator[Record]:
    """Records that stand one behind the other. Raises TransportError."""
    at = 0
    while at < len(data):
        try:
            size = max(_layout.size, _layout.unpack_from(data, at)[0])
            record = _record(data[at : at + size])
        except (struct.error, ValueError) as error:
            text = f"a record of RocketMQ's log cannot be read: {error}"
            raise TransportError(text) from error
        yield record
        at += size


def _record(data: bytes) -> Record:
    _, magic, _, queue, _, offset, _, flags, born = _layout.unpack_from(data)
    at = _layout.size + (V6 if flags & BORN_V6 else V4) + _time.size
    at += V6 if flags & STORED_V6 else V4
    times, _, length = _rest.unpack_from(data, at)
    at += _rest.size
    body = data[at : at + length]
    at += length
    topic_length = _short if magic == LONG_TOPIC else _byte
    (length,) = topic_length.unpack_from(data, at)
    at += topic_length.size + length
    (length,) = _short.unpack_from(data, at)
    at += _short.size
    properties = _properties(data[at : at + length].decode())
    wire = types().Message(body=body)
    system = wire.system_properties
    system.message_id = properties.pop(MESSAGE_ID, f"{queue}-{offset}")
    system.queue_id, system.queue_offset, system.delivery_attempt = queue, offset, times + 1
    system.born_timestamp.seconds, milliseconds = divmod(born, 1000)
    system.born_timestamp.nanos = milliseconds * 1_000_000
    system.body_encoding = 2 if flags & COMPRESSED else 1
    system.keys.extend(properties.pop(KEYS, "").split())
    if TAG in properties:
        system.tag = properties.pop(TAG)
    if GROUP in properties:
        system.message_group = properties.pop(GROUP)
    wire.user_properties.update(properties)
    return Record(queue, offset, wire)


def _properties(text: str) -> dict[str, str]:
    pairs = [pair.partition("\x01") for pair in text.split("\x02") if pair]
    return {name: value for name, _, value in pairs}
