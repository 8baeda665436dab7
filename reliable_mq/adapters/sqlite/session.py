"""One member's transactions: each flushes its endings, keeps it alive and fetches, as one commit.

The invariant: what is in memory changes only after COMMIT returned. Every transaction begins by
asking whether this member is still alive; if not, nothing it has in hand counts any more, and it
goes on as a new member. A COMMIT without an answer ends the same way, but for the acks that turn
out to be stored.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from reliable_mq.adapters.base import Polled
from reliable_mq.adapters.sqlite import members, topology
from reliable_mq.adapters.sqlite.connection import DiskFull, Locked
from reliable_mq.adapters.sqlite.group import Group, Taken
from reliable_mq.adapters.sqlite.hand import Again, Hand, Held, Place
from reliable_mq.adapters.sqlite.retention import Retention
from reliable_mq.errors import TransportError

if TYPE_CHECKING:
    from collections.abc import Callable

    from reliable_mq.adapters.base import Subscribe
    from reliable_mq.adapters.sqlite.broker import Broker
    from reliable_mq.message import Lease

__all__ = ["Session"]

log = logging.getLogger("reliable_mq.sqlite")

#: Seconds to wait for the lock of another process: in a poll, which comes again, and at the ends.
PATIENCE: Final = 0.1
LONG_PATIENCE: Final = 5.0
#: A poll renews the lease when the last renewal is a fifth of `lease_timeout` ago. So it is granted
#: for a fifth more: nobody takes anything from who polls once in `lease_timeout` seconds.
RENEWALS: Final = 5
#: Seconds between two looks for what may be deleted, and rows for each. Where messages are being
#: finished, twice as many are looked at, up to the most, so that deleting keeps pace.
PURGE_EVERY: Final = 1.0
PURGE_ROWS: Final = 500
PURGE_MOST: Final = 1_000


class Turn(Struct):
    """What a transaction will have changed once it is committed."""

    at: float
    member: int
    file: str
    places: list[Place]
    settled: list[Held] = []
    lost: list[Held] = []
    taken: list[tuple[Place, list[Taken]]] = []
    renewed: bool = False
    #: Whether all that was in hand before is settled or lost.
    ended: bool = False


class Session:
    """The owner thread only, one call at a time."""

    def __init__(self, broker: Broker, subscribe: Subscribe) -> None:
        self._broker = broker
        self._subscribe = subscribe
        self._connection = broker.connection()
        self._retention = Retention(self._connection, broker.retention)
        self._member = 0
        self._file = ""
        self._places: list[Place] = []
        self._hand = Hand()
        #: What may be deleted, and how many messages were finished since that was looked for.
        self._garbage: list[int] = []
        self._finished = 0
        #: Whether the last COMMIT had no answer, and the new members that such ones may have made.
        self._in_doubt = False
        self._perhaps: list[int] = []
        #: When it was last called, and whether it was silent for too long before.
        self._seen = broker.clock.monotonic()
        self._lapsed = False
        #: The version of the file in which a look found nothing; None: look again.
        self._quiet: int | None = None
        self._next_due = self._next_end = float("inf")
        self._renew_at = self._purge_at = 0.0
        self._turns = 0

    # -- endings, kept until the next turn -----------------------------------------------------

    def ack(self, lease: Lease) -> None:
        """Finished. Ignored where the lease is lost, or has ended already."""
        self._hand.ack(lease)

    def nack(self, lease: Lease, attempt: int, delay: float) -> None:
        """Again, not before `delay` seconds from now. Ignored as an ack is."""
        # At once is a time long ago: a wall clock that is set back must not hold it up.
        due = self._broker.clock.now() + delay if delay > 0 else 0.0
        self._hand.nack(lease, Again(attempt, due))

    @property
    def standby(self) -> bool:
        """Whether another member has all the work, as far as it was seen."""
        return bool(self._places) and all(place.group.stands_by for place in self._places)

    # -- turns ---------------------------------------------------------------------------------

    def join(self) -> None:
        """Become a member of each group, at the start that was asked for if it has none yet."""
        self._commit(self._first_turn, LONG_PATIENCE)

    def look(self, limit: int) -> bool:
        """Whether a turn would change or find anything. Reads, and often not even that."""
        steady, now = self._notice_silence(), self._broker.clock.now()
        if self._hand.has_endings or self._in_doubt or self._lapsed:
            return True
        if steady >= self._renew_at:
            return True
        if limit <= 0:
            return False
        if steady >= self._purge_at:
            self._find_garbage(steady, now)
        if self._garbage:
            return True
        version = self._connection.version()
        if version == self._quiet and now < self._next_due and steady < self._next_end:
            return False
        return self._look(version, steady, now)

    def turn(self, limit: int) -> Polled:
        """Flush, renew, fetch: one transaction.

        Raises: Locked, when nothing was done because another process has the lock; what
            Subscription.poll raises.
        """
        self._find_garbage(self._broker.clock.monotonic(), self._broker.clock.now())
        return self._commit(lambda: self._next_turn(limit), PATIENCE)

    def reconnect(self) -> None:
        """After a failure: the next turn asks first whether we are still a member."""
        self._renew_at = 0.0

    def leave(self) -> None:
        """Flush, give everything back, and close the file. Never raises."""
        self._notice_silence()
        try:
            self._commit(self._last_turn, LONG_PATIENCE)
        except TransportError as error:
            log.warning(
                "a member of group %r could not leave: %s; the others get what it had in hand "
                "when its lease ends",
                self._subscribe.group,
                error,
            )
        self._hand.lose(self._hand.others(()))
        self.drop()

    def drop(self) -> None:
        """Close the file, without a goodbye."""
        self._connection.drop()

    # -- inside a transaction ------------------------------------------------------------------

    def _first_turn(self) -> Turn:
        groups = topology.find_groups(self._connection, self._subscribe)
        topology.place(self._connection, groups, self._subscribe.start)
        return self._as_new_member()

    def _next_turn(self, limit: int) -> Turn:
        steady, now = self._broker.clock.monotonic(), self._broker.clock.now()
        alive = self._is_alive(steady)
        if alive and not self._in_doubt:
            turn = self._flush(steady)
        else:
            settled, lost = self._end(alive=alive)
            turn = self._as_new_member()
            turn.settled, turn.lost = settled, lost
        if steady >= self._renew_at:
            members.renew(self._connection, turn.member, steady)
            turn.renewed = True
        if limit > 0:
            members.bury(self._connection, self._broker.boot_id, steady)
            self._turns += 1  # another topic begins, so that none keeps the others off
            for number in range(len(turn.places)):
                place = turn.places[(number + self._turns) % len(turn.places)]
                taken = place.group.take(turn.member, limit, now) if limit > 0 else []
                turn.taken.append((place, taken))
                limit -= len(taken)
        self._retention.delete(self._garbage)
        return turn

    def _last_turn(self) -> Turn:
        steady = self._broker.clock.monotonic()
        alive = self._is_alive(steady)
        if alive and not self._in_doubt:
            turn = self._flush(steady)
            members.leave(self._connection, self._member, counted=False)
            return turn
        settled, lost = self._end(alive=alive)
        return Turn(steady, self._member, self._file, self._places, settled, lost, ended=True)

    def _is_alive(self, steady: float) -> bool:
        boot = self._broker.boot_id
        return not self._lapsed and members.is_alive(self._connection, self._member, boot, steady)

    def _end(self, *, alive: bool) -> tuple[list[Held], list[Held]]:
        """Give up what is in hand; returns the leases that turn out to be settled, and the lost."""
        settled: list[Held] = []
        if self._in_doubt and self._file == self._file_id():
            settled = [lease for lease in self._hand.acks if self._is_finished(lease)]
        members.leave(self._connection, self._member, counted=not alive)
        for member in self._perhaps:
            members.leave(self._connection, member, counted=False)
        return settled, self._hand.others(settled)

    def _flush(self, steady: float) -> Turn:
        hand, member = self._hand, self._member
        for place, positions in hand.freed():
            place.group.free(member, positions)
        for place, leases in hand.acked():
            copies = [lease.position for lease in leases if lease.copy]
            place.group.finish(member, [lease.position for lease in leases], copies)
        for lease, again in hand.nacks.items():
            lease.place.group.again(member, lease.position, again.attempt, again.due)
        return Turn(steady, member, self._file, self._places, list(hand.acks))

    def _is_finished(self, lease: Held) -> bool:
        sql = "SELECT 1 FROM mq_state WHERE grp = ? AND position = ?"
        return self._connection.row(sql, (lease.place.group.grp, lease.position)) is None

    def _as_new_member(self) -> Turn:
        broker, order = self._broker, self._subscribe.order
        groups = topology.find_groups(self._connection, self._subscribe)
        steady = broker.clock.monotonic()
        member = members.join(
            self._connection,
            [(grp, f"{name}/{self._subscribe.group}") for grp, _, name in groups],
            order,
            boot=broker.boot_id,
            now=steady,
            lease=broker.lease_timeout * (1 + 1 / RENEWALS),
        )
        file = self._file_id()
        places = [
            Place(Group(self._connection, grp, topic, where=name, file=file, order=order))
            for grp, topic, name in groups
        ]
        return Turn(steady, member, file, places, renewed=True, ended=True)

    def _file_id(self) -> str:
        return str(self._connection.row("SELECT value FROM mq_meta WHERE name = 'file'")[0])

    # -- around it -----------------------------------------------------------------------------

    def _commit(self, work: Callable[[], Turn], patience: float) -> Polled:
        self._quiet = None
        self._connection.begin(patience)
        try:
            turn = work()
        except BaseException:
            self._connection.rollback()
            raise
        try:
            self._connection.commit()
        except (Locked, DiskFull):
            raise
        except TransportError:
            self._in_doubt = True
            if turn.member != self._member:
                self._perhaps.append(turn.member)
            raise
        return self._apply(turn)

    def _apply(self, turn: Turn) -> Polled:
        """The transaction is stored: now it is true here, too."""
        hand = self._hand
        if hand.has_endings or turn.lost:
            self._broker.bell.ring()  # others may get what this member gave up
        if turn.ended:
            hand.lose(turn.lost)
        else:
            hand.let_go()
        self._finished += len(turn.settled)
        self._garbage = []
        self._member, self._file, self._places = turn.member, turn.file, turn.places
        self._in_doubt = self._lapsed = False
        self._perhaps = []
        if turn.renewed:
            self._renew_at = turn.at + self._broker.lease_timeout / RENEWALS
        deliveries = [
            hand.hold(place, one, turn.at) for place, taken in turn.taken for one in taken
        ]
        return Polled(deliveries, turn.settled, turn.lost)

    def _look(self, version: int, steady: float, now: float) -> bool:
        due = float("inf")
        for place in self._places:
            news = place.group.look(self._member)
            if news.now or (news.due is not None and news.due <= now):
                return True
            due = min(due, due if news.due is None else news.due)
        boot = self._broker.boot_id
        end = members.next_end(self._connection, self._member, boot, steady)
        if end <= steady:
            return True
        self._quiet, self._next_due, self._next_end = version, due, end
        return False

    def _notice_silence(self) -> float:
        """The time. Whoever was silent for `lease_timeout` has lost all, taken over or not."""
        steady = self._broker.clock.monotonic()
        self._lapsed |= steady - self._seen > self._broker.lease_timeout
        self._seen = steady
        return steady

    def _find_garbage(self, steady: float, now: float) -> None:
        rows = min(2 * self._finished, PURGE_MOST)
        if steady >= self._purge_at:
            self._purge_at = steady + PURGE_EVERY
            rows = max(rows, PURGE_ROWS)
        if rows and not self._garbage:
            self._finished = max(0, self._finished - rows // 2)
            self._garbage = self._retention.find(now, rows)
