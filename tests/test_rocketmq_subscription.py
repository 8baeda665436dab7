"""Receiving from a proxy that says what the test tells it to."""

import threading
from contextlib import suppress

import pytest
from msgspec.structs import replace

from reliable_mq.adapters.base import Subscribe
from reliable_mq.adapters.rocketmq import RocketTransport
from reliable_mq.adapters.rocketmq.codec import to_wire
from reliable_mq.adapters.rocketmq.wire import types
from reliable_mq.errors import ConfigurationError, ConnectionFailed
from reliable_mq.message import Message
from tests.rocketmq_proxy import DELAY, FIFO, NORMAL, ScriptedProxy, arrival, status
from tests.waiting import eventually


@pytest.fixture
def proxy():
    """With a topic that keeps order, and one that does not."""
    topics = {"fifo": FIFO, "normal": NORMAL, "fifo%g%retry": DELAY, "fifo%delay": DELAY}
    with ScriptedProxy(**topics) as proxy:
        proxy.fifo_groups = {"g"}
        yield proxy


@pytest.fixture
def opened():
    """What a test opens, closed at its end."""
    opened = []
    yield opened
    for one in reversed(opened):
        one.close()


def join(proxy, opened, topic="normal", group="free", *, order="none", credit=None):
    """A member."""
    transport = RocketTransport(proxy.url)
    opened.append(transport)
    asks = Subscribe(topics=(topic,), group=group, order=order, credit=credit)
    member = transport.subscribe(asks, lambda *_: None)
    opened.append(member)
    return member


def put(proxy, *offsets, topic="normal", **fields):
    """Let the next receive find these."""
    found = [
        arrival(to_wire(Message(f"m{one}", topic, b"k", b"body")), one, **fields) for one in offsets
    ]
    proxy.waiting[topic].append(found)


def take(member, wanted):
    """Poll until so many have come."""
    taken = []

    def enough():
        with suppress(ConnectionFailed):  # it is being made
            taken.extend(member.poll(wanted - len(taken), 0.05).deliveries)
        return len(taken) == wanted

    eventually(enough)
    return taken


def news(member):
    """Poll until something is settled or lost."""
    found = []

    def some():
        polled = member.poll(0, 0.05)
        if polled.settled or polled.lost:
            found.append(polled)
        return found

    eventually(some)
    return found[0]


def acked(proxy):
    """Handles of all acks, in their order."""
    return [entry.receipt_handle for one in proxy.requests["AckMessage"] for entry in one.entries]


def changes(proxy):
    """Handles and milliseconds of all changes of time."""
    return [
        (one.receipt_handle, one.invisible_duration.seconds + one.invisible_duration.nanos / 1e9)
        for one in proxy.requests["ChangeInvisibleDuration"]
    ]


def test_what_comes_is_settled_by_its_ack(proxy, opened):
    """One request for many."""
    put(proxy, 1, 2, 3)
    member = join(proxy, opened)
    taken = take(member, 3)

    member.ack(taken)
    polled = news(member)

    assert [one.message.id for one in taken] == ["m1", "m2", "m3"]
    assert set(polled.settled) == {one.lease for one in taken}
    assert acked(proxy) == ["handle-0-1", "handle-0-2", "handle-0-3"]
    assert len(proxy.requests["AckMessage"]) == 1


def test_one_entry_of_an_ack_may_be_refused(proxy, opened):
    """It is lost, the others are settled."""
    put(proxy, 1, 2)
    member = join(proxy, opened)
    first, second = take(member, 2)

    def on_ack(request):
        answer = types().AckMessageResponse(status=status(30000))
        for entry in request.entries:
            code = 40013 if entry.receipt_handle == "handle-0-1" else 20000
            answer.entries.add(receipt_handle=entry.receipt_handle, status=status(code))
        return answer

    proxy.on_ack = on_ack
    member.ack([first, second])
    polled = news(member)

    assert (polled.settled, polled.lost) == ([second.lease], [first.lease])
    assert first.lease.lost


def test_nothing_is_received_before_settings_are_answered(proxy, opened):
    """The proxy would refuse it."""
    transport = RocketTransport(proxy.url)
    opened.append(transport)
    asks = Subscribe(topics=("normal",), group="free", order="none")
    member = transport.subscribe(asks, lambda *_: None)
    opened.append(member)
    proxy.answers_settings = False
    member.poll(1, 0.2)
    eventually(lambda: proxy.requests["Telemetry"])

    put(proxy, 1)
    member.poll(1, 0.3)
    assert proxy.requests["ReceiveMessage"] == []

    proxy.answers_settings = True
    assert [one.message.id for one in take(member, 1)] == ["m1"]


def test_the_stream_is_opened_again_with_the_settings(proxy, opened):
    """After each restart of the proxy, with the same objects."""
    member = join(proxy, opened)
    for number in range(3):
        put(proxy, number)
        assert [one.message.id for one in take(member, 1)] == [f"m{number}"]
        proxy.stop()
        proxy.requests["Telemetry"].clear()
        proxy.start()
        eventually(lambda: proxy.requests["Telemetry"])


