"""Reading the dead letters of a group, and marking some as dealt with.

RocketMQ cannot remove one record. What is discarded is named by another record in the same topic,
which goes when that goes; and where all before one is discarded, reading begins there.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final
from uuid import uuid4

from reliable_mq.adapters.base import StoredMessage
from reliable_mq.adapters.rocketmq.codec import from_wire
from reliable_mq.adapters.rocketmq.names import dead_letters
from reliable_mq.message import DeadLetter, Message, header

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from reliable_mq.adapters.rocketmq.admin import Admin
    from reliable_mq.confirmation import Confirmation
    from reliable_mq.message import Destination

__all__ = ["browse", "discard"]

#: Of a record that names others: their positions.
DISCARDED: Final = "rmq-discarded"
#: Positions of one such record, and seconds for storing it.
MARKS: Final = 200
WITHIN: Final = 10.0


def browse(admin: Admin, topic: str, group: str, limit: int) -> list[StoredMessage]:
    """See DeadLetterStore.browse."""
    there, _ = _read(admin, topic, group)
    return list(islice((StoredMessage(one, at) for at, one in there.items()), limit))


def discard(
    admin: Admin,
    submit: Callable[[Message, Destination], Confirmation],
    topic: str,
    group: str,
    positions: Sequence[int | str],
) -> int:
    """See DeadLetterStore.discard."""
    there, marks = _read(admin, topic, group)
    gone = [at for at in dict.fromkeys(map(str, positions)) if at in there]
    for first in range(0, len(gone), MARKS):
        text = ",".join(gone[first : first + MARKS])
        mark = Message(f"discard-{uuid4().hex}", topic, headers=((DISCARDED, text),))
        submit(mark, DeadLetter(topic, group)).result(WITHIN)
    left = [at for at in there if at not in gone]
    if gone and not left:
        _begin_behind(admin, topic, group, [*there, *marks])
    return len(gone)


def _read(admin: Admin, topic: str, group: str) -> tuple[dict[str, Message], list[str]]:
    """Those that are not discarded, by position, oldest first; and where the marks are."""
    found: dict[str, Message] = {}
    marks: list[str] = []
    for position, wire in admin.records(dead_letters(topic, group), _reader(group)):
        message = from_wire(topic, wire)
        named = header(message, DISCARDED)
        if named is None:
            found[position] = message
        else:
            marks.append(position)
            for one in named.split(","):
                found.pop(one, None)
    return found, marks


def _begin_behind(admin: Admin, topic: str, group: str, positions: Sequence[str]) -> None:
    """Nothing is left up to there: the next reader begins behind it."""
    admin.move(dead_letters(topic, group), _reader(group), positions)


def _reader(group: str) -> str:
    """The group whose position says where reading begins. Nobody joins it."""
    return f"{group}%read"
