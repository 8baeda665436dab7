"""One publish on its way. librdkafka calls it with the report, which has no headers to tell by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reliable_mq.adapters.endings import size_of
from reliable_mq.adapters.kafka.names import topic_of
from reliable_mq.confirmation import Confirmation
from reliable_mq.message import RetryCopy

if TYPE_CHECKING:
    from collections.abc import Callable

    from reliable_mq.adapters.kafka.publisher import KafkaPublisher
    from reliable_mq.message import Destination, Message

__all__ = ["Token", "token_of"]


class Token(Confirmation):
    """One message on its way, and how it ends: one object, for each is to be small.

    due: what its header rmq-not-before says, if it has one. sent: librdkafka has it, and may have
    sent it; in_doubt: an earlier producer had.
    """

    __slots__ = ("deadline", "due", "in_doubt", "publisher", "sent", "size", "to")

    def __init__(  # noqa: PLR0917 - a call with names costs twice as much
        self,
        publisher: KafkaPublisher,
        message: Message,
        to: str,
        due: str | None,
        deadline: float | None,
        size: int,
    ) -> None:
        Confirmation.__init__(self, message)  # super() costs as much as all of it
        self.publisher = publisher
        self.to = to
        self.due = due
        self.deadline = deadline
        self.size = size
        self.sent = False
        self.in_doubt = False

    def __call__(self, error: Any, record: Any) -> None:
        """The report. Never raises: it would come out of somebody's poll."""
        self.publisher.reported(self, error, record)


def token_of(  # noqa: PLR0917 - a call with names costs twice as much
    publisher: KafkaPublisher,
    message: Message,
    to: Destination,
    not_before: float | None,
    deadline: float | None,
    now: Callable[[], float],
    max_body: int,
) -> Token:
    """What is to be sent. Raises PublishRejected: no topic of Kafka can take it."""
    size = size_of(message, to, max_body)
    name = topic_of(message, to)
    due = not_before
    if isinstance(to, RetryCopy) and to.delay > 0:
        due = max(due or 0.0, now() + to.delay)
    text = None if due is None else repr(due)
    return Token(publisher, message, name, text, deadline, size)
