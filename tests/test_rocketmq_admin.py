"""Administration over RocketMQ's older protocol, against a server that is scripted."""

import json
import socket
import struct
import threading
from contextlib import contextmanager

import pytest

from reliable_mq.adapters.base import GroupSpec, TopicSpec, Topology
from reliable_mq.adapters.rocketmq import RocketTransport
from reliable_mq.adapters.rocketmq.admin import Admin
from reliable_mq.adapters.rocketmq.codec import from_wire
from reliable_mq.adapters.rocketmq.config import parse
from reliable_mq.adapters.rocketmq.records import LONG_TOPIC, decoded
from reliable_mq.adapters.rocketmq.remoting import LARGEST, Peer, Refused, parsed
from reliable_mq.errors import ConfigurationError, ConnectionFailed, TransportError


def framed(header, body=b""):
    """One message of the protocol."""
    text = json.dumps(header).encode()
    return struct.pack(">ii", 4 + len(text) + len(body), len(text)) + text + body


@contextmanager
def serving(answer):
    """A server that gives each request to `answer(code, fields, body)`: bytes, or (code, …)."""
    listening = socket.create_server(("127.0.0.1", 0))
    ended = threading.Event()

    def serve():
        while not ended.is_set():
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as stream:
                while head := stream.read(8):
                    size, length = struct.unpack(">ii", head)
                    header = json.loads(stream.read(length))
                    body = stream.read(size - 4 - length)
                    said = answer(header["code"], header["extFields"], body)
                    if said is None:
                        break
                    if isinstance(said, bytes):
                        connection.sendall(said)
                        continue
                    code, fields, content = said
                    reply = {"code": code, "opaque": header["opaque"], "extFields": fields}
                    connection.sendall(framed(reply, content))

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listening.getsockname()
    finally:
        ended.set()
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join(5.0)


def test_one_request():
    """The fields of an answer and its body; true is written as Java reads it."""
    asked = []

    def answer(code, fields, body):
        asked.append((code, fields, body))
        return 0, {"offset": "7"}, b"content"

    with serving(answer) as address, Peer(address, 5.0) as peer:
        found = peer.ask(14, {"topic": "t", "queueId": 3, "setZeroIfNotFound": False}, b"asked")

    assert asked == [(14, {"topic": "t", "queueId": "3", "setZeroIfNotFound": "false"}, b"asked")]
    assert (found.fields, found.body) == ({"offset": "7"}, b"content")


def test_a_refusal_has_its_code():
    """And few of the broker's words: some of them have a stack."""
    with (
        serving(lambda *_: (17, {}, b"")) as address,
        Peer(address, 5.0) as peer,
        pytest.raises(Refused) as refused,
    ):
        peer.ask(351)
    assert refused.value.code == 17


@pytest.mark.parametrize(
    "said",
    [
        None,
        struct.pack(">i", 2),
        struct.pack(">i", LARGEST + 1),
        struct.pack(">ii", 9, 5) + b"{nono",
    ],
)
def test_what_is_no_answer_is_a_connection_that_failed(said):
    """Closed, too short, too long, no JSON."""
    with (
        serving(lambda *_: said) as address,
        Peer(address, 5.0) as peer,
        pytest.raises(ConnectionFailed, match="request 351"),
    ):
        peer.ask(351)


