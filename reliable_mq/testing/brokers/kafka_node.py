"""Kafka as a local process: one JVM that is broker and controller, all of it on 127.0.0.1."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from reliable_mq.testing.brokers.base import BrokerFailed
from reliable_mq.testing.brokers.kafka import HEAP, QUICK, Kafka, settings_of
from reliable_mq.testing.brokers.kafka_jars import archive, check_installed, jars, java
from reliable_mq.testing.brokers.local_process import LocalProcess, new_folder
from reliable_mq.testing.brokers.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["JVM", "KafkaProcess", "keep_classes"]

#: The data of nodes of another cluster is refused; ours are told apart by their ports.
CLUSTER: Final = "MkU3OEVBNTcwNTJENDM2Qk"

#: Who measures speed gives more.
JVM: Final = (*HEAP, *QUICK)

ALWAYS: Final = ("-XX:+ExitOnOutOfMemoryError", "-XX:-UsePerfData", "-Djava.awt.headless=true")

LOGGING: Final = """\
status=warn
appender.c.type=Console
appender.c.name=C
appender.c.layout.type=PatternLayout
appender.c.layout.pattern=[%d] %p %m (%c)%n
rootLogger.level=INFO
rootLogger.appenderRef.c.ref=C
"""


class KafkaProcess(LocalProcess, Kafka):
    """One node. What it is lies in its folder: made again there, it is the same broker.

    `settings` are lines of server.properties; `jvm` are options of Java; `keep` lets it outlive
    this Python; `identity` tells the nodes of a cluster apart.
    """

    program = "java"

    def __init__(
        self,
        folder: Path | None = None,
        *,
        identity: int = 1,
        settings: Mapping[str, str] | None = None,
        jvm: Sequence[str] = JVM,
        prefer_port: int = 0,
        keep: bool = False,
    ) -> None:
        check_installed()
        super().__init__(
            folder or new_folder("kafka"),
            name=f"kafka{identity}",
            more_ports=("controller", "behind", "proxy"),
            prefer_port=prefer_port,
            keep=keep,
        )
        self.identity = identity
        #: Where it answers the other nodes, as each of them has to know it.
        self.voter = f"{identity}@127.0.0.1:{self._plan['controller']}"
        self._settings = settings_of(1) | {"controller.quorum.voters": self.voter}
        self._settings |= settings or {}
        self._jvm = (*jvm, *ALWAYS)
        self._jars = jars()
        self._archive = archive()

    @property
    def url(self) -> str:
        """Its address."""
        return f"kafka://127.0.0.1:{self.port}"

    def begin(self) -> None:
        """Start it without waiting; its data is laid out first, where there is none."""
        if self._processes.pids():
            return
        configuration = self._write_configuration()
        run = [*self._java(self._jvm), "kafka.Kafka", str(configuration)]
        if not (self.folder / "data" / "meta.properties").exists():
            lay_out = [*self._java(JVM), "kafka.tools.StorageTool", "format", "--ignore-formatted"]
            lay_out += ["-t", CLUSTER, "-c", str(configuration)]
            count = str(len(lay_out))
            script = f'"${{@:1:{count}}}" && exec "${{@:{int(count) + 1}}}"'
            run = ["bash", "-c", script, "bash", *lay_out, *run]
        environment = {
            key: value for key, value in os.environ.items() if not key.startswith("KAFKA_")
        }
        self._processes.spawn(run, environment, self.log_file)

    def proxy(self) -> Proxy:
        """A proxy that clients of its `url` do not get around; one at a time.

        Kafka tells clients where to go. Behind this one it has a listener that names the proxy.
        """
        return Proxy(f"kafka://127.0.0.1:{self._plan['behind']}", port=int(self._plan["proxy"]))

    def probe(self) -> None:
        """Ask it for its topics: it is one of the nodes that serve, and each partition is led."""
        found = self.metadata()
        if self.identity not in found.brokers:
            msg = f"{self!r} is not among the nodes that serve: {sorted(found.brokers)}"
            raise BrokerFailed(msg)
        for topic in found.topics.values():
            for partition in topic.partitions.values():
                if partition.leader < 0:
                    msg = f"{self!r}: {topic.topic!r}/{partition.id} is led by nobody"
                    raise BrokerFailed(msg)

    # -- what it is made of --------------------------------------------------------------------

    def join(self, voters: str) -> None:
        """Be one of these nodes, each given by its `voter`; before the first start."""
        self._settings["controller.quorum.voters"] = voters

    def _java(self, options: Sequence[str]) -> list[str]:
        logging = f"-Dlog4j2.configurationFile=file:{self.folder / 'log4j2.properties'}"
        classes = ["-cp", f"{self._jars}/*"]
        if self._archive.exists():
            classes += [f"-XX:SharedArchiveFile={self._archive}", "-Xlog:cds=off"]
        return [java(), *options, logging, *classes]

    def _write_configuration(self) -> Path:
        (self.folder / "log4j2.properties").write_text(LOGGING)
        clients = f"PLAINTEXT://127.0.0.1:{self.port},PROXY://127.0.0.1"
        controller = f"CONTROLLER://127.0.0.1:{self._plan['controller']}"
        lines = {
            "node.id": str(self.identity),
            "listeners": f"{clients}:{self._plan['behind']},{controller}",
            "advertised.listeners": f"{clients}:{self._plan['proxy']}",
            "log.dirs": str(self.folder / "data"),
        }
        lines |= self._settings
        file = self.folder / "server.properties"
        file.write_text("".join(f"{key}={value}\n" for key, value in lines.items()))
        return file


def keep_classes() -> None:
    """Write the `archive` where there is none yet: what a node has loaded when it is stopped."""
    jars()
    kept = archive()
    if kept.exists():
        return
    with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
        written = Path(folder) / "classes.jsa"
        options = (*JVM, f"-XX:ArchiveClassesAtExit={written}", "-Xlog:cds=off")
        with KafkaProcess(Path(folder) / "node", jvm=options) as node:
            node.stop()
        written.replace(kept)  # others may read it: never a part of it
