"""One publish on its way. librdkafka calls it with the report, which has no headers to tell by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import Struct

from reliable_mq.adapters.endings import size_of
from reliable_mq.adapters.kafka.names import topic_of
from reliable_mq.confirmation import Confirmation
from reliable_mq.message import RetryCopy

if TYPE_CHECKING:
    from collections.abc import Callable

    from reliable_mq.adapters.kafka.publisher import KafkaPublisher
    from reliable_mq.message import Destination

__all__ = ["Token", "token_of"]


class Token(Struct, eq=False, gc=False):  # its cycle ends with it
    """One message on its way.

    due: what its header rmq-not-before says, if it has one. sent: librdkafka has it, and may have
    sent it; in_doubt: an earlier producer had.
    """

    publisher: Any
    confirmation: Confirmation
    to: str
    due: str | None
    deadline: float | None
    size: int
    sent: bool = False
    in_doubt: bool = False

    def __call__(self, error: Any, record: Any) -> None:
        """The report. Never raises: it would come out of somebody's poll."""
        publisher: KafkaPublisher = self.publisher
        publisher.reported(self, error, record)


def token_of(  # noqa: PLR0917 - a call with names costs twice as much
    publisher: KafkaPublisher,
    confirmation: Confirmation,
    to: Destination,
    not_before: float | None,
    deadline: float | None,
    now: Callable[[], float],
    max_body: int,
) -> Token:
    """What is to be sent. Raises PublishRejected: no topic of Kafka can take it."""
    message = confirmation.message
    size = size_of(message, to, max_body)
    name = topic_of(message, to)
    due = not_before
    if isinstance(to, RetryCopy) and to.delay > 0:
        due = max(due or 0.0, now() + to.delay)
    text = None if due is None else repr(due)
    return Token(publisher, confirmation, name, text, deadline, size)
