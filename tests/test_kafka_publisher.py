"""Publishing to Kafka while it refuses, stumbles and goes away; and what a safety is good for."""

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from confluent_kafka import KafkaError

from reliable_mq import Backpressure, PublishRejected, PublishUnknown, ReliableMQ, TooLarge
from reliable_mq.adapters.base import Topology
from reliable_mq.adapters.kafka import KafkaTransport, admin
from reliable_mq.adapters.kafka import publisher as module
from reliable_mq.adapters.kafka.publisher import KafkaPublisher
from reliable_mq.errors import ConnectionFailed, Unroutable
from reliable_mq.message import Receipt
from tests.kafka_mock import CLOSE, WITHIN, Desk, ending

pytestmark = pytest.mark.slow  # much waiting: half a minute in all
SEQUENCE = KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER
FENCED = 90  # PRODUCER_FENCED, which confluent_kafka has no name for


@pytest.fixture
def desk():
    """One for a test."""
    desk = Desk()
    yield desk
    desk.close()


def test_what_is_stored_has_a_receipt(desk):
    """It says where, and the record says who."""
    publisher = desk.warm()
    assert ending(desk.submit(publisher, "m")) == Receipt("m", "t", 0, 1)
    record = desk.cluster.records("t")[1]
    assert (record.key(), record.value(), record.timestamp()[1] > 1e12) == (
        b"k",
        b"body of m",
        True,
    )
    assert dict(record.headers()) == {"rmq-id": b"m", "rmq-created": b"1.0"}


def test_a_missing_topic_is_not_made(desk):
    """It would have as many partitions, and copies, as nobody asked for."""
    outcome = ending(desk.submit(desk.warm(), "m", topic="nope"))
    assert isinstance(outcome, Unroutable)
    assert "declare it" in str(outcome)
    assert "nope" not in KafkaTransport(desk.cluster.url)._admin.topics()


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (KafkaError.MSG_SIZE_TOO_LARGE, TooLarge),
        (KafkaError.RECORD_LIST_TOO_LARGE, TooLarge),
        (KafkaError.INVALID_RECORD, PublishRejected),
        (KafkaError.POLICY_VIOLATION, PublishRejected),
        (KafkaError.INVALID_TIMESTAMP, PublishRejected),
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, PublishRejected),
    ],
)
def test_a_refusal_is_definite(desk, code, kind):
    """It is told at once, with the words of the broker, and nothing is stored."""
    publisher = desk.warm()
    desk.cluster.fail("Produce", code)
    outcome = ending(desk.submit(publisher, "m"))
    assert type(outcome) is kind
    assert KafkaError(code).str() in str(outcome)
    assert desk.stored() == ["0"]


def test_behind_a_refusal_the_others_go_on(desk):
    """One that the broker does not like stops nobody."""
    publisher = desk.warm()
    desk.cluster.fail("Produce", KafkaError.INVALID_RECORD)
    assert isinstance(ending(desk.submit(publisher, "bad")), PublishRejected)
    for id in "123":
        assert isinstance(ending(desk.submit(publisher, id)), Receipt)
    assert desk.stored() == list("0123")


@pytest.mark.parametrize(
    "code",
    [
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.NOT_ENOUGH_REPLICAS,
        KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError.KAFKA_STORAGE_ERROR,
        CLOSE,
    ],
)
def test_what_passes_is_sat_out(desk, code):
    """Once stored, one Receipt; also where the connection is closed instead of an answer."""
    publisher = desk.warm()
    desk.cluster.fail("Produce", code, times=2)
    for number in (1, 2, 3):
        assert ending(desk.submit(publisher, str(number))) == Receipt(str(number), "t", 0, number)
    assert desk.stored() == list("0123")


# ---- order, when librdkafka gives up


def in_order(desk, keys=3):
    """Everything confirmed is stored, with its id, and the last copies of a key are in order.

    Of the first ones nothing can be said here: the mock stores what is on its way behind a failure,
    and a broker refuses it for its sequence.
    """
    for id, confirmation in desk.sent.items():
        assert isinstance(ending(confirmation), Receipt), id
    stored = desk.stored()
    assert set(stored) == set(desk.sent), "lost, with a Receipt"
    for key in range(keys):
        copies = [int(id) for id in stored if int(id) % keys == key]
        last = list(dict.fromkeys(reversed(copies)))[::-1]
        assert last == sorted(last), "the last copies are out of order"


def traffic(desk, publisher, count=60, keys=3):
    """Some of a few keys, as fast as they are taken."""
    for number in range(1, count):
        desk.submit(publisher, str(number), key=b"%d" % (number % keys))


