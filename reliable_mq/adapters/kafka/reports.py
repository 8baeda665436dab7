"""What an error of librdkafka says about a message: refused for good, no such topic, or nothing."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from confluent_kafka import KafkaError

from reliable_mq.errors import PublishRejected, TooLarge, Unroutable

if TYPE_CHECKING:
    from reliable_mq.message import Message

__all__ = ["Said", "refusal", "what_is_said"]


class Said(Enum):
    """By an error, about the message that it came for."""

    TOO_LARGE = "too large"
    REFUSED = "refused"
    MISSING = "no such topic"
    FULL = "no room"
    UNSENT = "never sent"
    NOTHING = "it may be stored"


REFUSED: Final = frozenset(
    {
        KafkaError.INVALID_RECORD,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.TOPIC_EXCEPTION,
        KafkaError.POLICY_VIOLATION,
        KafkaError.INVALID_TIMESTAMP,
        KafkaError.UNSUPPORTED_FOR_MESSAGE_FORMAT,
        KafkaError._INVALID_ARG,
    }
)
TOO_LARGE: Final = frozenset(
    {
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.INVALID_MSG_SIZE,
        KafkaError.RECORD_LIST_TOO_LARGE,
    }
)
MISSING: Final = frozenset(
    {KafkaError._UNKNOWN_TOPIC, KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_PARTITION}
)


def what_is_said(error: Any) -> Said:
    """What a KafkaError says about a message."""
    code = error.code()
    if code in TOO_LARGE:
        return Said.TOO_LARGE
    if code in REFUSED:
        return Said.REFUSED
    if code in MISSING:
        return Said.MISSING
    if code == KafkaError._QUEUE_FULL:
        return Said.FULL
    # After a fatal error, what is not on its way is given back; nothing new is taken either.
    if code in (KafkaError._PURGE_QUEUE, KafkaError._FATAL):
        return Said.UNSENT
    return Said.NOTHING


def refusal(message: Message, topic: str, error: Any) -> PublishRejected:
    """What a message ends as that the broker, or librdkafka, refused for good."""
    said = what_is_said(error)
    if said is Said.TOO_LARGE:
        return TooLarge(f"message {message.id} is too large for the broker: {error}", message)
    if said is Said.MISSING:
        text = f"message {message.id} cannot be routed: topic {topic!r} is gone: {error}"
        return Unroutable(text, message)
    return PublishRejected(f"message {message.id} was refused: {error}", message)
