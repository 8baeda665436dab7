from __future__ import annotations

from pathlib import Path

import pytest

from reliable_mq import ReliableMQ
from reliable_mq.testing.plugin import real_broker

pytest_plugins = ["pytester"]


def test_the_memory_fixture_puts_an_app_into_memory(reliable_mq_memory) -> None:
    """As `with inmemory(mq)`, until the test ends."""
    mq = ReliableMQ("sqlite:///never-made.db")
    got: list[str] = []

    @mq.consumer("orders", group="g")
    def handle(body: str) -> None:
        got.append(body)

    t = reliable_mq_memory(mq)
    t.publish("orders", "x")
    t.run_until_idle()

    assert got == ["x"]


def test_the_broker_fixture_gives_a_real_broker(reliable_mq_broker) -> None:
    """By default SQLite in a file of the test, with names of its own."""
    orders = reliable_mq_broker.name("orders")
    mq = ReliableMQ(reliable_mq_broker.url)
    mq.topic(orders)
    with mq:
        assert mq.publish(orders, b"x").topic == orders
    assert reliable_mq_broker.name("orders") != orders


def test_a_broker_can_be_named_or_given_by_its_url(tmp_path: Path) -> None:
    """Anything else is an error that says what there is, not a skip."""
    assert real_broker("sqlite", tmp_path, "t").url.startswith(f"sqlite:///{tmp_path}")
    assert real_broker("memory://", tmp_path, "t").url == "memory://"
    with pytest.raises(pytest.UsageError, match="not built yet"):
        real_broker("kafka", tmp_path, "t")
    with pytest.raises(pytest.UsageError, match="sqlite, or a URL"):
        real_broker("nonsense", tmp_path, "t")


def test_the_option_chooses_the_broker(pytester: pytest.Pytester) -> None:
    """--reliable-mq reaches the fixture."""
    pytester.makepyfile(
        """
        def test_it(reliable_mq_broker):
            assert reliable_mq_broker.url == "memory://chosen"
        """
    )
    pytester.runpytest_inprocess("--reliable-mq=memory://chosen").assert_outcomes(passed=1)
