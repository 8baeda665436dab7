"""Other programs on the same topics: what they write is read, and what we write is read, unchanged.

Plain confluent-kafka and aiokafka. A bridge of theirs, which takes our records and produces them
again, has to give us back what we sent. Keys go to the partitions where Java's clients put them.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from importlib.util import find_spec

import confluent_kafka
import pytest

from integration.faults import need, until
from integration.kafka_traffic import (
    OPTIONS,
    configure_consumers,
    end_of,
    forget,
    read,
    removed,
    write,
)
from reliable_mq import Context, Message, ReliableMQ
from reliable_mq.adapters.base import GroupSpec, Subscribe, TopicSpec, Topology
from reliable_mq.adapters.kafka import KafkaTransport
from reliable_mq.message import CONTENT_TYPE, Topic

EVERY_BYTE = bytes(range(256))
SNOW = "\N{SNOWMAN}"
#: Headers of other programs, and what they are to us: the same, but for one without a value.
HEADERS = [("a", b"1"), ("a", b"2"), ("b", EVERY_BYTE), ("", b"no name"), (SNOW, SNOW.encode())]
#: Ours, each with something that others could spoil.
OURS = (
    {"body": b""},
    {"body": EVERY_BYTE, "key": b"k"},
    {"body": None, "key": b"tombstone"},
    {"body": b"key that is no text", "key": b"\xff\x00"},
    {"body": b"empty key", "key": b""},
    {"body": b"{}", "headers": ((CONTENT_TYPE, b"application/json"), ("b", b"\x00\xff"))},
    {"body": b"x", "headers": (("a", b"1"), ("a", b"2"), ("z", b""), ("b", SNOW.encode()))},
    {"body": b"a long id", "id": "i" * 300},
    {"body": b"y" * 300_000},
)


class Place:
    """One topic of one partition, or more, with one group."""

    def __init__(self, broker, partitions=1):
        self.broker = broker
        mark = secrets.token_hex(4)
        self.topic, self.group = f"interop-{mark}", f"readers-{mark}"
        self.url = f"{broker.url}?{OPTIONS}&partitions={partitions}"
        self.transport = KafkaTransport(self.url)
        self.ensure()
        self.publisher = self.transport.publisher()

    def ensure(self):
        """Declare it."""
        spec = TopicSpec(self.topic, groups=(GroupSpec(self.group),))
        self.transport.ensure(Topology((spec,)))

    def messages(self):
        """Ours, as they are sent."""
        return [
            Message(**{"id": f"m{number}", "topic": self.topic, "created_at": 1.25, **fields})
            for number, fields in enumerate(OURS)
        ]

    def send(self, *messages):
        """Publish ours; their Receipts."""
        return [
            one.result(20.0) for one in [self.publisher.submit(one, Topic()) for one in messages]
        ]

    def receive(self, count, *, ack=True, stay=False):
        """Deliveries to ours. `stay`: until there is no lag."""
        asks = Subscribe(topics=(self.topic,), group=self.group)
        member = self.transport.subscribe(asks, lambda *_: None)
        found = []
        try:
            until(
                lambda: found.extend(member.poll(100, 0.1).deliveries) or len(found) >= count,
                f"{count} deliveries",
            )
            found += member.poll(100, 0.1).deliveries
            if ack:
                member.ack(found)
            if stay:
                lag = lambda: self.transport.lag(self.topic, self.group)  # noqa: E731
                until(lambda: member.poll(100, 0.1) and not lag(), "no lag", 10.0)
        finally:
            member.close()
        return found

    def bodies(self, count):
        """What is in them."""
        return [one.message.body for one in self.receive(count)]

    def close(self):
        """Leave nothing."""
        self.publisher.close(5.0)
        removed(self.broker, self.topic)


@pytest.fixture
def place(kafka):
    """A topic of one test."""
    place = Place(kafka)
    yield place
    place.close()


class Plain:
    """A program on plain confluent-kafka."""

    def __init__(self, place):
        self.place = place

    def publish(self, *records):
        """Key, value, headers and milliseconds of each."""
        names = ("key", "value", "headers", "timestamp")
        records = [dict(zip(names, one, strict=True)) for one in records]
        write(self.place.broker, self.place.topic, *records)

    def take(self, count):
        """The same of so many."""
        return [
            (one.key(), one.value(), one.headers() or [], one.timestamp()[1])
            for one in read(self.place.broker, self.place.topic, count)
        ]

    def bridge(self, count):
        """Take so many and publish them as they are."""
        self.publish(*self.take(count))


class AioKafka(Plain):
    """A program on aiokafka."""

    def publish(self, *records):
        """See Plain."""
        asyncio.run(self._publish(records))

    def take(self, count):
        """See Plain."""
        return asyncio.run(self._take(count))

    async def _publish(self, records):
        import aiokafka

        bootstrap = self.place.broker.bootstrap
        async with aiokafka.AIOKafkaProducer(bootstrap_servers=bootstrap) as producer:
            for key, value, headers, at in records:
                await producer.send_and_wait(
                    self.place.topic, value, key=key, headers=headers, timestamp_ms=at
                )

    async def _take(self, count):
        import aiokafka

        consumer = aiokafka.AIOKafkaConsumer(
            self.place.topic,
            bootstrap_servers=self.place.broker.bootstrap,
            auto_offset_reset="earliest",
        )
        async with consumer:
            found = [await asyncio.wait_for(anext(consumer), 20.0) for _ in range(count)]
        return [(one.key, one.value, list(one.headers), one.timestamp) for one in found]


@pytest.fixture(params=[Plain, AioKafka])
def other(request, place):
    """The program beside ours."""
    if request.param is AioKafka:
        need(find_spec("aiokafka"), "aiokafka")
    return request.param(place)


# -- they write, we read -----------------------------------------------------------------------


def test_what_others_write_is_read_as_it_is(place, other):
    """Key and body untouched, headers with duplicates and in order, their time; null and empty."""
    at = 1_700_000_000_123
    sent = [(b"\xff\x00", EVERY_BYTE, HEADERS, at), (None, b"no key", [], at)]
    sent += [(b"", b"", [], at), (b"k", None, [], at)]
    other.publish(*sent)

    found = [one.message for one in place.receive(4)]

    assert [(one.key, one.body) for one in found] == [one[:2] for one in sent]
    assert list(found[0].headers) == HEADERS
    assert [one.headers for one in found[1:]] == [(), (), ()]
    assert {one.created_at for one in found} == {at / 1_000}
    assert {one.topic for one in found} == {place.topic}


def test_a_header_without_a_value_is_an_empty_one(place):
    """Kafka's null: it is there, and is no error."""
    Plain(place).publish((None, b"x", [("null", None), ("empty", b"")], 1_000))

    (one,) = place.receive(1)

    assert one.message.headers == (("null", b""), ("empty", b""))


