"""The parts of the RabbitMQ adapter that need no broker."""

import logging

import pika
import pika.exceptions
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reliable_mq.adapters.rabbitmq import RabbitTransport
from reliable_mq.adapters.rabbitmq.arguments import delay_arguments, queue_arguments
from reliable_mq.adapters.rabbitmq.inspection import may_discard
from reliable_mq.adapters.rabbitmq.link import cause_of
from reliable_mq.adapters.rabbitmq.names import (
    LADDER,
    Address,
    Route,
    address_of,
    delay_queue,
    place_of,
    queue_of,
    rung,
)
from reliable_mq.adapters.rabbitmq.parameters import parse
from reliable_mq.adapters.rabbitmq.properties import by_pika, read
from reliable_mq.adapters.rabbitmq.tags import Tags
from reliable_mq.adapters.rabbitmq.wire import from_wire, marshal, properties_of
from reliable_mq.errors import ConfigurationError, PublishRejected, TransportError
from reliable_mq.message import DeadLetter, Message, RetryCopy, Topic

# -- acks --------------------------------------------------------------------------------------


@given(st.data())
def test_no_ack_passes_over_what_is_open(data):
    """Whatever is acked in whatever order: the broker hears of these tags, and of no others."""
    amount = data.draw(st.integers(1, 12))
    order = data.draw(st.permutations(range(1, amount + 1)))
    tags, open_tags, acked, at = Tags(), set(range(1, amount + 1)), set(), 0
    while at < amount:
        size = data.draw(st.integers(1, 4))
        acked |= set(order[at : at + size])
        for tag, multiple in tags.ack(order[at : at + size]):
            told = {one for one in open_tags if one == tag or (multiple and one < tag)}
            assert tag in open_tags, "the broker would close the channel"
            assert told <= acked, "an open delivery is acked"
            open_tags -= told
        assert open_tags == set(range(1, amount + 1)) - acked
        at += size


def test_a_prefix_is_one_frame():
    """Acks of a burst cost one frame."""
    assert list(Tags().ack(range(1, 101))) == [(100, True)]


def test_an_ack_counts_once():
    """The broker closes the channel over a second one."""
    tags = Tags()
    assert list(tags.ack([2])) == [(2, False)]
    assert list(tags.ack([2])) == []
    assert list(tags.ack([1])) == [(1, False)]
    assert list(tags.ack([1, 2])) == []


# -- messages ----------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
VALUES = st.one_of(TEXT, st.binary(max_size=20))
NAMES = st.one_of(st.just("content-type"), st.text("abcXYZ-_.0", min_size=1, max_size=8))
MESSAGES = st.builds(
    Message,
    id=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200),
    topic=st.just("orders"),
    key=st.one_of(st.none(), st.binary(max_size=10), st.text(max_size=5).map(str.encode)),
    body=st.one_of(st.none(), st.binary(max_size=50)),
    headers=st.lists(st.tuples(NAMES, VALUES), max_size=6).map(tuple),
    created_at=st.floats(0, 2e9),
)


@given(MESSAGES)
def test_a_message_comes_out_as_it_went_in(message):
    """Also through pika's own encoding: id, key, body, headers in order, time."""
    encoded = pika.BasicProperties()
    encoded.decode(properties_of(message).encoded)
    out, weak = from_wire("orders", "orders.g", encoded, message.body or b"")
    assert out == message
    assert not weak


@given(MESSAGES)
def test_properties_are_the_same_as_those_of_pika(message):
    """What is written by hand is what pika writes, and what is read by hand is what pika reads."""
    made = properties_of(message)
    theirs = pika.BasicProperties(
        content_type=made.content_type,
        headers=made.headers,
        delivery_mode=2,
        message_id=made.message_id,
        timestamp=made.timestamp,
    )
    assert made.encoded == b"".join(theirs.encode())
    mine, theirs = read(made.encoded), by_pika(made.encoded)
    for name in ("content_type", "headers", "message_id", "timestamp"):
        assert getattr(mine, name) == getattr(theirs, name) == getattr(made, name)


