"""What an app declares: made where it is missing, compared where it is there, altered never."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from reliable_mq.adapters.rocketmq.names import (
    check_group,
    check_topic,
    dead_letters,
    delayed,
    free_group,
    retries,
)
from reliable_mq.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reliable_mq.adapters.base import Start, TopicSpec, Topology
    from reliable_mq.adapters.rocketmq.admin import Admin

__all__ = ["Topics", "wanted_topics"]

log = logging.getLogger("reliable_mq.rocketmq")

#: Deliveries that a group should try at least: the broker's default, 16, is below many policies.
FEWEST_RETRIES: Final = 100
#: Queues of what waits for its time; dead letters have one, so that they can be read in order.
DELAY_QUEUES: Final = 4


class Wanted(Struct, frozen=True):
    """A topic on the broker."""

    name: str
    type: str
    queues: int


def wanted_topics(spec: TopicSpec, queues: int) -> Iterator[Wanted]:
    """All topics on the broker that one of ours is made of."""
    yield Wanted(spec.name, "FIFO" if spec.ordered else "NORMAL", queues)
    yield Wanted(delayed(spec.name), "DELAY", DELAY_QUEUES)
    for group in spec.groups:
        yield Wanted(retries(spec.name, group.name), "DELAY", DELAY_QUEUES)
        yield Wanted(dead_letters(spec.name, group.name), "NORMAL", 1)


class Topics:
    """Any thread."""

    def __init__(self, admin: Admin, queues: int) -> None:
        self._admin = admin
        self._queues = queues

    def ensure(self, topology: Topology) -> list[str]:
        """See Transport.ensure; returns the names of the topics, all of which are there now."""
        self._check_names(topology)
        wanted = [one for spec in topology.topics for one in wanted_topics(spec, self._queues)]
        for one in wanted:
            self._admin.need(
                f"declaring topic {one.name!r}",
                f"updateTopic -n NAMESRV -c CLUSTER -t {one.name} -r {one.queues} "
                f"-w {one.queues} -a +message.type={one.type}",
            )
        missing, differences = self._compare(wanted)
        groups, wrong = self._groups(topology)
        differences += wrong
        if topology.mode == "check":
            differences += [f"topic {one.name!r} is missing" for one in missing]
            differences += [f"group {name!r} is missing" for name in groups]
        if differences:
            text = f"the broker does not have what is declared: {'; '.join(differences)}"
            raise ConfigurationError(text)
        for one in missing:
            self._admin.make_topic(one.name, one.type, one.queues)
        for name, fifo in groups.items():
            self._admin.make_group(name, fifo=fifo)
        self._place_all(topology)
        return [one.name for one in wanted]

    def _check_names(self, topology: Topology) -> None:
        for topic in topology.topics:
            check_topic(topic.name)
            for group in topic.groups:
                check_group(group.name)

    def _place_all(self, topology: Topology) -> None:
        for spec in topology.topics:
            for group in spec.groups:
                if group.start is not None:
                    self.place(spec.name, group.name, group.start, ordered=spec.ordered)

    def place(self, topic: str, group: str, start: Start, *, ordered: bool) -> None:
        """Give a group that has none a position: in the topic, and at the beginning of the rest."""
        free = self.free_group_of(group)
        self._admin.place(topic, group if ordered else free, start)
        later: Start = (
            "latest" if start == "latest" else None
        )  # the time of a delayed one is when it is due
        self._admin.place(delayed(topic), free, later)
        self._admin.place(retries(topic, group), free, None)

    def free_group_of(self, group: str) -> str:
        """The group that reads what has no order."""
        found = self._admin.groups().get(group)
        return free_group(group) if found is not None and found.fifo else group

    def _compare(self, wanted: list[Wanted]) -> tuple[list[Wanted], list[str]]:
        missing, differences = [], []
        for one in wanted:
            found = self._admin.topic(one.name)
            if found is None:
                missing.append(one)
            elif (found.type or "NORMAL") != one.type:
                differences.append(
                    f"topic {one.name!r} has message.type={found.type or 'NORMAL'}, not {one.type}"
                    f" (declare it ordered={found.type == 'FIFO'}, or make it anew)"
                )
        return missing, differences

    def _groups(self, topology: Topology) -> tuple[dict[str, bool], list[str]]:
        """Groups that are missing, and whether they keep order; and what is wrong with others."""
        ordered = {one.name for spec in topology.topics if spec.ordered for one in spec.groups}
        every = {one.name for spec in topology.topics for one in spec.groups}
        there = self._admin.groups() if every else {}
        missing: dict[str, bool] = {}
        differences = []
        for name in sorted(every):
            found = there.get(name)
            fifo = name in ordered if found is None else found.fifo
            if found is None:
                missing[name] = fifo
            elif name in ordered and not found.fifo:
                differences.append(
                    f"group {name!r} does not keep order (consumeMessageOrderly=false), and reads "
                    "an ordered topic: take another group, or make it anew"
                )
            elif found.retries < FEWEST_RETRIES:
                log.warning(
                    "group %s: after %d deliveries the broker puts a message aside, into %%DLQ%%%s",
                    name,
                    found.retries + 1,
                    name,
                )
            if fifo and free_group(name) not in there:
                missing[free_group(name)] = False
        return missing, differences
