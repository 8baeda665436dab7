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
    mq.topic(orders, groups=("billing",))
    with mq:
        assert mq.publish(orders, b"x").topic == orders
    assert reliable_mq_broker.name("orders") != orders


def test_a_broker_can_be_named_or_given_by_its_url(tmp_path: Path) -> None:
    """Anything else is an error that says what there is, not a skip."""
    assert real_broker("sqlite", tmp_path, "t").url.startswith(f"sqlite:///{tmp_path}")
    assert real_broker("memory://", tmp_path, "t").url == "memory://"
    with pytest.raises(pytest.UsageError, match="not built yet"):
        real_broker("rocketmq", tmp_path, "t")
    with pytest.raises(pytest.UsageError, match="sqlite, rabbitmq, kafka, or a URL"):
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


def test_rabbitmq_is_found_by_its_name(pytester: pytest.Pytester, monkeypatch) -> None:
    """--reliable-mq=rabbitmq takes the broker of the test run; where there is none, it says so."""
    pytester.makeconftest(
        """
        import pytest
        from reliable_mq.testing.brokers import Missing, unavailable

        class Running:
            url = "amqp://the-one-of-the-run"
            def ensure_up(self): pass

        @pytest.fixture(scope="session")
        def reliable_mq_rabbitmq(request):
            return Running()
        """
    )
    pytester.makepyfile(
        """
        def test_it(reliable_mq_broker):
            assert reliable_mq_broker.url == "amqp://the-one-of-the-run"
            assert reliable_mq_broker.name("a") != reliable_mq_broker.name("a")
        """
    )
    pytester.runpytest_inprocess("--reliable-mq=rabbitmq").assert_outcomes(passed=1)


@pytest.mark.parametrize(("ci", "outcome"), [("", {"skipped": 1}), ("true", {"errors": 1})])
def test_a_broker_that_cannot_be_had(pytester, monkeypatch, ci, outcome) -> None:
    """A skip that names the remedy; with CI=true a failure."""
    monkeypatch.setenv("CI", ci)
    monkeypatch.setenv("RELIABLE_MQ_BROKERS", "containers")
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
    pytester.makepyfile("def test_it(reliable_mq_broker): pass")

    ended = pytester.runpytest_subprocess("--reliable-mq=rabbitmq", "-rs")

    ended.assert_outcomes(**outcome)
    remedy = r"no container engine answers.*start docker|is missing: pip install"
    ended.stdout.re_match_lines([f".*({remedy})"])