def test_nobody_there():
    """The text names the address."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = listening.getsockname()
    with pytest.raises(ConnectionFailed, match=str(address[1])):
        Peer(address, 1.0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a":{0:"x",12 : "y"}}', {"a": {"0": "x", "12": "y"}}),
        ('{"a": "{1:2}"}', {"a": "{1:2}"}),
    ],
)
def test_their_json_may_have_numbers_as_keys(text, expected):
    """Only where it is no JSON as it is."""
    assert parsed(text.encode()) == expected


class Cluster:
    """A name server and a broker in one, with topics, groups and positions."""

    def __init__(self):
        self.topics = {}
        self.groups = {}
        self.offsets = {}
        self.address = ""

    def __call__(self, code, fields, body):
        """The answer to one request."""
        return ANSWERS[code](self, fields, fields.get("topic") or fields.get("group"), body)

    def brokers(self, _fields, _name, _body):
        """Its own address; replicas are none of ours."""
        found = '{"brokerAddrTable":{"b":{"brokerAddrs":{0:"HERE",1:"replica:1"}}}}'
        return 0, {}, found.replace("HERE", self.address).encode()

    def topic(self, _fields, name, _body):
        """What it is like."""
        if name not in self.topics:
            return 17, {}, b""
        kind, queues = self.topics[name]
        found = {"writeQueueNums": queues, "readQueueNums": queues}
        return 0, {}, json.dumps(found | {"attributes": {"message.type": kind}}).encode()

    def all_groups(self, _fields, _name, _body):
        """What they are like."""
        table = {
            name: {"consumeMessageOrderly": fifo, "retryMaxTimes": 1_000}
            for name, fifo in self.groups.items()
        }
        return 0, {}, json.dumps({"subscriptionGroupTable": table}).encode()

    def make_topic(self, fields, name, _body):
        """With a type."""
        kind = fields["attributes"].removeprefix("+message.type=")
        self.topics[name] = (kind, int(fields["writeQueueNums"]))
        return 0, {}, b""

    def make_group(self, _fields, _name, body):
        """Keeping order or not."""
        group = json.loads(body)
        self.groups[group["groupName"]] = group["consumeMessageOrderly"]
        return 0, {}, b""

    def position(self, fields, name, _body):
        """Of a group in a queue."""
        offset = self.offsets.get((fields["consumerGroup"], name, fields["queueId"]))
        return (22, {}, b"") if offset is None else (0, {"offset": str(offset)}, b"")

    def move(self, fields, name, _body):
        """Set it."""
        place = (fields["consumerGroup"], name, fields["queueId"])
        self.offsets[place] = int(fields["commitOffset"])
        return 0, {}, b""


ANSWERS = {
    106: Cluster.brokers,
    351: Cluster.topic,
    201: Cluster.all_groups,
    17: Cluster.make_topic,
    200: Cluster.make_group,
    14: Cluster.position,
    15: Cluster.move,
    29: lambda *_: (0, {"offset": "50"}, b""),
    30: lambda *_: (0, {"offset": "100"}, b""),
    31: lambda *_: (0, {"offset": "10"}, b""),
}


@pytest.fixture
def cluster():
    """One, and a transport that knows it as its name server; there is no proxy."""
    cluster = Cluster()
    with serving(cluster) as (host, port):
        cluster.address = f"{host}:{port}"
        transport = RocketTransport(f"rocketmq://127.0.0.1:1?namesrv={host}:{port}&queues=2")
        cluster.transport = transport
        cluster.admin = Admin(parse(f"rocketmq://127.0.0.1:1?namesrv={host}:{port}"))
        yield cluster


def declared(*topics, mode="create"):
    """What an app declares."""
    return Topology(topics, mode)


def ensure(cluster, topology):
    """All but the question of whether the proxy knows it."""
    return cluster.transport._topics.ensure(topology)


ORDERS = TopicSpec("orders", groups=(GroupSpec("billing"),))


def test_an_ordered_topic_and_what_belongs_to_it(cluster):
    """FIFO, with delays, retries and dead letters; the group keeps order, a second one does not."""
    ensure(cluster, declared(ORDERS))

    assert cluster.topics == {
        "orders": ("FIFO", 2),
        "orders%delay": ("DELAY", 4),
        "orders%billing%retry": ("DELAY", 4),
        "orders%billing%dlq": ("NORMAL", 1),
    }
    assert cluster.groups == {"billing": True, "billing%free": False}


def test_a_topic_without_order(cluster):
    """NORMAL; one group reads all of it."""
    ensure(cluster, declared(TopicSpec("logs", ordered=False, groups=(GroupSpec("g"),))))

    assert cluster.topics["logs"] == ("NORMAL", 2)
    assert cluster.groups == {"g": False}


def test_a_topic_of_another_type_is_refused(cluster):
    """At start, with the type that it has."""
    cluster.topics["orders"] = ("NORMAL", 4)

    for mode in ("create", "check"):
        with pytest.raises(ConfigurationError, match="type=NORMAL, not FIFO"):
            ensure(cluster, declared(ORDERS, mode=mode))
    assert list(cluster.topics) == ["orders"]


def test_a_group_that_keeps_no_order_is_refused(cluster):
    """For an ordered topic; it is not altered."""
    cluster.groups["billing"] = False

    with pytest.raises(ConfigurationError, match="'billing' does not keep order"):
        ensure(cluster, declared(ORDERS))
    assert cluster.groups == {"billing": False}


def test_check_names_all_that_is_missing(cluster):
    """And makes nothing."""
    with pytest.raises(ConfigurationError) as refused:
        ensure(cluster, declared(ORDERS, mode="check"))

    text = str(refused.value)
    for name in ("'orders'", "'orders%billing%dlq'", "'billing'", "'billing%free'"):
        assert f"{name} is missing" in text
    assert cluster.topics == {}


@pytest.mark.parametrize(
    ("start", "expected"), [("earliest", 10), ("latest", 100), (1_700_000_000.0, 50)]
)
def test_a_declared_start_is_a_position(cluster, start, expected):
    """In each queue; what is there already stays."""
    cluster.offsets["billing", "orders", "1"] = 77

    ensure(cluster, declared(TopicSpec("orders", groups=(GroupSpec("billing", start),))))

    assert cluster.offsets["billing", "orders", "0"] == expected
    assert cluster.offsets["billing", "orders", "1"] == 77
    assert cluster.offsets["billing%free", "orders%billing%retry", "0"] == 10


def test_lag(cluster):
    """What is behind the position; without one, all there is."""
    ensure(cluster, declared(ORDERS))
    cluster.offsets["billing", "orders", "0"] = 95

    assert cluster.admin.lag("orders", "billing") == 5 + 90


def record(offset, body, properties, *, topic=b"dlq", long_topic=False, flags=0):
    """As the broker has it in its log."""
    text = "\x02".join(f"{name}\x01{value}" for name, value in properties.items()).encode()
    address = bytes(20 if flags & 16 else 8)
    length = struct.pack(">h" if long_topic else ">B", len(topic))
    rest = (
        address
        + struct.pack(">q", 0)
        + bytes(20 if flags & 32 else 8)
        + struct.pack(">iqi", 2, 0, len(body))
        + body
        + length
        + topic
        + struct.pack(">h", len(text))
        + text
    )
    magic = LONG_TOPIC if long_topic else -626843481
    size = 48 + len(rest)
    return struct.pack(">iiiiiqqiq", size, magic, 0, 3, 0, offset, 999, flags, 5_250) + rest


def test_records_of_the_log():
    """Their properties become fields of the newer protocol."""
    first = {"UNIQ_KEY": "id-1", "KEYS": "a b", "TAGS": "red", "__SHARDINGKEY": "k", "x": "y"}
    data = record(7, b"one", first) + record(8, b"two", {"UNIQ_KEY": "id-2"}, long_topic=True)
    data += record(9, b"six", {"UNIQ_KEY": "id-3"}, flags=16 | 32)

    found = list(decoded(data))

    assert [(one.queue, one.offset) for one in found] == [(3, 7), (3, 8), (3, 9)]
    message = from_wire("orders", found[0].wire)
    assert (message.id, message.key, message.body, message.created_at) == (
        "id-1",
        b"k",
        b"one",
        5.25,
    )
    assert message.headers == (("TAGS", "red"), ("KEYS", "a b"), ("x", "y"))
    assert [from_wire("t", one.wire).body for one in found[1:]] == [b"two", b"six"]


def test_a_record_that_is_cut_off():
    """Is no silence."""
    with pytest.raises(TransportError, match="cannot be read"):
        list(decoded(record(7, b"one", {})[:40]))
