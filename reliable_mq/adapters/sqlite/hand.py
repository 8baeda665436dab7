"""What one member has in hand, and the endings it has given to some of it.

Endings are kept here until a transaction brings them into the file; only then is a lease let go.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from msgspec import Struct

from reliable_mq.message import Delivery, Lease

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from reliable_mq.adapters.sqlite.group import Group, Taken

__all__ = ["Again", "Hand", "Held", "Place"]


class Place:
    """One group of the member, and how many messages of each key it has in hand."""

    __slots__ = ("group", "keys")

    def __init__(self, group: Group) -> None:
        self.group = group
        self.keys: Counter[bytes] = Counter()


class Held(Lease):
    """A lease that knows what it stands for."""

    __slots__ = ("copy", "key", "place", "position")

    def __init__(self, place: Place, taken: Taken) -> None:
        super().__init__()
        self.place = place
        self.position = taken.position
        self.key = taken.key
        self.copy = taken.copy


class Again(Struct, frozen=True):
    """The ending by nack."""

    attempt: int
    due: float


class Hand:
    """The owner thread only."""

    def __init__(self) -> None:
        self._held: set[Held] = set()
        self.acks: dict[Held, None] = {}
        self.nacks: dict[Held, Again] = {}

    @property
    def has_endings(self) -> bool:
        """Whether there is anything to bring into the file."""
        return bool(self.acks or self.nacks)

    def ack(self, lease: Lease) -> None:
        """Finished. Ignored where the lease is lost, or has ended already."""
        if isinstance(lease, Held) and lease in self._held and lease not in self.nacks:
            self.acks[lease] = None

    def nack(self, lease: Lease, again: Again) -> None:
        """Again. Ignored as an ack is."""
        if isinstance(lease, Held) and lease in self._held and lease not in self.acks:
            self.nacks[lease] = again

    def others(self, settled: Iterable[Held]) -> list[Held]:
        """All in hand but these."""
        return list(self._held.difference(settled))

    def freed(self) -> Iterator[tuple[Place, list[int]]]:
        """One position of each key of which nothing is left after these endings, by group."""
        ended: dict[Place, list[Held]] = {}
        for lease in (*self.acks, *self.nacks):
            if lease.key is not None:
                ended.setdefault(lease.place, []).append(lease)
        for place, leases in ended.items():
            last = {lease.key: lease.position for lease in leases if lease.key is not None}
            counts = Counter(lease.key for lease in leases)
            positions = [at for key, at in last.items() if counts[key] >= place.keys[key]]
            if positions:
                yield place, positions

    def acked(self) -> Iterator[tuple[Place, list[Held]]]:
        """The acked leases, by group."""
        by_place: dict[Place, list[Held]] = {}
        for lease in self.acks:
            by_place.setdefault(lease.place, []).append(lease)
        yield from by_place.items()

    # -- after COMMIT --------------------------------------------------------------------------

    def let_go(self) -> None:
        """The endings are stored: what they end is in hand no more."""
        for lease in (*self.acks, *self.nacks):
            self._held.discard(lease)
            if lease.key is not None:
                keys = lease.place.keys
                keys[lease.key] -= 1
                if not keys[lease.key]:
                    del keys[lease.key]
        self.acks, self.nacks = {}, {}

    def lose(self, leases: Iterable[Held]) -> None:
        """Nothing is in hand any more; these leases are lost."""
        for lease in leases:
            lease.lost = True
        self._held.clear()
        self.acks, self.nacks = {}, {}

    def hold(self, place: Place, taken: Taken, now: float) -> Delivery:
        """It is in hand from now on."""
        lease = Held(place, taken)
        self._held.add(lease)
        if taken.key is not None:
            place.keys[taken.key] += 1
        attempt, redelivered, position = taken.attempt, taken.redelivered, taken.position
        return Delivery(taken.message, lease, attempt, redelivered, position=position, arrived=now)
