"""What a rocketmq:// URL means, and who we are to the broker."""

import pytest

from reliable_mq.adapters.rocketmq.config import LARGEST, Options, parse
from reliable_mq.adapters.rocketmq.identity import Identity
from reliable_mq.adapters.rocketmq.names import (
    check_group,
    check_topic,
    dead_letters,
    delayed,
    place_of,
    retries,
)
from reliable_mq.errors import ConfigurationError, Unroutable
from reliable_mq.message import DeadLetter, Message, RetryCopy, Topic


@pytest.mark.parametrize(
    ("url", "proxies"),
    [
        ("rocketmq://host", (("host", 8081),)),
        ("rocketmq://host:1234/", (("host", 1234),)),
        ("rocketmq://one,two:7", (("one", 8081), ("two", 7))),
        ("rocketmq://[::1]:7", (("::1", 7),)),
    ],
)
def test_where(url, proxies):
    """One proxy or several, each with the usual port."""
    assert parse(url).proxies == proxies


def test_options():
    """Numbers have their units in the documentation."""
    config = parse("rocketmq://h?namesrv=a:1,b&lease_timeout=3&queues=2&namespace=shop")

    assert config.namesrv == (("a", 1), ("b", 9876))
    assert (config.options.lease_timeout, config.options.queues) == (3.0, 2)
    assert config.resource("t").resource_namespace == "shop"
    assert config.options.max_body == Options().max_body == LARGEST


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("rocketmq://h?color=red", "unknown option 'color'"),
        ("rocketmq://h?queues=many", "no number"),
        ("rocketmq://h?queues=0", "above 0"),
        ("rocketmq://h?max_body=99999999", "takes"),
        ("rocketmq://key@h", "access key and secret"),
        ("rocketmq://h:port", "no host and port"),
        ("rocketmq://h/namespace", "option `namespace`"),
        ("rocketmq://u:sec/ret@h", "percent encoding"),
        ("rocketmq://h?tls=maybe", "'yes' or 'no'"),
        ("rocketmq://h?tls=no&cafile=x", "leave one"),
        ("rocketmq://h?certfile=x", "belong together"),
        ("rocketmq://h?cafile=/no/such/file", "cannot be read"),
    ],
)
def test_what_is_refused(url, text):
    """The text says why, and has no secret."""
    with pytest.raises(ConfigurationError, match=text) as refused:
        parse(url)
    assert "sec" not in str(refused.value).replace("secret", "")


def test_no_text_has_the_secret():
    """Not of the configuration, nor of the credentials in it."""
    config = parse("rocketmq://key:hush%2Fhush@h")

    assert config.credentials.secret == "hush/hush"
    assert "hush" not in f"{config} {config!r} {config.credentials!r}"


def test_requests_are_signed():
    """With the time that they name, by the secret, which they do not name."""
    config = parse("rocketmq://key:hush@h?namespace=shop")
    headers = dict(Identity(config, None, lambda: 1_700_000_000.9).metadata())

    assert headers["x-mq-date-time"] == "20231114T221320Z"
    assert headers["x-mq-namespace"] == "shop"
    assert headers["authorization"].startswith(
        "MQv2-HMAC-SHA1 Credential=key, SignedHeaders=x-mq-date-time, Signature="
    )
    assert "hush" not in str(headers)
    assert "authorization" not in dict(
        Identity(parse("rocketmq://h"), None, lambda: 1.0).metadata()
    )


def test_each_request_has_an_id_of_its_own():
    """The signature is made once a second."""
    identity = Identity(parse("rocketmq://h"), "g", lambda: 5.0)

    assert len({dict(identity.metadata())["x-mq-request-id"] for _ in range(5)}) == 5


@pytest.mark.parametrize("name", ["a.b", "a%b", "a|b", "ä", "", "x" * 122])
def test_names_that_cannot_be(name):
    """Told at start, with what there is."""
    with pytest.raises(ConfigurationError, match="letters, digits"):
        check_topic(name)
    with pytest.raises(ConfigurationError, match="letters, digits"):
        check_group(name)


def test_places():
    """Each destination has a topic of its own."""
    message = Message("1", "orders")

    assert place_of(message, Topic(), later=False) == "orders"
    assert place_of(message, Topic(), later=True) == delayed("orders")
    assert place_of(message, RetryCopy("orders", "g"), later=True) == retries("orders", "g")
    assert place_of(message, DeadLetter("orders", "g"), later=False) == dead_letters("orders", "g")
    with pytest.raises(Unroutable):
        place_of(Message("1", "a.b"), Topic(), later=False)


def test_what_cannot_be_done_by_hand_is_shown():
    """Without a name server nothing can be made: the text has the line of mqadmin."""
    from reliable_mq.adapters.base import TopicSpec, Topology
    from reliable_mq.adapters.rocketmq import RocketTransport

    transport = RocketTransport("rocketmq://h")
    with pytest.raises(ConfigurationError, match=r"mqadmin updateTopic .*message.type=FIFO"):
        transport.ensure(Topology((TopicSpec("orders"),)))
    assert transport.capabilities.starts == frozenset()
    assert not transport.capabilities.retains
