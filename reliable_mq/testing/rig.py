"""The clients of one contract test, with calls that wait for a state and fail by a deadline."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from msgspec import structs

from reliable_mq.adapters.base import GroupSpec, Subscribe, TopicSpec, Topology
from reliable_mq.errors import ConnectionFailed
from reliable_mq.message import GROUP, Message, Receipt, Topic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from reliable_mq.adapters.base import (
        OnRevoke,
        Order,
        Polled,
        Publisher,
        Start,
        Subscription,
        Transport,
    )
    from reliable_mq.confirmation import Confirmation
    from reliable_mq.errors import PublishError
    from reliable_mq.message import Delivery, Destination, Lease
    from reliable_mq.testing.harness import Harness

__all__ = ["Deadline", "Member", "Rig", "by_key", "ids"]


ALL_GROUPS = Topic()


class Deadline:
    """How long a test waits for a state: as long as a lease takes to end, and some patience."""

    def __init__(self, harness: Harness) -> None:
        self._now = harness.now
        self._allowed = harness.capabilities.lease_timeout + harness.patience
        self._end = harness.now() + self._allowed

    def is_ahead(self) -> bool:
        """True; fails when it is not."""
        assert self._now() < self._end, f"did not happen within {self._allowed} s"
        return True


class Member:
    """A subscription that remembers what its polls brought."""

    def __init__(self, harness: Harness, subscription: Subscription) -> None:
        self.subscription = subscription
        self.settled: list[Lease] = []
        self.lost: list[Lease] = []
        self._harness = harness

    def poll(self, limit: int = 0) -> list[Delivery]:
        """Poll once; a moment passes where nothing comes."""
        return self._note(self._harness.poll(self.subscription, limit), limit)

    def beat(self) -> None:
        """Poll as a heartbeat, without waiting."""
        self._note(self.subscription.poll(0, 0.0), 0)

    def _note(self, polled: Polled, limit: int) -> list[Delivery]:
        assert len(polled.deliveries) <= limit, f"{len(polled.deliveries)} came, {limit} at most"
        self.settled += polled.settled
        self.lost += polled.lost
        return list(polled.deliveries)

    def take(self, wanted: int, *, beside: Sequence[Member] = ()) -> list[Delivery]:
        """Poll until so many have come; the members `beside` are kept alive."""
        taken: list[Delivery] = []
        deadline = Deadline(self._harness)
        while len(taken) < wanted and deadline.is_ahead():
            taken += self.take_some(wanted - len(taken), beside=beside)
        return taken

    def take_up_to(self, last: Message, *, beside: Sequence[Member] = ()) -> list[Delivery]:
        """Poll until this message has come; all that came before it is returned with it."""
        taken: list[Delivery] = []
        deadline = Deadline(self._harness)
        while last.id not in ids(taken) and deadline.is_ahead():
            taken += self.take_some(10, beside=beside)
        return taken

    def take_some(self, limit: int, *, beside: Sequence[Member] = ()) -> list[Delivery]:
        """Poll once, and keep the members `beside` alive."""
        for other in beside:
            if other is not self:
                other.beat()
        return self.poll(limit)

    def ack(self, *deliveries: Delivery, beside: Sequence[Member] = ()) -> None:
        """Ack, and poll until the broker has taken it."""
        leases = {delivery.lease for delivery in deliveries}
        self.subscription.ack(deliveries)
        deadline = Deadline(self._harness)
        while not leases <= set(self.settled) and deadline.is_ahead():
            self.take_some(0, beside=beside)

    def is_cut_off(self) -> bool:
        """Poll once: whether that says that the broker cannot be reached."""
        try:
            self.poll()
        except ConnectionFailed:
            return True
        return False

    def nothing_comes(self) -> None:
        """Fail when anything comes within `harness.quiet` seconds."""
        end = self._harness.now() + self._harness.quiet
        while self._harness.now() < end:
            assert ids(self.poll(10)) == []


class Rig:
    """One test's clients; `close` ends them all."""

    def __init__(self, harness: Harness) -> None:
        self.harness = harness
        self.capabilities = harness.capabilities
        self._opened: list[Callable[[], object]] = []
        self.transport = self._client()
        self._publisher: Publisher | None = None
        self._numbers = count(1)

    # -- what there is -------------------------------------------------------------------------

    def need(self, *, fault: str = "", **capabilities: object) -> None:
        """Skip the test, with the reason, where the harness has not got what it needs."""
        if reason := self.harness.need(fault=fault, **capabilities):
            pytest.skip(reason)

    def declare(self, groups: int = 1) -> tuple[str, ...]:
        """A new topic with so many groups: the names."""
        names = (self.harness.topic(), *(self.harness.group() for _ in range(groups)))
        self.ensure(names[0], *names[1:])
        return names

    def ensure(self, topic: str, *groups: str) -> None:
        """Make a topic and its groups where they are missing."""
        spec = TopicSpec(topic, groups=tuple(GroupSpec(name) for name in groups))
        self.transport.ensure(Topology((spec,)))

    # -- consuming -----------------------------------------------------------------------------

    def asks(
        self, topic: str, group: str, *, order: Order | None = None, start: Start = None
    ) -> Subscribe:
        """What a member asks for: order by key where the broker has any order."""
        finest: Order = "none" if self.capabilities.key_order == "none" else "key"
        return Subscribe(topics=(topic,), group=group, order=order or finest, start=start)

    def join(
        self,
        topic: str,
        group: str,
        *,
        order: Order | None = None,
        start: Start = None,
        on_revoke: OnRevoke = lambda _leases, _deadline: None,
    ) -> Member:
        """A new member of the group, with a connection of its own."""
        return self.join_as(self.asks(topic, group, order=order, start=start), on_revoke)

    def join_as(
        self, asks: Subscribe, on_revoke: OnRevoke = lambda _leases, _deadline: None
    ) -> Member:
        """A new member that asks for this."""
        subscription = self._client().subscribe(asks, on_revoke)
        self._opened.append(subscription.close)
        return Member(self.harness, subscription)

    # -- publishing ----------------------------------------------------------------------------

    @property
    def publisher(self) -> Publisher:
        """The publisher of this test."""
        if self._publisher is None:
            publisher = self._publisher = self.transport.publisher()
            self._opened.append(lambda: publisher.close(0.0))
        return self._publisher

    def message(self, topic: str, body: bytes | None = b"body", **fields: Any) -> Message:
        """A message with an id of its own."""
        number = next(self._numbers)
        fields.setdefault("id", f"{topic}-m{number}")
        fields.setdefault("created_at", self.harness.epoch())
        return Message(topic=topic, body=body, **fields)

    def messages(self, topic: str, amount: int, *keys: bytes | None) -> list[Message]:
        """So many messages, the keys in turn (without any: no key)."""
        turns = keys or (None,)
        return [self.message(topic, key=turns[at % len(turns)]) for at in range(amount)]

    def for_group(self, message: Message, group: str) -> Message:
        """The copy of a message that belongs to one group."""
        return structs.replace(message, headers=(*message.headers, (GROUP, group)))

    def send(
        self, *messages: Message, to: Destination = ALL_GROUPS, not_before: float | None = None
    ) -> list[Receipt]:
        """Publish and wait for every Receipt."""
        confirmations = [
            self.publisher.submit(message, to, not_before=not_before) for message in messages
        ]
        return [self.receipt(confirmation) for confirmation in confirmations]

    def submit(self, message: Message, *, within: float | None = None) -> Confirmation:
        """Publish without waiting; `within` is seconds until its deadline."""
        deadline = None if within is None else self.harness.now() + within
        return self.publisher.submit(message, Topic(), deadline=deadline)

    def ending(self, confirmation: Confirmation) -> Receipt | PublishError:
        """Wait until a publish has ended, and how."""
        deadline = Deadline(self.harness)
        while not confirmation.done() and deadline.is_ahead():
            self.harness.elapse(0.02)
        outcome = confirmation.outcome
        assert outcome is not None
        return outcome

    def receipt(self, confirmation: Confirmation) -> Receipt:
        """Wait for a Receipt; fails with the error where there is none."""
        outcome = self.ending(confirmation)
        if not isinstance(outcome, Receipt):
            raise outcome
        return outcome

    # -- the end -------------------------------------------------------------------------------

    def close(self) -> None:
        """Close all clients, the last one first."""
        while self._opened:
            self._opened.pop()()

    def _client(self) -> Transport:
        transport = self.harness.transport()
        self._opened.append(transport.close)
        return transport


def ids(deliveries: Iterable[Delivery]) -> list[str]:
    """The ids of these, in their order."""
    return [delivery.message.id for delivery in deliveries]


def by_key(messages: Iterable[Message]) -> dict[bytes | None, list[str]]:
    """The ids of each key, in their order, each once: where it came first."""
    seen: dict[bytes | None, list[str]] = {}
    for message in messages:
        of_key = seen.setdefault(message.key, [])
        if message.id not in of_key:
            of_key.append(message.id)
    return seen
