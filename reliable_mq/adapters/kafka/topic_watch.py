"""Whether topics are still those that they were: asked now and then, without waiting.

A topic that is deleted and made again goes by the same name, and librdkafka reads on in it where it
was in the old one; a partition that is added takes keys from others.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from confluent_kafka import KafkaError, KafkaException

from reliable_mq.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reliable_mq.adapters.kafka.admin import Admin

__all__ = ["TopicWatch"]

log = logging.getLogger("reliable_mq.kafka")

#: Seconds between two looks.
EVERY: Final = 2.0
MISSING: Final = frozenset({KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC})


class TopicWatch:
    """Of one member. The owner thread only.

    Args:
        moves_on: What is made again is no error: `made_again` says so, once.
    """

    def __init__(self, admin: Admin, topics: Sequence[str], *, moves_on: bool) -> None:
        self._admin = admin
        self._topics = list(topics)
        self._moves_on = moves_on
        self.made_again = False
        self._known: dict[str, tuple[str, int]] = {}
        self._asked: dict[str, Any] = {}
        #: Missing at the last look: gone, if they are at the next one as well.
        self._missing: set[str] = set()
        self._due = 0.0

    def look(self, now: float) -> ConfigurationError | None:
        """Hear the answers that are there, and ask again when it is time."""
        if now < self._due:
            return None
        if not self._asked:
            self._asked = dict(self._admin.describe(self._topics))
            self._due = now + EVERY / 10
            return None
        if not all(answer.done() for answer in self._asked.values()):
            return None
        asked, self._asked = self._asked, {}
        self._due = now + EVERY
        for topic, answer in asked.items():
            error = self._compare(topic, answer)
            if error is not None:
                return error
        return None

    def look_soon(self) -> None:
        """Somebody says that one is gone."""
        self._due = 0.0

    def _compare(self, topic: str, answer: Any) -> ConfigurationError | None:
        try:
            found = answer.result()
        except KafkaException as error:
            if error.args[0].code() not in MISSING:
                return None  # the way to the broker: others tell of it
            if topic in self._missing:
                return ConfigurationError(f"topic {topic!r} is gone: {error}")
            self._missing.add(topic)
            return None
        self._missing.discard(topic)
        now = (str(found.topic_id), len(found.partitions))
        before = self._known.setdefault(topic, now)
        if now[0] != before[0] and self._moves_on:
            self._known[topic] = now
            self.made_again = True
            log.warning("topic %r was deleted and made again: on_out_of_range moves on", topic)
        elif now[0] != before[0]:
            text = (
                f"topic {topic!r} was deleted and made again: the offsets of this group mean other "
                "messages now. Reset the group, or say on_out_of_range=earliest in the URL and "
                "start again"
            )
            return ConfigurationError(text)
        if now[1] != before[1]:
            self._known[topic] = now
            log.warning(
                "topic %r has %d partitions instead of %d: keys move to others, and what is under "
                "way of a key may be passed by what comes later",
                topic,
                now[1],
                before[1],
            )
        return None
