"""Frames of RabbitMQ that are read before pika does, in pieces of any size, and the others."""

from datetime import datetime, timezone

import pika
from hypothesis import given
from hypothesis import strategies as st

from reliable_mq.adapters.rabbitmq.reader import Reader, acks, deliveries
from reliable_mq.adapters.rabbitmq.wire import marshal

CHANNEL, FRAME_MAX = 3, 64
QUEUES = {b"ctag1": "queue-1", b"ctag2": "queue-2"}


class Connection:
    """As much of pika's connection as it takes: it reads frames and keeps what it read."""

    def __init__(self):
        self._frame_buffer = b""
        self.bytes_received = 0
        self.is_closed = False
        self.read = []

    def _on_data_available(self, data):
        self._frame_buffer += data
        while self._frame_buffer:
            used, frame = pika.frame.decode_frame(self._frame_buffer)
            if not frame:
                return
            self.read.append(self._frame_buffer[:used])
            self._frame_buffer = self._frame_buffer[used:]
            self.bytes_received += used


def delivery(tag, body, *, consumer="ctag1", channel=CHANNEL, frame_max=FRAME_MAX, again=False):
    """The frames of one."""
    method = pika.spec.Basic.Deliver(consumer, tag, again, "exchange", "key")
    properties = b"".join(pika.BasicProperties(message_id=f"m{tag}").encode())
    return marshal(
        channel, pika.frame.Method(channel, method).marshal(), properties, body, frame_max
    )


def ack(tag, *, multiple=False, channel=CHANNEL):
    """One frame."""
    return pika.frame.Method(channel, pika.spec.Basic.Ack(tag, multiple)).marshal()


HEARTBEAT = pika.frame.Heartbeat().marshal()
OTHERS = st.sampled_from(
    [
        HEARTBEAT,
        ack(7, channel=CHANNEL + 1),
        pika.frame.Method(CHANNEL, pika.spec.Basic.Nack(4)).marshal(),
        pika.frame.Method(CHANNEL, pika.spec.Basic.QosOk()).marshal(),
        delivery(5, b"of another channel", channel=CHANNEL + 1),
        delivery(6, b"of a consumer that nobody knows", consumer="ctag9"),
        delivery(8, b"in several frames" * 20),
    ]
)
CUTS = st.lists(st.integers(1, 90), min_size=1, max_size=30)


def feed(connection, data, cuts):
    """Hand it over in pieces of these sizes, again and again."""
    at = number = 0
    while at < len(data):
        size = cuts[number % len(cuts)]
        connection._on_data_available(data[at : at + size])
        at, number = at + size, number + 1


@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(QUEUES)), st.binary(max_size=FRAME_MAX - 8), st.booleans())
        | OTHERS,
        max_size=12,
    ),
    CUTS,
)
def test_deliveries_are_read_here_and_all_else_by_pika(items, cuts):
    """However it is cut, each gets its own, in order, and every byte is counted."""
    # Given
    data, expected, others = b"", [], b""
    for number, item in enumerate(items):
        if isinstance(item, bytes):
            data, others = data + item, others + item
            continue
        consumer, body, again = item
        data += delivery(number, body, consumer=consumer.decode(), again=again)
        expected.append((QUEUES[consumer], number, again, f"m{number}", body))
    connection, found = Connection(), []
    Reader.install(connection, lambda data, at: deliveries(data, at, CHANNEL, QUEUES, found))
    # When
    feed(connection, data, cuts)
    # Then
    seen = []
    for queue, tag, again, properties, body in found:
        decoded = pika.BasicProperties()
        decoded.decode(properties)
        seen.append((queue, tag, again, decoded.message_id, body))
    assert seen == expected
    assert b"".join(connection.read) == others
    assert connection.bytes_received == len(data)


@given(st.lists(st.tuples(st.integers(1, 99), st.booleans()) | OTHERS, max_size=12), CUTS)
def test_acks_are_read_here_and_all_else_by_pika(items, cuts):
    """A nack between two acks is where it was."""
    data, expected, others = b"", [], b""
    for item in items:
        if isinstance(item, bytes):
            data, others = data + item, others + item
        else:
            data += ack(item[0], multiple=item[1])
            expected.append(item)
    connection, found = Connection(), []
    Reader.install(connection, lambda data, at: acks(data, at, CHANNEL, found))
    feed(connection, data, cuts)
    assert found == expected
    assert b"".join(connection.read) == others
    assert connection.bytes_received == len(data)


def test_what_pika_had_begun_to_read_comes_first():
    """The reader takes over while pika reads the last frame of the handshake."""
    connection, found = Connection(), []
    data = delivery(1, b"first") + delivery(2, b"second")
    connection._frame_buffer = data[:30]
    Reader.install(connection, lambda data, at: deliveries(data, at, CHANNEL, QUEUES, found))
    connection._on_data_available(data[30:])
    assert [tag for _, tag, *_ in found] == [1, 2]
    assert connection.read == []


def test_a_connection_that_was_closed_reads_no_more():
    """Behind the frame that closed it there is nothing of this connection."""
    connection, found = Connection(), []
    read = connection._on_data_available

    def close(data):
        read(data)
        connection.is_closed = True

    connection._on_data_available = close
    Reader.install(connection, lambda data, at: deliveries(data, at, CHANNEL, QUEUES, found))
    connection._on_data_available(HEARTBEAT + delivery(1, b"late"))
    assert found == []


def test_properties_that_pika_fails_over_are_left_out():
    """Its body comes all the same, in several frames: it must not hold up what is behind it."""
    day = datetime(2026, 11, 21, tzinfo=timezone.utc)
    near = pika.BasicProperties(message_id="far", headers={"when": day})
    encoded = b"".join(near.encode())
    beyond = (10**15).to_bytes(8, "big")
    far = encoded.replace(int(day.timestamp()).to_bytes(8, "big"), beyond)
    method = pika.frame.Method(CHANNEL, pika.spec.Basic.Deliver("ctag1", 1, False, "e", "k"))
    good = marshal(CHANNEL, method.marshal(), encoded, b"body" * 50, FRAME_MAX)
    bad = marshal(CHANNEL, method.marshal(), far, b"body" * 50, FRAME_MAX)
    connection = Connection()
    Reader.install(connection, lambda _, at: at)

    feed(connection, good + bad, [50])

    frames = [pika.frame.decode_frame(frame)[1] for frame in connection.read]
    headers = [frame for frame in frames if isinstance(frame, pika.frame.Header)]
    assert [one.properties.message_id for one in headers] == ["far", None]
    assert [one.body_size for one in headers] == [200, 200]
    bodies = [frame.fragment for frame in frames if isinstance(frame, pika.frame.Body)]
    assert b"".join(bodies) == b"body" * 100


def test_another_pika_reads_everything():
    """Nothing is touched where a part of it is not what we know."""
    connection = object()
    Reader.install(connection, lambda _, at: at)
    assert not hasattr(connection, "_on_data_available")
