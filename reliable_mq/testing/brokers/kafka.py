"""Kafka, wherever it runs: its address, a client's round trip, its topics and who leads them."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from reliable_mq.testing.brokers.base import Broker, BrokerFailed, Missing, until
from reliable_mq.testing.brokers.running import Running

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["HEAP", "QUICK", "Kafka", "RunningKafka", "settings_of"]

#: Seconds that a client of ours waits for an answer.
PATIENCE: Final = 3.0

#: Options of Java. It is to be small, and quick to start: a broker that a test kills does not live
#: to need the second compiler.
HEAP: Final = ("-Xms64m", "-Xmx256m")
QUICK: Final = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")

LISTENERS: Final = {
    "inter.broker.listener.name": "PLAINTEXT",
    "controller.listener.names": "CONTROLLER",
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,PROXY:PLAINTEXT,CONTROLLER:PLAINTEXT",
}

#: Small, and quick to notice who is gone: a killed node cannot come back before its session ends.
SETTINGS: Final = LISTENERS | {
    "process.roles": "broker,controller",
    "auto.create.topics.enable": "false",
    "num.partitions": "3",
    "broker.session.timeout.ms": "2000",
    "broker.heartbeat.interval.ms": "500",
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    "group.consumer.min.session.timeout.ms": "1000",
    "group.consumer.min.heartbeat.interval.ms": "500",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.num.partitions": "4",
    "share.coordinator.state.topic.num.partitions": "4",
    "log.cleaner.dedupe.buffer.size": "10485760",
    "log.segment.bytes": "16777216",
}


def settings_of(nodes: int) -> dict[str, str]:
    """Lines of server.properties that are the same for each of so many nodes."""
    replicas = min(3, nodes)
    in_sync = max(1, replicas - 1)
    return SETTINGS | {
        "default.replication.factor": str(replicas),
        "min.insync.replicas": str(in_sync),
        "offsets.topic.replication.factor": str(replicas),
        "transaction.state.log.replication.factor": str(replicas),
        "transaction.state.log.min.isr": str(in_sync),
        "share.coordinator.state.topic.replication.factor": str(replicas),
        "share.coordinator.state.topic.min.isr": str(in_sync),
    }


class Kafka(Broker):
    """A node of Kafka, or several that are one broker. Its own tools are not needed."""

    @property
    def bootstrap(self) -> str:
        """Its addresses as librdkafka takes them: host:port, with commas."""
        return urlsplit(self.url).netloc.rpartition("@")[2]

    def admin(self) -> Any:
        """An AdminClient of confluent-kafka. Keep it until its futures have ended."""
        try:
            from confluent_kafka.admin import AdminClient
        except ImportError as error:
            msg = (
                "confluent-kafka is missing, which asks Kafka whether it is ready: "
                "pip install confluent-kafka"
            )
            raise Missing(msg) from error
        # A broker that is down is no news: librdkafka would tell each refusal.
        return AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0})

    def metadata(self, topic: str | None = None) -> Any:
        """What a broker knows of all topics, or of this one; `BrokerFailed` where none answers."""
        self._reach()
        admin = self.admin()
        from confluent_kafka import KafkaException

        asked = () if topic is None else (topic,)
        try:
            return admin.list_topics(*asked, timeout=PATIENCE)
        except KafkaException as error:
            msg = f"{self!r} does not tell its topics: {error}"
            raise BrokerFailed(msg) from error

    def create_topic(
        self,
        name: str,
        *,
        partitions: int = 1,
        replicas: int = -1,
        settings: Mapping[str, str] | None = None,
        within: float = 30.0,
    ) -> None:
        """Make a topic; returns when each partition is led. -1 is as many replicas as usual here.

        Creating one that is there raises confluent-kafka's own error.
        """
        from confluent_kafka.admin import NewTopic  # type: ignore[attr-defined] # re-exported

        admin = self.admin()
        new = NewTopic(name, partitions, replicas, config=dict(settings or {}))
        admin.create_topics([new], operation_timeout=within)[name].result(within)
        if not until(lambda: self._is_led(name, partitions), within):
            msg = f"{self!r}: {name!r} is not led after {within} s"
            raise BrokerFailed(msg)

    def delete_topic(self, name: str, *, within: float = 30.0) -> None:
        """Remove a topic; returns when the broker has it no more."""
        admin = self.admin()
        admin.delete_topics([name], operation_timeout=within)[name].result(within)
        if not until(lambda: name not in self.metadata().topics, within):
            msg = f"{self!r}: {name!r} is still there after {within} s"
            raise BrokerFailed(msg)

    def leader(self, topic: str, partition: int = 0) -> int:
        """The id of the node that leads this partition; a LookupError while there is none."""
        found = self.metadata(topic).topics[topic]
        if partition not in found.partitions or found.partitions[partition].leader < 0:
            msg = f"{self!r}: {topic!r}/{partition} is led by nobody ({found.error})"
            raise LookupError(msg)
        return int(found.partitions[partition].leader)

    def probe(self) -> None:
        """Ask for its topics."""
        self.metadata()

    def _reach(self) -> None:
        """Connect to one address: a refusal is known at once, while librdkafka would go on."""
        refused: OSError | None = None
        for address in self.bootstrap.split(","):
            host, _, port = address.rpartition(":")
            try:
                socket.create_connection((host.strip("[]"), int(port)), PATIENCE).close()
            except OSError as error:
                refused = error
            else:
                return
        raise refused or ConnectionRefusedError(self.bootstrap)

    def _is_led(self, topic: str, partitions: int) -> bool:
        with suppress(BrokerFailed):
            found = self.metadata(topic).topics[topic].partitions
            return len(found) == partitions and all(one.leader >= 0 for one in found.values())
        return False


class RunningKafka(Running, Kafka):
    """One that somebody else runs: it can be used, but not hurt.

    Its nodes tell clients where to go: a `Proxy` in front of it has their first connection only,
    unless it sits on the address that they tell.
    """

    variable = "RELIABLE_MQ_KAFKA_URL"

    @property
    def bootstrap(self) -> str:
        """Its addresses; a host without a port has Kafka's usual one."""
        hosts = super().bootstrap.split(",")
        return ",".join(
            host if host.rpartition(":")[2].isdigit() else f"{host}:9092" for host in hosts
        )
