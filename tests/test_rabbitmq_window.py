"""The window of publishing on RabbitMQ: what a state machine is too coarse for."""

from types import SimpleNamespace

import pytest

from reliable_mq.adapters.rabbitmq.names import Address, Route
from reliable_mq.adapters.rabbitmq.window import Entry, Window
from reliable_mq.confirmation import Confirmation
from reliable_mq.message import Message


def entry(number):
    """One publish without a key."""
    message = Message(str(number), "t")
    return Entry(Confirmation(message), Address("t", "t"), SimpleNamespace(message_id=message.id))


def test_the_one_that_closes_the_channel_is_found():
    """Sent one by one, the broker tells by closing again; all others are sent."""
    window = Window(10)
    entries = [entry(number) for number in range(4)]
    window.take(entries)
    while window.next():
        pass
    assert window.be_careful() is None
    window.lost()
    sent = []
    while (one := window.next()) is not None:
        assert window.next() is None, "more than one on its way"
        sent.append(one)
        if one is entries[2]:
            assert window.be_careful() is one
            one.over = True
            window.lost()
        else:
            window.acked(len(sent) if len(sent) < 3 else len(sent) - 3, multiple=False)
    assert sent == entries
    window.take([entry(4), entry(5)])
    assert window.next() is not None
    assert window.next() is not None, "careful for ever"


@pytest.mark.parametrize("ending", ["overdue", "refused"])
def test_care_ends_with_what_it_was_for(ending):
    """Also where that is never sent again."""
    window = Window(10)
    one, other = entry(1), entry(2)
    one.deadline = other.deadline = 5.0
    window.take([one, other])
    while window.next():
        pass
    assert window.be_careful() is None
    window.lost()
    if ending == "overdue":
        assert window.overdue(6.0) == [one, other]
    else:
        one.route = other.route = Route(Address("gone", "gone"))
        assert window.next() is None
        assert window.refuse(one.route) == [one, other]
    window.take([entry(3), entry(4)])
    assert [window.next() is not None for _ in range(2)] == [True, True]


def test_a_route_that_gets_known_meanwhile_lets_nothing_overtake():
    """What waits for the answer goes first."""
    known = set()
    window = Window(10, known)
    route = Route(Address("t", "t"))
    first, second = entry(1), entry(2)
    first.route = second.route = route
    window.take([first])
    assert window.next() is None
    known.add(route)
    window.take([second])
    assert window.next() is None
    window.answer(route)
    assert [window.next(), window.next()] == [first, second]


def test_what_was_stored_behind_a_refused_one_is_sent_again_behind_it():
    """One of two queues refuses the first after the second was stored by both."""
    window = Window(10)
    first, second = entry(1), entry(2)
    first.key = second.key = "k"
    window.take([first, second])
    assert [window.next(), window.next()] == [first, second]
    assert window.acked(2, multiple=False) == [second]
    window.nacked(1, 0.0, multiple=False)
    window.release(10.0)
    assert [window.next(), window.next()] == [first, second]


def test_a_return_names_the_first_on_its_way():
    """Two with one id and address: the first one, and once only."""
    window = Window(10)
    first, second = entry(1), entry(1)
    window.take([first, second])
    window.next()
    window.next()
    assert window.find("1", "t", "t") is first
    first.over = True
    assert window.find("1", "t", "t") is second
    assert window.find("1", "other", "t") is None


def test_a_missing_route_refuses_what_waits_for_it():
    """And nothing else."""
    window = Window(10)
    route = Route(Address("gone", "gone"))
    lost, fine = entry(1), entry(2)
    lost.route = route
    window.take([lost, fine])
    assert window.next() is fine
    assert window.questions() == [route]
    assert window.refuse(route) == [lost]
    assert window.questions() == []
