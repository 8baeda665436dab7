"""Imports every module that registers scenarios, in the order in which they run."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec

MODULES = ("lanes", "sleeping", "asyncio_keys", "slow_key", "overhead", "memory_use", "sqlite")
#: These start a broker, and need its client.
RABBITMQ = ("rabbitmq_publish", "rabbitmq_consume", "rabbitmq_latency")
KAFKA = ("kafka_publish", "kafka_consume", "kafka_workloads", "kafka_slow_key", "kafka_burst")


def load() -> None:
    """Register all of them."""
    load_some(MODULES)
    for client, broker, modules in (
        ("pika", "RabbitMQ", RABBITMQ),
        ("confluent_kafka", "Kafka", KAFKA),
    ):
        if find_spec(client):
            load_some(modules)
        else:
            print(f"no scenarios on {broker}: `pip install {client}`", file=sys.stderr)


def load_some(modules: tuple[str, ...]) -> None:
    """Register those of some modules."""
    for name in modules:
        import_module(f"benchmarks.{name}")
