"""What travels: Message, Receipt, Delivery, Lease, and where a message is sent to.

All are values and immutable, but for `Lease.lost`, which the adapter sets. The body is the
user's bytes and is never touched; what we need to know about a message travels in headers that
begin with `rmq-`, so programs that do not use this library read and write the same messages.
"""

from __future__ import annotations

from typing import Literal, Protocol

from msgspec import Struct

__all__ = [
    "DeadLetter",
    "Delivery",
    "Destination",
    "Header",
    "Lease",
    "Message",
    "Named",
    "Receipt",
    "RetryCopy",
    "Topic",
    "dead_letter_topic",
    "header",
    "without_ours",
]

Header = tuple[str, bytes | str]

#: Headers that begin so are ours: text only, refused in a user's `headers=`.
PREFIX = "rmq-"
#: Which run of the message this copy stands for: failed runs before it, plus one.
ATTEMPT = "rmq-attempt"
#: Not to be handled before this time: epoch seconds, decimal.
NOT_BEFORE = "rmq-not-before"
#: The group that a retry copy or a dead letter belongs to.
GROUP = "rmq-group"
#: JSON list of the last failed runs.
HISTORY = "rmq-history"
#: How often a dead letter was replayed: each replay opens a new generation of attempts.
GENERATION = "rmq-generation"
#: Which replay sent this copy, and how many replays the message has had.
REPLAY_ID = "rmq-replay-id"
REPLAY_COUNT = "rmq-replay-count"
CONTENT_TYPE = "content-type"


class Message(Struct, frozen=True, gc=False):
    """An immutable envelope.

    `key` None means no key, b"" is a key. `body` None is a tombstone. `headers` keep their order
    and their duplicates. `created_at` is epoch seconds, by the producer's clock.
    """

    id: str
    topic: str
    key: bytes | None = None
    body: bytes | None = b""
    headers: tuple[Header, ...] = ()
    created_at: float = 0.0


class Receipt(Struct, frozen=True, gc=False):
    """Proof that a message is stored: by the broker, or only on the local disk ("spool")."""

    id: str
    topic: str
    partition: int
    position: int | str
    stored: Literal["broker", "spool"] = "broker"


class Lease:
    """Our temporary right to settle one arrival. Made by the adapter, opaque to all others.

    The core compares leases by identity and reads `lost`, which becomes true, once and for ever,
    when the broker took the delivery back: whatever is done with it afterwards has no effect.
    """

    __slots__ = ("lost",)

    def __init__(self) -> None:
        self.lost = False


class Delivery(Struct, frozen=True):
    """One arrival of a message at us.

    `attempt` is 1 plus the failed runs that the adapter knows of; it is what a later `nack` of a
    Delivery with a higher attempt handed to it. `redelivered` counts arrivals that ended without
    an ack or a nack (a crash, a lost lease): suspicion, never an attempt. `weak_id` marks an id
    that two different messages may share. `arrived` is monotonic seconds of the clock in use.
    """

    message: Message
    lease: Lease
    attempt: int = 1
    redelivered: int = 0
    partition: int = 0
    position: int | str = 0
    weak_id: bool = False
    arrived: float = 0.0


class Named(Protocol):
    """Whatever stands where the name of a topic does: a handle, or what is there on the broker."""

    @property
    def name(self) -> str:
        """The name of the topic."""


class Topic(Struct, frozen=True):
    """All groups of `message.topic`."""


class RetryCopy(Struct, frozen=True):
    """One group again, not before `delay` seconds; `message.topic` stays the original."""

    topic: str
    group: str
    delay: float = 0.0


class DeadLetter(Struct, frozen=True):
    """The dead letters of one group of a topic; `message.topic` stays the original."""

    topic: str
    group: str


Destination = Topic | RetryCopy | DeadLetter


def dead_letter_topic(topic: str, group: str) -> str:
    """Where the dead letters of `group` are kept."""
    return f"{topic}.{group}.dlq"


def header(message: Message, name: str) -> str | None:
    """The last value of a header as text, None where it is absent or not UTF-8."""
    for key, value in reversed(message.headers):
        if key == name:
            if isinstance(value, str):
                return value
            try:
                return value.decode()
            except UnicodeDecodeError:
                return None
    return None


def without_ours(headers: tuple[Header, ...]) -> tuple[Header, ...]:
    """The headers that belong to the user, in their order."""
    return tuple(pair for pair in headers if not pair[0].startswith(PREFIX))
