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

import confluent_kafka
import pika
from confluent_kafka import KafkaException

from reliable_mq import ReliableMQError
from reliable_mq.adapters.kafka import KafkaTransport
from reliable_mq.adapters.rabbitmq.names import LADDER, Address, delay_queue, queue_of
from reliable_mq.adapters.rabbitmq.parameters import parse
from reliable_mq.adapters.rabbitmq.session import session
from reliable_mq.adapters.sqlite import SqliteTransport
from reliable_mq.message import dead_letter_topic

TOPIC, GROUP = "orders", "billing"


class Place(Protocol):
    """A broker, as one run sees it.

    sparse: there are few boundaries to be killed at, as its client works on threads of its own.
    """

    topic: str
    url: str
    sparse: bool

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
    sparse = False

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

    sparse = False

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

    def leader(self) -> Any:
        """Of a cluster: the node that leads the queue."""
        return self.broker.leader_node(self.queue)

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


class OnKafka:
    """Kafka: a topic and a group of names that nobody else has, removed in the end.

    `broker` is for tests that hurt it.
    """

    sparse = True
    #: Seconds after which a member that was killed is noticed: nothing else tells of it.
    LEASE = 2.0

    def __init__(self, broker: Any, name: str) -> None:
        self.broker = broker
        self.url = broker.url
        self.topic = self.group = ""
        self._name = name
        self._used: list[str] = []
        self.renew()

    def leader(self) -> Any:
        """Of a cluster: the node that leads the first partition."""
        return self.broker.leader_node(self.topic)

    def plan(self) -> dict[str, Any]:
        """See Place. Members of one group would share all topics: each topic has its own."""
        return {
            "url": self.url,
            "topic": self.topic,
            "group": self.group,
            "lease_timeout": self.LEASE,
        }

    def plan_of_each(self) -> dict[str, Any]:
        """See Place."""
        plan = self.plan()
        return {**plan, "topic": f"{self.topic}-{{at}}", "group": f"{self.group}-{{at}}"}

    def was_swept(self, numbers: Iterable[int]) -> None:
        """See Place: their names begin with ours."""

    def lag(self) -> int:
        """See Place: what somebody has in hand is not finished either."""
        return KafkaTransport(self.url).lag(self.topic, self.group)

    def write(self, id: str, body: bytes, headers: dict[str, str]) -> None:
        """See Place."""
        producer = confluent_kafka.Producer({"bootstrap.servers": self.broker.bootstrap})
        texts = {**headers, "rmq-id": id}.items()
        # As bytes: of a text, confluent-kafka takes what is before the first NUL.
        coded = [(name, text.encode()) for name, text in texts]
        producer.produce(self.topic, body, b"f", headers=coded)
        assert producer.flush(10.0) == 0

    def renew(self) -> None:
        """See Place: other names."""
        mark = secrets.token_hex(4)
        self.topic, self.group = f"{self._name}-{mark}", f"{GROUP}-{mark}"
        self._used.append(mark)

    def close(self) -> None:
        """See Place."""
        admin = self.broker.admin()
        with suppress(KafkaException):
            topics = [name for name in admin.list_topics(timeout=5.0).topics if self._is_mine(name)]
            if topics:
                for removed in admin.delete_topics(topics).values():
                    removed.result(10.0)

    def _is_mine(self, topic: str) -> bool:
        return any(topic.startswith(f"{self._name}-{mark}") for mark in self._used)
