"""The port: what an adapter owes the core, one sentence at a time.

Every sentence is a test in `reliable_mq.testing.contracts`, which third parties run on their own
adapters. Differences between brokers are `Capabilities`: data that selects tests and is compared
with a consumer's options at start; there is no `if kafka` in the core.

    Transport ── publisher() ──> Publisher       submit, close                any thread
              └─ subscribe() ──> Subscription    poll, ack, nack, close       the owner thread
                                                 wake                         any thread

Rules that hold for all of it:

* One thread owns a Subscription: the one that calls `poll`. A publisher has a thread of its own
  where the client needs one, and is then the only one to touch the client.
* A Lease that was lost stays lost; what is still done with it is ignored, never an error.
* Foreign errors are translated here, once, with `from`: only errors of `reliable_mq.errors` leave.
* Nothing blocks without a deadline, nothing is buffered without a limit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from msgspec import Struct

from reliable_mq.message import Delivery, Lease, Message

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reliable_mq.confirmation import Confirmation
    from reliable_mq.message import Destination

__all__ = [
    "Capabilities",
    "DeadLetterStore",
    "GroupSpec",
    "Lag",
    "OnRevoke",
    "Order",
    "Polled",
    "Publisher",
    "Start",
    "StoredMessage",
    "Subscribe",
    "Subscription",
    "TopicSpec",
    "Topology",
    "Transport",
]

#: What runs one at a time: nothing, the messages of a key, or all messages of a partition.
Order = Literal["none", "key", "partition"]
#: Where a group without a position begins. None: earliest where the broker retains, else its
#: declaration. A float is epoch seconds, an int an offset.
Start = Literal["earliest", "latest"] | float | int | None
#: on_revoke(leases, deadline): called inside `poll`; deadline is monotonic seconds. It returns
#: those whose work still goes on when the deadline is over; None: nobody knows.
OnRevoke = Callable[[Sequence[Lease], float], Collection[Lease] | None]


class Capabilities(Struct, frozen=True, kw_only=True):
    """What one broker can do. A consumer that asks for more is refused at start, with the remedy.

    key_order: the finest unit whose order holds over processes: a key, a partition (one queue with
        a single active consumer counts as one), or none.
    durable: messages survive a restart of the broker.
    durable_delay: a delay of `nack` survives the crash of who asked for it. Where it does not, the
        adapter holds the delivery itself, unacked, until it is due.
    durable_attempts: so does the attempt of the Delivery handed to `nack`.
    retains: messages wait for groups that are declared later.
    revokes: the broker may move work to another member while this one is alive.
    members: several subscriptions may share a group.
    starts: what `Subscribe.start` may be beside None.
    lease_timeout: seconds a member may go without a poll before others get its leases.
    max_hold: seconds after which a lease ends even though it is polled; None: never.
    max_body: bytes of the largest body of a user's message. Dead letters may be larger by what
        their headers need.
    tombstones: a null body is kept apart from an empty one.
    counts_redeliveries: the broker counts arrivals that ended without ack or nack. Where it does
        not, nobody but a store sees that a message kills the process again and again.
    clean_returns: what a member gives back when it closes does not count as redelivered.
    """

    name: str
    key_order: Order = "none"
    durable: bool = True
    durable_delay: bool = False
    durable_attempts: bool = False
    retains: bool = False
    revokes: bool = False
    members: bool = True
    starts: frozenset[str] = frozenset()
    lease_timeout: float = 30.0
    max_hold: float | None = None
    max_body: int = 1024 * 1024
    tombstones: bool = True
    counts_redeliveries: bool = True
    clean_returns: bool = True
    transactions: bool = False
    replay: bool = False


class GroupSpec(Struct, frozen=True):
    """A group of a topic, and where it begins while it is new: the first start named counts."""

    name: str
    start: Start = None


class TopicSpec(Struct, frozen=True):
    """A topic that the app declares. `ordered`: messages of a key keep their order."""

    name: str
    ordered: bool = True
    groups: tuple[GroupSpec, ...] = ()


class Topology(Struct, frozen=True):
    """All that an app declares. "create" makes what is missing, "check" compares; none alters."""

    topics: tuple[TopicSpec, ...] = ()
    mode: Literal["create", "check"] = "create"


class Subscribe(Struct, frozen=True, kw_only=True):
    """What a consumer asks for, as one value.

    credit: the most it will have in hand; an adapter fetches no more ahead. None: it does not say.
    """

    topics: tuple[str, ...]
    group: str
    order: Order = "key"
    start: Start = None
    credit: int | None = None


class Polled(Struct, frozen=True):
    """What one poll brings: new arrivals, and what became of earlier ones.

    settled: leases whose ack the broker has taken; they will not come again.
    lost: leases that the broker took back; `lease.lost` is already true.
    """

    deliveries: Sequence[Delivery] = ()
    settled: Sequence[Lease] = ()
    lost: Sequence[Lease] = ()


class StoredMessage(Struct, frozen=True):
    """A message that lies in the broker, with the position that names it there."""

    message: Message
    position: int | str


class Publisher(Protocol):
    """Sends messages and tells the truth about each."""

    def submit(
        self,
        message: Message,
        to: Destination,
        *,
        not_before: float | None = None,
        deadline: float | None = None,
    ) -> Confirmation:
        """Take a message. Any thread; never blocks; the order of calls is the order per key.

        * The Receipt exists only after the broker stored the message as durably as it can.
        * Missing topic, unroutable, too large, refused by the broker: PublishRejected, definite.
        * No answer by `deadline` (monotonic seconds): PublishUnknown; Backpressure when it is
          certain that it was never sent.
        * No room now: the Confirmation is already ended with Backpressure when it is returned.
        * While an earlier message of a key is refused for now, timed out or in doubt, nothing new
          of that key is sent; then all go out again from the first failed one on, in order, with
          their ids.
        * `to` says who gets it: every group of `message.topic` (Topic), or one (the others).
        * `not_before` is epoch seconds; a RetryCopy's `delay` counts from now. Never early.
        """

    def close(self, timeout: float) -> list[Message]:
        """Stop taking messages, wait at most `timeout` seconds for confirms, return the rest.

        Any thread; idempotent. What is returned has ended as PublishUnknown or Backpressure, and
        what is submitted afterwards ends as Backpressure.
        """


class Subscription(Protocol):
    """One member's place in a group. The owner thread only, but for `wake`."""

    @property
    def standby(self) -> bool:
        """Whether another member had all the work at the last poll, and this one waits for it."""

    def poll(self, limit: int, timeout: float) -> Polled:
        """Fetch at most `limit` deliveries, waiting at most `timeout` seconds for the first.

        * It is the heartbeat: called at least every second, also with limit 0; each call keeps
          every outstanding lease alive, up to `max_hold`. Whoever does not poll for
          `lease_timeout` loses them.
        * `limit` is the credit: never more come back. With 0 it waits `timeout`, too.
        * It returns early when there is news (`settled`, `lost`) or after `wake`.
        * Within a key (a partition, where `order` says so) deliveries come in the order they were
          published, and no other live member has one of it in hand.
        * Revocation: it calls `on_revoke(leases, deadline)` from inside, on this thread; what is
          acked in there is settled, the rest is lost when it returns. After a connection that was
          lost, work that still goes on may keep its lease: a copy that the broker brings again is
          then not delivered but takes its place.

        Raises: ConnectionFailed while the broker cannot be reached (call again, it reconnects);
            TransportError when the data are damaged; ConfigurationError when the topic is gone.
        """

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        """These are finished, in any order. Only enqueues: the answer comes from a later `poll`.

        Nothing unacked is ever passed over, whatever is acked behind it. A lost lease is ignored.
        """

    def nack(self, delivery: Delivery, delay: float) -> None:
        """Again, not before `delay` seconds, with `delivery.attempt` as handed in; unkeyed only.

        If we die first it is a redelivery, and the attempt may be forgotten.
        """

    def wake(self) -> None:
        """Let the poll that waits (or, if none does, the next) return at once. Any thread.

        An adapter whose client cannot be interrupted ends the wait as soon as it can, within
        100 ms.
        """

    def close(self) -> None:
        """Flush the acks, give every outstanding lease back at once, leave the group. Idempotent.

        What comes back to the group this way does not count as redelivered, if `clean_returns`.
        """


