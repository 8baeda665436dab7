"""What the broker's answers mean for who asked: stored, refused for good, not now, or nobody knows.

20000               done
40xxx, 41xxx, 43xxx refused for good: the same request will be refused again
42900               not now: certainly not done, ask again later
50xxx               nobody knows; three of them mean that it is stored, though not as safely as
                    it should be: 50002, 50401, 50402
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from reliable_mq.adapters.rocketmq.wire import Code
from reliable_mq.errors import PublishRejected, TooLarge, Unroutable

if TYPE_CHECKING:
    from reliable_mq.errors import PublishError
    from reliable_mq.message import Message

__all__ = ["NOT_FOUND", "Said", "meaning", "refusal", "text_of"]

#: The first digit of what is refused for good.
REFUSED: Final = 4
NOT_FOUND: Final = frozenset({Code.TOPIC_NOT_FOUND, 40400})
FORBIDDEN: Final = frozenset({40100, 40300})
#: Beginnings of codes: of a body, of properties.
TOO_LARGE: Final = frozenset({413, 431})
#: Characters of the broker's own words that go into a text: some have a stack in them.
WORDS: Final = 160


class Said(Enum):
    """What an answer comes to."""

    DONE = 0
    REFUSED = 1
    LATER = 2
    UNKNOWN = 3


#: Codes that are ours to mend by asking again: a session the broker has forgotten, a slow client.
_PASSING: Final = frozenset({40017, 40018, 40800, 42800})


def meaning(code: int) -> Said:
    """What a status code comes to."""
    if code == Code.OK:
        return Said.DONE
    if code == Code.TOO_MANY_REQUESTS or code in _PASSING:
        return Said.LATER
    return Said.REFUSED if code // 10_000 == REFUSED else Said.UNKNOWN


def text_of(status: Any) -> str:
    """A status for a text: its code and the beginning of the broker's words."""
    words = " ".join(status.message.split())
    return f"{status.code} {words[:WORDS]}".strip()


def refusal(message: Message, to: str, status: Any) -> PublishError:
    """The error of a message that was refused for good."""
    said = text_of(status)
    if status.code in NOT_FOUND:
        text = (
            f"message {message.id} cannot be routed: topic {to!r} is missing: declare it, "
            f"mq.topic({message.topic!r}, groups=(…,)); the broker says {said}"
        )
        return Unroutable(text, message)
    if status.code == Code.WRONG_TYPE:
        text = (
            f"message {message.id} was refused: topic {to!r} takes another type of messages; make "
            f"it anew with the right message.type; the broker says {said}"
        )
        return PublishRejected(text, message)
    if status.code // 100 in TOO_LARGE:
        text = f"message {message.id} is too large for {to!r}: {said}; send a reference"
        return TooLarge(text, message)
    if status.code in FORBIDDEN:
        text = f"message {message.id}: this user may not publish to {to!r}: {said}"
        return PublishRejected(text, message)
    return PublishRejected(f"message {message.id} was refused by the broker: {said}", message)
