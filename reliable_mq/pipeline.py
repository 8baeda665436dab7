"""What happens to a delivery. The only module that decides it.

    poll ─> lane ─> admit ─> decode ─> handle ─> classify ─> record ─> verdict ─> carried out
                    `execution`, on a worker     `pipeline`, the owner thread     `settle`

A run that returned and left nothing to publish is acked next, and this module only forgets how it
failed before. Every other ending comes here as an Execution and is answered with one Verdict out of
a closed set. The pipeline decides and does nothing; the ack is the last act of every verdict.

    ending                        unkeyed                      keyed: nothing is ever nacked
    ----------------------------  ---------------------------  -----------------------------------
    Done, nothing to publish      Ack                          Ack
    Done with messages            Send, then Ack               Send, then Ack
    Retry, short                  Nack                         Wait, the head first
    Retry, long                   Send a retry copy, then Ack  Wait, whatever the length
    Reject, undecodable, forged,  Send a dead letter, then     the same, and KeyGap; or
      attempts used up              Ack                          on_failure="block": Halt
    a message of it is rejected   a failed run, as above       the same
    a Send failed otherwise       Nack, growing                Wait, growing, then Send again
    a dead letter never fits      Hold                         Hold

An outage of the broker uses up no attempt.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal

from msgspec import Struct
from msgspec.structs import replace

from reliable_mq import message as wire
from reliable_mq.deadletter import Letter, Shed
from reliable_mq.errors import PublishRejected, TooLarge
from reliable_mq.events import DeadLettered, KeyGap, Retried, SettleFailed, Undeadletterable
from reliable_mq.message import (
    DeadLetter,
    Delivery,
    Destination,
    Message,
    Receipt,
    RetryCopy,
    Topic,
)
from reliable_mq.outcome import DONE, Reject, Retry
from reliable_mq.policy import RetryPolicy
from reliable_mq.story import Stories, Story, failure_of, history_to_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from reliable_mq.clock import Clock
    from reliable_mq.errors import PublishError
    from reliable_mq.events import Observers
    from reliable_mq.execution import Execution

__all__ = ["Ack", "Halt", "Hold", "Nack", "Pipeline", "Send", "Verdict", "Wait"]

log = logging.getLogger("reliable_mq.pipeline")

OnFailure = Literal["dead_letter", "block"]

#: A retry up to here is waited for in place; a longer one goes through the broker.
SHORT_SECONDS = 30.0
#: The longest pause between two tries to carry out an ending.
LONGEST_SETBACK = 60.0


class Ack(Struct, frozen=True):
    """It has ended."""


class Nack(Struct, frozen=True):
    """Again, not before `delay` seconds; `delivery` carries the attempt."""

    delivery: Delivery
    delay: float


class Wait(Struct, frozen=True):
    """Its lane waits `delay` seconds, then runs `delivery`, or, if None, settles it once more."""

    delay: float
    delivery: Delivery | None = None


class Send(Struct, frozen=True):
    """Publish these, wait until every one is confirmed, then ask `sent`."""

    messages: tuple[tuple[Message, Destination], ...]


class Halt(Struct, frozen=True):
    """Its lane stands until an operator retries or skips it."""

    reason: str


class Hold(Struct, frozen=True):
    """Keep it, unsettled, for as long as this process lives: there is nothing safe left to do."""


Verdict = Ack | Nack | Wait | Send | Halt | Hold


class Pipeline:
    """Decides for one consumer. The owner thread only."""

    def __init__(
        self,
        *,
        handler: str,
        group: str,
        policy: RetryPolicy,
        on_failure: OnFailure,
        keyed: Callable[[Delivery], bool],
        max_hold: float | None,
        stories: int,
        clock: Clock,
        draw: Callable[[], float],
        host: str,
        observers: Observers,
    ) -> None:
        self._handler = handler
        self._group = group
        self._policy = policy
        self._on_failure = on_failure
        self._keyed = keyed
        self._short = SHORT_SECONDS if max_hold is None else min(SHORT_SECONDS, max_hold / 2)
        self._stories = Stories(stories)
        self._clock = clock
        self._draw = draw
        self._host = host
        self._observers = observers

    def settle(self, execution: Execution) -> Verdict:
        """What follows an ending; asked again after a Wait that carries no delivery."""
        if execution.outcome is None:
            self._classify(execution)
        outcome = execution.outcome
        if isinstance(outcome, Retry):
            return self._retry(execution, outcome)
        if isinstance(outcome, Reject):
            return self._reject(execution)
        return Send(tuple((message, Topic()) for message in execution.outputs))

    def sent(self, execution: Execution, outcomes: Sequence[Receipt | PublishError]) -> Verdict:
        """What follows when everything of a Send has ended: Ack, if all of it is stored."""
        rejected = next((one for one in outcomes if isinstance(one, PublishRejected)), None)
        if rejected is not None and execution.outcome is DONE:
            # No wait can mend it: the handler published what nobody takes, so its run has failed.
            execution.error, execution.outcome = rejected, None
            return self.settle(execution)
        failed = next((one for one in outcomes if not isinstance(one, Receipt)), None)
        if failed is not None:
            return self.setback(execution, failed)
        self.finished((execution.delivery,))
        if isinstance(execution.outcome, Reject):
            self._tell_dead_letter(execution)
        return Ack()

    def finished(self, deliveries: Iterable[Delivery]) -> None:
        """Forget how they failed before: they are acked next."""
        if self._stories:
            for delivery in deliveries:
                self._stories.forget(delivery)

    def afresh(self, execution: Execution) -> Delivery:
        """An operator wants it to run again, as if it were new: with all its attempts."""
        delivery = execution.delivery
        self._stories.forget(delivery)
        headers = tuple(one for one in delivery.message.headers if one[0] != wire.ATTEMPT)
        return replace(delivery, attempt=1, message=replace(delivery.message, headers=headers))

    def skip(self, execution: Execution) -> Verdict:
        """An operator gives up the head of a halted lane."""
        return self._dead_letter(execution)

    def _classify(self, execution: Execution) -> None:
        error = execution.error
        if error is None:
            execution.outcome = DONE
            return
        story = self._story(execution)
        now = self._clock.now()
        if execution.reason is not None:  # not admitted or not decoded: no run, no second chance
            execution.outcome = Reject(execution.reason)
        else:
            first = now if story.first_failed_at is None else story.first_failed_at
            execution.outcome = self._decide(
                execution.attempt, error, elapsed=max(0.0, now - first), draw=self._draw()
            )
        after = None
        if isinstance(execution.outcome, Retry):
            after = execution.outcome.after
        elif execution.reason is None:
            rejected = isinstance(error, Reject)
            execution.reason = "rejected" if rejected else execution.outcome.reason
        story.add(
            failure_of(error, at=now, attempt=execution.attempt, host=self._host, after=after)
        )

    def _decide(
        self, attempt: int, error: BaseException, *, elapsed: float, draw: float
    ) -> Retry | Reject:
        try:
            return self._policy.decide(attempt, error, elapsed=elapsed, draw=draw)
        except Exception:
            # The policy's functions are the user's. A message must not wait for them for ever.
            log.exception("the RetryPolicy of group %s raised; the default decides", self._group)
            return RetryPolicy().decide(attempt, error, elapsed=elapsed, draw=draw)

    def _retry(self, execution: Execution, outcome: Retry) -> Verdict:
        after = outcome.after or 0.0
        delivery = execution.delivery
        log.info(
            "message %s, group %s: run %d failed with %s; again in %.1f s",
            delivery.message.id,
            self._group,
            execution.attempt,
            type(execution.error).__name__,
            after,
            exc_info=execution.error if log.isEnabledFor(logging.DEBUG) else None,
        )
        if self._observers and execution.error is not None:
            self._observers.emit(
                Retried(delivery.message, self._group, execution.attempt, after, execution.error)
            )
        again = replace(delivery, attempt=execution.attempt + 1)
        if self._keyed(delivery):
            return Wait(after, again)
        if after <= self._short:
            return Nack(again, after)
        return Send(((self._retry_copy(execution, after), self._copy_to(delivery, after)),))

    def _reject(self, execution: Execution) -> Verdict:
        # With a letter it was skipped: what failed since was sending that.
        skipped = execution.letter is not None
        if self._on_failure == "block" and self._keyed(execution.delivery) and not skipped:
            return Halt(execution.reason or "rejected")
        return self._dead_letter(execution)

    def _dead_letter(self, execution: Execution) -> Verdict:
        if execution.letter is None:
            execution.letter = Letter(
                execution.delivery,
                self._story(execution),
                group=self._group,
                reason=execution.reason or "rejected",
                error=execution.error,
                attempt=execution.attempt,
                handler=self._handler,
                host=self._host,
                at=self._clock.now(),
            )
        letter = execution.letter.message(Shed(execution.shed))
        return Send(((letter, DeadLetter(execution.delivery.message.topic, self._group)),))

    def setback(self, execution: Execution, error: Exception) -> Verdict:
        """Carrying an ending out failed. Nothing is acked; where no try can help, none is made."""
        message = execution.delivery.message
        if isinstance(execution.outcome, Reject) and isinstance(error, TooLarge):
            if execution.shed < Shed.ALL:
                execution.shed += 1
                return self._dead_letter(execution)
            self._observers.emit(Undeadletterable(message, self._group, error))
            return Hold()
        self._observers.emit(SettleFailed(message, self._group, error))
        story = self._story(execution)
        story.setbacks += 1
        delay = min(LONGEST_SETBACK, 2.0 ** min(story.setbacks - 1, 10))
        if self._keyed(execution.delivery):
            return Wait(delay)
        # Without a run of its own: the attempt stays what it was.
        return Nack(replace(execution.delivery, attempt=execution.attempt), delay)

    def _story(self, execution: Execution) -> Story:
        history = wire.header(execution.delivery.message, wire.HISTORY)
        return self._stories.of(execution.delivery, history)

    def _retry_copy(self, execution: Execution, after: float) -> Message:
        message = execution.delivery.message
        kept = {wire.ATTEMPT, wire.NOT_BEFORE, wire.GROUP, wire.HISTORY}
        headers = [pair for pair in message.headers if pair[0] not in kept]
        headers += [
            (wire.ATTEMPT, str(execution.attempt + 1)),
            (wire.NOT_BEFORE, f"{self._clock.now() + after:.3f}"),
            (wire.GROUP, self._group),
            (wire.HISTORY, history_to_json(self._story(execution).failures)),
        ]
        return replace(message, headers=tuple(headers))

    def _copy_to(self, delivery: Delivery, after: float) -> RetryCopy:
        return RetryCopy(delivery.message.topic, self._group, after)

    def _tell_dead_letter(self, execution: Execution) -> None:
        message = execution.delivery.message
        reason = execution.reason or "rejected"
        # The type alone: a text may quote the payload. Text and stack are in the dead letter.
        log.error(
            "message %s of %s is a dead letter of group %s: %s, run %d, %s",
            message.id,
            message.topic,
            self._group,
            reason,
            execution.attempt,
            type(execution.error).__name__,
            exc_info=execution.error if log.isEnabledFor(logging.DEBUG) else None,
        )
        if not self._observers:
            return
        self._observers.emit(DeadLettered(message, self._group, reason, execution.attempt))
        if self._keyed(execution.delivery):
            self._observers.emit(KeyGap(message.topic, self._group, message.key, message.id))
