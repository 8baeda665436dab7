"""Which RabbitMQ a test run gets: one that runs already, a local process, or a container.

What cannot be had is `Missing`, with the remedy in its text. `unavailable` makes of that what a
test run needs: a loud skip, and a failure with CI=true, where a green run has run everything.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, Literal, NoReturn

from reliable_mq.testing.brokers.base import Missing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from reliable_mq.testing.brokers.rabbitmq import RabbitMQ

__all__ = ["Provider", "choose", "provide_rabbitmq", "unavailable"]

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

    chosen = provider or choose("rabbitmq", is_installed)
    if chosen == "url":
        return RunningRabbitMQ(os.environ["RELIABLE_MQ_RABBITMQ_URL"])
    if chosen == "process":
        return RabbitMQProcess()
    try:
        return RabbitMQContainer()
    except Missing as error:
        if provider or os.environ.get("RELIABLE_MQ_BROKERS") or is_installed():
            raise
        msg = (
            f"there is no RabbitMQ to be had. {error}; or, as root, `apt-get install "
            "--no-install-recommends rabbitmq-server`; or RELIABLE_MQ_RABBITMQ_URL=amqp://…"
        )
        raise Missing(msg) from error


def unavailable(error: Missing) -> NoReturn:
    """Skip the test that wanted it, loudly; with CI=true fail it."""
    import pytest

    if os.environ.get("CI") == "true":
        pytest.fail(f"CI=true, and yet: {error}")
    pytest.skip(f"NOT TESTED: {error}")
