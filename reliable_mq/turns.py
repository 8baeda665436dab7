"""A turn: what a worker runs of the lane, or the bundle of lanes, that it was handed.

A turn ends when the lane is empty, at the first run that needs more than an ack (the lane must not
go on before that), or, after so many deliveries or so long, when another lane waits for a worker
whose head came earlier. Where none does, the worker reports what is done and goes on: a key that
has more than its share of the messages would fall behind with every turn that later ones have
before it, and in the end all would wait for it alone.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol

from reliable_mq.context import enter
from reliable_mq.ordering.lanes import SUSPECT, too_long

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Sequence

    from reliable_mq.clock import Clock
    from reliable_mq.execution import Execution, Runner
    from reliable_mq.message import Delivery
    from reliable_mq.ordering.lanes import Lane
    from reliable_mq.policy import Batch

__all__ = ["Gate", "Progress", "Report", "Turns"]

#: After so many deliveries, or so many seconds, a worker tells, and may have to give the lane back.
TURN = 16
TURN_SECONDS = 0.005


class Report:
    """What became of one turn of a lane.

    done: deliveries whose handler returned and left nothing to carry out.
    ended: runs that something else follows: a retry, a dead letter, messages to publish.
    dropped: deliveries that never ran, because their lease was lost.
    """

    __slots__ = ("done", "dropped", "ended", "lane", "taken")

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.done: list[Delivery] = []
        # Hardly any turn has these, and a list that is not made is none to collect.
        self.ended: tuple[Execution, ...] = ()
        self.dropped: tuple[Delivery, ...] = ()
        #: Of a bundle: what of this lane runs in it.
        self.taken: tuple[Delivery, ...] = ()


class Progress:
    """What a worker has done of a lane that it keeps."""

    __slots__ = ("done", "lane")

    def __init__(self, lane: Lane, done: list[Delivery]) -> None:
        self.lane = lane
        self.done = done


class Gate(Protocol):
    """What can keep the workers from running anything."""

    @property
    def paused(self) -> str:
        """Why; "" while they may run."""


class Turns:
    """Runs what the workers of one consumer are handed.

    Args:
        gate: While it is paused, lanes are given back as they are.
        waiting: Lanes that no worker has begun yet, the next in front.
        tell: Takes what is done of a lane that the worker keeps.
        timed: Whether it matters since when a delivery runs.
    """

    def __init__(
        self,
        gate: Gate,
        waiting: deque[Lane],
        tell: Callable[[object], None],
        runner: Runner,
        *,
        batch: Batch | None,
        timed: bool,
        clock: Clock,
    ) -> None:
        self._gate = gate
        self._waiting = waiting
        self._tell = tell
        self._runner = runner
        self._size = 0 if batch is None else batch.size
        self._timed = timed
        self._monotonic = clock.monotonic
        self._rest_at = 0.0

    @property
    def turn(self) -> Any:
        """The function (or coroutine function) that workers call with what they are handed."""
        is_async = self._runner.handler.is_async
        if self._size:
            return self.bundle_async if is_async else self.bundle
        return self.lane_async if is_async else self.lane

    def lane(self, lane: Lane) -> Report:
        """One turn of a lane."""
        report = Report(lane)
        if not self._gate.paused:
            lane.turn = report
            while run_slice(report, self._runner, self._monotonic, self._timed):
                if not self._keep(report):
                    break
            lane.current = None
            enter(None)
        return report

    async def lane_async(self, lane: Lane) -> Report:
        """The same for `async def` handlers."""
        report = Report(lane)
        if not self._gate.paused:
            lane.turn = report
            while await run_slice_async(report, self._runner, self._monotonic):
                if not self._keep(report):
                    break
                await self._rest()
            lane.current = None
            enter(None)
        return report

    def bundle(self, lanes: Sequence[Lane]) -> list[Report]:
        """One turn of a bundle of lanes."""
        if self._gate.paused:
            return [Report(lane) for lane in lanes]
        reports, taken = take_slices(lanes, self._size)
        if self._timed:
            now = self._monotonic()
            for report in reports:
                report.lane.since = now
        return _fill(reports, taken, self._runner.run_batch([one for _, one in taken]))

    async def bundle_async(self, lanes: Sequence[Lane]) -> list[Report]:
        """The same for `async def` handlers."""
        if self._gate.paused:
            return [Report(lane) for lane in lanes]
        reports, taken = take_slices(lanes, self._size)
        return _fill(reports, taken, await self._runner.run_batch_async([one for _, one in taken]))

    def _keep(self, report: Report) -> bool:
        """Whether the worker goes on with the lane, behind telling what is done of it."""
        lane = report.lane
        if lane.alone or self._gate.paused or report.dropped or too_long(lane.queue):
            return False
        try:
            if lane.queue[0].arrived >= self._waiting[0].queue[0].arrived:
                return False
        except IndexError:  # one of the two has just been emptied: nobody waits
            pass
        # In this order: whoever asks what is in run must not find a gap.
        self._tell(Progress(lane, report.done))
        report.done = []
        return True

    async def _rest(self) -> None:
        """Leave the event loop to others, if that was not done for a while.

        For all tasks together: where handlers suspend, hardly any of them has to.
        """
        now = self._monotonic()
        if now >= self._rest_at:
            self._rest_at = now + TURN_SECONDS
            await asyncio.sleep(0)


def run_slice(
    report: Report,
    runner: Runner,
    monotonic: Callable[[], float],
    timed: bool,  # noqa: FBT001 - by position: called for each message, where each has a key
) -> bool:
    """Run deliveries of a lane until one needs more than an ack; True: until others may want to."""
    lane, done, run = report.lane, report.done, runner.run
    queue = lane.queue
    until = 0.0
    while queue:
        try:
            if queue[0].redelivered >= SUSPECT and (done or not lane.alone):
                break  # it has to run alone, behind the acks of these: back to the owner
            # Told before it is taken: a revocation asks what runs, and must not find a gap.
            lane.current = queue[0]
            delivery = lane.current = queue.popleft()
        except IndexError:  # the owner dropped the last one meanwhile
            break
        if delivery.lease.lost:
            report.dropped += (delivery,)
            continue
        if timed:
            lane.since = monotonic()
        execution = run(delivery)
        if execution is not None:
            report.ended = (execution,)
            break
        done.append(delivery)
        if queue:
            now = monotonic()
            if not until:
                until = now + TURN_SECONDS
            elif now >= until or len(done) >= TURN:
                return True
    return False


async def run_slice_async(report: Report, runner: Runner, monotonic: Callable[[], float]) -> bool:
    """The same for `async def` handlers."""
    lane, done, run = report.lane, report.done, runner.run_async
    queue = lane.queue
    until = 0.0
    while queue:
        try:
            if queue[0].redelivered >= SUSPECT and (done or not lane.alone):
                break
            lane.current = queue[0]
            delivery = lane.current = queue.popleft()
        except IndexError:
            break
        if delivery.lease.lost:
            report.dropped += (delivery,)
            continue
        execution = await run(delivery)
        if execution is not None:
            report.ended = (execution,)
            break
        done.append(delivery)
        if queue:
            now = monotonic()
            if not until:
                until = now + TURN_SECONDS
            elif now >= until or len(done) >= TURN:
                return True
    return False


def take_slices(
    lanes: Sequence[Lane], size: int
) -> tuple[list[Report], list[tuple[int, Delivery]]]:
    """What a bundle runs: one report per lane, and deliveries with the index of their lane.

    At most `size` deliveries; a suspect runs without any other.
    """
    reports = [Report(lane) for lane in lanes]
    for report in reports:
        report.lane.turn = report
    taken: list[tuple[int, Delivery]] = []
    for index, lane in enumerate(lanes):
        queue = lane.queue
        while queue and len(taken) < size:
            try:
                if queue[0].redelivered >= SUSPECT and (taken or not lane.alone):
                    break
                lane.current = queue[0]
                delivery = lane.current = queue.popleft()
            except IndexError:  # the owner dropped the last one meanwhile
                break
            if delivery.lease.lost:
                reports[index].dropped += (delivery,)
                continue
            taken.append((index, delivery))
            reports[index].taken += (delivery,)
            if delivery.redelivered >= SUSPECT:
                return reports, taken
    return reports, taken


def _fill(
    reports: list[Report],
    taken: Sequence[tuple[int, Delivery]],
    executions: Sequence[Execution | None],
) -> list[Report]:
    """Enter what became of each delivery into the report of its lane; None: done."""
    for (index, delivery), execution in zip(taken, executions, strict=True):
        if execution is None:
            reports[index].done.append(delivery)
        else:
            reports[index].ended += (execution,)
    for report in reports:
        report.lane.current = None
        report.taken = ()
    return reports