class Transport(Protocol):
    """One broker. Constructing it opens nothing; every method may be called from any thread."""

    capabilities: Capabilities

    def ensure(self, topology: Topology) -> None:
        """Make ("create") or compare ("check") what the app declares. Idempotent.

        Raises: ConfigurationError listing every difference.
        """

    def publisher(self) -> Publisher:
        """A new Publisher."""

    def subscribe(self, subscribe: Subscribe, on_revoke: OnRevoke) -> Subscription:
        """Join a group. The thread that polls it becomes its owner.

        Raises: ConfigurationError when a topic does not exist, or a group that the broker has to
            know; or when live members of the group keep another order than this one asks for.
        """

    def close(self) -> None:
        """Release what is shared. Publishers and Subscriptions are closed before. Idempotent."""


@runtime_checkable
class DeadLetterStore(Protocol):
    """Optional: read a group's dead letters without consuming them."""

    def browse(self, topic: str, group: str, limit: int) -> Iterator[StoredMessage]:
        """The oldest `limit` dead letters of this group, oldest first."""

    def discard(self, topic: str, group: str, positions: Sequence[int | str]) -> int:
        """Remove these; returns how many were there."""


@runtime_checkable
class Lag(Protocol):
    """Optional: how far behind a group is."""

    def lag(self, topic: str, group: str) -> int:
        """Messages of the topic that the group has not finished."""
