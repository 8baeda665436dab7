"""What a kafka:// URL means, what it may not say, and the profile that comes of it."""

import confluent_kafka
import pytest

from reliable_mq.adapters.kafka.config import REFUSED, Options, parse
from reliable_mq.errors import ConfigurationError


def servers(url):
    """Where it connects to."""
    return parse(url).admin()["bootstrap.servers"]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("kafka://host", "host:9092"),
        ("kafka://host:1234", "host:1234"),
        ("kafka://one,two:7,three", "one:9092,two:7,three:9092"),
        ("kafka://user:word@one,two", "one:9092,two:9092"),
        ("kafka://[::1]:7", "[::1]:7"),
        ("kafka://[::1]", "[::1]:9092"),
        ("kafka://host/", "host:9092"),
    ],
)
def test_where(url, expected):
    """One host or several, each with the usual port."""
    assert servers(url) == expected


@pytest.mark.parametrize(
    "url", ["kafka://", "kafka://one,,two", "kafka://host/topic", "kafka://u@"]
)
def test_a_url_that_says_nothing_or_more_is_refused(url):
    """A path is none of ours, and a host that is missing would be found out much later."""
    with pytest.raises(ConfigurationError, match="kafka://"):
        parse(url)


def test_credentials_are_decoded():
    """What a URL cannot hold is written as %XX."""
    native = parse("kafka://us%40er:p%3Aass%2Fword@host").admin()
    assert (native["sasl.username"], native["sasl.password"]) == ("us@er", "p:ass/word")


def test_a_password_with_a_slash_is_not_shown():
    """It should have been %2F: the error says so, without the rest."""
    with pytest.raises(ConfigurationError) as error:
        parse("kafka://user:sec/ret@host")
    assert "sec" not in str(error.value)
    assert "ret" not in str(error.value)


@pytest.mark.parametrize("make", ["admin", "producer"])
def test_what_has_a_dot_is_librdkafkas(make):
    """It is passed through."""
    config = parse("kafka://host?security.protocol=SASL_SSL&sasl.mechanism=SCRAM-SHA-512")
    native = getattr(config, make)()
    assert native["security.protocol"] == "SASL_SSL"
    assert native["sasl.mechanism"] == "SCRAM-SHA-512"


@pytest.mark.parametrize(
    ("option", "make"),
    [
        ("linger.ms=5", "producer"),
        ("compression.type=lz4", "producer"),
        ("batch.num.messages=7", "producer"),
        ("queue.buffering.max.messages=8", "producer"),
        ("topic.metadata.refresh.interval.ms=60000", "producer"),
        ("fetch.wait.max.ms=500", "consumer"),
        ("queued.max.messages.kbytes=1024", "consumer"),
        ("fetch.min.bytes=9", "consumer"),
    ],
)
def test_what_is_said_counts(option, make):
    """What we would choose gives way to what the URL says, where no promise depends on it."""
    config = parse(f"kafka://host?{option}")
    native = config.producer() if make == "producer" else config.consumer("g")
    name, value = option.split("=")
    assert str(native[name]) == value


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_breaks_a_promise_is_refused(name):
    """With the reason, or what to say instead."""
    with pytest.raises(ConfigurationError) as error:
        parse(f"kafka://user:word@host?{name}=1")
    assert name in str(error.value)
    assert REFUSED[name] in str(error.value)
    assert "word" not in str(error.value).replace(REFUSED[name], "")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("metadata.broker.list", "another name of bootstrap.servers"),
        ("message.send.max.retries", "after the last one, what follows goes on without it"),
        ("delivery.report.only.error", "no Receipt would ever come"),
        ("transactional.id", "nothing is sent before init_transactions"),
    ],
)
def test_what_breaks_one_under_another_name_is_refused_too(name, why):
    """Each of these loses, blocks or reorders."""
    with pytest.raises(ConfigurationError):
        parse(f"kafka://host?{name}=1")


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("lease_timeout=soon", "'lease_timeout' is no number: 'soon'"),
        ("partitions=0", "'partitions' has to be above 0"),
        ("commit_interval=-1", "'commit_interval' has to be above 0"),
        ("drain_timeout=nan", "'drain_timeout' has to be above 0"),
        ("on_out_of_range=never", "it is one of error, earliest, latest"),
        ("group_protocol=new", "it is one of classic, consumer"),
        ("assignment=sticky", "it is one of cooperative-sticky, range, roundrobin"),
        ("lease_timeout=30&session_timeout=40", "has to be at least session_timeout"),
        ("retries=3", "unknown option 'retries'; there are assignment,"),
    ],
)
def test_a_wrong_value_is_refused(query, says):
    """With what would be right; the text has no credentials."""
    with pytest.raises(ConfigurationError) as error:
        parse(f"kafka://user:word@host?{query}")
    assert says in str(error.value)
    assert str(error.value).startswith("kafka://***@host: ")


def test_our_options():
    """Seconds and bytes."""
    url = "kafka://host?lease_timeout=60&session_timeout=6.5&max_body=1000&assignment=range"
    expected = Options(lease_timeout=60.0, session_timeout=6.5, max_body=1000, assignment="range")
    assert parse(url).options == expected


def test_text_has_no_secret():
    """Neither str nor repr."""
    config = parse("kafka://user:word@host?ssl.key.password=word&sasl.oauthbearer.config=word")
    assert str(config) == repr(config) == "kafka://***@host"


def test_the_profile_of_a_producer():
    """Idempotent, confirmed by all replicas, keys where Java puts them, no gap, no new topics."""
    native = parse("kafka://host?max_body=1000").producer()
    assert native["enable.idempotence"] is True
    assert native["acks"] == "all"
    assert native["partitioner"] == "murmur2_random"
    assert native["message.timeout.ms"] == 0
    assert native["allow.auto.create.topics"] is False
    assert native["message.max.bytes"] > 1000


def test_the_profile_of_a_consumer():
    """Nothing automatic: no commit, no offset, no reset, no topic; and checksums."""
    native = parse("kafka://host?lease_timeout=60&session_timeout=6").consumer("g")
    assert native["group.id"] == "g"
    assert native["enable.auto.commit"] is False
    assert native["enable.auto.offset.store"] is False
    assert native["auto.offset.reset"] == "error"
    assert native["allow.auto.create.topics"] is False
    assert native["check.crcs"] is True
    assert native["partition.assignment.strategy"] == "cooperative-sticky"
    assert native["isolation.level"] == "read_committed"
    assert native["session.timeout.ms"] == 6_000
    assert 55_000 < native["max.poll.interval.ms"] < 60_000


def test_the_next_protocol_has_no_classic_settings():
    """With KIP-848, librdkafka refuses them."""
    native = parse("kafka://host?group_protocol=consumer").consumer("g")
    assert native["group.protocol"] == "consumer"
    classic = {"session.timeout.ms", "heartbeat.interval.ms", "partition.assignment.strategy"}
    assert not classic & set(native)


@pytest.mark.parametrize(
    "query", ["", "?group_protocol=consumer", "?lease_timeout=46", "?max_body=1"]
)
def test_librdkafka_takes_each_profile(query):
    """Names, values, and what it checks between them."""
    config = parse(f"kafka://127.0.0.1:1{query}")
    quiet = {"log_level": 0}
    confluent_kafka.Producer(config.producer() | quiet).purge()
    confluent_kafka.Consumer(config.consumer("g") | quiet).close()
