"""A turn: what a worker runs of the lane, or the bundle of lanes, that it was handed.

A turn ends when the lane is empty, after so many deliveries or so long (others wait for a worker,
too), or at the first run that needs more than an ack: the lane must not go on before that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reliable_mq.context import leave_message
from reliable_mq.ordering.lanes import SUSPECT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from reliable_mq.clock import Clock
    from reliable_mq.execution import Execution, Runner
    from reliable_mq.message import Delivery
    from reliable_mq.ordering.lanes import Lane
    from reliable_mq.policy import Batch

__all__ = ["Report", "turn_of"]

#: A worker keeps a lane for so many deliveries, or so many seconds, then others have their turn.
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


def turn_of(
    left_alone: Callable[[Lane], Report | None],
    runner: Runner,
    *,
    batch: Batch | None,
    timed: bool,
    clock: Clock,
) -> Any:
    """The function (or coroutine function) that workers call with what they are handed.

    Args:
        left_alone: An empty report where a lane shall not run now.
        timed: Whether it matters since when a delivery runs.
    """
    is_async, monotonic = runner.handler.is_async, clock.monotonic

    def lane_turn(lane: Lane) -> Report:
        return left_alone(lane) or run_lane(lane, runner, monotonic, timed=timed)

    async def lane_turn_async(lane: Lane) -> Report:
        return left_alone(lane) or await run_lane_async(lane, runner, monotonic)

    if batch is None:
        return lane_turn_async if is_async else lane_turn
    size = batch.size

    def bundle_turn(lanes: Sequence[Lane]) -> list[Report]:
        if any(left_alone(lane) for lane in lanes):
            return [Report(lane) for lane in lanes]
        reports, taken = take_slices(lanes, size)
        if timed:
            now = monotonic()
            for report in reports:
                report.lane.since = now
        return _fill(reports, taken, runner.run_batch([one for _, one in taken]))

    async def bundle_turn_async(lanes: Sequence[Lane]) -> list[Report]:
        if any(left_alone(lane) for lane in lanes):
            return [Report(lane) for lane in lanes]
        reports, taken = take_slices(lanes, size)
        return _fill(reports, taken, await runner.run_batch_async([one for _, one in taken]))

    return bundle_turn_async if is_async else bundle_turn


def run_lane(
    lane: Lane,
    runner: Runner,
    monotonic: Callable[[], float],
    *,
    timed: bool = False,
) -> Report:
    """One turn of a lane: run its deliveries until one needs more than an ack."""
    report = lane.turn = Report(lane)
    done = report.done
    queue, run = lane.queue, runner.run
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
                break
    lane.current = None
    leave_message()
    return report


async def run_lane_async(
    lane: Lane,
    runner: Runner,
    monotonic: Callable[[], float],
) -> Report:
    """The same for `async def` handlers."""
    report = lane.turn = Report(lane)
    done = report.done
    queue, run = lane.queue, runner.run_async
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
                break
    lane.current = None
    leave_message()
    return report


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
