"""RocketMQ, wherever it runs: its address, a client's round trip, its topics and groups.

Clients come to its proxy, by gRPC. Topics and groups are made at the broker behind it, by the older
remoting protocol, as `mqadmin` does: the proxy makes none. The name server tells where the broker
is, so its address is a part of the URL.
"""

from __future__ import annotations

import abc
import json
import re
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs, urlsplit

from reliable_mq.testing.brokers.base import Broker, BrokerFailed, Missing, until
from reliable_mq.testing.brokers.rocketmq_remoting import Refused, ask
from reliable_mq.testing.brokers.rocketmq_route import UNKNOWN_TOPIC, Route, query
from reliable_mq.testing.brokers.running import Running

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["KINDS", "RocketMQ", "RunningRocketMQ"]

#: Kinds of topics, by the numbers that a proxy tells clients. A broker of 5.3 refuses PRIORITY.
KINDS: Final = {"NORMAL": 1, "FIFO": 2, "DELAY": 3, "TRANSACTION": 4, "PRIORITY": 6}

#: A topic of ours at each broker that is controlled: the system's own have no route.
PROBE: Final = "reliable-mq-probe"

# Requests by their numbers.
SAVE_TOPIC: Final = 17
CONFIGURE: Final = 25
CONFIGURATION: Final = 26
WAY: Final = 105
BROKERS: Final = 106
SAVE_GROUP: Final = 200
DELETE_GROUP: Final = 207
DELETE_TOPIC: Final = 215
FORGET_TOPIC: Final = 216


class RocketMQ(Broker):
    """A proxy, a broker and a name server that are one RocketMQ. Its own tools are not needed."""

    @property
    @abc.abstractmethod
    def proxy_address(self) -> str:
        """Where clients come: host:port of the proxy, for gRPC."""

    @property
    @abc.abstractmethod
    def broker_address(self) -> str:
        """Where its broker takes what an administrator asks: host:port of the remoting protocol."""

    @property
    @abc.abstractmethod
    def name_server(self) -> str:
        """Who knows the way to the broker: host:port of the remoting protocol."""

    @property
    def url(self) -> str:
        """The address of its proxy, with that of its name server."""
        return f"rocketmq://{self.proxy_address}?namesrv={self.name_server}"

    # -- topics and groups ---------------------------------------------------------------------

    def create_topic(
        self, name: str, kind: str = "NORMAL", *, queues: int = 4, within: float = 30.0
    ) -> None:
        """Make a topic, or change one that is there; returns when clients are told what it is.

        What the broker refuses (a bad name, a kind that its version has not) is a `Refused`.
        """
        self._save_topic(name, kind, queues)
        wanted = (KINDS[kind],) * queues
        if not until(lambda: self._route(name).kinds == wanted, within):
            msg = f"{self!r}: clients do not know {name!r} after {within} s: {self._route(name)}"
            raise BrokerFailed(msg)

    def delete_topic(self, name: str, *, within: float = 30.0) -> None:
        """Remove a topic, if it is there; returns when clients are told that it is gone."""
        self.ask(DELETE_TOPIC, {"topic": name})
        ask(self.name_server, FORGET_TOPIC, {"topic": name})  # by itself it would remember it
        if not until(lambda: self._route(name).code == UNKNOWN_TOPIC, within):
            msg = f"{self!r}: clients still find {name!r} after {within} s"
            raise BrokerFailed(msg)

    def create_group(self, name: str, *, fifo: bool = False, retries: int = 16) -> None:
        """Make a group, or change one that is there: who knew it notices within two seconds.

        `fifo` hands out one message of a queue at a time. After so many retries a message goes to
        the dead letters of the broker's own, `%DLQ%` and the group's name.
        """
        group = {
            "groupName": name,
            "consumeEnable": True,
            "consumeFromMinEnable": True,
            "consumeBroadcastEnable": True,
            "consumeMessageOrderly": fifo,
            "retryQueueNums": 1,
            "retryMaxTimes": retries,
            "brokerId": 0,
            "whichBrokerWhenConsumeSlowly": 1,
            "notifyConsumerIdsChangedEnable": True,
            "groupSysFlag": 0,
            "consumeTimeoutMinute": 15,
        }
        self.ask(SAVE_GROUP, body=json.dumps(group).encode())

    def delete_group(self, name: str) -> None:
        """Remove a group, with the positions that it had."""
        self.ask(DELETE_GROUP, {"groupName": name, "cleanOffset": True})

    def route(self, topic: str) -> tuple[str, ...]:
        """Where the proxy sends clients of a topic: host:port for each of its queues.

        A LookupError where it knows of none; `BrokerFailed` where it does not answer.
        """
        found = self._route(topic)
        if not found.known:
            msg = f"{self!r}: there is no way to {topic!r}: {found.code}, {found.message}"
            raise LookupError(msg)
        return found.addresses

    # -- the broker ----------------------------------------------------------------------------

    def ask(
        self, request: int, fields: Mapping[str, object] | None = None, body: bytes = b""
    ) -> bytes:
        """A request of the remoting protocol to the broker, by its number; see `ask` there."""
        return ask(self.broker_address, request, fields, body)

    def configuration(self) -> dict[str, str]:
        """What the broker is set to, by name."""
        lines = self.ask(CONFIGURATION).decode().splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def reconfigure(self, settings: Mapping[str, str]) -> None:
        """Change settings of the broker, until it is started again.

        Not those of `transactionOp…`: the thread that reads them may sleep for a day.
        """
        text = "".join(f"{key}={value}\n" for key, value in settings.items())
        self.ask(CONFIGURE, body=text.encode())

    def register(self) -> None:
        """Let the broker tell the name server what it has.

        One that has just started does so after ten seconds; one whose permission is set, at once.
        """
        self.reconfigure({"brokerPermission": "6"})

    def probe(self) -> None:
        """A topic of ours is at the broker, the name server knows it, the proxy tells the way."""
        self._save_topic(PROBE, "NORMAL", 1)
        try:
            ask(self.name_server, WAY, {"topic": PROBE})
        except Refused:
            # Before the proxy is asked: it would remember for a while that there is no such topic.
            self.register()
        self.route(PROBE)

    def _route(self, topic: str) -> Route:
        return query(self.proxy_address, topic)

    def _save_topic(self, name: str, kind: str, queues: int) -> None:
        if kind not in KINDS:
            msg = f"{kind!r} is no kind of topic: there is {', '.join(KINDS)}"
            raise ValueError(msg)
        topic = {
            "topic": name,
            "defaultTopic": "TBW102",
            "readQueueNums": queues,
            "writeQueueNums": queues,
            "perm": 6,
            "topicFilterType": "SINGLE_TAG",
            "topicSysFlag": 0,
            "order": False,
            "attributes": f"+message.type={kind}",
        }
        self.ask(SAVE_TOPIC, topic)


