"""Local nodes that are one broker: a fault of it hits all of them, one of `nodes` that one only."""

from __future__ import annotations

import abc
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Generic, TypeVar

from reliable_mq.testing.brokers.base import READY_WITHIN, Broker, BrokerFailed, until
from reliable_mq.testing.brokers.guard import guard
from reliable_mq.testing.brokers.local_process import LocalProcess

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["Cluster"]

N = TypeVar("N", bound=LocalProcess)


class Cluster(Broker, Generic[N]):
    """Nodes that are killed, paused and started one by one, or all together."""

    #: Its subclass makes them.
    nodes: list[N]

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        guard().remove(folder)

    @abc.abstractmethod
    def is_whole(self) -> bool:
        """Whether each node takes part, as the cluster sees it."""

    # -- the fault interface -------------------------------------------------------------------

    def start(self) -> None:
        """Start what does not run; ready when each node serves and knows all the others."""
        for node in self.nodes:
            node.begin()
        self.resume()
        for node in self.nodes:
            node.wait_ready()
        if not until(self.is_whole, READY_WITHIN, every=0.5):
            self._failed(f"is not whole after {READY_WITHIN} s", None)

    def stop(self) -> None:
        """End all nodes at once, gracefully: one by one, only the last could start alone again."""
        with ThreadPoolExecutor(len(self.nodes)) as each:
            list(each.map(LocalProcess.stop, self.nodes))

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
        """A client at every node: the cluster is up when all of it is."""
        for node in self.nodes:
            node.probe()

    def log(self, lines: int = 30) -> str:
        """The last lines of every node."""
        return "\n".join(f"[{node.name}]\n{node.log(lines)}" for node in self.nodes)

    def close(self) -> None:
        """Kill all nodes and remove their folders."""
        for node in self.nodes:
            node.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    # -- what is a cluster's own ---------------------------------------------------------------

    def node(self, name: str) -> N:
        """The node of this name."""
        return next(one for one in self.nodes if one.name == name)

    def _leading(self, name: Callable[[], str], what: str, other_than: str, within: float) -> N:
        """The node that lives and that `name` names, as soon as there is one."""

        def look() -> N | None:
            with suppress(BrokerFailed, LookupError, StopIteration):
                node = self.node(name())
                return None if node.name == other_than or not node.alive() else node
            return None

        if (found := until(look, within, every=0.2)) is None:
            msg = f"{self!r}: {what} has no leader after {within} s"
            raise BrokerFailed(msg)
        return found
