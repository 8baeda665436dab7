"""One assignment of one partition to us: what came, what is done, what has been committed.

It lives as long as the assignment; when the partition comes back there is another one. So what ends
late, of an assignment that is over, marks something that nobody looks at any more.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final

from confluent_kafka import TopicPartition

from reliable_mq.adapters.kafka.metadata import SPAN, encode
from reliable_mq.message import Lease
from reliable_mq.ordering.tracker import OffsetTracker

if TYPE_CHECKING:
    from reliable_mq.adapters.kafka.position import Position
    from reliable_mq.ordering.tracker import Slot

__all__ = ["WINDOW", "KafkaLease", "Partition"]

#: Offsets from the first that is not done to the last that came.
WINDOW: Final = 20_000


class KafkaLease(Lease):
    """Which record of which assignment this is."""

    __slots__ = ("partition", "slot")

    def __init__(self, partition: Partition, slot: Slot) -> None:
        self.lost = False
        self.partition = partition
        self.slot = slot


class Partition:
    """The owner thread only.

    owner: the topic that its messages belong to, which of a retry topic is another one.
    """

    def __init__(self, at: Position, owner: str) -> None:
        self.topic = at.topic
        self.number = at.partition
        self.topic_id = at.topic_id
        self.owner = owner
        #: The next offset that we have not fetched; and the next that was not asked for.
        self.fetched = at.offset
        self._next = at.offset
        #: The offset behind the last record on the broker, as far as we know.
        self.end = max(at.offset, at.end)
        #: Of its share of what was handed out: see `shares`.
        self.owed = 0.0
        self.tracker = OffsetTracker(WINDOW)
        self.in_hand: set[KafkaLease] = set()
        #: Done, and no commit has covered it yet.
        self.unsettled: list[KafkaLease] = []
        #: Records that were fetched and not asked for yet.
        self.inbox: deque[Any] = deque()
        self.inbox_bytes = 0
        #: Monotonic seconds: what is next in the inbox is not due before.
        self.rests_until = 0.0
        self.paused = False
        #: What had been fetched was forgotten, and is fetched again when it goes on.
        self.dropped = False
        #: Whether there is something to commit: at first, where a group without a position begins.
        self.dirty = at.is_new
        self._position = at.offset
        #: Where the partition ended when all of it had been fetched.
        self._end = at.offset
        self._finished = at.done

    @property
    def place(self) -> TopicPartition:
        """As librdkafka names it."""
        return TopicPartition(self.topic, self.number)

    @property
    def left(self) -> int:
        """Records that were not asked for yet, about."""
        return max(len(self.inbox), self.end - self._next)

    def is_stalled(self, now: float) -> bool:
        """Whether none of its records can be handed out: the window is full, or it is not time."""
        if self.rests_until > now:
            return True
        if self.paused:  # once it was full, it takes more when there is room for many
            self.tracker.advance()
            return self.tracker.pending > WINDOW // 2
        if self.tracker.full:
            self.tracker.advance()
        return self.tracker.full

    def reach(self, end: int) -> None:
        """All is fetched up to here: what is between is no message, but a mark of a transaction."""
        self._end = end
        if end > self._position and not self.inbox and not self.tracker.pending:
            self.dirty = True

    def drop(self) -> None:
        """Forget what was fetched and not asked for."""
        self.fetched = self.inbox[0].offset()
        self._end = min(self._end, self.fetched - 1)  # else it would be committed as read
        self.inbox.clear()
        self.inbox_bytes = 0
        self.dropped = True

    def receive(self, offset: int) -> Slot | None:
        """A record is taken; None: it was finished before, by us or by another member."""
        self._next = offset + 1
        slot = self.tracker.add(offset)
        if offset in self._finished:
            slot.done = self.dirty = True
            return None
        return slot

    def finish(self, lease: KafkaLease) -> None:
        """It is done."""
        self.in_hand.discard(lease)
        lease.slot.done = True
        self.unsettled.append(lease)
        self.dirty = True

    def to_commit(self) -> TopicPartition:
        """Up to where all is done, and in the metadata what is done above."""
        position = self.tracker.advance()
        if position is not None and position > self._position:
            self._position = position
        if self._end >= self.fetched and not self.inbox and not self.tracker.pending:
            self._position = max(self._position, self._end)
        ahead = [offset for offset in self._finished if offset >= self._next]
        done = [*self.tracker.done_behind(), *ahead]
        text = encode(self._position, done, self.topic_id)
        return TopicPartition(self.topic, self.number, self._position, text)

    def take_said(self) -> list[KafkaLease]:
        """Those of the unsettled that the last `to_commit` says; what is beyond its reach stays."""
        reach = self._position + SPAN
        said = [lease for lease in self.unsettled if lease.slot.offset < reach]
        self.unsettled = [lease for lease in self.unsettled if lease.slot.offset >= reach]
        return said

    def lose(self) -> list[Lease]:
        """The assignment is over: what no commit has covered is somebody else's."""
        lost: list[Lease] = [*self.in_hand, *self.unsettled]
        for lease in lost:
            lease.lost = True
        self.in_hand.clear()
        self.unsettled.clear()
        self.inbox.clear()
        return lost
