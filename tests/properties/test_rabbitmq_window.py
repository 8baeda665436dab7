"""The order of publishing on RabbitMQ, against a broker that nacks, closes and does not answer."""

import os
import random
from types import SimpleNamespace

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from reliable_mq.adapters.rabbitmq.names import Address, Route
from reliable_mq.adapters.rabbitmq.window import Entry, Window
from reliable_mq.confirmation import Confirmation
from reliable_mq.errors import PublishUnknown
from reliable_mq.message import Message, Receipt

EXAMPLES = 3_000 if os.environ.get("RELIABLE_MQ_LONG") else 150
SEEDS = st.integers(0, 9_999)
ADDRESS = Address("orders", "orders")
ROUTE = Route(ADDRESS)


class WindowMachine(RuleBasedStateMachine):
    """A publisher around one Window, and the channel of a broker."""

    made = Window

    def __init__(self):
        super().__init__()
        self.window = self.made(4)
        self.now = 0.0
        self.submitted = []
        #: Sent on this channel: (tag, entry), in order; None for the entry once it is answered.
        self.channel = []
        self.stored = []
        #: Tags of this channel that are stored and have no answer yet.
        self.unanswered = set()
        self.troubled = set()
        self.known = False

    # ---- the publisher

    @rule(keys=st.lists(st.sampled_from(["a", "a", "b", None]), min_size=1, max_size=4))
    def submit(self, keys):
        """Some are handed in."""
        entries = []
        for key in keys:
            message = Message(str(len(self.submitted)), "orders", key and key.encode())
            entry = Entry(
                Confirmation(message),
                ADDRESS,
                SimpleNamespace(message_id=message.id),
                key=key,
                route=ROUTE,
                deadline=self.now + 100.0,
            )
            self.submitted.append(entry)
            entries.append(entry)
        self.window.take(entries)

    @rule()
    def send(self):
        """What there is room for goes out, in its order."""
        while (entry := self.window.next()) is not None:
            assert not entry.over, "sent although it has ended"
            self.channel.append(entry)
        if self.window.questions() and not self.known:
            assert self.window.questions() == [ROUTE]

    @rule()
    def the_route_is_there(self):
        """The broker answers the question that was asked."""
        if self.window.questions():
            self.window.answer(ROUTE)
            self.known = True

    # ---- the broker

    def open_tags(self):
        """What has no answer on this channel."""
        return [tag for tag, entry in enumerate(self.channel, 1) if entry is not None]

    def store(self, last):
        """It reads a channel in order, and stores what it reads; its answers may be in no order."""
        for tag in self.open_tags():
            if tag <= last and tag not in self.unanswered:
                self.unanswered.add(tag)
                self.stored.append(self.channel[tag - 1])

    @precondition(lambda self: self.open_tags())
    @rule(seed=SEEDS, multiple=st.booleans())
    def ack(self, seed, multiple):
        """It stored one, or all up to one."""
        tag = random.Random(seed).choice(self.open_tags())
        self.store(tag)
        for at in self.open_tags():
            if at == tag or (multiple and at < tag):
                self.unanswered.discard(at)
                self.channel[at - 1] = None
        for entry in self.window.acked(tag, multiple=multiple):
            message = entry.confirmation.message
            entry.confirmation.settle(Receipt(message.id, "orders", 0, tag))

    @precondition(lambda self: self.open_tags())
    @rule(seed=SEEDS)
    def nack(self, seed):
        """It refused one for now; of two queues, one may have stored it, and what is behind it."""
        tag = random.Random(seed).choice(self.open_tags())
        self.store(tag - 1)
        self.unanswered.discard(tag)
        self.troubled.add(self.channel[tag - 1].key)
        self.channel[tag - 1] = None
        self.window.nacked(tag, self.now, multiple=False)

    @rule(seed=SEEDS)
    def lose(self, seed):
        """The connection is gone; it stored what it had read by then, and nobody was told."""
        self.store(random.Random(seed).randint(0, len(self.channel)))
        self.channel = []
        self.unanswered.clear()
        self.known = False
        self.window.lost()

    @rule(seconds=st.sampled_from([0.0, 0.1, 3.0, 60.0]))
    def time_passes(self, seconds):
        """What was refused is due again, and what has waited too long ends."""
        self.now += seconds
        for entry in self.window.overdue(self.now):
            self.troubled.add(entry.key)
            error = PublishUnknown("too late", entry.confirmation.message)
            entry.confirmation.settle(error)
            entry.confirmation.outcome  # noqa: B018 - seen
        self.window.release(self.now)

    # ---- what always holds

    @invariant()
    def nothing_is_forgotten(self):
        """What has no ending is somewhere."""
        there = set(map(id, self.window.all()))
        assert all(id(one) in there for one in self.submitted if not one.confirmation.done())

    @invariant()
    def nothing_overtakes_what_was_refused(self):
        """On one channel, nothing of a key stands behind one that is older than the last sent."""
        for key in ("a", "b"):
            open_ones = [self.channel[tag - 1] for tag in self.open_tags()]
            numbers = [one.number for one in open_ones if one.key == key]
            assert numbers == sorted(numbers)

    @invariant()
    def first_copies_are_in_order(self):
        """Where nothing of a key was refused or too late, its first copies are in order."""
        for key in {"a", "b"} - self.troubled:
            first = list(dict.fromkeys(one.number for one in self.stored if one.key == key))
            assert first == sorted(first)

    def teardown(self):
        """In the end all have an ending, and the last copies of each key are in order."""
        for _ in range(200):
            if all(one.confirmation.done() for one in self.submitted) and not self.open_tags():
                break
            self.the_route_is_there()
            self.send()
            if self.open_tags():
                self.ack(0, multiple=False)
            self.now += 0.5
            self.window.release(self.now)
            self.send()
        assert all(one.confirmation.done() for one in self.submitted), "forgotten"
        for key in ("a", "b"):
            copies = [one.number for one in reversed(self.stored) if one.key == key]
            last = list(dict.fromkeys(copies))
            receipts = [
                one.number
                for one in self.submitted
                if one.key == key and isinstance(one.confirmation.outcome, Receipt)
            ]
            assert [one for one in last[::-1] if one in receipts] == receipts


