"""Turns: how long a worker keeps a lane, and what it tells meanwhile."""

import asyncio
from collections import deque
from types import SimpleNamespace

import pytest

from reliable_mq.message import Delivery, Lease, Message
from reliable_mq.ordering.lanes import LONG, Lane, Queue
from reliable_mq.testing.clock import FakeClock
from reliable_mq.turns import TURN, TURN_SECONDS, Progress, Turns


def lane_of(*arrived):
    """A lane whose deliveries came at these times."""
    return Lane(
        b"k",
        Queue(Delivery(Message(str(at), "t", b"k"), Lease(), arrived=float(at)) for at in arrived),
    )


class Desk:
    """Turns around a runner that notes what it runs; `during` is called in each run."""

    def __init__(self, *, is_async, during=lambda: None):
        self.paused = ""
        self.waiting = deque()
        self.told = []
        self.ran = []
        self.during = during
        self.clock = FakeClock()
        runner = SimpleNamespace(
            handler=SimpleNamespace(is_async=is_async), run=self.run, run_async=self.run_async
        )
        self.hear = lambda told: None
        turns = Turns(
            self,
            self.waiting,
            self.tell,
            runner,
            batch=None,
            timed=False,
            clock=self.clock,
        )
        self.start = turns.turn
        self.turn = (lambda lane: asyncio.run(self.start(lane))) if is_async else self.start

    def tell(self, told):
        """The mailbox of the owner."""
        self.hear(told)
        self.told.append(told)

    def run(self, delivery):
        """A handler that returns."""
        self.ran.append(int(delivery.arrived))
        self.during()

    async def run_async(self, delivery):
        """The same."""
        self.run(delivery)


@pytest.fixture(params=[False, True], ids=["def", "async"], name="desk")
def _desk(request):
    return Desk(is_async=request.param)


def test_where_nobody_waits_the_worker_tells_and_goes_on(desk):
    """Acks do not wait for the end of a long lane, and the lane does not wait for the owner."""
    lane = lane_of(*range(2 * TURN + 3))
    report = desk.turn(lane)
    assert desk.ran == list(range(2 * TURN + 3))
    assert [type(one) for one in desk.told] == [Progress, Progress]
    done = [one for told in (*desk.told, report) for one in told.done]
    assert [int(one.arrived) for one in done] == desk.ran
    assert lane.current is None


def test_a_lane_is_given_back_when_another_came_earlier(desk):
    """After its turn; then others have theirs."""
    desk.waiting.append(lane_of(0))
    report = desk.turn(lane_of(*range(100)))
    assert len(report.done) == TURN
    assert desk.told == []


def test_a_lane_is_kept_before_those_that_came_later(desk):
    """Until it has caught up with them: a hot key must not fall behind with every turn."""
    desk.waiting.append(lane_of(2 * TURN))
    desk.turn(lane_of(*range(100)))
    assert desk.ran == list(range(2 * TURN))


def test_lanes_of_one_poll_take_turns(desk):
    """What came at the same time did not come earlier."""
    lane = lane_of(*[7] * 100)
    desk.waiting.append(lane_of(7))
    assert len(desk.turn(lane).done) == TURN


def test_a_turn_is_over_after_some_time(desk):
    """Slow handlers have shorter turns."""
    desk.during = lambda: desk.clock.advance(TURN_SECONDS)
    desk.waiting.append(lane_of(0))
    assert len(desk.turn(lane_of(*range(100))).done) == 2


def test_a_paused_consumer_gets_its_lane_back(desk):
    """At the end of the turn at the latest; and a lane that was handed out is not begun."""
    desk.during = lambda: setattr(desk, "paused", "by the operator")
    lane = lane_of(*range(100))
    assert len(desk.turn(lane).done) == TURN
    assert desk.turn(lane).done == []
    assert len(desk.ran) == TURN


def test_a_long_list_is_given_back_to_become_a_deque(desk):
    """Taking from the left of a long list costs more with each that is behind."""
    assert len(desk.turn(lane_of(*range(LONG + TURN + 1))).done) == TURN


def test_a_lane_that_runs_alone_is_given_back(desk):
    """Its next suspect must run behind the acks of these."""
    lane = lane_of(*range(100))
    lane.alone = True
    assert len(desk.turn(lane).done) == TURN


def test_what_is_in_run_is_found_while_it_is_told(desk):
    """A revocation that asks in between must not find a gap."""
    lane = lane_of(*range(TURN + 1))
    found = []
    desk.hear = lambda progress: found.append((progress, lane.in_run()))
    desk.turn(lane)
    ((progress, in_run),) = found
    assert {id(one) for one in progress.done} <= {id(one) for one in in_run}


def test_other_tasks_get_the_loop_while_a_lane_goes_on():
    """A handler that never suspends must not starve its event loop."""
    desk = Desk(is_async=True)
    desk.during = lambda: desk.clock.advance(TURN_SECONDS)
    steps = []

    async def beside():
        while len(desk.ran) < 100:
            steps.append(len(desk.ran))
            await asyncio.sleep(0)

    async def main():
        await asyncio.gather(desk.start(lane_of(*range(100))), beside())

    asyncio.run(main())
    assert len(steps) > 20
