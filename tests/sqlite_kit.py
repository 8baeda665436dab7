"""A broker file with a topic "t" and a group "g", and clients of it, for one test."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

from reliable_mq.adapters.base import GroupSpec, Subscribe, TopicSpec, Topology
from reliable_mq.adapters.sqlite import SqliteTransport
from reliable_mq.message import Message, Receipt, Topic
from reliable_mq.testing.clock import FakeClock
from tests.sqlite_faults import Faults

if TYPE_CHECKING:
    from pathlib import Path

    from reliable_mq.adapters.sqlite import SqlitePublisher, SqliteSubscription
    from reliable_mq.confirmation import Confirmation
    from reliable_mq.errors import PublishError
    from reliable_mq.message import Delivery, Destination

TOPIC = Topic()


class Kit:
    """Clients share the clock; each transport that is asked for has faults of its own."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.path = path
        self.clock = FakeClock()
        self.options = options
        self._all_faults: list[Faults] = []
        self.connect = Faults()
        self.transport = self.another(self.connect)
        self._publisher: SqlitePublisher | None = None
        self._subscriptions: list[SqliteSubscription] = []
        self._number = 0

    def another(self, connect: Faults | None = None, **options: Any) -> SqliteTransport:
        """Another transport to the same file."""
        connect = connect or Faults()
        self._all_faults.append(connect)
        given = {"clock": self.clock, "connect": connect, **self.options, **options}
        return SqliteTransport(self.path, **given)

    def declare(self, topic: str = "t", *groups: str) -> None:
        """Make a topic with these groups; "g" where there are none."""
        specs = tuple(GroupSpec(name) for name in groups or ("g",))
        self.transport.ensure(Topology((TopicSpec(topic, groups=specs),)))

    def join(
        self,
        *topics: str,
        group: str = "g",
        transport: SqliteTransport | None = None,
        **options: Any,
    ) -> SqliteSubscription:
        """A new member."""
        asks = Subscribe(topics=topics or ("t",), group=group, **options)
        member = (transport or self.transport).subscribe(asks, lambda *_: None)
        self._subscriptions.append(member)
        return member

    @property
    def publisher(self) -> SqlitePublisher:
        """The publisher of this test."""
        if self._publisher is None:
            self._publisher = self.transport.publisher()
        return self._publisher

    def message(self, key: bytes | None = None, **fields: Any) -> Message:
        """A message with an id of its own."""
        self._number += 1
        fields = {"id": f"m{self._number}", "topic": "t", "body": b"body", **fields}
        return Message(key=key, **fields)

    def submit(
        self, message: Message, to: Destination = TOPIC, *, within: float | None = None
    ) -> Confirmation:
        """Publish without waiting; `within` is seconds until its deadline."""
        deadline = None if within is None else self.clock.monotonic() + within
        return self.publisher.submit(message, to, deadline=deadline)

    def send(self, *messages: Message, to: Destination = TOPIC) -> list[Receipt]:
        """Publish, and wait for every Receipt."""
        return [one.result(20) for one in [self.submit(message, to) for message in messages]]

    def send_many(self, amount: int, *keys: bytes | None) -> list[str]:
        """Publish so many messages, the keys in turn; returns their ids."""
        turns = keys or (None,)
        messages = [self.message(turns[at % len(turns)]) for at in range(amount)]
        self.send(*messages)
        return [message.id for message in messages]

    def sql(self, statement: str, parameters: Any = ()) -> list[Any]:
        """Run a statement as another program."""
        with closing(sqlite3.connect(self.path)) as connection, connection:
            return connection.execute(statement, parameters).fetchall()

    def close(self) -> None:
        """End everything, as it should be."""
        for member in self._subscriptions:
            member.close()
        if self._publisher is not None:
            self._publisher.close(0.5)

    def abandon(self) -> None:
        """End everything as a process that dies does; its leases go on."""
        self._subscriptions.clear()
        for connect in self._all_faults:
            connect.close()


def ids(deliveries: list[Delivery]) -> list[str]:
    """Their ids, in their order."""
    return [one.message.id for one in deliveries]


def take(member: SqliteSubscription, limit: int = 1000) -> list[Delivery]:
    """One poll that waits for nothing."""
    return list(member.poll(limit, 0.0).deliveries)


def ending(confirmation: Confirmation) -> PublishError:
    """The error a publish ended with."""
    outcome = confirmation.outcome
    assert outcome is not None
    assert not isinstance(outcome, Receipt)
    return outcome
