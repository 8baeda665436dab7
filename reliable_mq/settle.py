"""Carrying out what the pipeline decided about a delivery, on the owner thread.

The ack is the last act of every ending and stands here once. Whatever fails on the way to it goes
back to the pipeline, which answers with a way to try again; nothing is logged and passed over.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from reliable_mq.confirmation import Confirmation, when_all_done
from reliable_mq.events import ConsumerPaused, ConsumerResumed, LaneHalted, LaneResumed
from reliable_mq.ordering.lanes import HALTED
from reliable_mq.outcome import Done, Reject
from reliable_mq.pipeline import Ack, Halt, Hold, Nack, Send, Wait

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from reliable_mq.adapters.base import Publisher, Subscription
    from reliable_mq.clock import Clock
    from reliable_mq.events import Observers
    from reliable_mq.execution import Execution
    from reliable_mq.message import Delivery, Lease
    from reliable_mq.ordering.lanes import Lane, Lanes
    from reliable_mq.pipeline import Pipeline, Verdict
    from reliable_mq.workers import Mailbox

__all__ = ["InHand", "Sent", "Settler"]

log = logging.getLogger("reliable_mq.consumer")


class InHand:
    """What is counted against the credit: running, waiting, or held behind a waiting key."""

    __slots__ = ("bytes", "count", "credit", "credit_bytes")

    def __init__(self, credit: int, credit_bytes: int) -> None:
        self.credit = credit
        self.credit_bytes = credit_bytes
        self.count = 0
        self.bytes = 0

    def room(self) -> int:
        """How many more may be taken."""
        return max(0, self.credit - self.count) if self.bytes < self.credit_bytes else 0

    def take(self, deliveries: Sequence[Delivery]) -> None:
        """They came."""
        self.count += len(deliveries)
        self.bytes += sum([len(one.message.body or b"") for one in deliveries])

    def give(self, deliveries: Sequence[Delivery]) -> None:
        """They are settled, given back or lost."""
        self.count -= len(deliveries)
        self.bytes -= sum([len(one.message.body or b"") for one in deliveries])


class Sent:
    """Every message of a Send has ended; goes through the mailbox to the owner thread."""

    __slots__ = ("confirmations", "execution", "lane")

    def __init__(
        self, lane: Lane, execution: Execution, confirmations: Sequence[Confirmation]
    ) -> None:
        self.lane = lane
        self.execution = execution
        self.confirmations = confirmations


class Settler:
    """Carries verdicts out for one consumer. The owner thread only."""

    def __init__(
        self,
        pipeline: Pipeline,
        lanes: Lanes,
        in_hand: InHand,
        mailbox: Mailbox,
        *,
        group: str,
        publisher: Callable[[], Publisher],
        publish_timeout: float,
        dead_letter_limit: int,
        clock: Clock,
        observers: Observers,
    ) -> None:
        self.subscription: Subscription | None = None
        #: Sends whose messages have not all ended.
        self._sending: set[Sent] = set()
        #: Why no work is taken; "" while it is.
        self.paused = ""
        self._pipeline = pipeline
        self._lanes = lanes
        self._in_hand = in_hand
        self._mailbox = mailbox
        self._group = group
        self._publisher = publisher
        self._publish_timeout = publish_timeout
        self._dead_letter_limit = dead_letter_limit
        self._clock = clock
        self._observers = observers
        self._dead_in_a_row = 0
        self._kept_back: list[tuple[Lane, Execution]] = []
        self._held: list[tuple[Lane, Execution]] = []

    def finished(self, deliveries: list[Delivery]) -> None:
        """Their handlers returned and nothing else is left to do."""
        self._dead_in_a_row = 0
        self._pipeline.finished(deliveries)
        self._ack(deliveries)

    @property
    def sending(self) -> int:
        """How many Sends have messages that have not ended."""
        return len(self._sending)

    def sending_for(self) -> set[Lease]:
        """The leases of the deliveries that these follow."""
        return {sent.execution.delivery.lease for sent in self._sending}

    def settle(self, lane: Lane, execution: Execution) -> None:
        """Ask the pipeline what follows an ending, and do it."""
        if not self._given_up(lane, execution):
            self._carry_out(lane, execution, lambda: self._pipeline.settle(execution))

    def sent(self, sent: Sent) -> None:
        """Everything of a Send has ended: ask what follows, and do it."""
        self._sending.discard(sent)
        outcomes: list[Any] = [confirmation.outcome for confirmation in sent.confirmations]
        if not self._given_up(sent.lane, sent.execution):
            self._carry_out(
                sent.lane, sent.execution, lambda: self._pipeline.sent(sent.execution, outcomes)
            )

    def lost(self) -> None:
        """Leases were lost: let go of the endings that wait for nothing else."""
        for lane in self._lanes.halted():
            while lane.state is HALTED and lane.why.delivery.lease.lost:
                execution = lane.why
                self._lanes.resume(lane)
                self._given_up(lane, execution)
        for kept in (self._held, self._kept_back):
            kept[:] = [pair for pair in kept if not self._given_up(*pair)]

    # ---- what an operator does

    def retry(self, lane: Lane) -> None:
        """Run the head of a halted lane again, as if it were new."""
        execution = lane.why
        self._resume(lane, "retry")
        if self._given_up(lane, execution):
            return
        self._lanes.run_again(lane, self._pipeline.afresh(execution), 0.0)

    def skip(self, lane: Lane) -> None:
        """Dead-letter the head of a halted lane and go on behind it."""
        execution = lane.why
        execution.counted = True  # no part of a bad deploy: it goes also while that is paused
        self._resume(lane, "skip")
        if self._given_up(lane, execution):
            return
        self._carry_out(lane, execution, lambda: self._pipeline.skip(execution))

    def pause(self, reason: str) -> None:
        """Take no work and dead-letter nothing until `unpause`."""
        self.paused = reason
        self._lanes.pause()
        log.error("the consumer of group %s is paused: %s", self._group, reason)
        self._observers.emit(ConsumerPaused(self._group, reason))

    def unpause(self) -> None:
        """Go on. What was kept back runs afresh: whatever made it fail may be mended by now."""
        if not self.paused:
            return
        self.paused = ""
        self._dead_in_a_row = 0
        self._observers.emit(ConsumerResumed(self._group))
        kept_back, self._kept_back = self._kept_back, []
        for lane, execution in kept_back:
            if execution.ran:
                self._lanes.run_again(lane, self._pipeline.afresh(execution), 0.0)
            else:
                self.settle(lane, execution)
        if not self.paused:  # by one of these
            self._lanes.unpause()

    # ---- one verdict

    def _carry_out(self, lane: Lane, execution: Execution, decide: Callable[[], Verdict]) -> None:
        try:
            verdict = decide()
        except Exception as error:  # a policy of the user may raise; the message must not suffer
            log.exception("message %s: deciding what follows failed", _id(execution))
            verdict = self._pipeline.setback(execution, error)
        follows = self._send(lane, execution, verdict) if isinstance(verdict, Send) else verdict
        if follows is not None:
            self._act(lane, execution, follows)

    def _act(self, lane: Lane, execution: Execution, verdict: Verdict) -> None:
        if isinstance(verdict, Ack):
            if isinstance(execution.outcome, Done):
                self._dead_in_a_row = 0
            self._ack([execution.delivery])
            self._lanes.ended(lane)
        elif isinstance(verdict, Nack):
            if execution.counted:  # its dead letter is not stored; it counts when it comes again
                self._dead_in_a_row = max(0, self._dead_in_a_row - 1)
            self._nack(verdict)
            self._lanes.ended(lane)
        elif isinstance(verdict, Wait):
            self._wait(lane, execution, verdict)
        elif isinstance(verdict, Halt):
            self._halt(lane, execution, verdict)
        elif isinstance(verdict, Hold):
            self._held.append((lane, execution))
            log.error("message %s fits no dead letter: held, unsettled", _id(execution))

    def _ack(self, deliveries: list[Delivery]) -> None:
        """The last act of every message, and the only ack of the core."""
        if self.subscription is not None:
            self.subscription.ack(deliveries)
        self._in_hand.give(deliveries)

    def _nack(self, verdict: Nack) -> None:
        if self.subscription is not None:
            self.subscription.nack(verdict.delivery, verdict.delay)
        self._in_hand.give((verdict.delivery,))

    def _wait(self, lane: Lane, execution: Execution, verdict: Wait) -> None:
        due = self._clock.monotonic() + verdict.delay
        if verdict.delivery is not None:
            self._lanes.run_again(lane, verdict.delivery, due)
        else:
            self._lanes.call_later(lane, due, lambda lane: self.settle(lane, execution))

    def _halt(self, lane: Lane, execution: Execution, verdict: Halt) -> None:
        self._lanes.halt(lane, execution)
        message = execution.delivery.message
        log.error(
            "message %s halts its key in group %s (%s): retry or skip it by mq.halted(%r, %r)",
            message.id,
            self._group,
            verdict.reason,
            message.topic,
            self._group,
        )
        self._observers.emit(
            LaneHalted(message.topic, self._group, message.key, message.id, verdict.reason)
        )

    def _send(self, lane: Lane, execution: Execution, verdict: Send) -> Verdict | None:
        """Submit everything of it; returns what follows if that is not possible."""
        if isinstance(execution.outcome, Reject) and not execution.counted:
            if self.paused:
                self._kept_back.append((lane, execution))
                return None
            execution.counted = True
            self._dead_in_a_row += 1
        deadline = self._clock.monotonic() + self._publish_timeout
        try:
            publisher = self._publisher()
            confirmations = [
                publisher.submit(message, to, deadline=deadline) for message, to in verdict.messages
            ]
        except Exception as error:  # no publisher: nothing is stored for certain, so try again
            log.exception("message %s: publishing what follows failed", _id(execution))
            return self._pipeline.setback(execution, error)
        sent = Sent(lane, execution, confirmations)
        self._sending.add(sent)
        when_all_done(confirmations, lambda: self._mailbox.put(sent))
        if self._dead_in_a_row >= self._dead_letter_limit and not self.paused:
            self.pause(f"{self._dead_in_a_row} dead letters in a row")
        return None

    def _given_up(self, lane: Lane, execution: Execution) -> bool:
        """Whether the lease is lost: somebody else gets it, all that follows here is too late."""
        if not execution.delivery.lease.lost:
            return False
        self._in_hand.give((execution.delivery,))
        self._lanes.ended(lane)
        return True

    def _resume(self, lane: Lane, how: str) -> None:
        message = lane.why.delivery.message
        self._lanes.resume(lane)
        self._observers.emit(LaneResumed(message.topic, self._group, message.key, how))


def _id(execution: Execution) -> str:
    return execution.delivery.message.id
