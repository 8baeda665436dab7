"""RocketMQ in a container: the public image, or the one that RELIABLE_MQ_ROCKETMQ_IMAGE names.

All of it is in one: a name server, and a proxy with the broker inside. Each port is the same inside
and outside, so that the addresses that they tell lead clients to them, and themselves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from reliable_mq.testing.brokers import rocketmq_settings as settings
from reliable_mq.testing.brokers.containers import Container, image_of
from reliable_mq.testing.brokers.ports import free_port
from reliable_mq.testing.brokers.rocketmq import RocketMQ

if TYPE_CHECKING:
    from testcontainers.core.container import DockerContainer

__all__ = ["RocketMQContainer"]

PUBLIC: Final = "apache/rocketmq:5.3.3"

#: Inside, where nobody comes from outside.
REMOTING: Final = 8080
REPLICAS: Final = 10912

#: Of an image it takes a shell, `java`, and the jars in $ROCKETMQ_HOME/lib. The image's own scripts
#: would keep a SIGTERM from the JVMs. Here the name server ends last, as the broker signs off
#: there; a proxy that ends takes the container along.
SCRIPT: Final = """\
cd
printf %s "$NAME_SERVER" >namesrv.conf
printf %s "$BROKER" >broker.conf
printf %s "$PROXY" >rmq-proxy.json
printf %s "$LOGBACK" >logback.xml
run() { exec java "$@"; }
common="-Duser.home=$HOME -Drmq.logback.configurationFile=$HOME/logback.xml"
classes="$ROCKETMQ_HOME/lib/*"
trap 'kill $proxy; wait $proxy; kill $named; wait $named; exit 0' TERM
run $SMALL_JVM $common -cp "$classes" \
    org.apache.rocketmq.namesrv.NamesrvStartup -c namesrv.conf &
named=$!
run $BROKER_JVM $common -cp "$classes" \
    org.apache.rocketmq.proxy.ProxyStartup -pm local -bc broker.conf -pc rmq-proxy.json &
proxy=$!
wait $proxy
"""


class RocketMQContainer(Container, RocketMQ):
    """Name server, broker and proxy in a container of the image apache/rocketmq."""

    def __init__(self, image: str = "") -> None:
        super().__init__(image or image_of("rocketmq", PUBLIC))
        self._broker_port = self._name_server_port = 0

    @property
    def proxy_address(self) -> str:
        """Where clients come: host:port, as docker forwards it."""
        return f"127.0.0.1:{self.port}"

    @property
    def broker_address(self) -> str:
        """Where its broker takes what an administrator asks."""
        return f"127.0.0.1:{self._broker_port}"

    @property
    def name_server(self) -> str:
        """Who knows the way to the broker: host:port."""
        return f"127.0.0.1:{self._name_server_port}"

    def configure(self, container: DockerContainer) -> None:
        """Its files as variables; two more ports, new ones with each try."""
        self._broker_port = free_port(beside=-2)
        self._name_server_port = free_port()
        ports: dict[str, Any] = container.ports  # typed for a number; docker also takes an address
        for port in (self._broker_port, self._name_server_port):
            ports[f"{port}/tcp"] = ("127.0.0.1", port)
        container.with_envs(
            NAME_SERVER=settings.name_server(self._name_server_port, everywhere=True),
            BROKER=settings.broker(
                port=self._broker_port,
                replicas_port=REPLICAS,
                name_server_port=self._name_server_port,
                store="store",
                everywhere=True,
            ),
            PROXY=settings.proxy(
                "LOCAL",
                port=self.port,
                remoting_port=REMOTING,
                name_server_port=self._name_server_port,
            ),
            LOGBACK=settings.LOGBACK,
            SMALL_JVM=" ".join(settings.SMALL_JVM),
            BROKER_JVM=" ".join(settings.BROKER_JVM),
        )
        container.with_command(["sh", "-c", SCRIPT])
