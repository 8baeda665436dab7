"""Topics of ours: made where they are missing, compared where they are there, altered never."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from confluent_kafka import admin as kafka_admin

from reliable_mq.errors import ConfigurationError
from reliable_mq.message import dead_letter_topic

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from reliable_mq.adapters.base import Topology
    from reliable_mq.adapters.kafka.admin import Admin
    from reliable_mq.adapters.kafka.config import Config

__all__ = ["Topics"]

log = logging.getLogger("reliable_mq.kafka")

#: Bytes that a dead letter, or a retry copy, may have beyond the largest body.
ROOM: Final = 512 * 1024
#: Copies of each partition, where there are as many brokers; and how many of them a Receipt means.
COPIES: Final = 3
IN_SYNC: Final = 2
NewTopic: Final[Any] = kafka_admin.NewTopic  # type: ignore[attr-defined]  # it is exported


class Topics:
    """Any thread."""

    def __init__(self, config: Config, admin: Admin) -> None:
        self._options = config.options
        self._admin = admin

    def ensure(self, topology: Topology) -> None:
        """See Transport.ensure."""
        shapes = self._admin.shapes()
        wanted: dict[str, str] = {}  # each with the topic that it has as many partitions as
        for topic in topology.topics:
            wanted[topic.name] = topic.name
            for group in topic.groups:
                wanted.setdefault(dead_letter_topic(topic.name, group.name), topic.name)
        missing = [name for name in wanted if name not in shapes]
        if missing and topology.mode == "check":
            missing = self._admin.missing(missing)
            shapes = self._admin.shapes()
        differences = self._differences([name for name in wanted if name in shapes])
        if topology.mode == "check":
            found = [f"topic {name!r} is missing" for name in missing] + differences
            if found:
                text = f"the broker does not have what is declared: {'; '.join(found)}"
                raise ConfigurationError(text)
            return
        for difference in differences:
            log.warning("%s; nothing is altered, and messages are that much less safe", difference)
        # The topics first: dead letters have as many partitions, so that a key keeps its own.
        self._make({name: like for name, like in wanted.items() if name == like}, missing)
        self._make({name: like for name, like in wanted.items() if name != like}, missing)
        for topic in topology.topics:
            for group in topic.groups:
                if group.start is not None:
                    self._admin.place(topic.name, group.name, group.start)

    def make_retry_topic(self, name: str) -> bool:
        """Make a retry topic, if its group is there, which its dead letter topic tells."""
        base, separator, _ = name.rpartition(".retry.")
        like = f"{base}.dlq"
        if not separator or like not in self._admin.topics():
            return False
        self._make({name: like}, [name])
        return True

    def _make(self, wanted: Mapping[str, str], missing: Iterable[str]) -> None:
        names = [name for name in missing if name in wanted]
        if not names:
            return
        there = self._admin.topics()
        copies = min(COPIES, self._admin.brokers())
        settings = {"max.message.bytes": str(self._options.max_body + ROOM)}
        if copies >= COPIES:
            settings["min.insync.replicas"] = str(IN_SYNC)
        forever = {"retention.ms": "-1"}  # a dead letter stays until somebody has dealt with it
        self._admin.create(
            [
                NewTopic(
                    name,
                    there.get(wanted[name], self._options.partitions),
                    copies,
                    config=settings | (forever if name.endswith(".dlq") else {}),
                )
                for name in names
            ]
        )

    def _differences(self, names: Iterable[str]) -> list[str]:
        """What makes these topics less safe than ours would be."""
        names = list(names)
        if not names:
            return []
        shapes, copies = self._admin.shapes(), min(COPIES, self._admin.brokers())
        found = []
        for name, settings in self._admin.settings(names).items():
            replicas = shapes[name].replicas
            if replicas < copies:
                found.append(f"topic {name!r} has {replicas} replicas, not {copies}")
            in_sync = int(settings.get("min.insync.replicas") or 1)
            if replicas >= COPIES and in_sync < IN_SYNC:
                found.append(f"topic {name!r} has min.insync.replicas={in_sync}, not {IN_SYNC}")
            if settings.get("unclean.leader.election.enable") == "true":
                found.append(f"topic {name!r} has unclean.leader.election.enable=true, not false")
            size = int(settings.get("max.message.bytes") or 0)
            if size < self._options.max_body:
                found.append(
                    f"topic {name!r} has max.message.bytes={size}, and max_body is "
                    f"{self._options.max_body}"
                )
        return found
