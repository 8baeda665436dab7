import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reliable_mq.ordering.tracker import OffsetRegression, OffsetTracker, WindowOverflow


def test_nothing_delivered_nothing_to_commit():
    """Before the first record there is no offset to commit."""
    tracker = OffsetTracker()
    assert tracker.advance() is None
    assert tracker.position is None
    assert (tracker.pending, tracker.full) == (0, False)


def test_out_of_order_ends():
    """The offset to commit never passes what is not done, whatever is done behind it."""
    tracker = OffsetTracker()
    first, second, third = (tracker.add(offset) for offset in (5, 6, 7))
    third.done = True
    assert tracker.advance() == 5
    first.done = True
    assert tracker.advance() == 6
    assert tracker.pending == 2
    second.done = True
    assert tracker.advance() == 8
    assert tracker.pending == 0


def test_gaps():
    """Offsets that were never delivered count as done: compaction and markers leave gaps."""
    tracker = OffsetTracker()
    for offset in (3, 40, 1_000_000):
        tracker.add(offset).done = True
    late = tracker.add(5_000_000_000)
    assert tracker.advance() == 5_000_000_000
    late.done = True
    assert tracker.advance() == 5_000_000_001


def test_done_twice():
    """A slot that is set done again changes nothing, also when it has been passed."""
    tracker = OffsetTracker()
    slot = tracker.add(1)
    slot.done = True
    assert tracker.advance() == 2
    slot.done = True
    assert tracker.advance() == 2


@pytest.mark.parametrize("offset", [7, 6, 0])
def test_regression(offset):
    """An offset that does not rise raises with all the numbers, and changes nothing."""
    tracker = OffsetTracker()
    tracker.add(6).done = True
    slot = tracker.add(7)
    with pytest.raises(OffsetRegression, match=rf"offset {offset} .* offset 7, .*2 slots.* 6 "):
        tracker.add(offset)
    slot.done = True
    assert tracker.advance() == 8


def test_overflow():
    """A full window raises with all the numbers, changes nothing, and has room after an end."""
    tracker = OffsetTracker(window=2)
    slot = tracker.add(10)
    tracker.add(20).done = True
    tracker.advance()
    assert tracker.full
    with pytest.raises(WindowOverflow, match=r"offset 30 .* 2: 2 slots .* 10 to offset 20"):
        tracker.add(30)
    slot.done = True
    assert tracker.advance() == 21
    assert not tracker.full
    assert tracker.add(30).offset == 30


def test_ends_from_other_threads():
    """Slots may be set done by any thread while the owner adds and advances."""
    tracker = OffsetTracker()
    slots = [tracker.add(offset) for offset in range(4_000)]

    def finish(part):
        for slot in part:
            slot.done = True

    threads = [threading.Thread(target=finish, args=(slots[n::4],)) for n in range(4)]
    for thread in threads:
        thread.start()
    seen = [tracker.advance()]
    while any(thread.is_alive() for thread in threads):
        seen.append(tracker.advance())
    for thread in threads:
        thread.join()
    assert tracker.advance() == 4_000
    assert seen == sorted(seen)


def test_a_slot_is_itself():
    """Slots of two assignments with the same offset are two slots."""
    assert OffsetTracker().add(1) != OffsetTracker().add(1)


@given(st.lists(st.integers(0, 50), unique=True, max_size=20).map(sorted), st.data())
@settings(max_examples=50, deadline=None)
def test_the_commit_is_the_first_that_is_not_done(offsets, data):
    """Whatever is done in whatever order, the commit is the first offset that is not."""
    tracker = OffsetTracker()
    slots = {offset: tracker.add(offset) for offset in offsets}
    done = data.draw(st.sets(st.sampled_from(offsets))) if offsets else set()
    for offset in done:
        slots[offset].done = True
    left = [offset for offset in offsets if offset not in done]
    behind = offsets[-1] + 1 if offsets else None
    assert tracker.advance() == (left[0] if left else behind)