TABLES = st.dictionaries(
    NAMES,
    st.one_of(TEXT, st.binary(max_size=9), st.integers(-9, 1 << 40), st.none(), st.booleans()),
)


@given(
    st.builds(
        pika.BasicProperties,
        content_type=st.none() | st.just("text/plain"),
        headers=st.none() | TABLES,
        delivery_mode=st.none() | st.just(1),
        priority=st.none() | st.integers(0, 9),
        message_id=st.none() | TEXT,
        timestamp=st.none() | st.integers(0, 1 << 40),
        app_id=st.none() | TEXT,
    )
)
def test_properties_of_others_are_read_as_by_pika(properties):
    """Whatever is in there."""
    data = b"".join(properties.encode())
    mine, theirs = read(data), by_pika(data)
    for name in ("content_type", "message_id", "timestamp"):
        assert getattr(mine, name) == getattr(theirs, name)
    assert (mine.headers or {}) == (theirs.headers or {})


def test_a_foreign_message_without_an_id_has_a_weak_one():
    """Equal content has the equal id, however often it was delivered."""
    first, weak = from_wire("t", "q", pika.BasicProperties(headers={"x-delivery-count": 0}), b"a")
    again, _ = from_wire("t", "q", pika.BasicProperties(headers={"x-delivery-count": 3}), b"a")
    other, _ = from_wire("t", "q", pika.BasicProperties(), b"b")
    assert weak
    assert first.id == again.id != other.id
    assert first.headers == ()


def test_foreign_headers_come_as_text():
    """Numbers, times and tables of other programs do no harm."""
    table = {"n": 1, "list": [1, 2], "none": None, "rmq-attempt": b"7", "rmq-created": "soon"}
    message, _ = from_wire("t", "q", pika.BasicProperties(headers=table, message_id="id"), b"")
    assert dict(message.headers) == {
        "n": "1",
        "list": "[1, 2]",
        "none": "None",
        "rmq-attempt": "7",
    }
    assert message.created_at == 0.0


def test_headers_that_end_the_connection_are_refused():
    """A header frame above the limit is a connection error at the broker."""
    properties = properties_of(Message("id", "t", headers=(("h", "x" * 5_000),))).encoded
    with pytest.raises(TransportError, match="more than a frame of 4096"):
        marshal(1, b"", properties, b"", 4_096)


@given(st.binary(max_size=300))
def test_a_body_is_cut_into_frames(body):
    """Each frame keeps within the limit, and together they are the body."""
    frames = marshal(3, b"", b"", body, 64)
    frames = frames[frames.index(b"\xce") + 1 :]
    read = b""
    while frames:
        size = int.from_bytes(frames[3:7], "big")
        assert frames[0] == 3
        assert size + 8 <= 64
        read += frames[7 : 7 + size]
        frames = frames[8 + size :]
    assert read == body


# -- names -------------------------------------------------------------------------------------


@given(st.floats(0.001, 10**6))
def test_delays_are_never_early(seconds):
    """A step of the ladder is at least the delay, and less than twice it, up to the longest."""
    step = rung(seconds)
    if seconds > LADDER[-1]:
        assert step == LADDER[-1]
    else:
        assert seconds <= step < max(2 * seconds, 1.001)


def test_addresses():
    """A topic is an exchange; what is for one group goes to its queue."""
    message = Message("id", "orders")
    assert address_of(message, Topic()) == Address("orders", "orders")
    assert address_of(message, RetryCopy("orders", "g")) == Address("", "orders.g")
    assert address_of(message, DeadLetter("orders", "g")) == Address("", "orders.g.dlq")
    delayed = Route(Address("", "orders.g"), 8).first()
    assert delayed == Address("", "orders.g.delay.8")
    assert Route(Address("orders", "orders"), 8).first() == Address("", "orders:.delay.8")
    with pytest.raises(PublishRejected, match="too long a name"):
        address_of(message, RetryCopy("t" * 200, "g" * 50))


def test_queues_discard_nothing_by_themselves():
    """Quorum, no length, no TTL but that of a delay queue, and that one leads back."""
    assert queue_arguments(single=True)["x-queue-type"] == "quorum"
    delay = delay_arguments(Address("", "orders.g"), 8)
    assert delay["x-dead-letter-strategy"] == "at-least-once"
    assert delay["x-overflow"] == "reject-publish"
    assert (delay["x-message-ttl"], delay["x-dead-letter-routing-key"]) == (8_000, "orders.g")


