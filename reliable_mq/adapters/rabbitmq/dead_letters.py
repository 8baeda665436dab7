"""Reading the dead letters of a group: taken from their queue, looked at, and given back.

RabbitMQ has no way to look without taking. While one reader looks, another sees only the rest: the
messages that are missing are held by somebody, not lost.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from reliable_mq.adapters.base import StoredMessage
from reliable_mq.adapters.rabbitmq.names import dead_letters_of
from reliable_mq.adapters.rabbitmq.wire import from_wire
from reliable_mq.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from reliable_mq.adapters.rabbitmq.session import Session

__all__ = ["browse", "discard"]


def browse(session: Session, topic: str, group: str, limit: int) -> list[StoredMessage]:
    """See DeadLetterStore.browse."""
    return [stored for stored, _ in _taken(session, topic, group, limit)]


def discard(session: Session, topic: str, group: str, positions: Sequence[int | str]) -> int:
    """See DeadLetterStore.discard."""
    left = set(positions)
    found = 0
    for stored, tag in _taken(session, topic, group, None):
        if stored.position in left:
            left.discard(stored.position)
            session.channel.basic_ack(tag)
            found += 1
        if not left:
            break
    if found:
        session.channel.basic_qos(prefetch_count=1)  # an answer behind the acks
    return found


def _taken(
    session: Session, topic: str, group: str, limit: int | None
) -> Iterator[tuple[StoredMessage, int]]:
    queue = dead_letters_of(topic, group)
    refused = session.ask(lambda channel: channel.queue_declare(queue, passive=True))
    if refused is not None:
        text = f"there are no dead letters of group {group!r} of {topic!r}: {refused.reply_text}"
        raise ConfigurationError(text)
    seen: Counter[str] = Counter()
    taken = 0
    while limit is None or taken < limit:
        method, properties, body = _get(session, queue)
        if method is None:
            return
        taken += 1
        message, _ = from_wire(topic, queue, properties, body)
        seen[message.id] += 1
        # There are no offsets: what tells two with the same id apart is which of them comes first.
        position = f"{message.id}#{seen[message.id]}"
        yield StoredMessage(message, position), method.delivery_tag


def _get(session: Session, queue: str) -> tuple[Any, Any, bytes]:
    got: tuple[Any, Any, bytes] = session.channel.basic_get(queue)
    return got
