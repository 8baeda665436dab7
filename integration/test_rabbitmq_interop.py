"""Other programs on the same queues: what they write is read, and what we write is read, unchanged.

Plain pika and aio-pika, each with an encoder of its own. A bridge of theirs, which takes our
messages and publishes them again, has to give us back what we sent.
"""

from __future__ import annotations

import asyncio
from datetime import datetime, timezone
from importlib.util import find_spec
from uuid import uuid4

import pika
import pytest

from integration.faults import need, until
from integration.rabbitmq_traffic import plain
from reliable_mq import Context, Message, ReliableMQ
from reliable_mq.adapters.base import GroupSpec, Subscribe, TopicSpec, Topology
from reliable_mq.adapters.rabbitmq import RabbitTransport
from reliable_mq.message import CONTENT_TYPE, Topic

EVERY_BYTE = bytes(range(256))
#: Headers as other programs have them, and as they come to us: text and bytes as they are.
HEADERS = {
    "text": ("plain", "plain"),
    "unicode": ("caf\N{LATIN SMALL LETTER E WITH ACUTE} \N{SNOWMAN}", None),
    "bytes": (EVERY_BYTE, EVERY_BYTE),
    "number": (42, "42"),
    "large": (2**40, str(2**40)),
    "negative": (-7, "-7"),
    "yes": (True, "True"),
    "nothing": (None, "None"),
    "list": ([1, "two"], "[1, 'two']"),
    "table": ({"a": 1}, "{'a': 1}"),
}
#: Ours, each with something that others could spoil.
OURS = (
    {"body": b""},
    {"body": EVERY_BYTE, "key": b"k"},
    {"body": None, "key": b"tombstone"},
    {"body": b"key that is no text", "key": b"\xff\x00"},
    {"body": b"empty key", "key": b""},
    {
        "body": b"{}",
        "headers": ((CONTENT_TYPE, "application/json"), ("a", "1"), ("b", b"\x00\xff")),
    },
    {"body": b"x", "headers": (("a", "1"), ("a", "2"), ("z", ""), ("b", ""))},
    {"body": b"x", "headers": (("snow", "\N{SNOWMAN}"), (CONTENT_TYPE, "text/plain"))},
    {"body": b"a long id", "id": "i" * 300},
    {"body": b"y" * 300_000},
)


class Place:
    """One topic with one group, and a program beside ours at both ends."""

    def __init__(self, broker):
        self.broker = broker
        self.topic = f"interop-{uuid4().hex[:8]}"
        self.queue = f"{self.topic}.g"
        self.transport = RabbitTransport(broker.url)
        self.transport.ensure(Topology((TopicSpec(self.topic, groups=(GroupSpec("g"),)),)))
        self.publisher = self.transport.publisher()

    def messages(self):
        """Ours, as they are sent."""
        return [
            Message(**{"id": f"m{number}", "topic": self.topic, "created_at": 1.25, **fields})
            for number, fields in enumerate(OURS)
        ]

    def send(self, messages):
        """Publish ours."""
        for confirmation in [self.publisher.submit(one, Topic()) for one in messages]:
            confirmation.result(10.0)

    def receive(self, count, *, ack=True):
        """Deliveries to ours."""
        asks = Subscribe(topics=(self.topic,), group="g", order="key")
        member = self.transport.subscribe(asks, lambda *_: None)
        found = []
        try:
            until(
                lambda: found.extend(member.poll(100, 0.05).deliveries) or len(found) >= count,
                f"{count} deliveries",
            )
            if ack:
                member.ack(found)
        finally:
            member.close()
        return found

    def close(self):
        """Leave nothing."""
        self.publisher.close(5.0)
        with plain(self.broker) as channel:
            channel.queue_delete(self.queue)
            channel.queue_delete(f"{self.queue}.dlq")
            channel.exchange_delete(self.topic)


@pytest.fixture
def place(rabbitmq):
    """A topic of one test."""
    place = Place(rabbitmq)
    yield place
    place.close()


