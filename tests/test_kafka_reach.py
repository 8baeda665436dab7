"""A client that librdkafka has stopped for ever without a word: it is told, and replaced."""

import json
import threading
import time
from types import SimpleNamespace

import pytest

from reliable_mq.adapters.kafka import KafkaTransport, config
from reliable_mq.adapters.kafka.reach import Reach, close
from reliable_mq.errors import ConnectionFailed
from reliable_mq.message import Receipt
from tests.kafka_mock import NEVER, Desk, Rig, ending
from tests.waiting import eventually

#: What a client said for a minute after its broker had been frozen for five seconds.
DEAD = {
    "127.0.0.1:9092/1": {"source": "learned", "state": "INIT", "connects": 3},
    "GroupCoordinator": {"source": "logical", "state": "TRY_CONNECT", "connects": 2},
}


def brokers(**changes):
    """The broker of DEAD, otherwise."""
    name, one = next(iter(DEAD.items()))
    return DEAD | {name: one | changes}


def said(reach, seconds, brokers):
    """What a client says of itself after so many seconds."""
    reach.said(json.dumps({"name": "rdkafka", "ts": int(seconds * 1e6), "brokers": brokers}))
    return reach.given_up


@pytest.mark.parametrize("dead", [DEAD, brokers(state="DOWN"), {}])
def test_a_client_that_attempts_nothing_has_given_up(dead):
    """Not at once: between two attempts it rests as well."""
    reach = Reach("kafka://host", patience=9.0)
    assert [said(reach, at, dead) for at in (100, 105, 110)] == [False, False, True]


@pytest.mark.parametrize(
    "alive",
    [
        brokers(state="UP"),
        brokers(state="CONNECT"),
        brokers(state="APIVERSION_QUERY"),
        brokers(connects=4),
        DEAD | {"GroupCoordinator": {"source": "logical", "state": "UP", "connects": 2}},
        DEAD | {"127.0.0.1:9092/bootstrap": {"source": "configured", "state": "INIT"}},
    ],
)
def test_a_client_that_attempts_something_has_not(alive):
    """And begins to count anew."""
    reach = Reach("kafka://host", patience=9.0)
    told = [said(reach, at, found) for at, found in ((100, DEAD), (105, alive), (110, DEAD))]
    assert told == [False, False, False]


def test_a_coordinator_without_an_address_attempts_nothing():
    """It counts attempts all the same."""
    reach = Reach("kafka://host", patience=9.0)
    coordinator = {"source": "logical", "state": "TRY_CONNECT"}
    told = [
        said(reach, at, DEAD | {"GroupCoordinator": coordinator | {"connects": at}})
        for at in (100, 105, 110)
    ]
    assert told == [False, False, True]


def test_a_client_that_has_nothing_to_do_may_rest():
    """Brokers close connections that nobody uses. From the first wish on it counts."""
    wishes = []
    reach = Reach("kafka://host", 9.0, lambda: bool(wishes))
    assert not any(said(reach, at, DEAD) for at in (100, 200))
    wishes.append("a message")
    assert [said(reach, at, DEAD) for at in (205, 210)] == [False, True]


@pytest.mark.parametrize("text", ["", "{}", '{"ts": "soon", "brokers": []}', '{"ts": 3}'])
def test_what_cannot_be_read_tells_nothing(text):
    """Another version may say it in another way."""
    reach = Reach("kafka://host", 9.0)
    assert not said(reach, 100, DEAD)
    reach.said(text)
    assert not reach.given_up


@pytest.mark.parametrize(
    ("query", "seconds"),
    [("", 9.0), ("?reconnect.backoff.max.ms=20000", 60.0), ("?reconnect.backoff.max.ms=soon", 9.0)],
)
def test_who_attempts_seldom_is_given_more_time(query, seconds):
    """The client waits for up to one and a half times what it is told."""
    assert KafkaTransport(f"kafka://host{query}")._config.patience == seconds


