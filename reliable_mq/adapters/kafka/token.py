"""One publish on its way. librdkafka calls it with the report, which has no headers to tell by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reliable_mq.adapters.endings import no_answer, size_of
from reliable_mq.adapters.kafka.names import topic_of
from reliable_mq.adapters.kafka.reports import Said, refusal, what_is_said
from reliable_mq.confirmation import Confirmation
from reliable_mq.errors import Unroutable
from reliable_mq.message import RetryCopy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from reliable_mq.adapters.kafka.publisher import KafkaPublisher
    from reliable_mq.errors import PublishError
    from reliable_mq.message import Destination, Message

__all__ = ["Token", "not_behind_a_failed_one", "token_of"]


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

    def no_answer(self, reason: str, why: str) -> PublishError:
        """What it ends as that has no answer; `reason`: what was said last of the way there."""
        return no_answer(self.message, why, reason, in_doubt=self.in_doubt or self.sent)

    def refused(self, reason: str, error: Any) -> PublishError:
        """What it ends as that was refused for good, or for want of room."""
        # What is in doubt an earlier producer may have stored.
        if self.in_doubt or what_is_said(error) is Said.FULL:
            return self.no_answer(reason, str(error))
        return refusal(self.message, self.to, error)

    def unroutable(self, reason: str) -> PublishError:
        """What it ends as that has no topic."""
        topic = self.message.topic
        why = f"topic {self.to!r} is missing: declare it, mq.topic({topic!r}, groups=(…,))"
        if self.in_doubt:
            return self.no_answer(reason, why)
        text = f"message {self.message.id} cannot be routed: {why}"
        return Unroutable(text, self.message)

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


def not_behind_a_failed_one(
    tokens: Iterable[Token], stored: Mapping[Token, tuple[int, int]]
) -> list[tuple[Token, int, int]]:
    """What was stored in its order; what stands behind a failed one of its key goes again.

    Args:
        tokens: All that is open, in the order it came.
        stored: Where those lie that were stored.
    """
    failed: set[tuple[str, bytes | None]] = set()
    in_order = []
    for token in tokens:
        key = token.message.key
        if token not in stored:
            failed.add((token.to, key))
        elif key is None or (token.to, key) not in failed:
            in_order.append((token, *stored[token]))
    return in_order