@pytest.mark.parametrize(
    "codes",
    [
        [SEQUENCE],
        [KafkaError.INVALID_PRODUCER_EPOCH, SEQUENCE],
        [FENCED],
        [KafkaError.UNKNOWN, 0, SEQUENCE, 0, 0, KafkaError.UNKNOWN],
        [KafkaError.NOT_ENOUGH_REPLICAS, SEQUENCE, KafkaError.NOT_LEADER_FOR_PARTITION],
        [CLOSE, SEQUENCE],
    ],
)
def test_what_is_open_goes_to_another_producer(desk, codes, monkeypatch):
    """In its order, with its ids; each ends with a Receipt."""
    monkeypatch.setattr(module, "PAUSE", 0.01)
    publisher = desk.warm("?batch.num.messages=5", one_by_one=True)
    desk.cluster.fail("Produce", 0, *codes)
    traffic(desk, publisher)
    in_order(desk)


def test_what_librdkafka_sends_out_of_order_by_itself(desk, monkeypatch):
    """It sends later ones first, and then takes the earlier ones for stored, without an offset.

    All from there on goes out again.
    """
    monkeypatch.setattr(module, "PAUSE", 0.01)
    publisher = desk.warm("?batch.num.messages=5", one_by_one=True)
    desk.cluster.fail("Produce", 0, KafkaError.UNKNOWN_PRODUCER_ID)
    traffic(desk, publisher)
    in_order(desk)


@pytest.mark.parametrize("code", [KafkaError.NOT_ENOUGH_REPLICAS, KafkaError.UNKNOWN])
def test_the_first_request_fails_and_those_behind_it_do_not(desk, code, monkeypatch):
    """A broker takes any sequence of a producer that it does not know: later ones are stored.

    librdkafka then takes the failed one for stored as well, without an offset. It goes out again,
    and all of its key that came behind it.
    """
    monkeypatch.setattr(module, "PAUSE", 0.01)
    publisher = desk.open("?batch.num.messages=1")
    desk.cluster.slow(0.05)  # so that all are on their way
    desk.cluster.fail("Produce", code)
    for id in "01234":
        desk.submit(publisher, id)
    for confirmation in desk.sent.values():
        assert isinstance(ending(confirmation), Receipt)
    desk.cluster.slow(0.0)
    in_order(desk, keys=1)


class Forgetful(KafkaPublisher):
    """What is open is not handed to the next producer."""

    def _rebuild(self):
        super()._rebuild()
        self._waiting.clear()


class Unsorted(KafkaPublisher):
    """It goes there, in another order."""

    def _rebuild(self):
        super()._rebuild()
        self._waiting.reverse()


