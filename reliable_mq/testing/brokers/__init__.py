"""Real brokers for tests: started, hurt and ended by the test that uses them.

with provide_rabbitmq() as broker:  # provide_kafka(): a running one, a process, or a container
    broker.kill()                   # also stop, pause and resume
    broker.start()                  # the same address, the same data

with Proxy(broker.url) as proxy:    # cut, slow, silent or reset, while the broker is well
    ...                             # clients use proxy.url
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from reliable_mq.testing.brokers.base import Broker, BrokerFailed, Missing
from reliable_mq.testing.brokers.choice import choose, provide_kafka, provide_rabbitmq, unavailable

if TYPE_CHECKING:
    from reliable_mq.testing.brokers.certificates import Certificates
    from reliable_mq.testing.brokers.flow import Flow
    from reliable_mq.testing.brokers.kafka import Kafka, RunningKafka
    from reliable_mq.testing.brokers.kafka_cluster import KafkaCluster
    from reliable_mq.testing.brokers.kafka_container import KafkaContainer
    from reliable_mq.testing.brokers.kafka_node import KafkaProcess
    from reliable_mq.testing.brokers.proxy import Proxy
    from reliable_mq.testing.brokers.rabbitmq import RabbitMQ, RunningRabbitMQ
    from reliable_mq.testing.brokers.rabbitmq_cluster import RabbitMQCluster
    from reliable_mq.testing.brokers.rabbitmq_container import RabbitMQContainer
    from reliable_mq.testing.brokers.rabbitmq_node import RabbitMQProcess

__all__ = [
    "Broker",
    "BrokerFailed",
    "Certificates",
    "Flow",
    "Kafka",
    "KafkaCluster",
    "KafkaContainer",
    "KafkaProcess",
    "Missing",
    "Proxy",
    "RabbitMQ",
    "RabbitMQCluster",
    "RabbitMQContainer",
    "RabbitMQProcess",
    "RunningKafka",
    "RunningRabbitMQ",
    "choose",
    "provide_kafka",
    "provide_rabbitmq",
    "unavailable",
]

_MODULES = {
    "Certificates": "certificates",
    "Flow": "flow",
    "Kafka": "kafka",
    "KafkaCluster": "kafka_cluster",
    "KafkaContainer": "kafka_container",
    "KafkaProcess": "kafka_node",
    "Proxy": "proxy",
    "RabbitMQ": "rabbitmq",
    "RabbitMQCluster": "rabbitmq_cluster",
    "RabbitMQContainer": "rabbitmq_container",
    "RabbitMQProcess": "rabbitmq_node",
    "RunningKafka": "kafka",
    "RunningRabbitMQ": "rabbitmq",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for, and only then."""
    if name not in _MODULES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
