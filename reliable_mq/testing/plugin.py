"""The pytest plugin: an app in memory, and a real broker, as fixtures.

    def test_billing(reliable_mq_memory):
        t = reliable_mq_memory(mq)              # as `with inmemory(mq) as t`, until the test ends
        t.publish("orders", {"id": 1}, key="a")
        t.run_until_idle()

    def test_for_real(reliable_mq_broker):      # pytest --reliable-mq=kafka, rabbitmq, or a URL
        mq = ReliableMQ(reliable_mq_broker.url)
        orders = reliable_mq_broker.name("orders")

    def test_a_crash(reliable_mq_rabbitmq):     # or reliable_mq_kafka: one for the run, to be hurt
        reliable_mq_rabbitmq.kill()
        reliable_mq_rabbitmq.start()

Nothing of the package is imported before a test asks for a fixture.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from typing import TYPE_CHECKING, Final, TypeVar

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from reliable_mq.app import ReliableMQ
    from reliable_mq.testing.brokers import Broker, Kafka, RabbitMQ
    from reliable_mq.testing.inmemory import InMemory

    B = TypeVar("B", bound=Broker)

__all__ = ["RealBroker"]

#: Brokers that can be named without a URL: each has a fixture that starts it.
STARTED: Final = ("rabbitmq", "kafka")

#: The same, but what makes an app of ours talk to them is not built yet.
COMING: Final = ("rocketmq",)


class RealBroker:
    """A broker for one test: its URL, and names that no other test uses."""

    def __init__(self, url: str, test: str) -> None:
        self.url = url
        self._test = test
        self._count = itertools.count(1)

    def name(self, base: str) -> str:
        """A topic or group name of this test alone."""
        return f"{base}-{self._test}-{os.getpid()}-{next(self._count)}"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --reliable-mq, the broker that `reliable_mq_broker` gives."""
    parser.getgroup("reliable-mq").addoption(
        "--reliable-mq",
        default=None,
        metavar="BROKER",
        help="broker of reliable_mq_broker: sqlite (default), rabbitmq, kafka, or a URL",
    )


@pytest.fixture
def reliable_mq_memory() -> Iterator[Callable[[ReliableMQ], InMemory]]:
    """A function that puts an app into memory and virtual time, until the test ends."""
    from reliable_mq.testing.inmemory import inmemory

    with contextlib.ExitStack() as stack:
        yield lambda mq: stack.enter_context(inmemory(mq))


@pytest.fixture(scope="session")
def reliable_mq_rabbitmq() -> Iterator[RabbitMQ]:
    """One RabbitMQ for the test run: the URL given, else a local process, else a container.

    What cannot be had skips the test, with the remedy; with CI=true it fails.
    """
    from reliable_mq.testing.brokers import provide_rabbitmq

    yield from _provided(provide_rabbitmq)


@pytest.fixture(scope="session")
def reliable_mq_kafka() -> Iterator[Kafka]:
    """One Kafka for the test run, found as `reliable_mq_rabbitmq` is."""
    from reliable_mq.testing.brokers import provide_kafka

    yield from _provided(provide_kafka)


def _provided(provide: Callable[[], B]) -> Iterator[B]:
    from reliable_mq.testing.brokers import Missing, unavailable

    try:
        with provide() as broker:
            yield broker
    except Missing as error:
        unavailable(error)


@pytest.fixture
def reliable_mq_broker(request: pytest.FixtureRequest, tmp_path: Path) -> RealBroker:
    """A real broker: the one of --reliable-mq, else of RELIABLE_MQ_URL, else SQLite in a file."""
    wanted = request.config.getoption("--reliable-mq") or os.environ.get("RELIABLE_MQ_URL")
    test = re.sub(r"[^A-Za-z0-9]+", "-", request.node.name)[:40].strip("-")
    if wanted in STARTED:
        broker: Broker = request.getfixturevalue(f"reliable_mq_{wanted}")
        broker.ensure_up()
        return RealBroker(broker.url, test)
    return real_broker(wanted or "sqlite", tmp_path, test)


def real_broker(wanted: str, tmp_path: Path, test: str) -> RealBroker:
    """The broker of this URL, or SQLite; what nobody knows is a UsageError, never a skip."""
    if wanted == "sqlite":
        return RealBroker(f"sqlite:///{tmp_path / 'reliable-mq.db'}", test)
    if "://" in wanted:
        return RealBroker(wanted, test)
    if wanted in COMING:
        msg = f"--reliable-mq={wanted}: not built yet; there is sqlite, rabbitmq, kafka, or a URL"
    else:
        msg = (
            f"--reliable-mq={wanted}: sqlite, rabbitmq, kafka, or a URL such as "
            "sqlite:////tmp/test.db"
        )
    raise pytest.UsageError(msg)
