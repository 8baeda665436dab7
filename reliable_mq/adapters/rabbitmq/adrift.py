"""Runs that go on although their channel ended, and what ended since: so that copies are not run.

The broker brings a message again whose channel ended before its ack. If its run still goes on here,
the copy takes the place of the first; if it has ended, the copy is acked. A retry copy or a replay
has the id of its message, and is another one: it runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from reliable_mq.message import ATTEMPT, GENERATION, Lease, header

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reliable_mq.message import Message

__all__ = ["Adrift", "Name", "RabbitLease", "name_of"]

#: Queue, id, attempt and generation of a message.
Name = tuple[str, str, "str | None", "str | None"]

#: So many ends are remembered, for so many seconds.
REMEMBERED: Final = 10_000
MEMORY: Final = 3_600.0


def name_of(queue: str, message: Message) -> Name:
    """What a message has in common with its copies, and with no other one."""
    return queue, message.id, header(message, ATTEMPT), header(message, GENERATION)


class RabbitLease(Lease):
    """Which delivery of which channel this is, since when (monotonic seconds).

    name: what tells its message; None: its id is weak, so a copy could not be told.
    """

    __slots__ = ("arrived", "name", "tag")

    def __init__(self, tag: int, name: Name | None, arrived: float) -> None:
        super().__init__()
        self.tag = tag
        self.name = name
        self.arrived = arrived


class Adrift:
    """The owner thread only."""

    def __init__(self) -> None:
        self._runs: dict[Name, RabbitLease] = {}
        self._ended: dict[Name, float] = {}
        #: Since when the broker could have brought their copies.
        self.since = 0.0

    def __iter__(self) -> Iterator[RabbitLease]:
        return iter(self._runs.values())

    def __len__(self) -> int:
        return len(self._runs)

    def keep(self, lease: RabbitLease) -> bool:
        """Its run goes on; False: its copy could not be told, so it is lost."""
        if lease.name is None or lease.name in self._runs:
            return False
        self._runs[lease.name] = lease
        return True

    def end(self, lease: RabbitLease, now: float) -> bool:
        """Its run has ended; whether it is one of these."""
        if lease.name is None or self._runs.get(lease.name) is not lease:
            return False
        del self._runs[lease.name]
        self.remember(lease, now)
        return True

    def remember(self, lease: RabbitLease, now: float) -> None:
        """Its run has ended, and the broker may not know it."""
        if lease.name is None:
            return
        ended = self._ended
        ended.pop(lease.name, None)
        ended[lease.name] = now
        while len(ended) > REMEMBERED or now - ended[next(iter(ended))] > MEMORY:
            del ended[next(iter(ended))]

    def claim(self, name: Name) -> RabbitLease | None:
        """The run whose copy this is, which is adrift no longer."""
        return self._runs.pop(name, None)

    def has_ended(self, name: Name) -> bool:
        """Whether this is a copy of what has ended; it is told once."""
        return self._ended.pop(name, None) is not None

    def clear(self) -> None:
        """Others have them."""
        self._runs.clear()
