"""What a subscription reads from: the topic itself, what is delayed, and its group's retries."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from reliable_mq.adapters.rocketmq.names import delayed, retries

if TYPE_CHECKING:
    from reliable_mq.adapters.base import Subscribe

__all__ = ["Source", "sources_of"]


class Source(Struct, eq=False):
    """One topic on the broker, read by one group there.

    fifo: the broker keeps its order, and gives out no more of a queue while it waits for an ack.
    of: the topic that its messages belong to. optional: it may not be there yet.
    """

    topic: str
    group: str
    of: str
    fifo: bool = False
    optional: bool = False


def sources_of(subscribe: Subscribe, fifo: dict[str, bool], free: str) -> list[Source]:
    """All that a member reads; `fifo`: for each topic; `free`: the group of what has no order."""
    found = []
    for topic in subscribe.topics:
        group = subscribe.group if fifo[topic] else free
        found.append(Source(topic, group, topic, fifo=fifo[topic]))
        found.append(Source(delayed(topic), free, topic, optional=True))
        found.append(Source(retries(topic, subscribe.group), free, topic, optional=True))
    return found
