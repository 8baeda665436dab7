"""One assignment of one partition to us: what came, what is done, what has been committed.

It lives as long as the assignment; when the partition comes back there is another one. So what ends
late, of an assignment that is over, marks something that nobody looks at any more.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from reliable_mq.adapters.kafka.metadata import encode
from reliable_mq.message import Lease
from reliable_mq.ordering.tracker import OffsetTracker

if TYPE_CHECKING:
    from reliable_mq.ordering.tracker import Slot

__all__ = ["KafkaLease", "Partition"]


class KafkaLease(Lease):
    """Which record of which assignment this is."""

    __slots__ = ("partition", "slot")

    def __init__(self, partition: Partition, slot: Slot) -> None:
        super().__init__()
        self.partition = partition
        self.slot = slot


class Partition:
    """The owner thread only."""

    def __init__(
        self, topic: str, number: int, position: int, finished: frozenset[int], window: int
    ) -> None:
        self.topic = topic
        self.number = number
        #: The next offset that we have not fetched; and the next that was not asked for.
        self.fetched = position
        self._next = position
        self.tracker = OffsetTracker(window)
        self.in_hand: set[KafkaLease] = set()
        #: Done, and no commit has covered it yet.
        self.unsettled: list[KafkaLease] = []
        #: Records that were fetched and not asked for yet.
        self.inbox: deque[Any] = deque()
        self.paused = False
        self.dirty = False
        self._position = position
        self._finished = finished
        #: Done above the head, as offsets: what the metadata of a commit says.
        self._done: set[int] = set()

    def expects(self, offset: int) -> bool:
        """Whether this offset is the next, or later. What was fetched before a seek is not."""
        return offset >= self.fetched

    def receive(self, offset: int) -> Slot | None:
        """A record is taken; None: it was finished before, by us or by another member."""
        self._next = offset + 1
        slot = self.tracker.add(offset)
        if offset in self._finished:
            slot.done = True
            self._done.add(offset)
            self.dirty = True
            return None
        return slot

    def finish(self, lease: KafkaLease) -> None:
        """It is done."""
        self.in_hand.discard(lease)
        lease.slot.done = True
        self._done.add(lease.slot.offset)
        self.unsettled.append(lease)
        self.dirty = True

    def to_commit(self) -> tuple[int, str]:
        """Offset and metadata: up to where all is done, and what is done above."""
        position = self.tracker.advance()
        if position is None:
            position = self._position
        if position > self._position:
            self._position = position
            self._done = {offset for offset in self._done if offset >= position}
        ahead = {offset for offset in self._finished if offset >= self._next}
        return position, encode(position, self._done | ahead)

    def lose(self) -> list[Lease]:
        """The assignment is over: what no commit has covered is somebody else's."""
        lost: list[Lease] = [*self.in_hand, *self.unsettled]
        for lease in lost:
            lease.lost = True
        self.in_hand.clear()
        self.unsettled.clear()
        self.inbox.clear()
        return lost
