"""What topics and groups are called on the broker.

topic           the topic of that name: FIFO where it is ordered, else NORMAL
group           the consumer group of that name: one that keeps order where the topic is FIFO
delayed         the DELAY topic `topic%delay`: messages with a time, for all groups
retries         the DELAY topic `topic%group%retry`: copies for one group
dead letters    the NORMAL topic `topic%group%dlq`, of one queue
group, free     the consumer group `group%free`, where the group itself keeps order: it reads what
                is delayed or retried, of which one message must not hold up another

RocketMQ allows letters, digits, `_`, `-`, `%` and `|`. Names of the application have none of the
last two, so that no two of them meet.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from reliable_mq.errors import ConfigurationError, Unroutable
from reliable_mq.message import DeadLetter, RetryCopy

if TYPE_CHECKING:
    from reliable_mq.message import Destination, Message

__all__ = [
    "check_group",
    "check_topic",
    "dead_letters",
    "delayed",
    "free_group",
    "native_dead_letters",
    "place_of",
    "retries",
]

#: Characters of a topic's name, and of a group's, on the broker.
LONGEST_TOPIC: Final = 127
LONGEST_GROUP: Final = 120
_legal = re.compile(r"[A-Za-z0-9_-]+").fullmatch


def delayed(topic: str) -> str:
    """Where messages of a topic wait for their time."""
    return f"{topic}%delay"


def retries(topic: str, group: str) -> str:
    """Where copies wait that one group gets again."""
    return f"{topic}%{group}%retry"


def dead_letters(topic: str, group: str) -> str:
    """Where the dead letters of a group are kept."""
    return f"{topic}%{group}%dlq"


def native_dead_letters(group: str) -> str:
    """Where the broker puts what came too often: behind ours, and never reached by it."""
    return f"%DLQ%{group}"


def free_group(group: str) -> str:
    """The group beside one that keeps order, for what has none."""
    return f"{group}%free"


def check_topic(name: str) -> None:
    """Raises ConfigurationError: no topic can have that name."""
    _check("topic", name, LONGEST_TOPIC - len("%delay"))


def check_group(name: str) -> None:
    """Raises ConfigurationError: no group can have that name."""
    _check("group", name, LONGEST_GROUP - len("%free"))


def _check(what: str, name: str, longest: int) -> None:
    if not _is_legal(name, longest):
        text = (
            f"{what} {name!r} cannot be on RocketMQ: use letters, digits, '_' and '-', "
            f"at most {longest} of them"
        )
        raise ConfigurationError(text)


def place_of(message: Message, to: Destination, *, later: bool) -> str:
    """The topic on the broker that a message goes to; `later`: it is not due yet.

    Raises: Unroutable: no topic can have that name.
    """
    parts: tuple[str, ...]
    if isinstance(to, RetryCopy):
        name, parts = retries(to.topic, to.group), (to.topic, to.group)
    elif isinstance(to, DeadLetter):
        name, parts = dead_letters(to.topic, to.group), (to.topic, to.group)
    else:
        name, parts = (delayed(message.topic) if later else message.topic), (message.topic,)
    if len(name) > LONGEST_TOPIC or not all(_is_legal(part, LONGEST_TOPIC) for part in parts):
        text = (
            f"message {message.id}: {name!r} cannot be the name of a topic of RocketMQ: use "
            f"letters, digits, '_' and '-', {LONGEST_TOPIC} characters with the group's name"
        )
        raise Unroutable(text, message)
    return name


@lru_cache(maxsize=1_000)
def _is_legal(name: str, longest: int) -> bool:
    return len(name) <= longest and bool(_legal(name))
