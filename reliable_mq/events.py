"""What happened, as values. Observers hear of it and can change nothing.

An observer is a function of one event. It is called on the thread where the event arose (owner,
worker or publisher), must be quick, and when it raises that is logged and forgotten. With no
observer none of these objects is made.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from msgspec import Struct

from reliable_mq.message import Message, Receipt

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "ConsumerPaused",
    "ConsumerResumed",
    "DeadLettered",
    "Event",
    "Handled",
    "KeyGap",
    "LaneHalted",
    "LaneResumed",
    "LeasesLost",
    "Observers",
    "Overdue",
    "PublishFailed",
    "Published",
    "Retried",
    "SettleFailed",
    "StalledByKey",
    "Suspected",
    "Undeadletterable",
]

log = logging.getLogger("reliable_mq.events")


class Published(Struct, frozen=True):
    """The broker has confirmed a message."""

    message: Message
    receipt: Receipt


class PublishFailed(Struct, frozen=True):
    """A publish ended without a Receipt. If it has a key, later messages of the key go on."""

    message: Message
    error: Exception


class Handled(Struct, frozen=True):
    """A handler returned; the delivery is acked next. `seconds` is the time in the handler."""

    message: Message
    group: str
    attempt: int
    seconds: float


class Retried(Struct, frozen=True):
    """A run failed and another one follows, `after` seconds from now."""

    message: Message
    group: str
    attempt: int
    after: float
    error: BaseException


class DeadLettered(Struct, frozen=True):
    """A dead letter is stored, and the delivery acked next."""

    message: Message
    group: str
    reason: str
    attempt: int


class KeyGap(Struct, frozen=True):
    """A message of this key was dead-lettered and the key goes on without it."""

    topic: str
    group: str
    key: bytes | None
    message_id: str


class LaneHalted(Struct, frozen=True):
    """on_failure="block": this key stands until an operator retries or skips its head."""

    topic: str
    group: str
    key: bytes | None
    message_id: str
    reason: str


class LaneResumed(Struct, frozen=True):
    """An operator set a halted key going again, by "retry" or by "skip"."""

    topic: str
    group: str
    key: bytes | None
    how: str


class Overdue(Struct, frozen=True):
    """A `def` handler has passed its timeout and cannot be stopped; its lane waits for it."""

    message: Message
    group: str
    seconds: float


class LeasesLost(Struct, frozen=True):
    """The broker took deliveries back; they come again, here or at another member."""

    group: str
    count: int


class StalledByKey(Struct, frozen=True):
    """Waiting keys hold all the credit: nothing more is taken until one of them goes on."""

    group: str
    keys: int


class Suspected(Struct, frozen=True):
    """A message came again without ack or nack, `redelivered` times: it runs alone."""

    message: Message
    group: str
    redelivered: int


class Undeadletterable(Struct, frozen=True):
    """A dead letter that the broker refuses for good: it is held, unsettled, and never retried."""

    message: Message
    group: str
    error: Exception


class SettleFailed(Struct, frozen=True):
    """A copy, a dead letter or an output could not be stored; the delivery is not acked."""

    message: Message
    group: str
    error: Exception


class ConsumerPaused(Struct, frozen=True):
    """The consumer takes no more work: `reason` says why."""

    group: str
    reason: str


class ConsumerResumed(Struct, frozen=True):
    """The consumer takes work again."""

    group: str


Event = (
    Published
    | PublishFailed
    | Handled
    | Retried
    | DeadLettered
    | KeyGap
    | LaneHalted
    | LaneResumed
    | Overdue
    | LeasesLost
    | StalledByKey
    | Suspected
    | Undeadletterable
    | SettleFailed
    | ConsumerPaused
    | ConsumerResumed
)


class Observers(list["Callable[[Event], object]"]):
    """Those who listen. A list, so that `if observers:` costs nothing while there are none."""

    def add(self, observer: Callable[[Event], object]) -> None:
        """Let `observer` hear every event from now on. Any thread."""
        self.append(observer)

    def emit(self, event: Event) -> None:
        """Tell all. Never raises: an observer must not decide what happens to a message."""
        for observer in tuple(self):
            try:
                observer(event)
            except Exception:
                log.exception("observer %r failed on %s", observer, type(event).__name__)
