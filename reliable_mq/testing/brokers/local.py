"""The brokers of `make brokers-up`: started for a developer, and there when make has ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reliable_mq.testing.brokers.rabbitmq_node import RabbitMQProcess

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["down", "up"]

#: RabbitMQ's usual port, where it is free.
USUAL = 5672


def up(folder: Path) -> list[str]:
    """Start what does not run, and wait until it serves; the URLs. Twice is the same as once."""
    broker = RabbitMQProcess(folder / "rabbitmq", keep=True, prefer_port=USUAL)
    broker.resume()
    broker.start()
    return [broker.url]


def down(folder: Path) -> list[str]:
    """Stop what runs and remove its data; the URLs that are gone."""
    if not (folder / "rabbitmq" / "node.json").exists():
        return []
    broker = RabbitMQProcess(folder / "rabbitmq", keep=True)
    broker.stop()
    broker.close()
    return [broker.url]