OFTEN = "statistics.interval.ms=50&reconnect.backoff.max.ms=100"


@pytest.fixture
def impatient(monkeypatch):
    """Half a second without an attempt is enough."""
    monkeypatch.setattr(config, "PATIENCE", 0.5)


@pytest.mark.slow
def test_a_member_of_a_broker_that_is_gone_keeps_its_client(impatient, monkeypatch):
    """It attempts to reach it, again and again."""
    told, said = [], Reach.said
    monkeypatch.setattr(Reach, "said", lambda reach, text: told.append(said(reach, text)))
    rig = Rig("t")
    try:
        rig.cluster.fill("t", 1)
        member = rig.join(options=f"{NEVER}&{OFTEN}")
        client = member._consumer
        rig.cluster.down()
        told.clear()
        with pytest.raises(ConnectionFailed):
            eventually(rig.turn, "an error")

        def for_two_seconds():
            try:
                rig.turn()
            except ConnectionFailed:
                return len(told) > 40
            return False

        eventually(for_two_seconds, "what it says of itself")
        assert member._consumer is client
    finally:
        rig.close()


@pytest.mark.slow
def test_another_client_of_a_member_goes_on(caplog):
    """What was committed is done, what was in hand comes again, late acks are forgotten."""
    rig = Rig("t")
    try:
        rig.cluster.fill("t", 4)
        member = rig.join(options=NEVER)
        begun, *rest = rig.take(member, 4)
        rig.settle(member, [begun])  # the first commit goes at once, the next never
        member.ack(rest[:1])
        client = member._consumer
        member._reach.given_up = True
        again = rig.take(member, 3)
        assert member._consumer is not client
        assert [one.position for one in again] == [1, 2, 3]
        assert {one.lease for one in rest} == set(member.lost)
        member.ack(rest)
        assert rig.committed() == 1
        rig.leave(member)  # it commits nothing of what is only late
        assert rig.committed() == 1
        assert "tries no broker any more" in caplog.text
    finally:
        rig.close()


@pytest.mark.slow
def test_what_a_client_says_that_was_given_up_takes_nothing_away():
    """Its end tells it that its partitions are lost, on a thread of its own, when it likes."""
    rig = Rig("t")
    try:
        rig.cluster.fill("t", 2)
        member = rig.join(options=NEVER)
        places, let_go = member._consumer.assignment(), []
        old = SimpleNamespace(incremental_unassign=let_go.append)  # the real one is closed soon
        member._reach.given_up = True
        again = rig.take(member, 2)
        for told in (member._taken, member._revoked):
            told(old, places)
        assert not any(one.lease.lost for one in again)
        assert member.standby is False
        assert rig.revoked == []
        assert let_go == [places, places]
    finally:
        rig.close()


class Endless:
    """A client whose end does not come."""

    def __init__(self):
        self.go_on = threading.Event()

    def close(self):
        """Wait for it."""
        self.go_on.wait(60.0)


def test_who_leaves_waits_only_so_long():
    """A client without a coordinator may wait for one for ever."""
    client = Endless()
    began = time.monotonic()
    close(client, 0.1)
    assert 0.1 <= time.monotonic() - began < 5.0
    client.go_on.set()


@pytest.mark.slow
def test_another_client_of_a_publisher_sends_what_is_open():
    """Which one that has given up would never send."""
    desk = Desk()
    try:
        publisher = desk.warm("?statistics.interval.ms=0")  # only what is said below
        client = publisher._producer
        desk.cluster.down()
        one = desk.submit(publisher, "1")
        assert [said(publisher._reach, at, DEAD) for at in (100, 110)] == [False, True]
        eventually(lambda: publisher._producer is not client, "another client")
        desk.cluster.up()
        assert isinstance(ending(one), Receipt)
        assert desk.stored() == ["0", "1"]
    finally:
        desk.close()
