from __future__ import annotations

import pytest

from reliable_mq.testing.brokers import BrokerFailed, Missing, RunningRocketMQ
from reliable_mq.testing.brokers.rocketmq_route import UNKNOWN_TOPIC, _route, fields, write


def a_queue(host: str, port: int, kinds: int | bytes) -> bytes:
    """A queue of an answer, with fields that are not looked at."""
    address = write(1, host) + write(2, port)
    endpoints = write(1, 1) + write(2, address)
    broker = write(1, "broker-a") + write(3, endpoints)
    named = write(1, write(2, "orders")) + write(2, 3) + write(3, 3)
    return write(2, named + write(4, broker) + write(5, kinds))


@pytest.mark.parametrize("value", [0, 1, 127, 128, 300, 40402, 2**31, 2**63])
def test_numbers_of_any_size_come_back(value) -> None:
    """As protobuf writes them."""
    assert list(fields(write(1, value) + write(200, value))) == [(1, value), (200, value)]


def test_it_writes_what_protobuf_writes() -> None:
    """By the examples of its documentation."""
    assert write(1, 150) == bytes.fromhex("089601")
    assert write(2, "testing") == bytes.fromhex("120774657374696e67")
    assert write(3, write(1, 150)) == bytes.fromhex("1a03089601")


def test_a_route_names_the_address_and_the_kind_of_each_queue() -> None:
    """With the status before them; kinds are a list, packed or not."""
    ok = write(1, write(1, 20000) + write(2, "OK"))

    found = _route(ok + a_queue("127.0.0.1", 8081, b"\x02\x04") + a_queue("10.0.0.7", 28081, 1))

    assert found.known
    assert (found.code, found.message) == (20000, "OK")
    assert found.addresses == ("127.0.0.1:8081", "10.0.0.7:28081")
    assert found.kinds == (2, 1)


def test_a_route_that_there_is_not() -> None:
    """Its status says so; none at all is no way either."""
    missing = _route(write(1, write(1, UNKNOWN_TOPIC) + write(2, "no topic")))

    assert not missing.known
    assert missing.code == UNKNOWN_TOPIC
    assert not _route(b"").known


def test_a_field_of_another_kind_is_an_error() -> None:
    """It is not what this knows to read."""
    with pytest.raises(BrokerFailed, match="field 1 "):
        list(fields(b"\x0d\x00\x00\x00\x00"))


def test_a_running_one_is_not_ours_to_hurt() -> None:
    """And without its name server no topic can be made there."""
    broker = RunningRocketMQ("rocketmq://127.0.0.1:1")

    with pytest.raises(Missing, match="RELIABLE_MQ_ROCKETMQ_URL is not ours"):
        broker.kill()
    with pytest.raises(Missing, match="namesrv=host:9876"):
        broker.create_topic("orders")


@pytest.mark.parametrize(
    ("url", "proxy", "name_server"),
    [
        ("rocketmq://a?namesrv=n:9876", "a:8081", "n:9876"),
        ("rocketmq://key:secret@a:1,b:2?tls=no&namesrv=n:1,m:2", "a:1", "n:1"),
    ],
)
def test_a_url_says_where_its_parts_are(url, proxy, name_server) -> None:
    """The first one of each; the password stays where it is."""
    broker = RunningRocketMQ(url)

    assert (broker.proxy_address, broker.name_server) == (proxy, name_server)
    assert "secret" not in repr(broker)


def test_a_kind_that_there_is_not_is_refused_before_anything_is_asked() -> None:
    """It says which there are."""
    with pytest.raises(ValueError, match="'SORTED' is no kind of topic: there is NORMAL, FIFO"):
        RunningRocketMQ("rocketmq://127.0.0.1:1").create_topic("orders", "SORTED")
