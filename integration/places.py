"""Where a run takes place: what its programs are told of the broker, and what is asked of it.

One test runs at several places: `run` in conftest.py is made for each that `brokers` names.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import pika

from reliable_mq import ReliableMQError
from reliable_mq.adapters.rabbitmq.names import LADDER, Address, delay_queue, queue_of
from reliable_mq.adapters.rabbitmq.parameters import parse
from reliable_mq.adapters.rabbitmq.session import session
from reliable_mq.adapters.sqlite import SqliteTransport
from reliable_mq.message import dead_letter_topic

TOPIC, GROUP = "orders", "billing"


class Place(Protocol):
    """A broker, as one run sees it."""

    topic: str
    url: str

    def plan(self) -> dict[str, Any]:
        """What every program is told."""

    def plan_of_each(self) -> dict[str, Any]:
        """The same for the runs of a sweep, each of which has a place of its own."""

    def was_swept(self, numbers: Iterable[int]) -> None:
        """These runs of a sweep have been."""

    def lag(self) -> int:
        """What the group has not finished, as far as nobody has it in hand."""

    def write(self, id: str, body: bytes, headers: dict[str, str]) -> None:
        """Store a message of key "f" as a program does that is not ours."""

    def renew(self) -> None:
        """Forget all messages."""

    def close(self) -> None:
        """Leave nothing behind."""


class OnFile:
    """SQLite: a file in the folder of the run, which goes with it."""

    topic = TOPIC

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def url(self) -> str:
        """As an app is given it."""
        return f"sqlite:///{self.path}"

    def plan(self) -> dict[str, Any]:
        """See Place."""
        return {"url": self.url}

    def plan_of_each(self) -> dict[str, Any]:
        """See Place."""
        return {"url": "sqlite:///{here}/broker.db"}

    def was_swept(self, numbers: Iterable[int]) -> None:
        """See Place."""

    def lag(self) -> int:
        """See Place."""
        return SqliteTransport(self.path).lag(TOPIC, GROUP)

    def write(self, id: str, body: bytes, headers: dict[str, str]) -> None:
        """See Place."""
        with sqlite3.connect(self.path) as file:
            sql = """
                INSERT INTO mq_message (topic, id, key, body, headers)
                VALUES ((SELECT id FROM mq_topic WHERE name = 'orders'), ?, x'66', ?, ?)"""
            file.execute(sql, (id, body, json.dumps(headers)))
        file.close()

    def renew(self) -> None:
        """See Place: the file is gone with the folder's others."""

    def close(self) -> None:
        """See Place."""


class OnRabbit:
    """RabbitMQ: a topic of a name that nobody else has, removed in the end.

    `broker` is for tests that hurt it.
    """

    def __init__(self, broker: Any, name: str) -> None:
        self.broker = broker
        self.url = broker.url
        self.topic = ""
        self._name = name
        self._used: list[str] = []
        self.renew()

    @property
    def queue(self) -> str:
        """The queue of the group."""
        return queue_of(self.topic, GROUP)

    def plan(self) -> dict[str, Any]:
        """See Place."""
        return {"url": self.url, "topic": self.topic}

    def plan_of_each(self) -> dict[str, Any]:
        """See Place."""
        return {"url": self.url, "topic": f"{self.topic}-{{at}}"}

    def was_swept(self, numbers: Iterable[int]) -> None:
        """See Place."""
        self._used += [f"{self.topic}-{number}" for number in numbers]

    def lag(self) -> int:
        """See Place."""
        with session(parse(self.url)) as opened:
            answer = opened.channel.queue_declare(self.queue, passive=True)
            return int(answer.method.message_count)

    def write(self, id: str, body: bytes, headers: dict[str, str]) -> None:
        """See Place."""
        properties = pika.BasicProperties(message_id=id, headers={**headers, "rmq-key": "f"})
        with session(parse(self.url)) as opened:
            opened.channel.confirm_delivery()
            opened.channel.basic_publish(self.topic, "", body, properties, mandatory=True)

    def renew(self) -> None:
        """See Place: another name."""
        self.topic = f"{self._name}-{secrets.token_hex(4)}"
        self._used.append(self.topic)

    def close(self) -> None:
        """See Place."""
        with suppress(ReliableMQError), session(parse(self.url)) as opened:
            channel = opened.channel
            for topic in self._used:
                queue = queue_of(topic, GROUP)
                delays = [delay_queue(Address("", queue), step) for step in LADDER]
                for name in (queue, dead_letter_topic(topic, GROUP), *delays):
                    channel.queue_delete(name)
                channel.exchange_delete(topic)
