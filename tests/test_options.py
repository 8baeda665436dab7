from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from reliable_mq import Batch, ConfigurationError, ReliableMQ, Retry, RetryPolicy, Routes
from reliable_mq.clock import SYSTEM_CLOCK
from reliable_mq.refusals import NOT_BUILT
from reliable_mq.settings import open_transport, read_settings, shown


def handler(_: bytes) -> None:
    """Do nothing."""


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ({"group": None}, "group= is missing"),
        ({"concurrency": 0}, "from 1 up"),
        ({"concurrency": True}, "from 1 up"),
        ({"dead_letter_limit": 0}, "from 1 up"),
        ({"max_stuck": -1}, "from 0 up"),
        ({"order_by": "keys"}, "'key', 'partition', 'none'"),
        ({"retry": 3}, "RetryPolicy"),
        ({"on_failure": "ignore"}, "'dead_letter' or 'block'"),
        ({"on_failure": "block", "order_by": "none"}, "needs an order"),
        ({"timeout": 0}, "above 0"),
        ({"start_from": "yesterday"}, "'earliest', 'latest'"),
        ({"start_from": datetime(2026, 11, 21)}, "time zone"),  # noqa: DTZ001 - that is it
        ({"batch": Batch(0)}, "from 1 up"),
        ({"concurrancy": 3}, "did you mean concurrency="),
        ({"nonsense": 3}, "no such option"),
    ],
)
def test_an_option_that_cannot_be_is_refused_where_it_is_written(
    options: dict[str, Any], remedy: str
) -> None:
    """At decoration, before any socket, with the remedy in the text."""
    with pytest.raises(ConfigurationError, match=remedy):
        Routes().consumer("orders", **{"group": "g", **options})


def test_a_consumer_of_nothing_is_refused() -> None:
    """It has to name a topic."""
    with pytest.raises(ConfigurationError, match="names no topic"):
        Routes().consumer(group="g")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"store": object()}, "store="),
        ({"inbox": object()}, "inbox="),
        ({"idempotency_key": str}, "idempotency_key="),
        ({"crash_limit": 3}, "crash_limit="),
        ({"broadcast": True}, "broadcast="),
        ({"filter": "a"}, "filter="),
        ({"native": {}}, "native="),
        ({"on_failure": "park"}, "park"),
    ],
)
def test_a_consumer_option_that_is_not_built_yet_is_refused_by_name(
    options: dict[str, Any], named: str
) -> None:
    """It is never ignored: the text says what it waits for."""
    with pytest.raises(ConfigurationError, match=named) as refused:
        Routes().consumer("orders", **{"group": "g", **options})
    assert "is not built yet: it comes with" in str(refused.value)


@pytest.mark.parametrize("option", ["store", "inbox", "filter", "idempotency_key", "native"])
def test_switching_off_what_is_not_built_is_no_error(option: str) -> None:
    """None is what there is."""
    Routes().consumer("orders", group="g", broadcast=False, **{option: None})


@pytest.mark.parametrize("option", ["store", "inbox", "outbox", "spool", "audit", "native"])
def test_an_app_option_that_is_not_built_yet_is_refused_by_name(option: str) -> None:
    """As for consumers."""
    with pytest.raises(ConfigurationError, match=f"{option}=.* is not built yet"):
        ReliableMQ("memory://", **{option: True})  # type: ignore[arg-type]


@pytest.mark.parametrize("option", ["delay", "deliver_at", "expires", "native"])
def test_a_publish_option_that_is_not_built_yet_is_refused_by_name(option: str) -> None:
    """As for consumers; an unknown one is a TypeError as of any function."""
    mq = ReliableMQ("memory://")
    with pytest.raises(ConfigurationError, match=option):
        mq.submit("orders", b"x", **{option: 1})  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=option):
        mq.publish("orders", b"x", **{option: 1})  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        mq.submit("orders", b"x", colour="red")  # type: ignore[call-arg]


def test_an_unknown_option_of_the_app_is_refused() -> None:
    """With the one that was meant."""
    with pytest.raises(ConfigurationError, match="did you mean publish_timeout="):
        ReliableMQ("memory://", publishtimeout=3)


def test_what_is_not_built_has_a_reason() -> None:
    """Each such name says what it comes with."""
    assert all(NOT_BUILT.values())


def test_a_topic_declared_twice_must_be_the_same() -> None:
    """Repeating a declaration is harmless, contradicting it is not."""
    mq = ReliableMQ("memory://")
    mq.topic("orders", groups=("a",))
    mq.topic("orders", groups=("a",))
    with pytest.raises(ConfigurationError, match="declared twice"):
        mq.topic("orders", ordered=False)


