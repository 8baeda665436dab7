"""What an operator does with a running app: look at halted keys, set them going again."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from reliable_mq.errors import ConfigurationError, TransportError
from reliable_mq.ordering.lanes import HALTED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from reliable_mq.consumer import Consumer
    from reliable_mq.ordering.lanes import Lane, Lanes
    from reliable_mq.settle import Settler

__all__ = ["Halted", "HaltedKey", "ask"]

#: Seconds an owner thread may take to answer.
PATIENCE = 10.0


class HaltedKey(Struct, frozen=True):
    """A key that stands, and the message at its head."""

    topic: str
    key: bytes | None
    message_id: str
    reason: str
    error: str


class Halted:
    """The halted keys of this process's consumers of one topic and group. Any thread.

    A key halts in the process that has its lease; each process shows its own.
    """

    def __init__(self, consumers: Sequence[Consumer], topic: str) -> None:
        self._consumers = consumers
        self._topic = topic

    def __iter__(self) -> Iterator[HaltedKey]:
        for consumer in self._consumers:
            yield from ask(consumer, lambda _, lanes: [_shown(one) for one in self._mine(lanes)])

    def retry(self, key: bytes | str | None) -> bool:
        """Run the head of this key again, with all its attempts; False if it does not stand."""
        return self._each(key, lambda settler, lane: settler.retry(lane))

    def skip(self, key: bytes | str | None) -> bool:
        """Dead-letter the head of this key and go on behind it; False if it does not stand."""
        return self._each(key, lambda settler, lane: settler.skip(lane))

    def _each(self, key: bytes | str | None, act: Callable[[Settler, Lane], None]) -> bool:
        wanted = key.encode() if isinstance(key, str) else key

        def command(settler: Settler, lanes: Lanes) -> bool:
            found = [one for one in self._mine(lanes) if _shown(one).key == wanted]
            for lane in found:
                act(settler, lane)
            return bool(found)

        return True in [ask(consumer, command) for consumer in self._consumers]

    def _mine(self, lanes: Lanes) -> list[Lane]:
        return [
            lane
            for lane in lanes
            if lane.state is HALTED and lane.why.delivery.message.topic == self._topic
        ]


def ask(consumer: Consumer, question: Callable[[Settler, Lanes], Any]) -> Any:
    """Have the owner thread answer, and wait for that.

    Raises: TransportError when it does not answer in time: the consumer has stopped, or is stuck.
    """
    answered = threading.Event()
    answer: list[Any] = []
    failure: list[Exception] = []

    def command(settler: Settler, lanes: Lanes) -> None:
        try:
            answer.append(question(settler, lanes))
        except Exception as error:  # noqa: BLE001 - it is raised where the question was asked
            failure.append(error)
        finally:
            answered.set()

    consumer.call(command)
    if not consumer.threaded:
        consumer.collect()
    if answered.wait(PATIENCE) and failure:
        raise failure[0]
    if not answer:
        msg = f"consumer {consumer.name} did not answer within {PATIENCE} s; is it running?"
        raise TransportError(msg)
    return answer[0]


def no_consumer(topic: str, group: str) -> ConfigurationError:
    """The error for asking an app about a consumer that it does not run."""
    return ConfigurationError(
        f"this process runs no consumer of {topic!r} in group {group!r}; ask the one that does"
    )


def _shown(lane: Lane) -> HaltedKey:
    execution = lane.why
    message = execution.delivery.message
    error = execution.error
    return HaltedKey(
        message.topic,
        message.key,
        message.id,
        execution.reason or "",
        "" if error is None else type(error).__name__,
    )
