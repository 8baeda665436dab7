"""RocketMQ as local processes: a name server, and a proxy with the broker inside."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reliable_mq.testing.brokers.cluster import Cluster
from reliable_mq.testing.brokers.local_process import new_folder
from reliable_mq.testing.brokers.rocketmq import RocketMQ
from reliable_mq.testing.brokers.rocketmq_jars import VERSION, jars_of
from reliable_mq.testing.brokers.rocketmq_programs import NameServer, Program, ProxyWithBroker

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["LocalRocketMQ", "RocketMQProcess", "keep_classes"]


class LocalRocketMQ(Cluster[Program], RocketMQ):
    """Programs that are one RocketMQ: a fault of it hits all of them, one of `nodes` that one only.

    `nodes` begins with the name server. What it is lies in its folder: made again there, it is the
    same one.
    """

    #: Where clients come.
    proxy: Program

    @property
    def proxy_address(self) -> str:
        """Where clients come: host:port."""
        return self.proxy.address

    @property
    def name_server(self) -> str:
        """Who knows the way to the broker: host:port."""
        return self.nodes[0].address

    def start(self) -> None:
        """Start what does not run; ready when a client finds a topic through all of it."""
        for node in self.nodes:
            node.begin()
        self.resume()
        for node in self.nodes:
            node.wait_ready()
        self.wait_ready()

    def stop(self) -> None:
        """End one after the other, the name server last: the broker signs off there."""
        for node in reversed(self.nodes):
            node.stop()

    def alive(self) -> bool:
        """Whether each program of it is there."""
        return all(node.alive() for node in self.nodes)

    def is_whole(self) -> bool:
        """As `is_up`, which asks each of them."""
        return self.is_up()

    def probe(self) -> None:
        """Each program answers, and the way of a client leads through all of them."""
        super().probe()
        RocketMQ.probe(self)


class RocketMQProcess(LocalRocketMQ):
    """The usual one. Its proxy has the broker inside, and tells clients its own address.

    So a TCP proxy before it is walked around, by clients that heed what they are told: see
    `RocketMQCluster`. `settings` are lines of broker.conf, `proxy_settings` entries of
    rmq-proxy.json, `jvm` more options of Java for that process; `keep` lets all of it outlive this
    Python. The first one of a version fetches its jars, or raises `Missing`.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        version: str = VERSION,
        settings: Mapping[str, str] | None = None,
        proxy_settings: Mapping[str, Any] | None = None,
        jvm: Sequence[str] = (),
        prefer_port: int = 0,
        keep: bool = False,
    ) -> None:
        jars_of(version).check_installed()
        super().__init__(folder or new_folder("rocketmq"), keep=keep)
        named = NameServer(self.folder / "name-server", version=version, keep=keep)
        proxy = ProxyWithBroker(
            self.folder / "proxy",
            named,
            proxy_settings,
            settings,
            version=version,
            jvm=jvm,
            prefer_port=prefer_port,
            keep=keep,
        )
        self.proxy = proxy
        self.nodes = [named, proxy]
        self._broker_address = proxy.broker_address

    @property
    def broker_address(self) -> str:
        """Where its broker takes what an administrator asks."""
        return self._broker_address


def keep_classes(version: str = VERSION) -> None:
    """Write the archive of this version's classes, where there is none yet.

    It holds what the proxy has loaded when it is stopped; broker and name server share most of it.
    """
    kept = jars_of(version).archive()
    if kept.exists():
        return
    jars_of(version).fetched()
    with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
        written = Path(folder) / "classes.jsa"
        jvm = (f"-XX:ArchiveClassesAtExit={written}", "-Xlog:cds=off")
        with RocketMQProcess(Path(folder) / "node", version=version, jvm=jvm) as broker:
            broker.stop()
        written.replace(kept)  # others may read it: never a part of it
