"""Publishing to the memory broker: an answer at once, unless a fault is in the way.

The invariant: while a message of a key waits to be sent, those of the same key behind it wait, too,
in one lane; only its head is tried. All of it happens under the broker's lock, but for `settle`.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from reliable_mq.confirmation import Confirmation
from reliable_mq.errors import Backpressure, PublishRejected, PublishUnknown
from reliable_mq.message import Destination, Receipt

if TYPE_CHECKING:
    from collections.abc import Hashable

    from reliable_mq.adapters.memory.broker import MemoryBroker
    from reliable_mq.errors import PublishError
    from reliable_mq.message import Message

__all__ = ["MemoryPublisher"]

#: Messages that one publisher keeps while they cannot be sent or have no answer.
WINDOW: Final = 10_000


class Send(Struct):
    """A publish on its way. With a `receipt` it is stored, and only the answer is missing."""

    confirmation: Confirmation
    to: Destination
    not_before: float | None
    deadline: float | None
    receipt: Receipt | None = None
    answer_lost: bool = False


class MemoryPublisher:
    """Any thread may submit and close."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker
        self._lanes: dict[Hashable, deque[Send]] = {}
        self._unanswered: list[Send] = []
        self._waiting = 0
        self._closed = False

    def submit(
        self,
        message: Message,
        to: Destination,
        *,
        not_before: float | None = None,
        deadline: float | None = None,
    ) -> Confirmation:
        """See Publisher.submit."""
        confirmation = Confirmation(message)
        broker = self._broker
        outcome: Receipt | PublishError | None
        with broker.lock:
            if broker.faults.armed or self._lanes or self._closed:
                send = Send(confirmation, to, not_before, deadline)
                outcome = self._submit(send)
            else:
                outcome = broker.store(message, to, not_before) or _no_room(message)
        if outcome is not None:
            confirmation.settle(outcome)
        return confirmation

    def close(self, timeout: float) -> list[Message]:
        """See Publisher.close."""
        broker = self._broker
        patience = broker.patience(timeout)
        with broker.lock:
            self._closed = True
        broker.tick()
        while self.pending and (left := patience.left) > 0:
            with broker.lock:
                if self.pending:  # looked at again: the last answer may have come just now
                    broker.sleep(left)
            broker.tick()
        with broker.lock:
            rest = self._abandon()
        for confirmation, outcome in rest:
            confirmation.settle(outcome)
        return [confirmation.message for confirmation, _ in rest]

    # -- under the broker's lock ---------------------------------------------------------------

    @property
    def pending(self) -> bool:
        """Whether anything has no answer yet."""
        return bool(self._lanes or self._unanswered)

    def advance(self) -> list[tuple[Confirmation, Receipt | PublishError]]:
        """Try the heads again; returns what has ended, its deadline included."""
        endings: list[tuple[Confirmation, Receipt | PublishError]] = []
        now = self._broker.clock.monotonic()
        unanswered, self._unanswered = self._unanswered, []
        for send in unanswered:
            if send.receipt and not send.answer_lost and not self._broker.faults.holding:
                endings.append((send.confirmation, send.receipt))
            elif _over(send, now):
                endings.append((send.confirmation, _unknown(send)))
            else:
                self._unanswered.append(send)
        for name, lane in list(self._lanes.items()):
            self._advance(name, lane, now, endings)
        return endings

    def _advance(
        self,
        name: Hashable,
        lane: deque[Send],
        now: float,
        endings: list[tuple[Confirmation, Receipt | PublishError]],
    ) -> None:
        late = [send for send in lane if _over(send, now)]
        endings += [(send.confirmation, _no_room(send.confirmation.message)) for send in late]
        for send in late:
            lane.remove(send)
        self._waiting -= len(late)
        while lane:
            outcome = self._try(lane[0])
            if outcome is None and lane[0].receipt is None:
                return
            send = lane.popleft()
            self._waiting -= 1
            if outcome is not None:
                endings.append((send.confirmation, outcome))
        del self._lanes[name]

    def _submit(self, send: Send) -> Receipt | PublishError | None:
        message = send.confirmation.message
        if self._closed or self._waiting + len(self._unanswered) >= WINDOW:
            return _no_room(message)
        target = () if message.key is None else (message.topic, send.to, message.key)
        name: Hashable = target or id(send)
        faults = self._broker.faults
        lane = self._lanes.get(name)
        outcome: Receipt | PublishError | None = None
        if lane is None or "overtake" in faults.unsafe:
            outcome = self._try(send)
        if outcome is None and send.receipt is None:
            if "confirm-first" in faults.unsafe:
                return Receipt(message.id, message.topic, 0, -1)
            self._lanes.setdefault(name, deque()).append(send)
            self._waiting += 1
        self._broker.watch(self)
        return outcome

    def _try(self, send: Send) -> Receipt | PublishError | None:
        """One attempt. None: not stored, or (with a receipt) stored and not answered."""
        faults, message = self._broker.faults, send.confirmation.message
        if faults.blocked or faults.disconnected:
            return None
        if faults.refusals:
            faults.refusals -= 1
            return None
        if faults.rejections:
            faults.rejections -= 1
            return PublishRejected(f"the broker refused message {message.id} for good", message)
        outcome = self._broker.store(message, send.to, send.not_before)
        if outcome is None:
            return _no_room(message)
        if isinstance(outcome, Receipt) and (faults.holding or faults.losses):
            send.receipt = outcome
            send.answer_lost = faults.losses > 0
            faults.losses -= send.answer_lost
            self._unanswered.append(send)
            return None
        return outcome

    def _abandon(self) -> list[tuple[Confirmation, Receipt | PublishError]]:
        rest: list[tuple[Confirmation, Receipt | PublishError]] = [
            (send.confirmation, _unknown(send)) for send in self._unanswered
        ]
        for lane in self._lanes.values():
            rest += [(one.confirmation, _no_room(one.confirmation.message)) for one in lane]
        self._unanswered.clear()
        self._lanes.clear()
        self._waiting = 0
        return rest


def _over(send: Send, now: float) -> bool:
    return send.deadline is not None and now >= send.deadline


def _no_room(message: Message) -> Backpressure:
    text = (
        f"message {message.id} was not sent: the broker has no room or cannot be reached, or the "
        "publisher is closed; slow down, then publish it again"
    )
    return Backpressure(text, message)


def _unknown(send: Send) -> PublishUnknown:
    message = send.confirmation.message
    text = (
        f"no answer for message {message.id}: it may be stored; publish it again with the same id"
    )
    return PublishUnknown(text, message)
