"""Failures to order: what real brokers do on their bad days, and some that none should.

The counted ones pass by themselves; the others last until `heal`. Any thread may call any method.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from reliable_mq.errors import ConfigurationError

if TYPE_CHECKING:
    from reliable_mq.adapters.memory.broker import MemoryBroker
    from reliable_mq.adapters.memory.subscription import MemorySubscription

__all__ = ["UNSAFE", "Faults"]

#: Safeties that a test can remove, to see that it notices (negative controls).
UNSAFE = {
    "ack-before": "an ack finishes all that its member was given before it, too",
    "confirm-first": "a publish is confirmed whether or not it could be stored",
    "to-all": "retry copies and dead letters reach every group of the topic",
    "ignore-acks": "acks are reported as settled and change nothing",
    "ignore-limit": "a poll brings one more than its limit",
    "late-ack": "the ack of a lost lease finishes the message",
    "overtake": "a refused publish does not hold those of its key behind it",
    "share-keys": "a key is given to any member; read when a member joins",
}


class Faults:
    """`broker.faults`. Publishers and subscriptions read the state, under the broker's lock."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker
        self.refusals = 0
        self.rejections = 0
        self.losses = 0
        self.holding = False
        self.blocked = False
        self.disconnected = False
        self.unsafe: frozenset[str] = frozenset()
        #: Whether anything here concerns a publish.
        self.armed = False

    def refuse_publishes(self, times: int = 1) -> None:
        """The next `times` attempts to store are refused for now (a nack): worth another try."""
        self._set(refusals=times)

    def reject_publishes(self, times: int = 1) -> None:
        """The next `times` attempts to store are refused for good: PublishRejected."""
        self._set(rejections=times)

    def lose_answers(self, times: int = 1) -> None:
        """The next `times` messages are stored, and nobody learns it: PublishUnknown in the end."""
        self._set(losses=times)

    def hold_answers(self) -> None:
        """Until `heal`, messages are stored and not confirmed."""
        self._set(holding=True)

    def block(self) -> None:
        """Until `heal`, there is no room: nothing is stored."""
        self._set(blocked=True)

    def disconnect(self) -> None:
        """Until `heal`, the broker cannot be reached: polls raise, publishes wait."""
        self._set(disconnected=True)

    def remove_safety(self, *names: str) -> None:
        """Break a promise on purpose, until `heal`: see UNSAFE."""
        if unknown := set(names) - set(UNSAFE):
            text = f"no such safety: {sorted(unknown)}; there are {sorted(UNSAFE)}"
            raise ConfigurationError(text)
        self._set(unsafe=frozenset(names))

    def heal(self) -> None:
        """End every fault; answers that were held go out, what waits is sent."""
        self._set(
            refusals=0,
            rejections=0,
            losses=0,
            holding=False,
            blocked=False,
            disconnected=False,
            unsafe=frozenset(),
        )
        self._broker.tick()

    def drop(self, member: MemorySubscription) -> None:
        """Its process dies as by SIGKILL: its leases end at once, acks under way are lost.

        The others get what it had in hand, as redelivered. Its polls raise ConnectionFailed from
        now on.
        """
        with self._broker.lock:
            member.die()

    def revoke(self, member: MemorySubscription) -> None:
        """Its next poll calls `on_revoke` with all its leases, then joins behind the others."""
        with self._broker.lock:
            member.revoking = True
            self._broker.notify()

    def _set(self, **state: bool | int | frozenset[str]) -> None:
        with self._broker.lock:
            for name, value in state.items():
                setattr(self, name, value)
            self.armed = bool(
                self.refusals
                or self.rejections
                or self.losses
                or self.holding
                or self.blocked
                or self.disconnected
            )
            self._broker.notify()