WindowMachine.TestCase.settings = settings(
    max_examples=EXAMPLES, stateful_step_count=30, deadline=None, report_multiple_bugs=False
)
TestWindow = WindowMachine.TestCase


# ---- negative controls: windows without one of their safeties


class Overtaking(Window):
    """New ones of a key do not wait for what was refused."""

    def nacked(self, tag, now, *, multiple):
        """Only the refused one waits."""
        for entry in self._answered(tag, multiple=multiple):
            self._paused.append((now + 1.0, entry))


class NoCopies(Window):
    """What was stored behind the refused one is not sent again."""

    def release(self, now):
        """Only what has no Receipt."""
        for held in self._held.values():
            held.again = [one for one in held.again if not one.confirmation.done()]
        super().release(now)


class Forgetful(Window):
    """After a loss only new ones are sent."""

    def lost(self):
        """What was on its way is forgotten."""
        self._flight.clear()
        self._tag = 1


class Unsorted(Window):
    """After a loss what was on its way goes behind what is new."""

    def lost(self):
        """In no order."""
        super().lost()
        self._fresh.extend(self._redo)
        self._redo.clear()


@pytest.mark.parametrize("broken", [Overtaking, NoCopies, Forgetful, Unsorted])
def test_a_window_without_a_safety_is_caught(broken):
    """The machine notices each safety that is removed."""
    machine = type("Broken", (WindowMachine,), {"made": broken})
    find = settings(
        max_examples=1_000,
        stateful_step_count=30,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        report_multiple_bugs=False,
    )
    with pytest.raises(AssertionError):
        run_state_machine_as_test(machine, settings=find)
