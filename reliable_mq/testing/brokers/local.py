"""The brokers of `make brokers-up`: started for a developer, and there when make has ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from reliable_mq.testing.brokers.kafka_node import KafkaProcess
from reliable_mq.testing.brokers.local_process import PLAN
from reliable_mq.testing.brokers.rabbitmq_node import RabbitMQProcess

if TYPE_CHECKING:
    from pathlib import Path

    from reliable_mq.testing.brokers.local_process import LocalProcess

__all__ = ["NAMES", "down", "up"]

#: Each has its usual port, where that is free.
NAMES: Final = ("rabbitmq", "kafka")


def up(folder: Path, name: str) -> str:
    """Start it where it does not run, and wait until it serves; its URL. Twice is once."""
    broker = _kept(folder, name)
    broker.resume()
    broker.start()
    return broker.url


def down(folder: Path, name: str) -> str:
    """Stop it where it runs and remove its data; the URL that is gone, empty where none was."""
    if not (folder / name / PLAN).exists():
        return ""
    broker = _kept(folder, name)
    broker.stop()
    broker.close()
    return broker.url


def _kept(folder: Path, name: str) -> LocalProcess:
    if name == "kafka":
        return KafkaProcess(folder / name, keep=True, prefer_port=9092)
    return RabbitMQProcess(folder / name, keep=True, prefer_port=5672)
