"""A RabbitMQ cluster of local processes: nodes that are killed, paused and started one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reliable_mq.testing.brokers.base import BrokerFailed
from reliable_mq.testing.brokers.cluster import Cluster
from reliable_mq.testing.brokers.local_process import new_folder
from reliable_mq.testing.brokers.rabbitmq import RabbitMQ
from reliable_mq.testing.brokers.rabbitmq_node import (
    ErlangHome,
    RabbitMQProcess,
    check_installed,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["RabbitMQCluster"]


class RabbitMQCluster(Cluster[RabbitMQProcess], RabbitMQ):
    """Nodes that are one broker. A fault of it hits all of them, one of `nodes` that one only."""

    def __init__(
        self,
        folder: Path | None = None,
        *,
        size: int = 3,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        check_installed()
        super().__init__(folder or new_folder("rabbitmq-cluster"))
        self._home = ErlangHome(self.folder / "home")
        names = [f"rmq{number}" for number in range(1, size + 1)]
        peers = {
            f"cluster_formation.classic_config.nodes.{number}": f"{name}@localhost"
            for number, name in enumerate(names, 1)
        }
        together = peers | {
            "cluster_formation.peer_discovery_backend": "classic_config",
            "cluster_partition_handling": "pause_minority",
        }
        together |= settings or {}
        self.nodes = [
            RabbitMQProcess(self.folder / name, name=name, home=self._home, settings=together)
            for name in names
        ]

    # -- the fault interface -------------------------------------------------------------------

    @property
    def url(self) -> str:
        """The addresses of all nodes, in one URL with commas."""
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)
        return f"amqp://guest:guest@{hosts}/"

    def close(self) -> None:
        """Kill all nodes and remove their folders."""
        self.kill()
        self._home.close()
        super().close()

    # -- what is a cluster's own ---------------------------------------------------------------

    def ctl(self, *arguments: str, within: float = 60.0) -> str:
        """Rabbitmqctl at the first node that serves."""
        for node in self.nodes:
            if node.is_up():
                return node.ctl(*arguments, within=within)
        msg = f"{self!r}: no node serves, so that there is none to ask {' '.join(arguments)}"
        raise BrokerFailed(msg)

    def flush(self) -> None:
        """As on one node, on all of them."""
        for node in self.nodes:
            if node.is_up():
                node.flush()

    def running(self) -> list[str]:
        """The names of the nodes that the cluster takes for running."""
        found = self.ctl("eval", '[io:format("~s~n", [N]) || N <- rabbit_nodes:all_running()].')
        return sorted(line for line in found.split() if "@" in line)

    def leader_node(
        self, queue: str, *, other_than: str = "", within: float = 30.0
    ) -> RabbitMQProcess:
        """The node that leads a queue, as soon as there is one (`other_than`: that is not this)."""
        return self._leading(lambda: self.leader(queue), repr(queue), other_than, within)

    def kill_leader(self, queue: str) -> RabbitMQProcess:
        """Kill -9 the node that leads this queue, and return it: `start` brings it back."""
        node = self.leader_node(queue)
        node.kill()
        return node

    def is_whole(self) -> bool:
        """Whether all nodes run, as the cluster sees it."""
        return len(self.running()) == len(self.nodes)
