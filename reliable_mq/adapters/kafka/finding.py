"""Whether a topic is there, before anything is sent: librdkafka would wait for it in silence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from confluent_kafka import KafkaException

from reliable_mq.adapters.kafka.reports import Said, what_is_said
from reliable_mq.errors import ReliableMQError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Finding"]

#: Seconds that a question takes at most.
ASKING: Final = 1.0


class Finding:
    """Of one publisher, on its thread.

    Args:
        make_topic: Makes a retry topic that is missing; whether it is there afterwards.
    """

    def __init__(self, make_topic: Callable[[str], bool]) -> None:
        self._make_topic = make_topic
        #: Why nobody knows about the last one that was asked for.
        self.reason = ""

    def is_there(self, producer: Any, name: str) -> bool | None:
        """Whether this topic is there; None: nobody answers."""
        try:
            found = producer.list_topics(name, timeout=ASKING).topics.get(name)
        except KafkaException as error:
            self.reason = str(error)
            return None
        if found is not None and found.error is None:
            return True
        if found is not None and what_is_said(found.error) is not Said.MISSING:
            self.reason = str(found.error)
            return None if found.error.retriable() else False
        try:
            return self._make_topic(name)
        except ReliableMQError as error:
            self.reason = str(error)
            return None
