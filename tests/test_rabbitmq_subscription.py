"""The owner thread's side of a RabbitMQ subscription, with the I/O thread's played by hand."""

import pika
import pytest

from reliable_mq.adapters.rabbitmq import subscription as module
from reliable_mq.adapters.rabbitmq.parameters import parse
from reliable_mq.adapters.rabbitmq.subscription import RabbitSubscription
from reliable_mq.adapters.rabbitmq.wire import properties_of
from reliable_mq.clock import SYSTEM_CLOCK
from reliable_mq.confirmation import Confirmation
from reliable_mq.message import ATTEMPT, GENERATION, NOT_BEFORE, Message, Receipt


class Io:
    """Consuming, as far as the owner thread sees it."""

    def __init__(self, parameters, queues, prefetch, mailroom):
        self.mailroom = mailroom
        self.acked, self.said = [], []
        mailroom.began(1)
        mailroom.joined(free=True)

    def start(self):
        """Begins nothing."""

    def ack(self, generation, tags):
        """What would be told to the broker."""
        self.acked += [(generation, tag) for tag in tags]

    def recycle(self, why):
        """Asked for."""
        self.said.append("recycle")

    def rest(self, why):
        """Done at once."""
        self.said.append("rest")
        self.mailroom.ended(why, cut_off=False)

    def resume(self):
        """Asked for."""
        self.said.append("resume")

    def stop(self):
        """Ends nothing."""


class Desk:
    """One subscription; `running`: what its core says still runs when a channel has ended."""

    def __init__(self, monkeypatch, *, lease_timeout=30):
        monkeypatch.setattr(module, "Consuming", Io)
        self.running = set()
        self.during = lambda: None
        self.member = RabbitSubscription(
            parse(f"amqp://localhost/?lease_timeout={lease_timeout}"),
            {"orders.billing": "orders"},
            self.revoked,
            SYSTEM_CLOCK,
            prefetch=10,
            max_hold=1_000.0,
            one_at_a_time=True,
            pass_on=self.pass_on,
        )
        self.io = self.member._io
        self.mail = self.member._mail
        self.generation = 1
        self.tags = 0

    def pass_on(self, message, queue, due):
        """The ladder takes it."""
        confirmation = Confirmation(message)
        confirmation.settle(Receipt(message.id, message.topic, 0, 1))
        return confirmation

    def revoked(self, leases, deadline):
        """The core."""
        self.during()
        return self.running

    def arrive(self, id, *, again=0, headers=(), properties=None):
        """The broker delivers; `again`: how often it had before."""
        self.tags += 1
        if properties is None:
            written = properties_of(Message(id, "orders", b"k", b"body", headers))
            properties = pika.BasicProperties(
                message_id=id, headers={**written.headers, "x-delivery-count": again}
            )
        self.mail.arrived([("orders.billing", self.tags, again > 0, properties, b"body")])

    def poll(self):
        """What comes."""
        return list(self.member.poll(10, 0.0).deliveries)

    def channel_ends(self, *, begins=True):
        """And another one begins, at once or later."""
        self.mail.ended("cut", cut_off=False)
        self.tags = 0
        if begins:
            self.generation += 1
            self.mail.began(self.generation)


@pytest.fixture
def desk(monkeypatch):
    """A subscription on its first channel."""
    return Desk(monkeypatch)


def test_a_copy_of_what_runs_takes_its_place(desk):
    """And the end of the run acks the copy."""
    desk.arrive("m")
    (first,) = desk.poll()
    desk.running = {first.lease}
    desk.channel_ends()
    desk.arrive("other")
    desk.arrive("m", again=1)
    assert [one.message.id for one in desk.poll()] == ["other"]
    assert not first.lease.lost
    desk.member.ack([first])
    assert desk.io.acked == [(2, 2)]


def test_what_had_not_started_is_lost_and_comes_again(desk):
    """It runs then."""
    desk.arrive("m")
    (first,) = desk.poll()
    desk.channel_ends()
    desk.arrive("m", again=1)
    (second,) = desk.poll() or desk.poll()
    assert first.lease.lost
    assert (second.message.id, second.redelivered) == ("m", 1)


@pytest.mark.parametrize(
    "headers", [((ATTEMPT, "2"),), ((GENERATION, "1"),)], ids=["retry copy", "replay"]
)
@pytest.mark.parametrize("again", [0, 1])
def test_a_retry_copy_of_what_ended_runs(desk, headers, again):
    """It has the id of a message whose ack was not answered, and is another one."""
    desk.arrive("m")
    desk.member.ack(desk.poll())
    desk.channel_ends()
    desk.poll()
    desk.arrive("m", headers=headers, again=again)
    assert [one.message.id for one in desk.poll()] == ["m"]


