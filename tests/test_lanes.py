"""Lanes in moments that the state machine in properties/ seldom meets."""

import pytest

from reliable_mq.message import Delivery, Lease, Message
from reliable_mq.ordering.lanes import Lanes


def test_a_drop_leaves_what_other_lanes_run_again_in_its_place():
    """What waits for its second run waits on, in front, when others' leases are taken back."""
    waiting_keeps_its_place(Lanes)


def waiting_keeps_its_place(made):
    """Two endings of one lane run again; between them leases of another one are taken back."""
    handed = []
    lanes = made(handed.append)
    first, second, third = (Delivery(Message(id, "t", b"a"), Lease()) for id in "123")
    for delivery in (first, second, third):
        lanes.add(b"a", delivery)
    (lane,) = handed
    lane.queue.popleft()
    lane.queue.popleft()
    lanes.handed_back(lane, 2)
    lanes.run_again(lane, first, 10.0)
    assert lanes.drop({Lease()}) == []
    lanes.run_again(lane, second, 9.0)
    lanes.wake(9.5)
    assert len(handed) == 1
    lanes.wake(10.0)
    assert len(handed) == 2
    assert list(lane.queue) == [first, second, third]


class Forgetful(Lanes):
    """A lane that is dropped from forgets what it was to run again."""

    def drop(self, leases=None):
        """All of it, without telling."""
        for lane in self:
            lane.again.clear()
        return super().drop(leases)


def test_lanes_that_forget_what_runs_again_are_caught():
    """A negative control: chance would have to be lucky to meet it."""
    with pytest.raises(AssertionError):
        waiting_keeps_its_place(Forgetful)


def test_a_lane_that_waits_for_what_is_taken_back_is_forgotten():
    """Whatever comes of its key afterwards does not wait for the second run of somebody else."""
    handed = []
    lanes = Lanes(handed.append)
    first = Delivery(Message("1", "t", b"a"), Lease())
    lanes.add(b"a", first)
    (lane,) = handed
    lane.queue.popleft()
    lanes.handed_back(lane, 1)
    lanes.run_again(lane, first, 3600.0)

    assert lanes.drop({first.lease}) == [first]

    assert (len(lanes), lanes.next_due()) == (0, None)
    lanes.add(b"a", Delivery(Message("2", "t", b"a"), Lease()))
    assert len(handed) == 2
