"""A RabbitMQ cluster of local processes: nodes that are killed, paused and started one by one."""

from __future__ import annotations

import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from reliable_mq.testing.brokers.base import READY_WITHIN, BrokerFailed, until
from reliable_mq.testing.brokers.guard import guard
from reliable_mq.testing.brokers.rabbitmq import RabbitMQ, connect
from reliable_mq.testing.brokers.rabbitmq_node import (
    ErlangHome,
    RabbitMQProcess,
    check_installed,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["RabbitMQCluster"]


class RabbitMQCluster(RabbitMQ):
    """Nodes that are one broker. A fault of it hits all of them, one of `nodes` that one only."""

    def __init__(
        self,
        folder: Path | None = None,
        *,
        size: int = 3,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        check_installed()
        super().__init__()
        self.folder = folder or Path(tempfile.mkdtemp(prefix="reliable-mq-cluster-"))
        guard().remove(self.folder)
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

    def start(self) -> None:
        """Start what does not run; ready when each node serves and knows all the others."""
        for node in self.nodes:
            node.begin()
        self.resume()
        for node in self.nodes:
            node.wait_ready()
        if not until(self._is_whole, READY_WITHIN, every=0.5):
            msg = f"{self!r} is not whole after {READY_WITHIN} s: {self.running()!r} run"
            raise BrokerFailed(msg)

    def stop(self) -> None:
        """End all nodes at once, gracefully: one by one, only the last could start alone again."""
        with ThreadPoolExecutor(len(self.nodes)) as each:
            list(each.map(RabbitMQProcess.stop, self.nodes))

    def kill(self) -> None:
        """Kill -9 every node."""
        for node in self.nodes:
            node.kill()

    def pause(self) -> None:
        """SIGSTOP every node."""
        for node in self.nodes:
            node.pause()

    def resume(self) -> None:
        """SIGCONT every node."""
        for node in self.nodes:
            node.resume()

    def probe(self) -> None:
        """A connection to every node: the cluster is up when all of it is."""
        for node in self.nodes:
            connect(node.url).close()

    def log(self, lines: int = 30) -> str:
        """The last lines of every node."""
        return "\n".join(f"[{node.name}]\n{node.log(lines)}" for node in self.nodes)

    def close(self) -> None:
        """Kill all nodes and remove their folders."""
        for node in self.nodes:
            node.close()
        self._home.close()
        shutil.rmtree(self.folder, ignore_errors=True)

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

    def node(self, name: str) -> RabbitMQProcess:
        """The node of this name."""
        return next(one for one in self.nodes if one.name == name)

    def running(self) -> list[str]:
        """The names of the nodes that the cluster takes for running."""
        found = self.ctl("eval", '[io:format("~s~n", [N]) || N <- rabbit_nodes:all_running()].')
        return sorted(line for line in found.split() if "@" in line)

    def leader_node(
        self, queue: str, *, other_than: str = "", within: float = 30.0
    ) -> RabbitMQProcess:
        """The node that leads a queue, as soon as there is one (`other_than`: that is not this)."""

        def look() -> RabbitMQProcess | None:
            with suppress(BrokerFailed, LookupError, StopIteration):
                node = self.node(self.leader(queue))
                return None if node.name == other_than or not node.alive() else node
            return None

        if (found := until(look, within, every=0.2)) is None:
            msg = f"{self!r}: {queue!r} has no leader after {within} s"
            raise BrokerFailed(msg)
        return found

    def kill_leader(self, queue: str) -> RabbitMQProcess:
        """Kill -9 the node that leads this queue, and return it: `start` brings it back."""
        node = self.leader_node(queue)
        node.kill()
        return node

    def _is_whole(self) -> bool:
        return len(self.running()) == len(self.nodes)