def test_a_new_message_with_an_old_id_runs(desk):
    """Only what the broker brings again is a copy."""
    desk.arrive("m")
    desk.member.ack(desk.poll())
    desk.channel_ends()
    desk.poll()
    desk.arrive("m")
    assert [one.message.id for one in desk.poll()] == ["m"]


def test_a_copy_of_what_ended_is_acked_over_and_over(desk):
    """Also when the channel ends again before the ack of the copy is answered."""
    desk.arrive("m")
    desk.member.ack(desk.poll())
    for generation in (2, 3, 4):
        desk.channel_ends()
        desk.poll()
        desk.arrive("m", again=generation)
        assert desk.poll() == []
        assert desk.io.acked[-1] == (generation, 1)


def test_a_delayed_message_that_was_passed_on_runs_when_it_is_due(desk):
    """Also if it comes again then, and the ack of what was passed on was never answered."""
    desk.arrive("m", headers=((NOT_BEFORE, repr(SYSTEM_CLOCK.now() + 1_000)),))
    assert [*desk.poll(), *desk.poll()] == []
    assert desk.io.acked == [(1, 1)]
    desk.channel_ends()
    desk.poll()
    desk.arrive("m", again=1)
    assert [one.message.id for one in desk.poll()] == ["m"]


def test_two_copies_in_hand_keep_one_place(desk):
    """Of a message that was published twice in doubt, the one that runs keeps its lease."""
    desk.arrive("m")
    desk.arrive("m")
    first, second = desk.poll()
    desk.running = {first.lease}
    desk.channel_ends()
    desk.poll()
    assert (first.lease.lost, second.lease.lost) == (False, True)


def test_what_is_acked_while_the_channel_is_let_go_is_remembered(desk):
    """The core collects in there."""
    desk.arrive("m")
    held = desk.poll()
    desk.during = lambda: desk.member.ack(held)
    desk.channel_ends()
    desk.poll()
    desk.arrive("m", again=1)
    assert desk.poll() == []
    assert not held[0].lease.lost
    assert desk.io.acked == [(2, 1)]


def test_what_comes_while_a_channel_is_let_go_is_not_lost(desk):
    """A next channel begins while the core is busy: its deliveries are taken a poll later."""
    desk.arrive("m")
    desk.poll()

    def busy():
        desk.during = lambda: None
        desk.channel_ends()
        desk.arrive("m", again=2)

    desk.during = busy
    desk.channel_ends()
    came = [*desk.poll(), *desk.poll(), *desk.poll()]
    assert [one.message.id for one in came] == ["m"]
    desk.member.ack(came)
    assert desk.io.acked == [(3, 1)]


def test_who_does_not_poll_rests_and_resumes_in_this_order(monkeypatch):
    """The other way round it would rest for ever."""
    desk = Desk(monkeypatch, lease_timeout=1e-9)
    desk.arrive("m")
    (held,) = desk.poll()
    desk.mail.look()
    desk.poll()
    assert desk.io.said == ["rest", "resume"]
    assert held.lease.lost


@pytest.mark.parametrize(
    "properties",
    [
        b"\x20\x00\x00\x00\x00\x0a\x01tT\x00\x00\x01\x9a\x00\x00\x00\x00",
        b"\x20\x00\x00\x00\x00\x08\x02\xff\xfeS\x00\x00\x00\x00",
        b"\xff",
        pika.BasicProperties(headers={b"\xff": b"x", "n": object()}),
    ],
    ids=["a time of the far future", "a name that is no text", "nothing", "of pika"],
)
def test_a_message_whose_properties_nobody_can_read_stops_no_other(desk, properties):
    """Its body is handed on, with a weak id."""
    desk.arrive("before")
    desk.arrive("odd", properties=properties)
    desk.arrive("after")
    before, odd, after = desk.poll()
    assert (before.message.id, after.message.id) == ("before", "after")
    assert (odd.message.body, odd.weak_id) == (b"body", True)


def test_a_count_that_the_publisher_wrote_is_no_suspicion(desk):
    """The broker says of each delivery whether it is the first."""
    desk.arrive("m", properties=pika.BasicProperties(headers={"x-delivery-count": 7}))
    assert desk.poll()[0].redelivered == 0