# -- where to connect --------------------------------------------------------------------------


def test_a_url_is_read():
    """Nodes of one cluster, credentials, virtual host, and timeouts that are always set."""
    found = parse("amqp://me:p%40ss@one:1,two/shop%2Feu?heartbeat=7")
    first, second = found.nodes
    assert (first.host, first.port, second.host, second.port) == ("one", 1, "two", 5672)
    assert (first.credentials.username, first.credentials.password) == ("me", "p@ss")
    assert first.virtual_host == "shop/eu"
    assert first.heartbeat == 7
    assert first.blocked_connection_timeout
    assert "p%40ss" not in repr(found) + str(found)


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("amqp://u:secret@h/?heartbeat=0", "above 0"),
        ("amqp://u:secret@h/?heartbeat=often", "no number"),
        ("amqp://u:secret@h/?colour=red", "unknown option 'colour'"),
        ("amqp://u:secret@h:port/", "no host and port"),
        ("amqps://u:secret@h/?cafile=/nowhere.pem", "cannot be read"),
        ("amqps://u:secret@h/?verify=perhaps", "'yes' or 'no'"),
        ("amqp://u:my/secret@h/vhost", "percent encoding"),
        ("amqp://u:my?secret@h/vhost", "percent encoding"),
        ("amqp://u:my#secret@h/vhost", "percent encoding"),
    ],
)
def test_bad_urls_are_refused_without_their_secrets(url, text):
    """The error names what is wrong."""
    with pytest.raises(ConfigurationError, match=text) as refused:
        RabbitTransport(url)
    assert "secret" not in str(refused.value)


def test_unsafe_connections_are_warned_of(caplog):
    """Guest away from this machine, and a certificate that nobody looks at."""
    caplog.set_level(logging.WARNING)
    parse("amqp://guest:guest@127.0.0.1/")
    parse("amqps://me:secret@host/")
    assert caplog.messages == []
    parse("amqp://guest:guest@host/")
    parse("amqps://me:secret@host/?verify=no")
    assert ["guest" in caplog.messages[0], "verify=no" in caplog.messages[1]] == [True, True]
    assert "secret" not in caplog.text


def test_the_cause_is_what_pika_wraps():
    """Of a stack of errors, the one that says something."""
    inner = ConnectionRefusedError(111, "Connection refused")
    wrapped = pika.exceptions.AMQPConnectionError(pika.exceptions.AMQPConnectionError(inner))
    assert "refused" in cause_of(wrapped)
    assert cause_of(pika.exceptions.StreamLostError("gone")) == "StreamLostError: gone"


@pytest.mark.parametrize(
    ("arguments", "release", "safe"),
    [
        ({"x-queue-type": "quorum"}, 3, True),
        ({"x-queue-type": "quorum"}, 4, False),
        ({"x-queue-type": "quorum", "x-dead-letter-exchange": "dlx"}, 4, True),
        ({"x-delivery-limit": 5}, 3, False),
        ({"auto_delete": True}, 3, False),
        ({"exclusive": True}, 3, False),
        ({"durable": False}, 3, False),
        ({"x-expires": 1000}, 3, False),
        ({"x-max-length": 10, "x-overflow": "reject-publish"}, 3, True),
    ],
)
def test_queues_that_may_discard(arguments, release, safe):
    """What is attached to has to keep what it has."""
    assert (may_discard(arguments, release) == "") == safe


def test_names_of_two_places_never_meet():
    """Routing keys of one exchange, and delays beside groups, have queues of their own."""
    paid, lost = "exchange:shop:paid", "exchange:shop:lost"
    assert queue_of(paid, "mail") != queue_of(lost, "mail")
    delayed = {delay_queue(place_of(one).address, 4) for one in (paid, lost, "shop", "shop.all")}
    delayed |= {delay_queue(Address("", queue_of("shop", group)), 4) for group in ("all", "paid")}
    assert len(delayed) == 6
