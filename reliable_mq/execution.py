"""Running a handler: admit, decode, handle. Every ending of it becomes a value.

This is the worker's half of the consume path, and it decides nothing: what follows an ending is
the pipeline's business. Only a normal return is Done; whatever else comes out of a handler, a
CancelledError, SystemExit, KeyboardInterrupt or GeneratorExit too, is a failed run.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from reliable_mq.context import Context, enter
from reliable_mq.envelope import ForgedHeader, ours
from reliable_mq.errors import BatchFailed, CodecError
from reliable_mq.events import Handled

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from reliable_mq.clock import Clock
    from reliable_mq.deadletter import Letter
    from reliable_mq.events import Observers
    from reliable_mq.handlers import Handler
    from reliable_mq.message import Delivery, Message
    from reliable_mq.outcome import Outcome
    from reliable_mq.policy import Limits

__all__ = ["Execution", "Runner", "not_run"]


class Execution:
    """One run of a delivery that needs more than an ack, on its way to its end.

    outcome: None until it is classified.
    reason: why it becomes a dead letter, if it does.
    letter, shed: the dead letter, and how much of it had to be left out.
    outputs: what the handler published by `ctx.publish`.
    counted: whether it counts among the dead letters in a row already.
    ran: False where no lane could be found for it, so that nobody may run it.
    """

    __slots__ = (
        "attempt",
        "counted",
        "delivery",
        "error",
        "letter",
        "outcome",
        "outputs",
        "ran",
        "reason",
        "shed",
    )

    def __init__(
        self,
        delivery: Delivery,
        attempt: int,
        *,
        error: BaseException | None = None,
        reason: str | None = None,
        outputs: Sequence[Message] = (),
    ) -> None:
        self.delivery = delivery
        self.attempt = attempt
        self.error = error
        self.reason = reason
        self.outputs = outputs
        self.outcome: Outcome | None = None
        self.letter: Letter | None = None
        self.shed = 0
        self.counted = False
        self.ran = True


def not_run(delivery: Delivery, error: BaseException) -> Execution:
    """The ending of a delivery whose key could not be had: a failed run without a run."""
    attempt = delivery.attempt
    with suppress(ForgedHeader):  # a run would tell; it does not get that far
        attempt = max(attempt, ours(delivery.message).attempt)
    execution = Execution(delivery, attempt, error=error)
    execution.ran = False
    return execution


class Runner:
    """Runs the deliveries of one consumer through its handler. Any worker."""

    def __init__(
        self,
        handler: Handler,
        *,
        group: str,
        timeout: float | None,
        max_body: int,
        limits: Limits,
        clock: Clock,
        observers: Observers,
    ) -> None:
        self.handler = handler
        self._max_body = max_body
        self._limits = limits
        self._group = group
        self._timeout = timeout
        self._clock = clock
        self._observers = observers
        self._direct = handler.direct
        self._decode = handler.decode

    def run(self, delivery: Delivery) -> Execution | None:
        """Admit, decode, handle, for a `def` handler. None: Done, and only the ack is left."""
        attempt = delivery.attempt
        reason = None
        try:
            message = delivery.message
            if message.headers:
                reason = "forged-header"
                told = ours(message).attempt
                if told > attempt:  # noqa: PLR1730 - max() takes five times as long
                    attempt = told
            reason = "undecodable"
            value = self._decode(message)
            reason = None
            enter((message, self._group, attempt))
            if self._direct is not None and not self._observers:
                result = self._direct(value)
                if result is None:
                    return None
                return self._returned(delivery, attempt, result, None)
            return self._handle(delivery, attempt, value)
        except (ForgedHeader, CodecError) as error:
            return Execution(delivery, attempt, error=error, reason=reason)
        except BaseException as error:  # noqa: BLE001 - every ending of a handler becomes a value
            return Execution(delivery, attempt, error=error)

    async def run_async(self, delivery: Delivery) -> Execution | None:
        """The same for an `async def` handler."""
        attempt = delivery.attempt
        reason = None
        try:
            message = delivery.message
            if message.headers:
                reason = "forged-header"
                told = ours(message).attempt
                if told > attempt:  # noqa: PLR1730 - max() takes five times as long
                    attempt = told
            reason = "undecodable"
            value = self._decode(message)
            reason = None
            enter((message, self._group, attempt))
            if self._direct is not None and not self._observers and self._timeout is None:
                result = await self._direct(value)
                if result is None:
                    return None
                return self._returned(delivery, attempt, result, None)
            return await self._handle_async(delivery, attempt, value)
        except (ForgedHeader, CodecError) as error:
            return Execution(delivery, attempt, error=error, reason=reason)
        except BaseException as error:  # noqa: BLE001 - every ending of a handler becomes a value
            return Execution(delivery, attempt, error=error)

    def run_batch(self, deliveries: Sequence[Delivery]) -> list[Execution | None]:
        """The same for a batch handler that is a `def`: one ending per delivery."""
        endings, values, at = self._admit_batch(deliveries)
        if values:
            try:
                failed = self._batch_errors(self.handler.invoke(values, None), len(values))
            except BaseException as error:  # noqa: BLE001 - as above
                failed = _errors_of(error, len(values))
            self._end_batch(deliveries, endings, at, failed)
        return endings

    async def run_batch_async(self, deliveries: Sequence[Delivery]) -> list[Execution | None]:
        """The same for a batch handler that is an `async def`."""
        endings, values, at = self._admit_batch(deliveries)
        if values:
            try:
                handling = self.handler.ainvoke(values, None)
                timeout = self._timeout
                result = await (handling if timeout is None else _timed(handling, timeout))
                failed = self._batch_errors(result, len(values))
            except BaseException as error:  # noqa: BLE001 - as above
                failed = _errors_of(error, len(values))
            self._end_batch(deliveries, endings, at, failed)
        return endings

    def _handle(self, delivery: Delivery, attempt: int, value: object) -> Execution | None:
        began = self._clock.monotonic()
        context = self._context(delivery, attempt, began)
        try:
            result = self.handler.invoke(value, context)
        finally:
            context.end()
        return self._returned(delivery, attempt, result, context, began)

    async def _handle_async(
        self, delivery: Delivery, attempt: int, value: object
    ) -> Execution | None:
        began = self._clock.monotonic()
        context = self._context(delivery, attempt, began)
        try:
            handling = self.handler.ainvoke(value, context)
            result = await (handling if self._timeout is None else _timed(handling, self._timeout))
        finally:
            context.end()
        return self._returned(delivery, attempt, result, context, began)

    def _context(self, delivery: Delivery, attempt: int, began: float) -> Context:
        deadline = None if self._timeout is None else began + self._timeout
        return Context(
            delivery,
            group=self._group,
            attempt=attempt,
            deadline=deadline,
            now=self._clock.now,
            max_body=self._max_body,
            max_outputs=self._limits.outputs,
            max_outputs_bytes=self._limits.outputs_bytes,
        )

    def _returned(
        self,
        delivery: Delivery,
        attempt: int,
        result: object,
        context: Context | None,
        began: float = 0.0,
    ) -> Execution | None:
        error = None if result is None else self.handler.unexpected(result)
        if error is not None:
            return Execution(delivery, attempt, error=error)
        if self._observers:
            seconds = self._clock.monotonic() - began
            self._observers.emit(Handled(delivery.message, self._group, attempt, seconds))
        if context is not None and context.outputs:
            return Execution(delivery, attempt, outputs=tuple(context.outputs))
        return None

    def _admit_batch(
        self, deliveries: Sequence[Delivery]
    ) -> tuple[list[Execution | None], list[object], list[int]]:
        """Endings of what cannot be handled; values of the rest, and where each stands."""
        endings: list[Execution | None] = []
        values: list[object] = []
        at: list[int] = []
        for index, delivery in enumerate(deliveries):
            attempt, reason = delivery.attempt, "forged-header"
            try:
                attempt = max(attempt, ours(delivery.message).attempt)
                reason = "undecodable"
                values.append(self.handler.decode(delivery.message))
            except Exception as error:  # noqa: BLE001 - the others of the batch must not suffer
                known = reason if isinstance(error, (ForgedHeader, CodecError)) else None
                endings.append(Execution(delivery, attempt, error=error, reason=known))
            else:
                endings.append(None)
                at.append(index)
        return endings, values, at

    def _batch_errors(self, result: object, count: int) -> dict[int, BaseException]:
        error = None if result is None else self.handler.unexpected(result)
        return {} if error is None else _errors_of(error, count)

    def _end_batch(
        self,
        deliveries: Sequence[Delivery],
        endings: list[Execution | None],
        at: list[int],
        failed: dict[int, BaseException],
    ) -> None:
        for number, error in failed.items():
            delivery = deliveries[at[number]]
            attempt = max(delivery.attempt, ours(delivery.message).attempt)
            endings[at[number]] = Execution(delivery, attempt, error=error)


def _errors_of(error: BaseException, count: int) -> dict[int, BaseException]:
    """Which of a batch failed: what BatchFailed names, or all of them."""
    if not isinstance(error, BatchFailed):
        return dict.fromkeys(range(count), error)
    wrong = [index for index in error.errors if index not in range(count)]
    if wrong or not error.errors:
        text = f"BatchFailed names {wrong or 'nothing'}, the batch has 0 to {count - 1}: all failed"
        return dict.fromkeys(range(count), IndexError(text))
    return error.errors


async def _timed(handling: Awaitable[object], seconds: float) -> object:
    """Cancel the handler at its deadline and wait until it has really ended."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - workers are tasks
    expired = False

    def expire() -> None:
        nonlocal expired
        expired = True
        task.cancel()

    timer = loop.call_later(seconds, expire)
    try:
        return await handling
    except asyncio.CancelledError:
        if not expired:
            raise
        text = f"the handler did not return within {seconds} s and was cancelled"
        raise TimeoutError(text) from None
    finally:
        timer.cancel()
        if expired and hasattr(task, "uncancel"):  # Python 3.11: cancel requests are counted
            task.uncancel()
