"""What topics and groups are called on the broker.

topic         the topic of that name
group         the consumer group of that name
dead letters  the topic `topic.group.dlq`, with as many partitions
long retries  the topics `topic.group.retry.<seconds>`, one delay each, read by that group alone
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from reliable_mq.errors import Unroutable
from reliable_mq.message import RetryCopy, Topic, dead_letter_topic

if TYPE_CHECKING:
    from reliable_mq.message import Destination, Message

__all__ = [
    "LADDER",
    "is_retry_of",
    "owner_of",
    "retry_pattern",
    "retry_topic",
    "rung",
    "topic_of",
]

#: Characters of a topic's name, and what they may be.
LONGEST_NAME: Final = 249
_legal = re.compile(r"[A-Za-z0-9._-]+").fullmatch
#: Seconds of the retry topics: at once, then powers of two up to 9.1 hours.
LADDER: Final[tuple[int, ...]] = (0, *(1 << power for power in range(16)))


def rung(seconds: float) -> int:
    """The step of the ladder for a delay, rounded up; the longest for what is longer."""
    for step in LADDER:
        if seconds <= step:
            return step
    return LADDER[-1]


def retry_topic(topic: str, group: str, step: int) -> str:
    """Where copies wait that a group gets again after so many seconds."""
    return f"{topic}.{group}.retry.{step}"


def retry_pattern(topic: str, group: str) -> str:
    """What a group subscribes to for its retries, as librdkafka takes it."""
    return f"^{re.escape(topic)}\\.{re.escape(group)}\\.retry\\.[0-9]+$"


def is_retry_of(name: str, topic: str, group: str) -> bool:
    """Whether retries of this group wait in the topic `name`."""
    return name.startswith(f"{topic}.{group}.retry.")


def owner_of(name: str, topics: tuple[str, ...], group: str) -> str:
    """The topic that a message belongs to which came from the topic `name`."""
    for topic in topics:
        if name == topic or is_retry_of(name, topic, group):
            return topic
    return name


def topic_of(message: Message, to: Destination) -> str:
    """The topic that a message is produced to. Raises Unroutable: no topic can have that name."""
    if isinstance(to, Topic):
        name = message.topic
    elif isinstance(to, RetryCopy):
        name = retry_topic(to.topic, to.group, rung(to.delay))
    else:
        name = dead_letter_topic(to.topic, to.group)
    if not _is_legal(name):
        text = f"message {message.id!r}: {name!r} cannot be the name of a topic of Kafka"
        raise Unroutable(text, message)
    return name


@lru_cache(maxsize=1_000)
def _is_legal(name: str) -> bool:
    return len(name) <= LONGEST_NAME and bool(_legal(name))