def test_a_message_without_an_id_gets_a_stable_one(place, other):
    """The same each time it comes, another for each; and another where the topic is made again."""
    records = [(None, b"same", [], 1_000)] * 2
    other.publish(*records)
    first = [one.message.id for one in place.receive(2, ack=False)]
    again = place.receive(2)
    assert [one.message.id for one in again] == first
    assert len(set(first)) == 2
    assert not any(one.weak_id for one in again)

    place.broker.delete_topic(place.topic)
    place.ensure()
    other.publish(*records)

    assert not set(first) & {one.message.id for one in place.receive(2)}


def test_a_handler_gets_their_json(place, other):
    """As it is told what to assume of messages that do not say; forged headers are no command."""
    other.publish(
        (b"k", b'{"id": 7}', [("trace", b"t1")], 1_000),
        (b"k", b'{"id": 8}', [("rmq-attempt", b"\xff"), ("rmq-not-before", b"never")], 1_000),
        (b"k", b'{"id": 9}', [("rmq-id", b"their-id"), ("rmq-created", b"soon")], 1_000),
    )
    seen = []
    mq = ReliableMQ(place.url)
    mq.topic(place.topic, groups=(place.group,))

    @mq.consumer(place.topic, group=place.group, content_type="application/json")
    def handle(order: dict, ctx: Context) -> None:
        seen.append((order["id"], ctx.id, dict(ctx.headers)))

    mq.start()
    until(lambda: len(seen) >= 2, "the handler has them")
    until(lambda: not place.transport.lag(place.topic, place.group), "all are settled")
    letters = list(mq.dead_letters(place.topic, place.group))

    assert not mq.stop()
    assert [one[0] for one in seen] == [7, 9]
    assert seen[0][2]["trace"] == b"t1"
    assert seen[1][1] == "their-id"
    assert [one.reason for one in letters] == ["forged-header"]


# -- we write, they read -----------------------------------------------------------------------


def test_what_we_write_is_read_as_it_is(place, other):
    """Key, body, headers behind ours; the record's time is that of publishing, in milliseconds."""
    at = 1_700_000_000.5
    headers = (("t", "text"), ("a", b"1"), ("a", EVERY_BYTE))
    mine = Message("my-id", place.topic, f"k{SNOW}".encode(), EVERY_BYTE, headers, at)
    began = time.time() - 1.0
    place.send(mine, Message(id="gone", topic=place.topic, body=None, key=b"\xff", created_at=at))

    (key, body, found, when), (dead_key, nothing, _, _) = other.take(2)

    assert (key, body) == (f"k{SNOW}".encode(), EVERY_BYTE)
    assert (dead_key, nothing) == (b"\xff", None)
    assert began <= when / 1000 <= time.time() + 1.0
    assert dict(found)["rmq-id"] == b"my-id"
    assert float(dict(found)["rmq-created"]) == at
    theirs = [one for one in found if not one[0].startswith("rmq-")]
    assert theirs == [("t", b"text"), ("a", b"1"), ("a", EVERY_BYTE)]


