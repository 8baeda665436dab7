"""Dead letters: what one tells, and what an operator does with those of a group.

A dead letter is the message itself, with its id, key, body and headers, and headers of ours that
tell its whole story. It lies in the topic `topic.group.dlq` and belongs to that group alone.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Final

from msgspec import Struct
from msgspec.structs import replace

from reliable_mq import message as wire
from reliable_mq.errors import ConfigurationError
from reliable_mq.message import Header, Message, RetryCopy, header
from reliable_mq.story import (
    Failure,
    Story,
    history_from_json,
    history_to_json,
    printable,
    stack_of,
    text_of,
    type_name,
)
from reliable_mq.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from reliable_mq.adapters.base import DeadLetterStore
    from reliable_mq.message import Delivery, Destination, Receipt

__all__ = ["REASONS", "DeadLetters", "Letter", "Shed", "StoredDeadLetter"]

#: Why a message becomes a dead letter.
REASONS: Final = frozenset(
    {
        "retries-exhausted",
        "fatal-exception",
        "undecodable",
        "unroutable",
        "expired",
        "rejected",
        "key-parked",
        "crash-suspect",
        "fingerprint-mismatch",
        "forged-header",
        "weak-id",
    }
)
#: Bytes that the headers of a dead letter may add.
HEADER_BYTES = 8 * 1024
STACK_CHARACTERS = 3 * 1024
SCHEMA = "1"


class Shed(IntEnum):
    """What a letter leaves out to fit, in this order; a step leaves out the earlier ones, too."""

    NOTHING = 0
    HISTORY = 1
    STACK = 2
    ALL = 3  #: all but the reason and where the message comes from


class Letter:
    """Everything known when a message is given up; `message` makes it fit."""

    def __init__(
        self,
        delivery: Delivery,
        story: Story,
        *,
        group: str,
        reason: str,
        error: BaseException | None,
        attempt: int,
        handler: str,
        host: str,
        at: float,
    ) -> None:
        self._message = delivery.message
        message = delivery.message
        first = at if story.first_failed_at is None else story.first_failed_at
        rejected_text = text_of(error) if error is not None else ""
        self._origin: list[Header] = [
            (wire.GROUP, group),
            ("rmq-dl-schema", SCHEMA),
            ("rmq-dl-reason", reason),
            ("rmq-dl-failed-at", f"{at:.3f}"),
            ("rmq-dl-first-failed-at", f"{first:.3f}"),
            ("rmq-dl-attempts", str(attempt)),
            ("rmq-dl-redelivered", str(delivery.redelivered)),
            ("rmq-dl-handler", printable(handler)[:200]),
            ("rmq-dl-consumer-group", group),
            ("rmq-dl-host", printable(host)[:200]),
            ("rmq-dl-library-version", __version__),
            ("rmq-orig-topic", message.topic),
            ("rmq-orig-partition", str(delivery.partition)),
            ("rmq-orig-position", str(delivery.position)),
            ("rmq-orig-timestamp", f"{message.created_at:.3f}"),
            ("rmq-orig-message-id", message.id),
        ]
        self._details: list[Header] = []
        self._stack: list[Header] = []
        if error is not None:
            kind = type(error)
            mro = ",".join(type_name(base) for base in kind.__mro__[1:-1])
            self._details = [
                ("rmq-dl-exception-type", type_name(kind)),
                ("rmq-dl-exception-message", rejected_text),
                ("rmq-dl-exception-mro", mro[:500]),
            ]
            cause = error.__cause__ or error.__context__
            if cause is not None:
                self._details.append(("rmq-dl-cause-type", type_name(type(cause))))
            self._stack = [("rmq-dl-exception-stack", stack_of(error, STACK_CHARACTERS))]
        self._history: list[Header] = [("rmq-dl-history", history_to_json(story.failures))]

    def message(self, shed: Shed) -> Message:
        """The letter without what `shed` names, and without more if it is over HEADER_BYTES."""
        parts = (
            (Shed.ALL, self._details),
            (Shed.STACK, self._stack),
            (Shed.HISTORY, self._history),
        )
        ours = list(self._origin)
        for level in Shed:
            if level < shed:
                continue
            ours = list(self._origin)
            for left_out_from, part in parts:
                if level < left_out_from:
                    ours += part
            if _size(ours) <= HEADER_BYTES or level is Shed.ALL:
                break
        kept = tuple(pair for pair in self._message.headers if _outlives_death(pair[0]))
        return replace(self._message, headers=(*kept, *ours))


def _outlives_death(name: str) -> bool:
    """The user's headers stay, and which generation it was; all else is told anew."""
    return not name.startswith(wire.PREFIX) or name in (wire.GENERATION, wire.REPLAY_COUNT)


