"""The RabbitMQ publisher's own decisions, with its link and its channel played by hand."""

import pytest

from reliable_mq.adapters.rabbitmq import publisher as module
from reliable_mq.adapters.rabbitmq.parameters import parse
from reliable_mq.adapters.rabbitmq.publisher import LONGEST_PATIENCE, PATIENCE, RabbitPublisher
from reliable_mq.errors import Backpressure, PublishUnknown
from reliable_mq.message import DeadLetter, Message, Topic
from reliable_mq.testing.clock import FakeClock


class Link:
    """No thread: what is called runs at once, and timers when the test says so."""

    def __init__(self, parameters, peer, name):
        self.reconnects = []
        self.due = []

    def start(self):
        """Begins nothing."""

    def call(self, function):
        """At once."""
        function()

    def later(self, seconds, function):
        """When the test says so."""
        self.due.append(function)

    def on_its_thread(self):
        """Always."""
        return True

    def reconnect(self, why):
        """Asked for."""
        self.reconnects.append(why)

    def stop(self, timeout):
        """Ends nothing."""


@pytest.fixture
def desk(monkeypatch):
    """A publisher with one message on its way."""
    monkeypatch.setattr(module, "Link", Link)
    clock = FakeClock()
    publisher = RabbitPublisher(parse("amqp://localhost/"), clock, set())
    confirmation = publisher.submit(Message("m", "t"), Topic())
    publisher.clock, publisher.confirmation = clock, confirmation
    yield publisher
    publisher.close(0.0)
    confirmation.outcome  # noqa: B018 - seen


def pass_time(publisher, seconds):
    """Let all timers that are due run."""
    publisher.clock.advance(seconds)
    due, publisher._link.due = publisher._link.due, []
    for function in due:
        function()


def test_nothing_but_refusals_is_a_reason_to_connect_again(desk):
    """Some time after the first one, and after ever longer times where it does not help."""
    desk.nacked(1, multiple=False)
    pass_time(desk, PATIENCE - 0.1)
    assert desk._link.reconnects == []
    pass_time(desk, 0.2)
    assert len(desk._link.reconnects) == 1
    waited = 0.0
    desk.nacked(1, multiple=False)
    while len(desk._link.reconnects) == 1:
        pass_time(desk, 0.5)
        waited += 0.5
    assert 2 * PATIENCE <= waited <= 2 * PATIENCE + 1
    for _ in range(10):
        desk.nacked(1, multiple=False)
        pass_time(desk, LONGEST_PATIENCE + 1)
    assert len(desk._link.reconnects) == 12


def test_an_ack_in_between_is_none(desk):
    """One queue is full, others take what they get."""
    for _ in range(10):
        desk.nacked(1, multiple=False)
        pass_time(desk, PATIENCE - 0.1)
        desk.acked([(7, False)])
    assert desk._link.reconnects == []


class Silent:
    """A channel that sends, and is never answered."""

    def send(self, window):
        """All that there is room for."""
        while window.next() is not None:
            pass


def test_a_window_full_of_what_is_over_lets_nothing_wait_for_ever(monkeypatch):
    """Nothing is confirmed; what comes after all have ended ends by its deadline as well."""
    monkeypatch.setattr(module, "Link", Link)
    clock = FakeClock()
    publisher = RabbitPublisher(parse("amqp://localhost/?window=1"), clock, set())
    publisher.clock = clock
    publisher._channel = Silent()
    endings = []
    for id in ("first", "second", "third"):
        deadline = clock.monotonic() + 1.0
        one = publisher.submit(Message(id, "t"), DeadLetter("t", "g"), deadline=deadline)
        pass_time(publisher, 2.0)
        endings.append(type(one.outcome))
    publisher.close(0.0)
    assert endings == [PublishUnknown, Backpressure, Backpressure]