class RunningRocketMQ(Running, RocketMQ):
    """One that somebody else runs: it can be used, but not hurt.

    Its proxy tells clients where to go: a `Proxy` in front of it has all that they do only where it
    is set to `useEndpointPortFromRequest`. Topics are made where its URL names a name server.
    """

    variable = "RELIABLE_MQ_ROCKETMQ_URL"

    @property
    def proxy_address(self) -> str:
        """The first host of its URL, with RocketMQ's usual port where that has none."""
        host = urlsplit(self.url).netloc.rpartition("@")[2].split(",")[0]
        return host if host.rpartition(":")[2].isdigit() else f"{host}:8081"

    @property
    def name_server(self) -> str:
        """The first one that its URL names; `Missing` where there is none."""
        named = parse_qs(urlsplit(self.url).query).get("namesrv")
        if not named:
            msg = (
                "topics and groups are made at the broker, and the name server knows where that "
                f"is: {self.variable}=rocketmq://host:8081?namesrv=host:9876"
            )
            raise Missing(msg)
        return named[0].split(",")[0]

    @property
    def broker_address(self) -> str:
        """One that the name server knows, and that is no replica; `BrokerFailed` without any."""
        told = ask(self.name_server, BROKERS).decode()
        brokers = json.loads(re.sub(r"([{,])(\d+):", r'\1"\2":', told))  # its keys are bare numbers
        for one in brokers["brokerAddrTable"].values():
            if address := one["brokerAddrs"].get("0"):
                return str(address)
        msg = f"{self!r}: its name server {self.name_server} knows no broker"
        raise BrokerFailed(msg)

    def probe(self) -> None:
        """The proxy answers: it need not know a topic of ours, as nothing is made there unasked."""
        self._route(PROBE)