def _size(headers: Sequence[Header]) -> int:
    """Bytes of these headers of ours, whose names are ASCII."""
    return sum(
        len(name) + len(value.encode() if isinstance(value, str) else value)
        for name, value in headers
    )


class StoredDeadLetter(Struct, frozen=True):
    """One dead letter as it lies in the broker."""

    message: Message
    position: int | str

    @property
    def reason(self) -> str:
        """Why it was given up: one of REASONS."""
        return header(self.message, "rmq-dl-reason") or "unknown"

    @property
    def error(self) -> str:
        """Type and text of the exception, or "" where there was none."""
        kind = header(self.message, "rmq-dl-exception-type")
        if kind is None:
            return ""
        return f"{kind}: {header(self.message, 'rmq-dl-exception-message') or ''}"

    @property
    def attempts(self) -> int:
        """Runs it had."""
        return int(header(self.message, "rmq-dl-attempts") or 0)

    @property
    def stack(self) -> str:
        """The end of the traceback, its lines separated by " | "; "" where there was none."""
        return header(self.message, "rmq-dl-exception-stack") or ""

    @property
    def failed_at(self) -> float:
        """When it was given up, epoch seconds by the clock of `host`."""
        return float(header(self.message, "rmq-dl-failed-at") or 0)

    @property
    def host(self) -> str:
        """Where it was given up."""
        return header(self.message, "rmq-dl-host") or ""

    @property
    def history(self) -> list[Failure]:
        """Its last failed runs, the oldest first."""
        return history_from_json(header(self.message, "rmq-dl-history") or "[]")


class DeadLetters:
    """The dead letters of one group of a topic. Any thread; each call asks the broker."""

    #: Letters that one iteration shows at most; discard or replay some to see the rest.
    LIMIT = 100_000

    def __init__(
        self,
        store: DeadLetterStore,
        send: Callable[[Message, Destination], Receipt],
        topic: str,
        group: str,
        *,
        new_id: Callable[[], str],
        sleep: Callable[[float], None],
    ) -> None:
        self._store = store
        self._send = send
        self._topic = topic
        self._group = group
        self._new_id = new_id
        self._sleep = sleep

    def __iter__(self) -> Iterator[StoredDeadLetter]:
        """The letters, oldest first; ones that come meanwhile may or may not be among them."""
        for stored in self._store.browse(self._topic, self._group, self.LIMIT):
            yield StoredDeadLetter(stored.message, stored.position)

    def replay(
        self,
        *,
        limit: int | None = None,
        where: Callable[[StoredDeadLetter], bool] | None = None,
        rate: float | None = None,
    ) -> int:
        """Send letters back to this group alone, oldest first; returns how many went.

        Each keeps its id and opens a new generation of attempts; it is discarded only after the
        broker confirmed the copy, so a crash in between replays it twice, never not at all. A
        message with a key comes late, behind messages that were once its successors; it is marked
        by the header `rmq-replay-count`.

        Args:
            limit: At most so many.
            where: Only letters for which this is true.
            rate: At most so many a second.

        Raises: PublishError when a copy cannot be stored: that letter and all later ones stay.
        """
        if rate is not None and rate <= 0:
            msg = f"replay(rate={rate!r}): messages a second, above 0; leave it out for no limit"
            raise ConfigurationError(msg)
        replay_id = self._new_id()
        replayed = 0
        # The list is fixed first: a letter that dies again at once must not be replayed for ever.
        for letter in list(self):
            if limit is not None and replayed >= limit:
                break
            if where is not None and not where(letter):
                continue
            copy = revived(letter.message, self._topic, replay_id)
            self._send(copy, RetryCopy(self._topic, self._group))
            self._store.discard(self._topic, self._group, [letter.position])
            replayed += 1
            if rate is not None:
                self._sleep(1.0 / rate)
        return replayed

    def discard(self, ids: Sequence[str] | str) -> int:
        """Remove the letters of these message ids; returns how many there were."""
        wanted = {ids} if isinstance(ids, str) else set(ids)
        positions = [letter.position for letter in self if letter.message.id in wanted]
        return self._store.discard(self._topic, self._group, positions) if positions else 0


def revived(letter: Message, topic: str, replay_id: str) -> Message:
    """The message that a replay sends: as it was first published, but marked."""
    generation = int(header(letter, wire.GENERATION) or 0) + 1
    count = int(header(letter, wire.REPLAY_COUNT) or 0) + 1
    headers = (
        *wire.without_ours(letter.headers),
        (wire.GENERATION, str(generation)),
        (wire.REPLAY_ID, replay_id),
        (wire.REPLAY_COUNT, str(count)),
    )
    return replace(letter, topic=topic, headers=headers)