def test_what_the_app_writes_is_plain_json(place, other):
    """Any program can read it."""
    mq = ReliableMQ(place.url)
    orders = mq.topic(place.topic, groups=(place.group,))
    orders.publish({"id": 7}, key="a", id="my-id", headers={"tenant": "t1"})
    assert not mq.stop()

    ((key, body, headers, _),) = other.take(1)

    assert (key, body) == (b"a", b'{"id":7}')
    assert dict(headers)[CONTENT_TYPE] == b"application/json"
    assert dict(headers)["rmq-id"] == b"my-id"
    assert dict(headers)["tenant"] == b"t1"


def test_a_bridge_of_theirs_gives_back_what_we_sent(place, other):
    """Taken and published again by them, every message is the one that it was."""
    sent = place.messages()
    place.send(*sent)
    assert sent == [one.message for one in place.receive(len(sent))]

    other.bridge(len(sent))

    assert sent == [one.message for one in place.receive(len(sent))]


# -- transactions ------------------------------------------------------------------------------


def transactions(broker, topic):
    """Two transactions of three: the first is committed, the second aborted; then once more."""
    identity = f"transactions-{secrets.token_hex(4)}"
    producer = confluent_kafka.Producer(
        {"bootstrap.servers": broker.bootstrap, "transactional.id": identity}
    )
    producer.init_transactions(30.0)
    for number in range(2):
        for name, end in (
            ("kept", producer.commit_transaction),
            ("not", producer.abort_transaction),
        ):
            producer.begin_transaction()
            for one in range(3):
                producer.produce(topic, b"%s %d" % (name.encode(), 3 * number + one))
            producer.flush(10.0)
            end(30.0)


KEPT = [b"kept %d" % number for number in range(6)]


def test_what_was_aborted_is_never_seen(kafka, place):
    """And what control records leave out holds up no commit: in the end there is no lag."""
    transactions(kafka, place.topic)

    assert [one.message.body for one in place.receive(6, stay=True)] == KEPT


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "all gone by retention"])
def test_a_group_goes_on_behind_transactions(kafka, place, kept):
    """All was done when it stopped; what comes then comes once, also where nothing else is left."""
    transactions(kafka, place.topic)
    assert [one.message.body for one in place.receive(6, stay=True)] == KEPT
    if not kept:
        forget(kafka, place.topic, end_of(kafka, place.topic))
    write(kafka, place.topic, b"after")

    assert place.bodies(1) == [b"after"]


def test_who_reads_uncommitted_sees_what_was_aborted(kafka, place, monkeypatch):
    """Control: isolation.level."""
    transactions(kafka, place.topic)
    configure_consumers(monkeypatch, isolation_level="read_uncommitted")
    assert len(place.bodies(12)) == 12


# -- where keys go -----------------------------------------------------------------------------


def murmur2(data: bytes) -> int:
    """The hash of Java's DefaultPartitioner (org.apache.kafka.common.utils.Utils), unsigned."""
    m, mask = 0x5BD1E995, 0xFFFFFFFF
    hashed = 0x9747B28C ^ len(data)
    whole = len(data) & ~3
    for at in range(0, whole, 4):
        k = int.from_bytes(data[at : at + 4], "little") * m & mask
        k = (k ^ (k >> 24)) * m & mask
        hashed = (hashed * m & mask) ^ k
    rest = data[whole:]
    if rest:
        hashed = (hashed ^ int.from_bytes(rest, "little")) * m & mask
    hashed = (hashed ^ (hashed >> 13)) * m & mask
    return hashed ^ (hashed >> 15)


#: From the tests of Kafka itself (UtilsTest.testMurmur2), there as signed numbers.
KNOWN = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-longer-string": -1486304829,
    b"abc": 479470107,
}


@pytest.mark.parametrize("partitioner", ["ours", "librdkafka's own"])
def test_keys_go_where_java_puts_them(kafka, partitioner):
    """murmur2, of which the sign is cut off, modulo partitions. Control: the default is another."""
    assert {key: murmur2(key) for key in KNOWN} == {key: one % 2**32 for key, one in KNOWN.items()}
    place = Place(kafka, partitions=7)
    keys = [*KNOWN, b"", EVERY_BYTE, b"\x00", *(b"customer-%d" % number for number in range(50))]
    if partitioner == "ours":
        receipts = place.send(*[Message(f"m{at}", place.topic, k) for at, k in enumerate(keys)])
        found = {key: one.partition for key, one in zip(keys, receipts, strict=True)}
    else:
        write(kafka, place.topic, *[{"key": key, "value": b""} for key in keys])
        found = {one.key(): one.partition() for one in read(kafka, place.topic, len(keys))}

    java = {key: (murmur2(key) & 0x7FFFFFFF) % 7 for key in keys}
    place.close()
    assert (found == java) is (partitioner == "ours")
