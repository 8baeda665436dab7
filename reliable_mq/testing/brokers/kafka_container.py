"""Kafka in a container: the public image, or the one that RELIABLE_MQ_KAFKA_IMAGE names.

It has the same port inside and outside, so that the address that it tells clients also leads it to
itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from reliable_mq.testing.brokers.containers import Container, image_of
from reliable_mq.testing.brokers.kafka import HEAP, QUICK, Kafka, settings_of

if TYPE_CHECKING:
    from testcontainers.core.container import DockerContainer

__all__ = ["KafkaContainer"]

PUBLIC: Final = "apache/kafka:4.1.1"

#: Inside, where only it itself comes.
CONTROLLER: Final = "127.0.0.1:9093"


class KafkaContainer(Container, Kafka):
    """One node in a container, by the contract of the image apache/kafka."""

    def __init__(self, image: str = "") -> None:
        super().__init__(image or image_of("kafka", PUBLIC))

    @property
    def url(self) -> str:
        """Its address, on the port that docker forwards."""
        return f"kafka://127.0.0.1:{self.port}"

    def configure(self, container: DockerContainer) -> None:
        """All of its properties: one that is set drops the image's own file."""
        lines = settings_of(1) | {
            "node.id": "1",
            "controller.quorum.voters": f"1@{CONTROLLER}",
            "listeners": f"PLAINTEXT://0.0.0.0:{self.port},CONTROLLER://{CONTROLLER}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{self.port}",
            "log.dirs": "/var/lib/kafka/data",
        }
        for key, value in lines.items():
            container.with_env("KAFKA_" + key.upper().replace(".", "_"), value)
        container.with_env("KAFKA_HEAP_OPTS", " ".join(HEAP))
        container.with_env("KAFKA_JVM_PERFORMANCE_OPTS", " ".join(QUICK))