class Hasty(KafkaPublisher):
    """What comes new does not wait for what is open."""

    def _rebuild(self):
        super()._rebuild()
        self._waiting.rotate(len(self._waiting) // 2)


@pytest.mark.parametrize("broken", [Forgetful, Unsorted, Hasty])
def test_a_publisher_without_a_safety_is_caught(desk, broken, monkeypatch):
    """These tests notice each safety that is removed."""
    monkeypatch.setattr(module, "PAUSE", 0.01)
    monkeypatch.setattr("reliable_mq.adapters.kafka.KafkaPublisher", broken)
    publisher = desk.warm("?batch.num.messages=5", one_by_one=True)
    desk.cluster.fail("Produce", 0, SEQUENCE)
    for number in range(1, 60):
        desk.submit(publisher, str(number), key=b"%d" % (number % 3), within=1.0)
    with pytest.raises(AssertionError):
        in_order(desk)


# ---- no answer, no room


def test_no_broker_until_the_deadline(desk):
    """What librdkafka has may be on its way; what waits for its topic certainly is not."""
    publisher = desk.warm()
    desk.cluster.down()
    began = time.monotonic()
    doubtful = desk.submit(publisher, "1", within=0.3)
    unsent = desk.submit(publisher, "2", topic="unknown", within=0.3)
    assert isinstance(ending(doubtful), PublishUnknown)
    assert isinstance(ending(unsent), Backpressure)
    assert 0.3 <= time.monotonic() - began <= 1.3
    assert "same id" in str(doubtful.outcome)


def test_it_goes_on_when_the_broker_is_back(desk):
    """What was in time is stored, in order, behind what has ended in doubt."""
    publisher = desk.warm()
    desk.cluster.down()
    late = desk.submit(publisher, "1", within=0.2)
    rest = [desk.submit(publisher, str(number)) for number in range(2, 6)]
    assert isinstance(ending(late), PublishUnknown)
    desk.cluster.up()
    assert all(isinstance(ending(one), Receipt) for one in rest)
    assert [id for id in desk.stored() if id != "1"] == ["0", "2", "3", "4", "5"]


def test_full_is_told_at_once(desk):
    """Submit does not wait, and what is refused was not sent."""
    publisher = desk.warm("?queue.buffering.max.messages=10")
    desk.cluster.down()
    for number in range(1, 31):
        desk.submit(publisher, str(number))
    refused = [id for id, one in desk.sent.items() if one.done() and id != "0"]
    assert refused == [str(number) for number in range(11, 31)]
    assert {type(desk.sent[id].outcome) for id in refused} == {Backpressure}
    desk.cluster.up()
    kept = [desk.sent[str(number)] for number in range(1, 11)]
    assert all(isinstance(ending(one), Receipt) for one in kept)
    assert desk.stored() == [str(number) for number in range(11)]


def test_publish_waits_for_room(desk, monkeypatch):
    """Until its deadline; when the broker is back in time, it is stored."""
    monkeypatch.setattr(KafkaTransport, "ensure", lambda *_: None)  # the cluster has no settings
    mq = ReliableMQ(desk.cluster.url + "?queue.buffering.max.messages=10", topology="check")
    topic = mq.topic("t")
    with mq:
        mq.publish(topic, {"n": 0}, key="k", timeout=WITHIN)
        desk.cluster.down()
        waiting = [mq.submit(topic, {"n": n}, key="k", timeout=WITHIN) for n in range(10)]
        began = time.monotonic()
        with pytest.raises(Backpressure):
            mq.publish(topic, {"n": 11}, key="k", timeout=0.4)
        assert 0.35 <= time.monotonic() - began <= 1.4
        desk.cluster.up()
        mq.publish(topic, {"n": 12}, key="k", timeout=WITHIN)
        assert all(isinstance(ending(one), Receipt) for one in waiting)
    assert len(desk.cluster.records("t")) == 12


def test_close_is_bounded_and_returns_the_rest(desk):
    """The broker is gone: what is not confirmed comes back, and each has ended."""
    publisher = desk.warm()
    desk.cluster.down()
    for id in "123":
        desk.submit(publisher, id)
    began = time.monotonic()
    assert [one.id for one in publisher.close(0.3)] == list("123")
    assert 0.3 <= time.monotonic() - began < 2.5
    assert {type(desk.sent[id].outcome) for id in "123"} == {PublishUnknown}
    assert publisher.close(1.0) == []
    assert isinstance(desk.submit(publisher, "4").outcome, Backpressure)


def test_close_waits_for_what_is_on_its_way(desk):
    """In time, all are confirmed, and nothing comes back."""
    publisher = desk.warm()
    desk.cluster.slow(0.1)
    for id in "123":
        desk.submit(publisher, id)
    assert publisher.close(WITHIN) == []
    assert all(isinstance(one.outcome, Receipt) for one in desk.sent.values())


def test_an_unknown_option_of_librdkafka_is_a_configuration_error(desk):
    """Nothing of confluent_kafka leaves."""
    publisher = desk.open("?no.such.option=1")
    with pytest.raises(ValueError, match=r"no\.such\.option"):
        desk.submit(publisher, "m")


FORKED = """
import os, sys, time
from reliable_mq.adapters.base import Topology
from reliable_mq.adapters.kafka import KafkaTransport, admin
from reliable_mq.errors import TransportError
from reliable_mq.message import Message, Topic
publisher = KafkaTransport(sys.argv[1]).publisher()
submit = lambda: publisher.submit(Message("m", "t"), Topic(), deadline=time.monotonic() + 8)
submit().result(10)
child = os.fork()
if child:
    os.waitpid(child, 0)
    print(submit().result(10).position, publisher.close(1))
else:
    try:
        submit()
    except TransportError as error:
        print(error, flush=True)
    os._exit(0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_is_told(desk):
    """Its publisher has no thread; that of the parent goes on."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED, desk.cluster.url],
        capture_output=True,
        text=True,
        timeout=30,
        cwd=Path(__file__).parents[1],
        check=True,
    )
    told, went_on = done.stdout.splitlines()
    assert "made before a fork: make a new one" in told
    assert went_on == "1 []"


def test_no_password_is_shown(desk, caplog, monkeypatch):
    """Not in texts, not in errors, not in the log."""
    monkeypatch.setattr(admin, "ASKING", 0.2)
    caplog.set_level(logging.DEBUG)
    desk.cluster.down()
    url = desk.cluster.url.replace("://", "://user:s3cr3t@") + "?sasl.mechanism=PLAIN"
    transport = KafkaTransport(url + "&security.protocol=SASL_PLAINTEXT&ssl.key.password=s3cr3t")
    publisher = transport.publisher()
    desk.publishers.append(publisher)
    outcome = ending(desk.submit(publisher, "m", within=0.2))
    with pytest.raises(ConnectionFailed) as error:
        transport.ensure(Topology())
    shown = [outcome, error.value, transport, transport._config, publisher, caplog.text]
    assert "s3cr3t" not in "".join(f"{one} {one!r}" for one in shown)
