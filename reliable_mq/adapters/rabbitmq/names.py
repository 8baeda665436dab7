"""What topics and groups are called on the broker.

    topic         a durable topic exchange of that name, bound to every group's queue with "#"
    group         the quorum queue `topic.group`
    dead letters  the quorum queue `topic.group.dlq`, bound to nothing
    delays        the quorum queues `….delay.<seconds>`, which have no consumer and lead back

One queue for each group is partition 0; shard queues of a group will be `topic.group.1` and so on.

A topic may also stand for a queue or an exchange that is there (`reliable_mq.rabbitmq`): those are
never declared, only what is ours beside them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from reliable_mq.errors import PublishRejected
from reliable_mq.message import DeadLetter, RetryCopy, dead_letter_topic

if TYPE_CHECKING:
    from reliable_mq.message import Destination, Message

__all__ = [
    "LADDER",
    "LONGEST_NAME",
    "Address",
    "Place",
    "Route",
    "address_of",
    "dead_letters_of",
    "delay_queue",
    "place_of",
    "queue_of",
    "rung",
]

#: Bytes of a name in AMQP.
LONGEST_NAME: Final = 255
#: Seconds of the delay queues: powers of two up to 9.1 hours.
LADDER: Final[tuple[int, ...]] = tuple(1 << power for power in range(16))


class Address(Struct, frozen=True, gc=False):
    """Where a message goes: an exchange ("" is the default one) and a routing key."""

    exchange: str
    routing_key: str

    def __str__(self) -> str:
        return f"exchange {self.exchange!r}" if self.exchange else f"queue {self.routing_key!r}"


class Route(Struct, frozen=True, gc=False):
    """What has to be there before a message is sent: its address, and a delay queue before that."""

    address: Address
    step: int | None = None

    def first(self) -> Address:
        """Where a message is published to that goes this way."""
        if self.step is None:
            return self.address
        return Address("", delay_queue(self.address, self.step))


class Place(Struct, frozen=True, gc=False):
    """What a topic is on the broker.

    base: what the names of its groups begin with. queue: the queue that is there; None: each group
    has its own. ours: whether its exchange is declared by us.
    """

    base: str
    address: Address
    binding: str = "#"
    queue: str | None = None
    ours: bool = True
    unsafe: bool = False


@lru_cache(10_000)
def place_of(topic: str) -> Place:
    """What stands behind the name of a topic."""
    kind, _, rest = topic.partition(":")
    if kind in ("queue", "queue?") and rest:
        unsafe = kind == "queue?"
        return Place(rest, Address("", rest), queue=rest, ours=False, unsafe=unsafe)
    if kind == "exchange" and rest:
        exchange, _, key = rest.partition(":")
        base = f"{exchange}.{key}" if key else exchange
        return Place(base, Address(exchange, key), binding=key, ours=False)
    return Place(topic, Address(topic, topic))


def queue_of(topic: str, group: str) -> str:
    """The queue that a group of a topic consumes from."""
    place = place_of(topic)
    return place.queue or f"{place.base}.{group}"


def dead_letters_of(topic: str, group: str) -> str:
    """The queue of the dead letters of a group."""
    return dead_letter_topic(place_of(topic).base, group)


def address_of(message: Message, to: Destination) -> Address:
    """Where a message goes that is not delayed. Raises PublishRejected: the name is too long."""
    if isinstance(to, RetryCopy):
        address = Address("", queue_of(to.topic, to.group))
    elif isinstance(to, DeadLetter):
        address = Address("", dead_letters_of(to.topic, to.group))
    else:
        address = place_of(message.topic).address
    # A delay queue of it must have a name, too.
    if len(address.routing_key.encode()) > LONGEST_NAME - len(".delay.32768"):
        text = f"message {message.id!r}: {address} has too long a name for AMQP"
        raise PublishRejected(text, message)
    return address


def rung(seconds: float) -> int:
    """The step of the ladder for a delay: rounded up, so never early; the longest if it is longer.

    What is longer passes the ladder again.
    """
    for step in LADDER:
        if seconds <= step:
            return step
    return LADDER[-1]


def delay_queue(address: Address, step: int) -> str:
    """The queue where a message waits so many seconds before it goes to this address."""
    exchange, key = address.exchange, address.routing_key
    # A colon: no group, and no other routing key, has the same.
    scope = f"{exchange}:{'' if key == exchange else key}" if exchange else key
    return f"{scope}.delay.{step}"