def test_constructing_and_decorating_touch_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """No environment is read and no file is made before the first use."""
    monkeypatch.delenv("RELIABLE_MQ_URL", raising=False)
    mq = ReliableMQ()
    mq.consumer("orders", group="g", retry=RetryPolicy(2))(handler)
    file = tmp_path / "later.db"
    monkeypatch.setenv("RELIABLE_MQ_URL", f"sqlite:///{file}")
    assert not file.exists()

    with mq:
        mq.publish("orders", b"x")

    assert file.exists()


def test_an_app_without_a_url_says_where_to_give_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a name the variable carries it."""
    monkeypatch.delenv("RELIABLE_MQ_LEGACY_URL", raising=False)
    with pytest.raises(ConfigurationError, match="RELIABLE_MQ_LEGACY_URL"):
        ReliableMQ(name="legacy").submit("orders", b"x")


def test_an_argument_beats_the_environment_and_that_beats_the_default() -> None:
    """For the URL, the topology and the timeout alike."""
    environ = {
        "RELIABLE_MQ_URL": "memory://env",
        "RELIABLE_MQ_TOPOLOGY": "check",
        "RELIABLE_MQ_PUBLISH_TIMEOUT": "3.5",
    }

    given = read_settings("memory://", "create", 2.0, name="", environ=environ)
    read = read_settings(None, None, None, name="", environ=environ)
    default = read_settings("memory://", None, None, name="", environ={})

    assert (given.url, given.topology, given.publish_timeout) == ("memory://", "create", 2.0)
    assert (read.url, read.topology, read.publish_timeout) == ("memory://env", "check", 3.5)
    assert (default.topology, default.publish_timeout) == ("create", 10.0)


@pytest.mark.parametrize(
    ("topology", "timeout", "text"),
    [("alter", "1", "topology"), ("check", "soon", "PUBLISH_TIMEOUT"), ("check", "0", "above 0")],
)
def test_a_setting_that_cannot_be_is_refused(topology: str, timeout: str, text: str) -> None:
    """The text names the variable or the argument."""
    environ = {"RELIABLE_MQ_PUBLISH_TIMEOUT": timeout}
    with pytest.raises(ConfigurationError, match=text):
        read_settings("memory://", topology, None, name="", environ=environ)


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("rocketmq://localhost", "RocketMQ is not built yet"),
        ("kafka://user:secret@host/?color=red", "unknown option 'color'"),
        ("kafka://user:secret@host/?acks=1", "all in-sync replicas"),
        ("amqp://user:secret@host/?color=red", "unknown option 'color'"),
        ("nats://localhost", "no adapter for nats://"),
        ("orders.db", "no adapter for this"),
        ("sqlite://host/file.db", "sqlite:///file.db"),
        ("sqlite:///", "sqlite:///file.db"),
        ("sqlite:///x.db?lease=3", "unknown option 'lease'"),
        ("sqlite:///x.db?max_body=big", "is no number"),
    ],
)
def test_a_url_that_means_nothing_is_refused_without_its_secrets(url: str, text: str) -> None:
    """The text names what there is; user and password stay out of it."""
    with pytest.raises(ConfigurationError, match=text) as refused:
        open_transport(url, clock=SYSTEM_CLOCK)
    assert "secret" not in str(refused.value)


def test_a_url_is_shown_without_what_is_secret() -> None:
    """User, password and options are left out."""
    assert shown("amqp://user:secret@host:5672/shop?password=x") == "amqp://***@host:5672/shop"


def test_the_options_of_a_url_reach_the_broker() -> None:
    """As capabilities that can be asked."""
    memory = open_transport("memory://?lease_timeout=2.5&max_body=100", clock=SYSTEM_CLOCK)

    assert (memory.capabilities.lease_timeout, memory.capabilities.max_body) == (2.5, 100)


@pytest.mark.parametrize("duration", [float("nan"), float("inf"), -1, "5", True, 1e12])
def test_what_is_no_duration_is_refused_wherever_one_is_taken(duration: Any) -> None:
    """None of them hangs or sleeps for ever: the text names the option."""
    mq = ReliableMQ("memory://")
    mq.topic("orders")
    with pytest.raises(ConfigurationError, match="timeout"):
        mq.publish("orders", b"x", timeout=duration)
    with pytest.raises(ConfigurationError, match="timeout"):
        mq.submit("orders", b"x", timeout=duration)
    with mq, pytest.raises(ConfigurationError, match="timeout"):
        mq.stop(duration)
    with pytest.raises(ConfigurationError, match="publish_timeout"):
        ReliableMQ("memory://", publish_timeout=duration)
    with pytest.raises(ConfigurationError, match="timeout"):
        Routes().consumer("orders", group="g", timeout=duration)
    with pytest.raises(ConfigurationError, match="after"):
        Retry(after=duration)
    with pytest.raises(ConfigurationError, match="wait"):
        Routes().consumer("orders", group="g", batch=Batch(1, wait=duration))
