"""A Message as a record of Kafka, and back.

    id          header rmq-id             key, body   as they are; no key and a null body stay apart
    created_at  header rmq-created        headers     headers, in order, with duplicates; text
                                                      becomes its UTF-8

The record's own timestamp is the time of publishing: retention counts from it, and a copy of an old
message would be removed before it is read.

A record of another program has the id "topic id/partition/offset": a topic that is made again under
the same name gives other ids.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from reliable_mq.message import NOT_BEFORE, PREFIX, Message, header
from reliable_mq.outcome import LONGEST

if TYPE_CHECKING:
    from reliable_mq.message import Header

__all__ = ["from_record", "headers_of", "seconds_early"]

ID: Final = "rmq-id"
CREATED: Final = "rmq-created"
#: Stands for headers that cannot be read: the core refuses it, and the message is a dead letter.
UNREADABLE: Final = "rmq-unreadable-headers"
#: Epoch seconds beyond which no time is believed: the year 36812.
LATEST: Final = 2.0**40


def headers_of(message: Message, due: str | None = None) -> list[tuple[str, bytes | str]]:
    """What says the rest of a message; `due`: the value of rmq-not-before.

    Raises: ValueError for a name that cannot be sent.
    """
    headers: list[tuple[str, bytes | str]] = [
        (ID, message.id.encode()),
        (CREATED, repr(message.created_at)),
    ]
    for pair in message.headers:
        name, value = pair
        if "\0" in name:  # confluent-kafka takes what is before it, of names and of texts
            text = "a header's name cannot have a NUL"
            raise ValueError(text)
        headers.append(pair if type(value) is bytes else (name, value.encode()))  # type: ignore[union-attr]
    if due is not None:
        headers = [pair for pair in headers if pair[0] != NOT_BEFORE]
        headers.append((NOT_BEFORE, due))
    return headers


def from_record(topic: str, topic_id: str, record: Any) -> Message:
    """The message of a record of a topic with this id."""
    id = created = None
    headers: list[Header] = []
    try:
        found = record.headers() or ()
    except (SystemError, UnicodeError):  # a name is no UTF-8. Asked again, it crashes the process
        found = ((UNREADABLE, b""),)
    for name, value in found:
        if name == ID:
            id = _text(value)
        elif name == CREATED:
            created = value
        else:
            # Ours are text; whatever else claims to be one is refused by the core.
            headers.append((name, _text(value) if name.startswith(PREFIX) else value or b""))
    return Message(
        id or f"{topic_id or record.topic()}/{record.partition()}/{record.offset()}",
        topic,
        record.key(),
        record.value(),
        tuple(headers),
        _seconds(created, record),
    )


def seconds_early(message: Message, now: float) -> float:
    """How long it may not be handled yet."""
    if not message.headers:
        return 0.0
    text = header(message, NOT_BEFORE)
    try:
        early = 0.0 if text is None else float(text) - now
    except ValueError:
        return 0.0  # forged: the core says so
    return early if 0.0 < early <= LONGEST else 0.0


def _text(value: bytes | str | None) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value or ""


def _seconds(created: bytes | str | None, record: Any) -> float:
    try:
        seconds = float(created) if created else -1.0
    except ValueError:
        seconds = -1.0  # somebody else's
    return seconds if 0.0 <= seconds < LATEST else float(record.timestamp()[1] / 1000)