def test_what_stays_in_hand_is_kept_while_it_is_polled(proxy, opened):
    """Each answer has a new handle, and the ack has the last one."""
    put(proxy, 1)
    member = join(proxy, opened)
    taken = take(member, 1)
    eventually(lambda: member.poll(0, 0.05) and len(changes(proxy)) >= 2)

    member.ack(taken)
    news(member)

    renewals = len(changes(proxy))
    assert acked(proxy) == ["handle-0-1" + "'" * renewals]
    assert {seconds for _, seconds in changes(proxy)} == {2.0}


def test_who_does_not_poll_loses_all(proxy, opened):
    """It goes back at once, and the next poll tells."""
    put(proxy, 1)
    member = join(proxy, opened)
    (held,) = take(member, 1)

    eventually(lambda: held.lease.lost)
    eventually(lambda: 0.0 in [seconds for _, seconds in changes(proxy)])
    member.ack([held])

    assert news(member).lost == [held.lease]
    assert acked(proxy) == []


def test_a_nack_without_order_hides_it(proxy, opened):
    """For its delay; the attempt is remembered for the next arrival."""
    put(proxy, 1)
    member = join(proxy, opened)
    (held,) = take(member, 1)

    member.nack(replace(held, attempt=3), 1.5)
    eventually(lambda: ("handle-0-1", 1.5) in changes(proxy))
    put(proxy, 1, attempt=2)
    (again,) = take(member, 1)

    assert (again.attempt, again.redelivered) == (3, 0)


def test_a_nack_on_a_fifo_topic_makes_a_copy(proxy, opened):
    """Which does not hold up the queue; the message is acked when the copy is stored."""
    put(proxy, 1, topic="fifo")
    member = join(proxy, opened, "fifo", "g", order="key")
    (held,) = take(member, 1)

    member.nack(replace(held, attempt=2), 1.5)
    eventually(lambda: member.poll(0, 0.05) and acked(proxy))

    ((copy,),) = proxy.sent()
    assert copy.topic.name == "fifo%g%retry"
    assert copy.user_properties["rmq-attempt"] == "2"
    assert copy.system_properties.message_id == "m1"
    assert {seconds for _, seconds in changes(proxy)} <= {2.0}


def test_close_gives_back_what_is_not_acked(proxy, opened):
    """And waits for the last acks."""
    put(proxy, 1, 2, 3)
    member = join(proxy, opened)
    first, second, third = take(member, 3)
    member.ack([first])

    member.close()

    assert acked(proxy) == ["handle-0-1"]
    assert sorted(changes(proxy)) == [("handle-0-2", 0.0), ("handle-0-3", 0.0)]
    assert [one.lease.lost for one in (first, second, third)] == [False, True, True]


def test_what_comes_after_the_end_goes_back(proxy, opened):
    """A receive is not cancelled: its messages would be hidden from everybody."""
    asked, release = threading.Event(), threading.Event()
    receive = proxy.on_receive

    def slow(request):
        asked.set()
        release.wait(5.0)
        yield from receive(request)

    proxy.on_receive = slow
    member = join(proxy, opened)
    member.poll(1, 0.05)
    eventually(asked.is_set)
    member.close()
    put(proxy, 7)

    release.set()

    eventually(lambda: ("handle-0-7", 0.0) in changes(proxy))


def test_no_more_is_fetched_than_the_credit(proxy, opened):
    """Of a topic without order."""
    member = join(proxy, opened, credit=10)
    member.poll(8, 0.2)
    eventually(lambda: proxy.requests["ReceiveMessage"])

    assert max(one.batch_size for one in proxy.requests["ReceiveMessage"]) <= 10


def test_a_proxy_that_is_gone(proxy, opened):
    """A poll says so, and the next ones go on when it is back."""
    member = join(proxy, opened)
    member.poll(1, 0.1)
    proxy.stop()

    def cut_off():
        try:
            member.poll(1, 0.1)
        except ConnectionFailed:
            return True
        return False

    eventually(cut_off)
    put(proxy, 1)
    proxy.start()
    taken = []

    def comes():
        with suppress(ConnectionFailed):
            taken.extend(member.poll(1, 0.1).deliveries)
        return taken

    eventually(comes)
    assert taken[0].message.id == "m1"


@pytest.mark.parametrize(
    ("topic", "group", "order", "text"),
    [
        ("none", "g", "none", "'none' are missing"),
        ("normal", "free", "key", "keep no order"),
        ("fifo", "free", "key", "does not keep order"),
        ("a.b", "g", "none", "letters, digits"),
    ],
)
def test_what_cannot_be_joined(proxy, opened, *, topic, group, order, text):
    """Told at once, with the remedy."""
    with pytest.raises(ConfigurationError, match=text):
        join(proxy, opened, topic, group, order=order)


def test_on_a_fifo_topic_a_member_reads_the_rest_by_another_group(proxy, opened):
    """What is delayed has no order, and one of it must not hold up another."""
    member = join(proxy, opened, "fifo", "g", order="key")
    member.poll(1, 0.2)

    def asked():
        return {
            (one.message_queue.topic.name, one.group.name)
            for one in proxy.requests["ReceiveMessage"]
        }

    eventually(lambda: len(asked()) == 3)
    assert asked() == {("fifo", "g"), ("fifo%delay", "g%free"), ("fifo%g%retry", "g%free")}
