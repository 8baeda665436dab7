"""How a publish ends without a Receipt, the same on every broker: too large, too late, no room."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from reliable_mq.errors import Backpressure, PublishUnknown, TooLarge
from reliable_mq.message import DeadLetter, Topic

if TYPE_CHECKING:
    from reliable_mq.message import Destination, Message

__all__ = ["OPEN", "OPEN_BYTES", "no_answer", "size_of"]

#: Messages, and bytes of them, that a publisher has taken and that have no ending yet.
OPEN: Final = 10_000
OPEN_BYTES: Final = 64 * 1024 * 1024
#: Bytes of key and headers of a message, and what a copy for one group may have beyond `max_body`.
ENVELOPE: Final = 48 * 1024
ROOM: Final = 64 * 1024


def size_of(message: Message, to: Destination, max_body: int) -> int:
    """Bytes of body, key and headers. Raises TooLarge, which is definite.

    A dead letter, and a retry copy, may be larger: nothing that was taken once is lost by what we
    write about it.
    """
    body = len(message.body or b"")
    envelope = len(message.key or b"")
    for name, value in message.headers:  # a sum of a list costs three times as much
        envelope += len(name) + len(value)
    if isinstance(to, Topic):
        fits = body <= max_body and envelope <= ENVELOPE
    else:
        fits = body + envelope <= max_body + ROOM
    if not fits:
        what = "dead letters of " if isinstance(to, DeadLetter) else ""
        text = (
            f"message {message.id} has a body of {body} bytes and {envelope} bytes of key and "
            f"headers; {what}{message.topic!r} takes {max_body} and {ENVELOPE}: send a reference"
        )
        raise TooLarge(text, message)
    return body + envelope


def no_answer(
    message: Message, why: str, reason: str, *, in_doubt: bool
) -> Backpressure | PublishUnknown:
    """What a message ends as that has no answer: unknown if it may be stored, else not sent.

    Args:
        reason: What the broker, or the way to it, said last; may be empty.
    """
    said = f" ({reason})" if reason else ""
    if in_doubt:
        text = (
            f"message {message.id}: {why}, and nobody knows whether it is stored{said}; "
            "publish it again with the same id"
        )
        return PublishUnknown(text, message)
    text = f"message {message.id} was not stored: {why}{said}; slow down, then publish it again"
    return Backpressure(text, message)
