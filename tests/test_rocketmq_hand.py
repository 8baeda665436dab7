"""What one member has of RocketMQ's messages: handles that change, leases that end, attempts."""

from types import SimpleNamespace

import pytest

from reliable_mq.adapters.rocketmq.hand import ACKS, Hand, Held, State
from reliable_mq.adapters.rocketmq.sources import Source

FIFO = Source("orders", "g", "orders", fifo=True)
FREE = Source("orders%delay", "g%free", "orders")


def arrival(offset, *, source=FREE, queue=0, attempt=1, time=30.0, arrived=0.0):
    """One message that the broker gave out."""
    system = SimpleNamespace(
        message_id=f"m{offset}",
        receipt_handle=f"h{offset}",
        store_host="broker",
        queue_id=queue,
        queue_offset=offset,
        delivery_attempt=attempt,
    )
    wire = SimpleNamespace(system_properties=system, topic=SimpleNamespace(name=source.topic))
    return Held(source, wire, arrived, time)


def hand_with(*arrivals):
    """A hand that has them, all of them taken."""
    hand = Hand(30.0)
    for held in arrivals:
        hand.arrived(held)
    assert hand.take(len(arrivals), 0.0) == list(arrivals)
    return hand


def test_no_more_are_taken_than_asked_for():
    """In the order they came."""
    hand = Hand(30.0)
    arrivals = [arrival(number) for number in range(3)]
    for held in arrivals:
        hand.arrived(held)

    assert hand.take(2, 0.0) == arrivals[:2]
    assert hand.fetched == 1
    assert hand.take(2, 0.0) == arrivals[2:]


def test_an_ack_is_settled_by_its_answer():
    """Once; a second one changes nothing."""
    held = arrival(1)
    hand = hand_with(held)

    assert hand.ack(held)
    assert not hand.ack(held)
    assert hand.to_ack(0.0) == [[held]]
    assert hand.to_ack(0.0) == []  # it is under way
    hand.acked(held, taken=True, now=0.0)

    assert hand.news() == ([held], [])
    assert hand.news() == ([], [])
    assert len(hand) == 0


def test_an_ack_without_an_answer_goes_again():
    """After a pause; the broker takes the same one twice."""
    held = arrival(1)
    hand = hand_with(held)
    hand.ack(held)
    hand.to_ack(0.0)

    hand.acked(held, taken=None, now=1.0)

    assert hand.to_ack(1.0) == []
    assert hand.to_ack(2.0) == [[held]]


def test_an_ack_of_what_is_not_ours_is_a_loss():
    """The broker knows the handle no more: somebody else has the message."""
    held = arrival(1)
    hand = hand_with(held)
    hand.ack(held)
    hand.to_ack(0.0)

    hand.acked(held, taken=False, now=1.0)

    assert hand.news() == ([], [held])
    assert held.lost


def test_acks_are_in_order_and_no_more_than_one_request_takes():
    """The rest waits for the next."""
    arrivals = [arrival(number, source=FIFO) for number in range(ACKS + 5)]
    hand = hand_with(*arrivals)
    for held in reversed(arrivals):
        hand.ack(held)

    (batch,) = hand.to_ack(0.0)
    (rest,) = hand.to_ack(0.0)

    assert [held.offset for held in (*batch, *rest)] == list(range(ACKS + 5))[::-1]
    assert len(batch) == ACKS


def test_an_ack_waits_for_the_new_handle():
    """With the old one it would be answered OK, and the message would come again."""
    held = arrival(1)
    hand = hand_with(held)
    assert hand.to_renew(10.0) == [held]

    hand.ack(held)
    assert hand.to_ack(10.0) == []
    hand.changed(held, "h1-later", 10.0, 30.0)

    assert hand.to_ack(10.0) == [[held]]
    assert held.handle == "h1-later"
    assert held.known_until == 40.0


def test_a_renewal_that_fails_is_tried_again_while_there_is_time():
    """Without an answer the old handle may still be the right one; then it is over."""
    held = arrival(1)
    hand = hand_with(held)
    hand.to_renew(10.0)

    hand.not_changed(held, 11.0)

    assert hand.to_renew(11.0) == []
    assert hand.to_renew(12.0) == [held]
    hand.not_changed(held, 13.0)
    hand.expire(30.0)
    assert hand.news() == ([], [held])


