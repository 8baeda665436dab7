"""Which RabbitMQ or Kafka a test run gets: one that runs already, a local process, or a container.

What cannot be had is `Missing`, with the remedy in its text. `unavailable` makes of that what a
test run needs: a loud skip, and a failure with CI=true, where a green run has run everything.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, Literal, NoReturn, TypeVar

from reliable_mq.testing.brokers.base import Broker, Missing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from reliable_mq.testing.brokers.kafka import Kafka
    from reliable_mq.testing.brokers.rabbitmq import RabbitMQ

__all__ = ["Provider", "choose", "provide_kafka", "provide_rabbitmq", "unavailable"]

B = TypeVar("B", bound=Broker)

Provider = Literal["url", "process", "containers"]

#: What RELIABLE_MQ_BROKERS may say; a URL is given by its own variable.
NAMED: Final[tuple[Provider, ...]] = ("process", "containers")


def choose(
    broker: str, installed: Callable[[], bool], environment: Mapping[str, str] = os.environ
) -> Provider:
    """Where a broker comes from.

    RELIABLE_MQ_BROKERS decides; else a URL that is given, else the local package where it is
    installed, else containers.
    """
    if named := environment.get("RELIABLE_MQ_BROKERS", ""):
        for provider in NAMED:
            if provider == named:
                return provider
        msg = f"RELIABLE_MQ_BROKERS={named!r}: it is {' or '.join(NAMED)}"
        raise ValueError(msg)
    if environment.get(f"RELIABLE_MQ_{broker.upper()}_URL"):
        return "url"
    return "process" if installed() else "containers"


def provide_rabbitmq(provider: Provider | None = None) -> RabbitMQ:
    """A RabbitMQ that is not started yet, from this provider or the one that `choose` finds."""
    from reliable_mq.testing.brokers.rabbitmq import RunningRabbitMQ
    from reliable_mq.testing.brokers.rabbitmq_container import RabbitMQContainer
    from reliable_mq.testing.brokers.rabbitmq_node import RabbitMQProcess, is_installed

    return _provide(
        "RabbitMQ",
        provider,
        running=RunningRabbitMQ,
        process=RabbitMQProcess,
        container=RabbitMQContainer,
        installed=is_installed,
        remedy=(
            "as root, `apt-get install --no-install-recommends rabbitmq-server`; "
            "or RELIABLE_MQ_RABBITMQ_URL=amqp://…"
        ),
    )


def provide_kafka(provider: Provider | None = None) -> Kafka:
    """A Kafka that is not started yet, from this provider or the one that `choose` finds."""
    from reliable_mq.testing.brokers.kafka import RunningKafka
    from reliable_mq.testing.brokers.kafka_container import KafkaContainer
    from reliable_mq.testing.brokers.kafka_jars import is_installed
    from reliable_mq.testing.brokers.kafka_node import KafkaProcess

    return _provide(
        "Kafka",
        provider,
        running=RunningKafka,
        process=KafkaProcess,
        container=KafkaContainer,
        installed=is_installed,
        remedy=(
            "as root, `apt-get install --no-install-recommends default-jre-headless maven`; "
            "or RELIABLE_MQ_KAFKA_URL=kafka://…"
        ),
    )


def _provide(
    broker: str,
    provider: Provider | None,
    *,
    running: Callable[[str], B],
    process: Callable[[], B],
    container: Callable[[], B],
    installed: Callable[[], bool],
    remedy: str,
) -> B:
    chosen = provider or choose(broker, installed)
    if chosen == "url":
        return running(os.environ[f"RELIABLE_MQ_{broker.upper()}_URL"])
    if chosen == "process":
        return process()
    try:
        return container()
    except Missing as error:
        if provider or os.environ.get("RELIABLE_MQ_BROKERS") or installed():
            raise
        msg = f"there is no {broker} to be had. {error}; or, {remedy}"
        raise Missing(msg) from error


def unavailable(error: Missing) -> NoReturn:
    """Skip the test that wanted it, loudly; with CI=true fail it."""
    import pytest

    if os.environ.get("CI") == "true":
        pytest.fail(f"CI=true, and yet: {error}")
    pytest.skip(f"NOT TESTED: {error}")
