"""RabbitMQ, wherever it runs: its address, a client's round trip, and its command line.

A quorum queue that was declared a moment before a kill -9 can be gone afterwards, with what was
confirmed into it: RabbitMQ 3.10 writes its own tables with a delay of two seconds. `flush` is for
tests that are about messages, not about that.
"""

from __future__ import annotations

import abc
import json
import socket
from typing import Any, Final

from reliable_mq.testing.brokers.base import Broker, Missing
from reliable_mq.testing.brokers.running import Running

__all__ = ["RabbitMQ", "RunningRabbitMQ", "connect"]

FLUSH: Final = (
    "mnesia:sync_log(), mnesia:dump_log(), [dets:sync(Table) || Table <- dets:all()], ok."
)


class RabbitMQ(Broker):
    """A node of RabbitMQ, or several that are one broker."""

    @abc.abstractmethod
    def ctl(self, *arguments: str, within: float = 60.0) -> str:
        """What `rabbitmqctl -q …` prints; a `BrokerFailed` with its error where it fails."""

    def eval(self, expression: str) -> str:
        """What an Erlang expression comes to, inside of the node."""
        return self.ctl("eval", expression).strip()

    def leader(self, queue: str) -> str:
        """The name of the node that leads this queue."""
        listed = json.loads(self.ctl("list_queues", "name", "leader", "--formatter", "json"))
        for one in listed:
            if one["name"] == queue:
                return str(one["leader"])
        msg = f"{self!r} has no queue {queue!r}; it has {[one['name'] for one in listed]!r}"
        raise LookupError(msg)

    def flush(self) -> None:
        """Return when what was declared up to now survives a kill -9."""
        self.eval(FLUSH)

    def probe(self) -> None:
        """Open a connection, and close it."""
        connect(self.url).close()


class RunningRabbitMQ(Running, RabbitMQ):
    """One that somebody else runs: it can be used, and cut off by a `Proxy`, but not hurt."""

    variable = "RELIABLE_MQ_RABBITMQ_URL"

    def ctl(self, *arguments: str, within: float = 60.0) -> str:
        """Refused."""
        self._refuse()
        return ""

    def flush(self) -> None:
        """Nothing to do: nobody here kills it."""


def connect(url: str, *, within: float = 3.0) -> Any:
    """A blocking connection of pika, opened within a time or not at all."""
    try:
        import pika
    except ImportError as error:
        msg = "pika is missing, which asks RabbitMQ whether it is ready: pip install pika"
        raise Missing(msg) from error
    parameters = pika.URLParameters(url)
    address = (parameters.host, parameters.port)
    socket.create_connection(address, within).close()  # pika would log each refusal as an error
    parameters.socket_timeout = within
    parameters.stack_timeout = within
    parameters.blocked_connection_timeout = within
    return pika.BlockingConnection(parameters)