class Pika:
    """A program on plain pika."""

    def __init__(self, place):
        self.place = place

    def publish(self, body, **properties):
        """Publish to the topic, with these properties."""
        with plain(self.place.broker) as channel:
            channel.confirm_delivery()
            channel.basic_publish(
                self.place.topic, "any", body, pika.BasicProperties(**properties), mandatory=True
            )

    def take(self, count):
        """Body and properties of so many, as dicts."""
        return [(body, self._known(properties)) for body, properties in self._take(count)]

    def bridge(self, count):
        """Take so many and publish them as they are."""
        for body, properties in self._take(count):
            self.publish(body, **vars(properties))

    def _take(self, count):
        found = []
        with plain(self.place.broker) as channel:
            for method, properties, body in channel.consume(self.place.queue, auto_ack=False):
                found.append((body, properties))
                channel.basic_ack(method.delivery_tag)
                if len(found) == count:
                    break
            channel.cancel()
        return found

    def _known(self, properties):
        names = ("content_type", "headers", "delivery_mode", "message_id", "timestamp")
        return {name: getattr(properties, name) for name in names}


class AioPika(Pika):
    """A program on aio-pika, which wants bytes in headers as `bytearray`."""

    def publish(self, body, headers=None, **properties):
        """See Pika."""
        properties["headers"] = {
            name: bytearray(value) if isinstance(value, bytes) else value
            for name, value in (headers or {}).items()
        }
        asyncio.run(self._publish([(body, properties)]))

    def bridge(self, count):
        """See Pika."""
        asyncio.run(self._publish(self._take(count)))

    def take(self, count):
        """See Pika."""
        found = self._take(count)
        for _, properties in found:
            moment = properties["timestamp"]
            properties["timestamp"] = None if moment is None else int(moment.timestamp())
        return found

    def _take(self, count):
        return asyncio.run(self._consume(count))

    async def _publish(self, messages):
        import aio_pika

        async with await aio_pika.connect(self.place.broker.url) as connection:
            channel = await connection.channel()
            exchange = await channel.get_exchange(self.place.topic)
            for body, properties in messages:
                await exchange.publish(aio_pika.Message(body, **properties), "any")

    async def _consume(self, count):
        import aio_pika

        found = []
        async with await aio_pika.connect(self.place.broker.url) as connection:
            channel = await connection.channel()
            queue = await channel.get_queue(self.place.queue)
            async with queue.iterator(timeout=10.0) as messages:
                async for one in messages:
                    found.append((one.body, self._of(one)))
                    await one.ack()
                    if len(found) == count:
                        break
        return found

    def _of(self, one):
        return {
            "content_type": one.content_type,
            "headers": dict(one.headers),
            "delivery_mode": int(one.delivery_mode),
            "message_id": one.message_id,
            "timestamp": one.timestamp,
        }


@pytest.fixture(params=[Pika, AioPika])
def other(request, place):
    """The program beside ours."""
    if request.param is AioPika:
        need(find_spec("aio_pika"), "aio-pika")
    return request.param(place)


# -- they write, we read -----------------------------------------------------------------------


def test_what_others_write_is_read_as_it_is(place, other):
    """Body, id, content type and time; headers in text and bytes as they are, all else as text."""
    other.publish(
        EVERY_BYTE,
        message_id="their-id",
        content_type="application/x-theirs",
        headers={name: sent for name, (sent, _) in HEADERS.items()},
        timestamp=1_700_000_000,
        delivery_mode=2,
        correlation_id="c",
        reply_to="r",
        priority=3,
        app_id="theirs",
        type="t",
    )

    (delivery,) = place.receive(1)

    message = delivery.message
    assert (message.id, delivery.weak_id) == ("their-id", False)
    assert (message.topic, message.key, message.body) == (place.topic, None, EVERY_BYTE)
    assert message.created_at == 1_700_000_000.0
    expected = {name: sent if came is None else came for name, (sent, came) in HEADERS.items()}
    assert {CONTENT_TYPE: "application/x-theirs", **expected} == dict(message.headers)


class Far(pika.BasicProperties):
    """A header says a time that no datetime holds, so pika fails over it."""

    def __init__(self):
        self.day = datetime(2026, 11, 21, tzinfo=timezone.utc)
        super().__init__(message_id="far", headers={"when": self.day})

    def encode(self):
        """As pika does, but for the time."""
        day = int(self.day.timestamp()).to_bytes(8, "big")
        return [b"".join(super().encode()).replace(day, (10**15).to_bytes(8, "big"))]


