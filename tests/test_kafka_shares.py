"""How many records of each partition are handed out next."""

from collections import Counter, deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reliable_mq.adapters.kafka.partition import Partition
from reliable_mq.adapters.kafka.position import Position
from reliable_mq.adapters.kafka.shares import share


def partitions(*left, fetched=500):
    """With so much left each, of which so much has been fetched."""
    made = [Partition(Position("t", number, 0), "t") for number in range(len(left))]
    for one, end in zip(made, left, strict=True):
        one.end = end
        one.inbox = deque(range(min(end, fetched)))
    return made


def hand_out(those, room):
    """Take them, and fetch more of the same."""
    given_out = Counter()
    for one, amount in share([one for one in those if one.inbox], room):
        for _ in range(amount):
            one._next = one.inbox.popleft() + 1
            given_out[one.number] += 1
        fetched = one.inbox[-1] + 1 if one.inbox else one._next
        one.inbox.extend(range(fetched, min(one.end, one._next + 500)))
    return given_out


@pytest.mark.parametrize("room", [1, 3, 16, 500])
def test_all_end_together(room):
    """What each has left is the same part of what it had, whatever there is room for."""
    those = partitions(6_000, 2_000, 1_000, 1_000)
    for _ in range(5_000 // room):
        hand_out(those, room)
    parts = [one.left / one.end for one in those]
    assert max(parts) - min(parts) < 0.06 + room / 1_000, parts


@pytest.mark.parametrize("room", [1, 16])
def test_what_has_just_come_does_not_wait_behind_a_backlog(room):
    """It gets a ninth at least: the backlog has a whole share, and it a quarter of half of that."""
    those = partitions(1_000_000, 40)
    rounds = 0
    while those[1].left:
        hand_out(those, room)
        rounds += 1
    assert rounds * room <= 40 * 9 * 1.1


@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=6),
    st.lists(st.integers(1, 40), min_size=1, max_size=30),
)
def test_room_is_used_and_nothing_is_handed_out_twice(left, rooms):
    """As much as there is, and never more than there is room for."""
    those = partitions(*left, fetched=10)
    for room in rooms:
        there = sum(len(one.inbox) for one in those)
        if not there:
            break
        handed = sum(hand_out(those, room).values())
        assert handed == min(room, there)
