"""The programs of RocketMQ as local processes: name server, broker, proxy, and the last two in one.

Each is a JVM of its own, with a folder, ports and a log. They know each other by their ports, which
lie in their folders and never change. The ports of gRPC, of the proxy's remoting and of replicas
are open on all interfaces, whatever RocketMQ is told; all others listen on 127.0.0.1.
"""

from __future__ import annotations

import abc
import os
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypedDict

from reliable_mq.testing.brokers import rocketmq_settings as settings
from reliable_mq.testing.brokers.local_process import LocalProcess
from reliable_mq.testing.brokers.maven import java
from reliable_mq.testing.brokers.rocketmq_jars import jars_of
from reliable_mq.testing.brokers.rocketmq_remoting import ask
from reliable_mq.testing.brokers.rocketmq_route import query

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from typing_extensions import Unpack

__all__ = ["BrokerAlone", "NameServer", "Program", "ProxyAlone", "ProxyWithBroker"]

#: 5.5.0 reaches into these for some of its options. A JVM that is out of memory is to end.
ALWAYS: Final = (
    "--add-exports=java.base/sun.nio.ch=ALL-UNNAMED",
    "--add-opens=java.base/java.nio=ALL-UNNAMED",
    "--add-opens=java.base/java.lang=ALL-UNNAMED",
    "-XX:+ExitOnOutOfMemoryError",
    "-Djava.awt.headless=true",
)

#: Of a name server: which brokers there are. Of a broker: what it is set to.
BROKERS: Final = 106
CONFIGURATION: Final = 26

#: The broker also listens two below its port, for clients that are in a hurry.
HURRY: Final = -2


class Options(TypedDict, total=False):
    """What all programs take."""

    version: str
    jvm: Sequence[str]
    prefer_port: int
    keep: bool


class Program(LocalProcess):
    """One JVM. What it is lies in its folder: made again there, it is the same program.

    `jvm` are more options of Java; `keep` lets it outlive this Python.
    """

    program = "java"

    #: Its main class, and how much memory it gets.
    main: ClassVar[str]
    memory: ClassVar[Sequence[str]]

    #: The ports that it has beside its own.
    names: ClassVar[Sequence[str]] = ()

    def __init__(self, folder: Path, **options: Unpack[Options]) -> None:
        self._jars = jars_of(*([options["version"]] if "version" in options else []))
        super().__init__(
            folder,
            name=folder.name,
            more_ports=self.names,
            prefer_port=options.get("prefer_port", 0),
            keep=options.get("keep", False),
        )
        self._jvm = (*self.memory, *ALWAYS, *options.get("jvm", ()))
        self._classes = self._jars.fetched()

    @abc.abstractmethod
    def _write(self) -> list[str]:
        """Write its files into its folder; the arguments that name them."""

    @property
    def address(self) -> str:
        """Where it listens: host:port."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """The same as a URL."""
        return f"tcp://{self.address}"

    def begin(self) -> None:
        """Start it without waiting."""
        if self._processes.pids():
            return
        arguments = self._write()
        logging = self._file("logback.xml", settings.LOGBACK)
        properties = [f"-Duser.home={self.folder}", f"-Drmq.logback.configurationFile={logging}"]
        classes = ["-cp", f"{self._classes}/*"]
        archive = self._jars.archive()
        if archive.exists():
            classes += [f"-XX:SharedArchiveFile={archive}", "-Xlog:cds=off"]
        foreign = ("ROCKETMQ_", "NAMESRV_", "JAVA_OPT")
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
        self._processes.spawn(
            [java(), *self._jvm, *properties, *classes, self.main, *arguments],
            inherited | {"ROCKETMQ_HOME": str(self.folder)},
            self.log_file,
        )

    def _file(self, name: str, text: str) -> str:
        file = self.folder / name
        file.write_text(text)
        return str(file)

    def _port(self, name: str) -> int:
        return int(self._plan[name])


class NameServer(Program):
    """It tells proxies which broker has a topic, and forgets all of it when it ends."""

    main = "org.apache.rocketmq.namesrv.NamesrvStartup"
    memory = settings.SMALL_JVM

    def _write(self) -> list[str]:
        return ["-c", self._file("namesrv.conf", settings.name_server(self.port))]

    def probe(self) -> None:
        """Ask it which brokers there are."""
        ask(self.address, BROKERS)


class BrokerAlone(Program):
    """The broker, which clients reach by a proxy. `more` are lines of broker.conf."""

    main = "org.apache.rocketmq.broker.BrokerStartup"
    memory = settings.BROKER_JVM
    names = ("replicas",)
    beside: ClassVar[Mapping[str, int]] = {"port": HURRY}

    def __init__(
        self,
        folder: Path,
        name_server: NameServer,
        more: Mapping[str, str] | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(folder, **options)
        self._name_server = name_server
        self._more = more

    def _write(self) -> list[str]:
        text = settings.broker(
            port=self.port,
            replicas_port=self._port("replicas"),
            name_server_port=self._name_server.port,
            store=str(self.folder / "store"),
            more=self._more,
        )
        return ["-c", self._file("broker.conf", text)]

    def probe(self) -> None:
        """Ask it what it is set to."""
        ask(self.address, CONFIGURATION)


class ProxyAlone(Program):
    """The proxy, with the broker elsewhere. `more` are entries of rmq-proxy.json."""

    main = "org.apache.rocketmq.proxy.ProxyStartup"
    memory = settings.SMALL_JVM
    names: ClassVar[Sequence[str]] = ("remoting",)
    mode: ClassVar[settings.Mode] = "CLUSTER"

    def __init__(
        self,
        folder: Path,
        name_server: NameServer,
        more: Mapping[str, Any] | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(folder, **options)
        self._name_server = name_server
        self._more = more

    def _write(self) -> list[str]:
        text = settings.proxy(
            self.mode,
            port=self.port,
            remoting_port=self._port("remoting"),
            name_server_port=self._name_server.port,
            more=self._more,
        )
        return ["-pm", self.mode.lower(), "-pc", self._file("rmq-proxy.json", text)]

    def probe(self) -> None:
        """Ask it for a topic, which it need not know."""
        query(self.address, "any")


class ProxyWithBroker(ProxyAlone):
    """The proxy with the broker inside. `broker` are lines of broker.conf."""

    memory = settings.BROKER_JVM
    names = ("remoting", "broker", "replicas")
    beside: ClassVar[Mapping[str, int]] = {"broker": HURRY}
    mode = "LOCAL"

    def __init__(
        self,
        folder: Path,
        name_server: NameServer,
        more: Mapping[str, Any] | None = None,
        broker: Mapping[str, str] | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(folder, name_server, more, **options)
        self._broker = broker

    @property
    def broker_address(self) -> str:
        """Where the broker takes what an administrator asks."""
        return f"127.0.0.1:{self._port('broker')}"

    def _write(self) -> list[str]:
        text = settings.broker(
            port=self._port("broker"),
            replicas_port=self._port("replicas"),
            name_server_port=self._name_server.port,
            store=str(self.folder / "store"),
            more=self._broker,
        )
        return [*super()._write(), "-bc", self._file("broker.conf", text)]

    def probe(self) -> None:
        """Ask both."""
        ask(self.broker_address, CONFIGURATION)
        super().probe()
