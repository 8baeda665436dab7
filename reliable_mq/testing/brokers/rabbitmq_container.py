"""RabbitMQ in a container: the public image, or the one that RELIABLE_MQ_RABBITMQ_IMAGE names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from reliable_mq.testing.brokers.base import BrokerFailed
from reliable_mq.testing.brokers.containers import Container, image_of
from reliable_mq.testing.brokers.rabbitmq import RabbitMQ

if TYPE_CHECKING:
    from testcontainers.core.container import DockerContainer

__all__ = ["RabbitMQContainer"]

PUBLIC: Final = "rabbitmq:4-management"


class RabbitMQContainer(Container, RabbitMQ):
    """One node in a container."""

    inner_port = 5672

    def __init__(self, image: str = "") -> None:
        super().__init__(image or image_of("rabbitmq", PUBLIC))

    @property
    def url(self) -> str:
        """Its address, on the port that docker forwards."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    def configure(self, container: DockerContainer) -> None:
        """A user who may come from outside of the container, as every client does."""
        container.with_env("RABBITMQ_DEFAULT_USER", "guest")
        container.with_env("RABBITMQ_DEFAULT_PASS", "guest")

    def ctl(self, *arguments: str, within: float = 60.0) -> str:
        """What rabbitmqctl prints, run inside."""
        code, said = self.execute("timeout", str(within), "rabbitmqctl", "-q", *arguments)
        if code:
            msg = f"rabbitmqctl {' '.join(arguments)} ended with {code}: {said.strip()}"
            raise BrokerFailed(msg)
        return said
