"""The order of publishing on RocketMQ, against a broker that refuses, loses and answers late."""

import os

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from reliable_mq.adapters.rocketmq.codec import group_of
from reliable_mq.adapters.rocketmq.flights import BATCH, Entry, Flights, Shape
from reliable_mq.confirmation import Confirmation
from reliable_mq.message import Message

EXAMPLES = 3_000 if os.environ.get("RELIABLE_MQ_LONG") else 150
SEEDS = st.integers(0, 9_999)
WINDOW = 4


def entry_of(number, key, topic="orders", size=1):
    """One that is handed in."""
    message = Message(str(number), topic, key and key.encode())
    return Entry(Confirmation(message), topic, group_of(message), None, None, None, size)


class FlightsMachine(RuleBasedStateMachine):
    """A publisher around one Flights, and a broker."""

    shape = Shape.ORDERED
    made = Flights

    def __init__(self):
        super().__init__()
        self.flights = self.made(WINDOW)
        self.now = 0.0
        self.submitted = []
        self.known = False
        self.in_the_air = []
        self.stored = []

    @rule(keys=st.lists(st.sampled_from(["a", "a", "b", None]), min_size=1, max_size=4))
    def submit(self, keys):
        """Some are handed in."""
        for key in keys:
            entry = entry_of(len(self.submitted), key)
            self.submitted.append(entry)
            self.flights.add(entry)

    @precondition(lambda self: self.flights.unknown())
    @rule()
    def found(self):
        """The route has come."""
        assert self.flights.unknown() == ["orders"]
        self.flights.found("orders", self.shape)
        self.known = True

    @rule()
    def draw(self):
        """All that may be sent is sent."""
        for flight in self.flights.draw(self.now):
            assert all(not entry.over for entry in flight.entries)
            assert self.shape is Shape.BATCHED or len(flight.entries) == 1
            assert len(flight.entries) <= BATCH
            self.in_the_air.append(flight)

    @precondition(lambda self: self.in_the_air)
    @rule(at=SEEDS, stored=st.booleans(), told=st.booleans())
    def answer(self, at, stored, told):
        """One is stored or not, and we are told or not: then it goes again."""
        flight = self.in_the_air.pop(at % len(self.in_the_air))
        if stored:
            self.stored += list(flight.entries)
        if stored and told:
            for entry in flight.entries:
                entry.over = True
            self.flights.went_well(flight)
        else:
            for entry in flight.entries:
                entry.alone = True
            self.flights.rest(flight, self.now)
        self.flights.landed(flight)

    @precondition(lambda self: self.submitted)
    @rule(at=SEEDS)
    def give_up(self, at):
        """The deadline of one is over, wherever it is."""
        self.submitted[at % len(self.submitted)].over = True

    @rule()
    def purge(self):
        """What is over is dropped."""
        self.flights.purge()

    @rule()
    def look_again(self):
        """Something is wrong with the topic: it is found out again."""
        self.flights.forget_shape("orders")

    @rule(seconds=st.sampled_from([0.01, 0.1, 2.0]))
    def time_passes(self, seconds):
        """Lines that rest go on."""
        self.now += seconds

    @invariant()
    def no_more_than_the_window_is_under_way(self):
        """Whatever waits."""
        assert len(self.in_the_air) <= WINDOW

    @invariant()
    def one_of_a_group_at_a_time(self):
        """On FIFO topics."""
        if self.shape is Shape.ORDERED:
            groups = [flight.entries[0].group for flight in self.in_the_air]
            assert len(groups) == len(set(groups))

    @invariant()
    def first_copies_are_in_order(self):
        """Of each key, but for those that were given up: nothing passes one that may go again."""
        if self.shape is not Shape.ORDERED:
            return
        seen = {}
        for entry in self.stored:
            of_key = seen.setdefault(entry.group, [])
            if entry not in of_key:
                of_key.append(entry)
        numbers = {entry: number for number, entry in enumerate(self.submitted)}
        for of_key in seen.values():
            order = [numbers[entry] for entry in of_key]
            assert order == sorted(order)

    def teardown(self):
        """When all answers are good, everything that was not given up is stored."""
        self.flights.found("orders", self.shape)
        for _ in range(10_000):
            self.now += 2.0
            for name in self.flights.unknown():
                self.flights.found(name, self.shape)
            self.draw()
            if not self.in_the_air:
                break
            self.answer(0, stored=True, told=True)
        assert all(entry.over for entry in self.submitted)
        self.flights.purge()
        assert self.flights._topics == {}
        assert self.flights._flying == 0


class BatchedMachine(FlightsMachine):
    """The same of a NORMAL topic."""

    shape = Shape.BATCHED


class SingleMachine(FlightsMachine):
    """The same of a DELAY topic."""

    shape = Shape.SINGLE


def run(machine):
    """As many examples as the run allows."""
    phases = (Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink)
    run_state_machine_as_test(
        machine, settings=settings(max_examples=EXAMPLES, stateful_step_count=40, phases=phases)
    )


def test_ordered_topics():
    """One of a group at a time, in order, over failures."""
    run(FlightsMachine)


def test_normal_topics():
    """Batches, and each alone after a refusal."""
    run(BatchedMachine)


def test_delay_topics():
    """One a request."""
    run(SingleMachine)


def test_messages_gather_while_requests_are_under_way():
    """The first go alone; what comes meanwhile goes in one request."""
    flights = Flights(100)
    flights.add(entry_of(0, None))
    flights.found("orders", Shape.BATCHED)
    drawn = list(flights.draw(0.0))
    for number in range(1, 200):
        flights.add(entry_of(number, None))
        drawn += flights.draw(0.0)
    for entry in drawn[0].entries:
        entry.over = True
    flights.landed(drawn[0])

    (gathered,) = flights.draw(0.0)

    assert [len(flight.entries) for flight in drawn] == [1, 1, 1, 1]
    assert len(gathered.entries) == BATCH


def test_a_batch_is_small_enough():
    """The bytes of a request have a limit; one that is larger goes alone."""
    flights = Flights(1)
    for number in range(5):
        flights.add(entry_of(number, None, size=600_000))
    flights.found("orders", Shape.BATCHED)

    assert [len(flight.entries) for flight in flights.draw(0.0)] == [1]


def test_a_topic_that_is_missing_gives_its_messages_back():
    """Those that are not over; it is forgotten."""
    flights = Flights(1)
    entries = [entry_of(number, "a") for number in range(3)]
    for entry in entries:
        flights.add(entry)
    entries[1].over = True

    assert flights.lost("orders") == [entries[0], entries[2]]
    assert flights.unknown() == []