def test_nothing_is_renewed_before_its_time():
    """A third of it."""
    hand = hand_with(arrival(1))

    assert hand.next_at() == 10.0
    assert hand.to_renew(9.9) == []


def test_on_a_fifo_topic_a_loss_takes_all_behind_it():
    """The broker gives them out again from there on; other queues are not touched."""
    arrivals = [arrival(number, source=FIFO) for number in range(4)]
    other = arrival(2, source=FIFO, queue=1)
    hand = hand_with(*arrivals, other)

    hand.lose(arrivals[1])

    assert hand.news() == ([], arrivals[1:])
    assert [held.lost for held in (*arrivals, other)] == [False, True, True, True, False]


def test_without_order_a_loss_is_of_one():
    """The others are still ours."""
    arrivals = [arrival(number) for number in range(3)]
    hand = hand_with(*arrivals)

    hand.lose(arrivals[1])

    assert hand.news() == ([], [arrivals[1]])
    assert len(hand) == 2


def test_all_that_is_dropped_goes_back():
    """What was fetched without a word, what was in hand as lost; acks still count."""
    acked, held, fetched = (arrival(number) for number in range(3))
    hand = hand_with(acked, held)
    hand.arrived(fetched)
    hand.ack(acked)

    hand.drop_all()

    assert hand.to_leave(0.0) == [held, fetched]
    assert hand.to_ack(0.0) == [[acked]]
    assert hand.news() == ([], [held])
    hand.acked(acked, taken=True, now=0.0)
    hand.left(held)
    hand.left(fetched)
    assert hand.news() == ([acked], [])
    assert (len(hand), hand.unsettled) == (0, False)


def test_what_comes_too_late_for_a_loss_changes_nothing():
    """Answers about what is not ours any more."""
    held = arrival(1)
    hand = hand_with(held)
    hand.to_renew(10.0)
    hand.lose(held)
    hand.news()

    hand.changed(held, "new", 11.0, 30.0)
    hand.acked(held, taken=True, now=11.0)

    assert hand.news() == ([], [])
    assert held.state is State.GONE
    assert not hand.ack(held)
    assert not hand.leave(held, 1.0)


def test_a_nack_is_remembered_for_the_next_arrival():
    """Its attempt comes back, and it does not count as redelivered."""
    held = arrival(1)
    hand = hand_with(held)
    hand.leave(held, 1.0)
    hand.remember(held, 3, 0)

    assert hand.recall(arrival(1, attempt=2)) == (3, 0)
    assert hand.recall(arrival(1, attempt=2)) == (None, 1)


def test_a_crash_after_a_nack_counts():
    """It was somewhere else in between."""
    held = arrival(1, attempt=2)
    hand = hand_with(held)
    hand.remember(held, 3, 1)

    assert hand.recall(arrival(1, attempt=4)) == (3, 2)


@pytest.mark.parametrize("attempt", [1, 2, 5])
def test_arrivals_without_an_ending_are_counted(attempt):
    """By the broker."""
    assert Hand(30.0).recall(arrival(1, attempt=attempt)) == (None, attempt - 1)


def test_what_is_remembered_has_a_limit(monkeypatch):
    """The oldest is forgotten."""
    monkeypatch.setattr("reliable_mq.adapters.rocketmq.hand.REMEMBERED", 2)
    hand = Hand(30.0)
    for number in range(3):
        hand.remember(arrival(number), 2, 0)

    assert hand.recall(arrival(0, attempt=2)) == (None, 1)
    assert hand.recall(arrival(2, attempt=2)) == (2, 0)


def test_a_copy_takes_the_place_of_a_message():
    """It stays ours until the copy is stored; then it is acked, and nobody is told."""
    held = arrival(1, source=FIFO)
    hand = hand_with(held)

    assert hand.copy(held)
    assert not hand.ack(held)
    assert hand.to_renew(10.0) == [held]
    hand.changed(held, "new", 10.0, 30.0)
    hand.copied(held)
    assert hand.to_ack(10.0) == [[held]]
    hand.acked(held, taken=True, now=10.0)

    assert hand.news() == ([], [])
    assert len(hand) == 0
