"""RocketMQ in cluster mode: name server, broker and proxy are processes of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reliable_mq.testing.brokers.local_process import new_folder
from reliable_mq.testing.brokers.rocketmq_jars import VERSION, jars_of
from reliable_mq.testing.brokers.rocketmq_node import LocalRocketMQ
from reliable_mq.testing.brokers.rocketmq_programs import BrokerAlone, NameServer, ProxyAlone

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["RocketMQCluster"]


class RocketMQCluster(LocalRocketMQ):
    """Name server, broker or proxy are hurt alone: `named`, `broker`, `proxy`.

    A proxy starts only where its broker runs; once it runs, the broker may go and come. Clients are
    told the address that they have dialled. So a `Proxy` before its `url` keeps them.
    `settings` are lines of broker.conf, `proxy_settings` entries of rmq-proxy.json. The first one
    of a version fetches its jars, or raises `Missing`.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        version: str = VERSION,
        settings: Mapping[str, str] | None = None,
        proxy_settings: Mapping[str, Any] | None = None,
    ) -> None:
        jars_of(version).check_installed()
        super().__init__(folder or new_folder("rocketmq-cluster"))
        self.named = NameServer(self.folder / "name-server", version=version)
        self.broker = BrokerAlone(self.folder / "broker", self.named, settings, version=version)
        self.proxy = ProxyAlone(self.folder / "proxy", self.named, proxy_settings, version=version)
        self.nodes = [self.named, self.broker, self.proxy]

    def start(self) -> None:
        """Start what does not run, the proxy last: it ends where it finds no broker registered."""
        self.resume()
        for node in (self.named, self.broker):
            node.start()
        self.register()
        super().start()

    @property
    def broker_address(self) -> str:
        """Where its broker takes what an administrator asks."""
        return self.broker.address
