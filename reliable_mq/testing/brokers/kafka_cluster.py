"""A Kafka cluster of local processes: nodes that are killed, paused and started one by one."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from reliable_mq.testing.brokers.base import BrokerFailed
from reliable_mq.testing.brokers.cluster import Cluster
from reliable_mq.testing.brokers.kafka import Kafka, settings_of
from reliable_mq.testing.brokers.kafka_jars import check_installed
from reliable_mq.testing.brokers.kafka_node import JVM, KafkaProcess
from reliable_mq.testing.brokers.local_process import new_folder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["KafkaCluster"]


class KafkaCluster(Cluster[KafkaProcess], Kafka):
    """Nodes that are one broker, each also a controller: three of them bear the loss of one.

    Topics have a copy on each of three nodes, and `acks=all` waits for two.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        size: int = 3,
        settings: Mapping[str, str] | None = None,
        jvm: Sequence[str] = JVM,
    ) -> None:
        check_installed()
        super().__init__(folder or new_folder("kafka-cluster"))
        together = settings_of(size) | dict(settings or {})
        self.nodes = [
            KafkaProcess(
                self.folder / f"kafka{identity}", identity=identity, settings=together, jvm=jvm
            )
            for identity in range(1, size + 1)
        ]
        voters = ",".join(node.voter for node in self.nodes)
        for node in self.nodes:
            node.join(voters)

    @property
    def url(self) -> str:
        """The addresses of all nodes, in one URL with commas."""
        return "kafka://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def leader_node(
        self, topic: str, partition: int = 0, *, other_than: str = "", within: float = 30.0
    ) -> KafkaProcess:
        """The node that leads a partition, as soon as there is one (`other_than`: not this)."""
        return self._leading(
            lambda: f"kafka{self.leader(topic, partition)}",
            f"{topic!r}/{partition}",
            other_than,
            within,
        )

    def kill_leader(self, topic: str, partition: int = 0) -> KafkaProcess:
        """Kill -9 the node that leads this partition, and return it: `start` brings it back."""
        node = self.leader_node(topic, partition)
        node.kill()
        return node

    def is_whole(self) -> bool:
        """Whether all nodes serve, and have a full copy of whatever they are to have."""
        with suppress(BrokerFailed):
            found = self.metadata()
            return len(found.brokers) == len(self.nodes) and all(
                len(partition.isrs) == len(partition.replicas)
                for topic in found.topics.values()
                for partition in topic.partitions.values()
            )
        return False
