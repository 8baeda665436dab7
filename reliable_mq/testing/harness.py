"""What the transport contract has to know about one adapter, and how to hurt its broker.

A harness states what it can do; the contract selects its tests by that and never passes over one
in silence: a test that cannot run skips with the capability or the fault that is missing, and fails
where the harness says that it must not be missing.
"""

from __future__ import annotations

import threading
from itertools import count
from typing import TYPE_CHECKING, Final
from uuid import uuid4

from msgspec import structs

from reliable_mq.clock import SYSTEM_CLOCK

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from reliable_mq.adapters.base import Capabilities, Polled, Subscribe, Subscription, Transport
    from reliable_mq.message import Delivery

__all__ = ["FAULTS", "Harness", "victim"]

#: What a harness may be able to do to its broker, and the method that does it.
FAULTS: Final = {
    "kill": "kill_after: a member in another process dies by SIGKILL",
    "revoke": "revoke: the broker takes work from a member that is alive",
    "foreign": "publish_foreign: a program without this library publishes",
    "block": "blocked: the broker has no room, or does not answer",
    "refuse": "refuse_publishes: the broker nacks for now",
    "reject": "reject_publishes: the broker refuses for good",
    "hold-answers": "answers_held: messages are stored, their confirms are late",
    "lose-answers": "lose_answers: messages are stored, their confirms never come",
    "disconnect": "disconnected: the broker cannot be reached",
    "restart": "restart: the broker ends and comes back with what it has on disk",
    "max-hold": "(no method) `capabilities.max_hold` is short enough to be waited for",
}


class Harness:
    """One adapter and a broker for it; subclass it, one instance a test.

    Set `capabilities`, and in `faults` the names of those FAULTS whose methods you override.
    """

    #: What the transports of this harness claim.
    capabilities: Capabilities
    #: Faults that it can produce.
    faults: frozenset[str] = frozenset()
    #: Faults that may not be skipped. "kill" never may; nor "revoke" where the broker revokes.
    must: frozenset[str] = frozenset()
    #: Seconds after which what should happen counts as not happening: only a failure waits so long.
    patience: float = 10.0
    #: Seconds to look for something that must not happen.
    quiet: float = 0.2
    #: A delay to test with, in seconds; brokers that know only some delays name one of these.
    delay: float = 1.0

    _numbers = count(1)

    def need(self, *, fault: str = "", **capabilities: object) -> str | None:
        """Why a test cannot run here: None when it can. `capabilities` are the values it needs.

        Raises: AssertionError when this harness may not lack the fault.
        """
        for name, wanted in capabilities.items():
            claimed = getattr(self.capabilities, name)
            if claimed not in (wanted if isinstance(wanted, tuple) else (wanted,)):
                return (
                    f"{self.capabilities.name} claims {name}={claimed!r}, the test needs {wanted!r}"
                )
        if not fault or fault in self.faults:
            return None
        text = (
            f"this harness for {self.capabilities.name} cannot produce {fault!r} ({FAULTS[fault]})"
        )
        must = {*self.must, "kill"} | ({"revoke"} if self.capabilities.revokes else set())
        assert fault not in must, text
        return text

    # -- clients -------------------------------------------------------------------------------

    def transport(self) -> Transport:
        """A new client of the broker: same broker at every call, another connection."""
        raise NotImplementedError

    def close(self) -> None:
        """End what the harness started. The clients are closed before."""

    def topic(self) -> str:
        """A name that no other test uses."""
        return f"contract-{uuid4().hex[:8]}-{next(self._numbers)}"

    def group(self) -> str:
        """A name that no other test uses."""
        return f"group-{uuid4().hex[:8]}-{next(self._numbers)}"

    # -- time ----------------------------------------------------------------------------------

    def now(self) -> float:
        """Steady seconds of the clock that deadlines are given in."""
        return SYSTEM_CLOCK.monotonic()

    def epoch(self) -> float:
        """Epoch seconds of the clock that `not_before` is given in."""
        return SYSTEM_CLOCK.now()

    def elapse(self, seconds: float) -> None:
        """Let time pass: wait, or move a fake clock."""
        threading.Event().wait(seconds)

    def poll(self, subscription: Subscription, limit: int) -> Polled:
        """Poll once; where nothing comes, a moment has passed afterwards."""
        return subscription.poll(limit, 0.05)

    # -- faults --------------------------------------------------------------------------------

    def kill_after(
        self,
        subscribe: Subscribe,
        take: int,
        *,
        ack: Sequence[int] = (),
        nack: Mapping[int, float] | None = None,
    ) -> list[str]:
        """Let a member in another process run `victim(...)` and die by SIGKILL; returns the ids.

        It must be dead, and the broker must see that or be about to, when this returns.
        """
        raise NotImplementedError

    def revoke(self, subscription: Subscription) -> None:
        """Let the broker take back, in one of its next polls, all that this member has in hand.

        The members of the group get it afterwards; which of them does not matter.
        """
        raise NotImplementedError

    def publish_foreign(self, topic: str, body: bytes) -> None:
        """Publish as a program does that has never heard of this library: no header, no id."""
        raise NotImplementedError

    def blocked(self) -> AbstractContextManager[None]:
        """Meanwhile the broker takes no message: an alarm, a full disk, a process that hangs."""
        raise NotImplementedError

    def refuse_publishes(self, times: int) -> None:
        """The next `times` publishes are nacked; a broker that cannot count nacks for a while."""
        raise NotImplementedError

    def reject_publishes(self, times: int) -> None:
        """The next `times` publishes are refused for good."""
        raise NotImplementedError

    def answers_held(self) -> AbstractContextManager[None]:
        """Meanwhile messages are stored, but confirmed only at the end of it."""
        raise NotImplementedError

    def lose_answers(self, times: int) -> None:
        """The next `times` messages are stored and never confirmed."""
        raise NotImplementedError

    def disconnected(self) -> AbstractContextManager[None]:
        """Meanwhile nobody reaches the broker."""
        raise NotImplementedError

    def restart(self) -> None:
        """End the broker and start it again on the same data."""
        raise NotImplementedError


def victim(
    poll: Callable[[int], Polled],
    subscription: Subscription,
    take: int,
    *,
    ack: Sequence[int] = (),
    nack: Mapping[int, float] | None = None,
) -> list[str]:
    """What the member does that `kill_after` kills: returns the ids of its first `take` deliveries.

    It acks those at the indexes `ack` and polls until they are settled, and nacks those in `nack`,
    index to delay, as failed once more. The caller then kills the process at once, closing nothing.

    Args:
        poll: Polls the subscription with the given limit and waits a moment.
    """
    taken: list[Delivery] = []
    while len(taken) < take:
        taken += poll(take - len(taken)).deliveries
    for index, delay in (nack or {}).items():
        failed = structs.replace(taken[index], attempt=taken[index].attempt + 1)
        subscription.nack(failed, delay)
    subscription.ack([taken[index] for index in ack])
    open_leases = {taken[index].lease for index in ack}
    while open_leases:
        open_leases -= set(poll(0).settled)
    poll(0)  # a nack has no answer: one more round trip takes it to the broker
    return [delivery.message.id for delivery in taken]
