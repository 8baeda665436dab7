"""The tracker against a plain model, over assignments that come and go."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule

from reliable_mq.ordering.tracker import OffsetRegression, OffsetTracker, WindowOverflow

WINDOW = 6


class TrackerMachine(RuleBasedStateMachine):
    """The model is the list of offsets delivered in this assignment, and the set of those done."""

    slots = Bundle("slots")

    def __init__(self):
        super().__init__()
        self.tracker = OffsetTracker(WINDOW)
        self.delivered: list[int] = []
        self.done: set[int] = set()
        self.committed = None
        self.first_not_passed = 0

    @rule(target=slots, gap=st.integers(1, 1_000))
    def deliver(self, gap):
        """The next record arrives, perhaps behind a gap; a full window takes nothing."""
        offset = (self.delivered[-1] if self.delivered else -1) + gap
        held = len(self.delivered) - self.first_not_passed
        assert self.tracker.full == (held >= WINDOW)
        if held == WINDOW:
            numbers = (
                rf"offset {offset} .* {WINDOW}: {WINDOW} slots .* offset {self.delivered[-1]};"
            )
            with pytest.raises(WindowOverflow, match=numbers):
                self.tracker.add(offset)
            return self.tracker, None
        slot = self.tracker.add(offset)
        self.delivered.append(offset)
        return self.tracker, slot

    @precondition(lambda self: self.delivered)
    @rule(back=st.integers(0, 5))
    def deliver_again(self, back):
        """A record that was there before is refused, and nothing changes."""
        offset = self.delivered[max(-1 - back, -len(self.delivered))]
        numbers = rf"offset {offset} came after offset {self.delivered[-1]}"
        with pytest.raises(OffsetRegression, match=numbers):
            self.tracker.add(offset)

    @rule(entry=slots)
    def finish(self, entry):
        """A worker ends a record: of this assignment or of one that is gone, once or again."""
        tracker, slot = entry
        if slot is not None:
            slot.done = True
            if tracker is self.tracker:
                self.done.add(slot.offset)

    @rule()
    def advance(self):
        """The owner commits."""
        while (
            self.first_not_passed < len(self.delivered)
            and self.delivered[self.first_not_passed] in self.done
        ):
            self.first_not_passed += 1
        offset = self.tracker.advance()
        if not self.delivered:
            assert offset is None
            return
        left = self.delivered[self.first_not_passed :]
        assert offset == (left[0] if left else self.delivered[-1] + 1)
        assert self.committed is None or offset >= self.committed
        self.committed = offset

    @rule(crash=st.booleans())
    def reassign(self, crash):
        """The partition goes and comes back, at the last commit or, after a crash, anywhere."""
        start = 0 if crash or self.committed is None else self.committed
        self.tracker = OffsetTracker(WINDOW)
        self.delivered = []
        self.done = set()
        self.committed = None
        self.first_not_passed = 0
        if start:
            self.tracker.add(start).done = True
            self.delivered.append(start)
            self.done.add(start)

    @invariant()
    def nothing_is_passed_over(self):
        """What is not done is never below the committed offset."""
        if self.committed is not None:
            assert all(o in self.done for o in self.delivered if o < self.committed)

    @invariant()
    def pending_counts_what_a_commit_does_not_cover(self):
        """Pending is all that was delivered and not yet passed."""
        assert self.tracker.pending == len(self.delivered) - self.first_not_passed


TrackerMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestTracker = TrackerMachine.TestCase
