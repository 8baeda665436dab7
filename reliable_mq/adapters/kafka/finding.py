"""Which topics are there, before anything is sent: librdkafka would wait for one in silence."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Final

from confluent_kafka import KafkaException

from reliable_mq.adapters.kafka.reports import Said, what_is_said
from reliable_mq.errors import ReliableMQError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["Finding"]

#: Seconds that a question takes at most.
ASKING: Final = 1.0


class Finding:
    """Of one publisher, on its thread.

    Args:
        make_topic: Makes a retry topic that is missing; whether it is there afterwards. It may take
            half a minute, so it has a thread of its own.
    """

    def __init__(self, make_topic: Callable[[str], bool]) -> None:
        self._make_topic = make_topic
        self._made: dict[str, Future[bool]] = {}
        #: Why nobody knows about those that are in neither list; may be empty.
        self.reason = ""

    def find(self, producer: Any, names: Iterable[str]) -> tuple[list[str], list[str]]:
        """Those that are there, and those that are certainly not; of others nobody knows yet."""
        self.reason = ""
        there: list[str] = []
        missing: list[str] = []
        for name in names:
            if name in self._made:
                known = self._was_made(name)
            else:
                try:
                    known = self._ask(producer, name)
                except KafkaException as error:
                    self.reason = str(error)
                    break  # nobody answers: each of the others would take as long
            if known is not None:
                (there if known else missing).append(name)
        return there, missing

    def _ask(self, producer: Any, name: str) -> bool | None:
        found = producer.list_topics(name, timeout=ASKING).topics.get(name)
        if found is not None and found.error is None:
            return True
        if found is not None and what_is_said(found.error) is not Said.MISSING:
            self.reason = str(found.error)
            return None if found.error.retriable() else False
        made = self._made[name] = Future[bool]()
        threading.Thread(
            target=self._make, args=(name, made), name="reliable-mq-kafka-topic", daemon=True
        ).start()
        return None

    def _make(self, name: str, made: Future[bool]) -> None:
        try:
            made.set_result(self._make_topic(name))
        except BaseException as error:  # noqa: BLE001 - whoever asks next gets it
            made.set_exception(error)

    def _was_made(self, name: str) -> bool | None:
        if not self._made[name].done():
            return None
        made = self._made.pop(name)
        try:
            return made.result()
        except ReliableMQError as error:
            self.reason = str(error)
            return None