@pytest.mark.parametrize("size", [10, 300_000], ids=["one frame", "several frames"])
def test_properties_that_cannot_be_read_hold_nothing_up(place, size):
    """Such a message is its body, and what is behind it comes."""
    with plain(place.broker) as channel:
        channel.confirm_delivery()
        channel.basic_publish(place.topic, "any", b"x" * size, Far(), mandatory=True)
        channel.basic_publish(place.topic, "any", b"behind", mandatory=True)

    bodies = [one.message.body for one in place.receive(2)]

    assert bodies == [b"x" * size, b"behind"]


def test_a_message_without_an_id_gets_a_weak_one(place):
    """The same one each time it comes, another for another body; an empty body is no tombstone.

    aio-pika gives each an id by itself.
    """
    other = Pika(place)
    for body in (b"one", b"two", b""):
        other.publish(body, headers={"n": 1})

    first = place.receive(3, ack=False)
    again = place.receive(3)

    assert [one.message.body for one in first] == [b"one", b"two", b""]
    assert all(one.weak_id for one in first)
    assert len({one.message.id for one in first}) == 3
    assert [one.message.id for one in first] == [one.message.id for one in again]


def test_a_handler_gets_their_json(place, other):
    """By the content type that they gave; their id is its id."""
    other.publish(b'{"id": 7}', message_id="their-id", content_type="application/json")
    seen = []
    mq = ReliableMQ(place.broker.url)
    mq.topic(place.topic, groups=("g",))

    @mq.consumer(place.topic, group="g")
    def handle(order: dict, ctx: Context) -> None:
        seen.append((order, ctx.id, dict(ctx.headers)[CONTENT_TYPE]))

    mq.start()
    until(lambda: seen, "the handler has it")

    assert not mq.stop()
    assert seen == [({"id": 7}, "their-id", "application/json")]


# -- we write, they read -----------------------------------------------------------------------


def test_what_we_write_is_read_as_it_is(place, other):
    """Body, message_id, content_type, persistent; text headers as text, bytes as bytes."""
    mine = Message(
        id="my-id",
        topic=place.topic,
        key="k\N{SNOWMAN}".encode(),
        body=EVERY_BYTE,
        headers=((CONTENT_TYPE, "application/x-ours"), ("t", "text"), ("b", EVERY_BYTE)),
        created_at=1_700_000_000.5,
    )
    place.send([mine, Message(id="gone", topic=place.topic, body=None, key=b"\xff")])

    (body, properties), (nothing, of_nothing) = other.take(2)

    assert body == EVERY_BYTE
    headers = properties.pop("headers")
    assert properties == {
        "content_type": "application/x-ours",
        "delivery_mode": 2,
        "message_id": "my-id",
        "timestamp": 1_700_000_000,
    }
    assert (headers["t"], bytes(headers["b"])) == ("text", EVERY_BYTE)
    assert headers["rmq-key"] == "k\N{SNOWMAN}"
    assert float(headers["rmq-created"]) == 1_700_000_000.5
    assert (nothing, of_nothing["headers"]["rmq-tombstone"]) == (b"", "1")
    assert bytes(of_nothing["headers"]["rmq-key"]) == b"\xff"


def test_what_the_app_writes_is_plain_json(place, other):
    """Any program can read it."""
    mq = ReliableMQ(place.broker.url)
    orders = mq.topic(place.topic, groups=("g",))
    orders.publish({"id": 7}, key="a", id="my-id", headers={"tenant": "t1"})
    assert not mq.stop()

    ((body, properties),) = other.take(1)

    assert body == b'{"id":7}'
    assert properties["content_type"] == "application/json"
    assert properties["message_id"] == "my-id"
    assert properties["headers"]["tenant"] == "t1"


def test_a_bridge_of_theirs_gives_back_what_we_sent(place, other):
    """Taken and published again by them, every message is the one that it was."""
    sent = place.messages()
    place.send(sent)

    other.bridge(len(sent))

    assert sent == [one.message for one in place.receive(len(sent))]
