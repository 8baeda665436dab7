"""What went wrong with a message so far: the history that its dead letter will tell.

Kept in memory for messages that failed here, the least recently failed forgotten first, and
carried in a header by retry copies. Owner thread only.
"""

from __future__ import annotations

import traceback
from collections import OrderedDict, deque
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from reliable_mq import message as wire

if TYPE_CHECKING:
    from collections.abc import Iterable

    from reliable_mq.message import Delivery

__all__ = ["Failure", "Stories", "Story", "history_from_json", "history_to_json"]

#: Runs that a history keeps: the last ones.
KEPT = 10
#: Characters of an exception's text that are kept; it may quote what it failed on.
TEXT = 512
#: Characters of the name of a class, or of a host.
NAME = 200


class Failure(Struct, frozen=True, omit_defaults=True):
    """One failed run. `after` is the wait that followed, None where none did."""

    at: float
    attempt: int
    type: str
    text: str
    host: str = ""
    after: float | None = None


class Story:
    """The failed runs of one message, and how often carrying out their endings failed."""

    __slots__ = ("failures", "first_failed_at", "setbacks")

    def __init__(self, failures: Iterable[Failure] = ()) -> None:
        self.failures: deque[Failure] = deque(failures, maxlen=KEPT)
        self.first_failed_at: float | None = self.failures[0].at if self.failures else None
        self.setbacks = 0

    def add(self, failure: Failure) -> None:
        """One more failed run."""
        if self.first_failed_at is None:
            self.first_failed_at = failure.at
        self.failures.append(failure)

    def hear(self, failures: Iterable[Failure]) -> None:
        """What a header tells: runs at other members among it, which nobody here knows of."""
        known = sorted({*self.failures, *failures}, key=lambda one: (one.at, one.attempt))
        if len(known) > len(self.failures):
            self.failures = deque(known, maxlen=KEPT)
            first = known[0].at
            self.first_failed_at = min(first, self.first_failed_at or first)


class Stories:
    """The stories of the messages that failed last, at most `limit` of them."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._stories: OrderedDict[tuple[str, str, str | None], Story] = OrderedDict()

    def __len__(self) -> int:
        return len(self._stories)

    def of(self, delivery: Delivery, history: str | None) -> Story:
        """The story of this message: what is known here, and what its header tells."""
        key = _key(delivery)
        story = self._stories.get(key)
        if story is None:
            story = self._stories[key] = Story(history_from_json(history) if history else ())
            if len(self._stories) > self._limit:
                self._stories.popitem(last=False)
        else:
            self._stories.move_to_end(key)
            if history:
                story.hear(history_from_json(history))
        return story

    def forget(self, delivery: Delivery) -> None:
        """The message has ended."""
        self._stories.pop(_key(delivery), None)


def _key(delivery: Delivery) -> tuple[str, str, str | None]:
    # With the generation: what a replay begins with is a story of its own.
    message = delivery.message
    return message.topic, message.id, wire.header(message, wire.GENERATION)


def failure_of(
    error: BaseException, *, at: float, attempt: int, host: str, after: float | None
) -> Failure:
    """A failed run as it is remembered."""
    kind, host = type_name(type(error)), printable(host[:NAME])
    return Failure(at, attempt, kind, text_of(error), host, after)


def type_name(kind: type) -> str:
    """The full name of a class, builtins without their module, its end where it is long."""
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    return printable(f"{module}{kind.__qualname__}"[-NAME:])


def text_of(error: BaseException) -> str:
    """The text of an exception, cut, without control characters, whatever its __str__ does."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - a broken __str__ must not decide about the message
        text = "<its __str__ failed>"
    return printable(text[:TEXT])


def stack_of(error: BaseException, limit: int) -> str:
    """The end of the traceback, at most `limit` characters, marked where it is cut."""
    lines = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    # Cut first: an exception may quote megabytes.
    text = printable(lines[-limit:].replace("\n", " | "))
    return text if len(text) <= limit >= len(lines) else "[cut] " + text[-(limit - 6) :]


def printable(text: str) -> str:
    """The same text with every control and unencodable character replaced."""
    text = text.encode("utf-8", "replace").decode()
    return text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)


def history_to_json(failures: Iterable[Failure]) -> str:
    """Failures as a header value."""
    return msgspec.json.encode(list(failures)).decode()


def history_from_json(text: str) -> list[Failure]:
    """The failures of a header value; a damaged one tells nothing, and harms nothing."""
    try:
        return msgspec.json.decode(text, type=list[Failure])[-KEPT:]
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return []
