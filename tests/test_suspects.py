"""A suspect that kills its process must not keep those waiting that were in hand with it."""

from reliable_mq.message import Delivery, Lease, Message
from reliable_mq.ordering.lanes import Lanes

KILLER = "m3"


def test_innocents_get_their_turn_although_the_killer_came_first():
    """All that was in hand came again as often; each life runs until the killer has its turn."""
    left = [f"m{number}" for number in range(20)]
    for life in range(2, 40):
        ran = one_life(left, life)
        left = [name for name in left if name not in ran or name == KILLER]

    assert left == [KILLER]


def one_life(names, redelivered):
    """What ran before the killer killed the process."""
    ran = []
    lanes = Lanes(lambda lane: ran.append(lane.queue[0].message.id))
    for name in names:
        delivery = Delivery(Message(name, "orders"), Lease(), redelivered=redelivered)
        lanes.add(delivery.lease, delivery)
    while lanes.run_suspect() is not None and ran[-1] != KILLER:
        lane = next(one for one in lanes if one.queue and one.queue[0].message.id == ran[-1])
        lane.queue.popleft()
        lanes.handed_back(lane, 0)
    return ran


def test_a_suspect_that_is_run_at_once_is_named_all_the_same():
    """A worker may be through with it before it can be told that it runs alone."""
    lanes = Lanes(lambda lane: lane.queue.popleft())
    suspect = Delivery(Message(KILLER, "orders"), Lease(), redelivered=2)
    lanes.add(b"a", suspect)

    assert lanes.run_suspect() is suspect
