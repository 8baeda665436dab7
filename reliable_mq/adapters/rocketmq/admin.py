"""Topics, groups and positions, on every broker of the cluster; through its name servers.

Blocking, and any thread: each call has connections of its own. Without `namesrv` in the URL nothing
of this can be done, and the error names the line of `mqadmin` that does it by hand.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from reliable_mq.adapters.rocketmq.records import pull
from reliable_mq.adapters.rocketmq.remoting import Peer, Refused, parsed
from reliable_mq.errors import ConfigurationError, ConnectionFailed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from reliable_mq.adapters.base import Start
    from reliable_mq.adapters.rocketmq.config import Address, Config

__all__ = ["Admin", "GroupFound", "TopicFound"]

# Requests of the remoting protocol.
UPDATE_TOPIC, UPDATE_GROUP = 17, 200
GET_TOPIC, GET_GROUPS = 351, 201
QUERY_OFFSET, UPDATE_OFFSET = 14, 15
SEARCH_OFFSET, MAX_OFFSET, MIN_OFFSET = 29, 30, 31
GET_CLUSTER, RESET_OFFSET = 106, 222
# Answers.
SYSTEM_ERROR, TOPIC_NOT_FOUND, OFFSET_NOT_FOUND = 1, 17, 22

#: Deliveries of a message before the broker puts it aside: beyond any policy of ours.
RETRIES: Final = 1_000_000
READ_WRITE: Final = 6
#: The message.type of a topic, by the name that the core's kinds have on the broker.
TYPES: Final = ("NORMAL", "FIFO", "DELAY", "TRANSACTION", "PRIORITY")


class TopicFound(Struct, frozen=True):
    """What a topic is like: its message.type ("" where it has none), and its queues."""

    type: str
    queues: int


class GroupFound(Struct, frozen=True):
    """What a group is like: whether it keeps order, and how often it tries."""

    fifo: bool
    retries: int


class Admin:
    """Of one transport. Raises ConnectionFailed from every method; nothing waits for ever."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._timeout = config.options.request_timeout
        self._brokers: tuple[Address, ...] = ()

    def need(self, what: str, line: str) -> None:
        """Raises ConfigurationError where there is no name server to do it with."""
        if not self._config.namesrv:
            text = (
                f"{self._config}: {what} needs the name server: give ?namesrv=host:9876 in the "
                f"URL, or run: mqadmin {line}"
            )
            raise ConfigurationError(text)

    @property
    def is_there(self) -> bool:
        """Whether the URL names a name server."""
        return bool(self._config.namesrv)

    # -- topics and groups ---------------------------------------------------------------------

    def topic(self, name: str) -> TopicFound | None:
        """What the topic is like on the first broker that has it; None: on none."""
        for peer in self._peers():
            try:
                found = parsed(peer.ask(GET_TOPIC, {"topic": self._full(name)}).body)
            except Refused as error:
                if error.code not in (TOPIC_NOT_FOUND, SYSTEM_ERROR):
                    raise self._failed(error, f"topic {name!r}") from error
                continue
            kept = found.get("attributes") or {}
            return TopicFound(str(kept.get("message.type", "")), int(found["writeQueueNums"]))
        return None

    def make_topic(self, name: str, kind: str, queues: int) -> None:
        """Make it on every broker."""
        fields = {
            "topic": self._full(name),
            "defaultTopic": "TBW102",
            "readQueueNums": queues,
            "writeQueueNums": queues,
            "perm": READ_WRITE,
            "topicFilterType": "SINGLE_TAG",
            "topicSysFlag": 0,
            "order": False,
            "attributes": f"+message.type={kind}",
        }
        for peer in self._peers():
            try:
                peer.ask(UPDATE_TOPIC, fields)
            except Refused as error:
                raise self._failed(error, f"topic {name!r} cannot be made") from error

    def groups(self) -> dict[str, GroupFound]:
        """All groups, as the first broker has them that knows them.

        A broker that is asked for one makes it where it is missing, and then it keeps no order.
        """
        found: dict[str, GroupFound] = {}
        for peer in self._peers():
            try:
                table = parsed(peer.ask(GET_GROUPS).body).get("subscriptionGroupTable") or {}
            except Refused as error:
                raise self._failed(error, "its groups") from error
            for name, group in table.items():
                fifo, retries = group.get("consumeMessageOrderly"), group.get("retryMaxTimes", 0)
                found.setdefault(name, GroupFound(bool(fifo), int(retries)))
        prefix = self._full("")
        return {name[len(prefix) :]: one for name, one in found.items() if name.startswith(prefix)}

    def make_group(self, name: str, *, fifo: bool) -> None:
        """Make it on every broker."""
        body = {
            "groupName": self._full(name),
            "consumeEnable": True,
            "consumeFromMinEnable": True,
            "consumeBroadcastEnable": True,
            "consumeMessageOrderly": fifo,
            "retryQueueNums": 1,
            "retryMaxTimes": RETRIES,
            "brokerId": 0,
            "whichBrokerWhenConsumeSlowly": 1,
            "notifyConsumerIdsChangedEnable": True,
            "groupSysFlag": 0,
            "consumeTimeoutMinute": 15,
        }
        for peer in self._peers():
            try:
                peer.ask(UPDATE_GROUP, body=json.dumps(body).encode())
            except Refused as error:
                raise self._failed(error, f"group {name!r} cannot be made") from error

    # -- positions -----------------------------------------------------------------------------

    def place(self, topic: str, group: str, start: Start) -> None:
        """Give the group a position in each queue where it has none.

        `start`: epoch seconds, "latest", or the beginning.
        """
        for peer in self._peers():
            for queue in range(self._queues(peer, topic)):
                if self._position(peer, topic, group, queue) is None:
                    offset = self._offset_at(peer, topic, queue, start)
                    self._offset(
                        peer,
                        UPDATE_OFFSET,
                        topic,
                        queue,
                        consumerGroup=self._full(group),
                        commitOffset=offset,
                    )

    def reset(self, topic: str, group: str, start: Start) -> None:
        """Move the group, whether its members live or not: what is in hand comes again."""
        end = -1 if start == "latest" else 0
        fields = {
            "topic": self._full(topic),
            "group": self._full(group),
            "timestamp": int(start * 1000) if isinstance(start, float) else end,
            "isForce": True,
        }
        for peer in self._peers():
            try:
                peer.ask(RESET_OFFSET, fields)
            except Refused as error:
                raise self._failed(error, f"group {group!r} cannot be moved") from error

    def lag(self, topic: str, group: str) -> int:
        """Messages of the topic behind the group's position; what is in hand of it counts."""
        behind = 0
        for peer in self._peers():
            for queue in range(self._queues(peer, topic)):
                end = self._offset(peer, MAX_OFFSET, topic, queue)
                done = self._position(peer, topic, group, queue)
                if done is None:
                    done = self._offset(peer, MIN_OFFSET, topic, queue)
                behind += max(0, end - done)
        return behind

    # -- records -------------------------------------------------------------------------------

    def records(self, topic: str, reader: str) -> Iterator[tuple[str, Any]]:
        """All records from the reader's position on, as `host:port/queue/offset` and message.

        The position is that of the first reader, moved by `move`; reading moves nothing.
        """
        for peer in self._peers():
            for queue in range(self._queues(peer, topic)):
                begin = self._position(peer, topic, reader, queue) or 0
                begin = max(begin, self._offset(peer, MIN_OFFSET, topic, queue))
                end = self._offset(peer, MAX_OFFSET, topic, queue)
                names = (self._full(topic), self._full(reader))
                try:
                    for record in pull(peer, *names, queue=queue, begin=begin, end=end):
                        yield f"{peer.name}/{queue}/{record.offset}", record.wire
                except Refused as error:
                    raise self._failed(error, f"topic {topic!r} cannot be read") from error

    def move(self, topic: str, reader: str, positions: Sequence[str]) -> None:
        """Let the reader begin behind the last of these positions, in each queue."""
        last: dict[tuple[str, int], int] = {}
        for position in positions:
            name, number, offset_text = position.rsplit("/", 2)
            place = (name, int(number))
            last[place] = max(last.get(place, 0), int(offset_text) + 1)
        for peer in self._peers():
            for (name, queue), offset in last.items():
                if name == peer.name:
                    fields = {"consumerGroup": self._full(reader), "commitOffset": offset}
                    self._offset(peer, UPDATE_OFFSET, topic, queue, **fields)

    # -- parts ---------------------------------------------------------------------------------

    def _peers(self) -> Iterator[Peer]:
        """A connection to each broker, in turn."""
        for address in self._addresses():
            try:
                peer = Peer(address, self._timeout)
            except ConnectionFailed:
                self._brokers = ()  # it may be somewhere else by now
                raise
            with peer:
                yield peer

    def _addresses(self) -> tuple[Address, ...]:
        if not self._brokers:
            with self._name_server() as peer:
                try:
                    found = parsed(peer.ask(GET_CLUSTER).body)
                except Refused as error:
                    raise self._failed(error, "its brokers") from error
            table = found.get("brokerAddrTable") or {}
            masters = [one["brokerAddrs"].get("0") for _, one in sorted(table.items())]
            self._brokers = tuple(_address(one) for one in masters if one)
        if not self._brokers:
            text = f"{self._config}: the name server knows no broker"
            raise ConnectionFailed(text)
        return self._brokers

    @contextmanager
    def _name_server(self) -> Iterator[Peer]:
        failed: ConnectionFailed | None = None
        for address in self._config.namesrv:
            try:
                peer = Peer(address, self._timeout)
            except ConnectionFailed as error:
                failed = error
                continue
            with peer:
                yield peer
            return
        raise failed or ConnectionFailed(f"{self._config}: no name server is given")

    def _queues(self, peer: Peer, topic: str) -> int:
        try:
            found = parsed(peer.ask(GET_TOPIC, {"topic": self._full(topic)}).body)
        except Refused as error:
            if error.code in (TOPIC_NOT_FOUND, SYSTEM_ERROR):
                return 0
            raise self._failed(error, f"topic {topic!r}") from error
        return int(found["readQueueNums"])

    def _position(self, peer: Peer, topic: str, group: str, queue: int) -> int | None:
        try:
            return self._offset(
                peer,
                QUERY_OFFSET,
                topic,
                queue,
                consumerGroup=self._full(group),
                setZeroIfNotFound=False,
            )
        except OffsetNotFound:
            return None

    def _offset_at(self, peer: Peer, topic: str, queue: int, start: Start) -> int:
        if isinstance(start, float):
            return self._offset(peer, SEARCH_OFFSET, topic, queue, timestamp=int(start * 1000))
        code = MAX_OFFSET if start == "latest" else MIN_OFFSET
        return self._offset(peer, code, topic, queue)

    def _offset(self, peer: Peer, code: int, topic: str, queue: int, **more: Any) -> int:
        fields = {"topic": self._full(topic), "queueId": queue, **more}
        try:
            return int(peer.ask(code, fields).fields.get("offset", 0))
        except Refused as error:
            if error.code == OFFSET_NOT_FOUND:
                raise OffsetNotFound from error
            raise self._failed(error, f"queue {queue} of topic {topic!r}") from error

    def _full(self, name: str) -> str:
        """With the namespace, as the proxy writes it."""
        return f"{self._config.namespace}%{name}" if self._config.namespace else name

    def _failed(self, error: Refused, what: str) -> ConnectionFailed:
        return ConnectionFailed(f"{self._config}: {what}: the broker says {error}")


class OffsetNotFound(Exception):
    """The group has no position there."""


def _address(text: str) -> Address:
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)
