"""What an app names when its RabbitMQ topology is there already.

    billing = rabbitmq.Queue("billing-q")                     # stands where a topic does: consumed
    paid = rabbitmq.Exchange("shop", routing_key="order.paid")  # published to, and consumed

Neither is created or altered. What is ours beside them is: the dead letters of a group
(`billing-q.<group>.dlq`), the delay queues of its retries, and, for a group that consumes from an
Exchange, its queue `shop.order.paid.<group>`, bound with the routing key.
"""

from __future__ import annotations

from msgspec import Struct

__all__ = ["Exchange", "Queue"]


class Queue(Struct, frozen=True):
    """A queue that is there; as a topic, `queue:billing-q`.

    unsafe_may_discard: Consume from it although it may drop messages by itself: by a length without
        reject-publish, or a time to live that leads nowhere.
    """

    queue: str
    unsafe_may_discard: bool = False

    @property
    def name(self) -> str:
        """What stands for it as the name of a topic."""
        return f"queue{'?' if self.unsafe_may_discard else ''}:{self.queue}"

    def __str__(self) -> str:
        return self.name


class Exchange(Struct, frozen=True):
    """An exchange that is there, of any type; as a topic, `exchange:shop:order.paid`.

    routing_key: With it messages are published, and the queue of a group is bound.
    """

    exchange: str
    routing_key: str = ""

    @property
    def name(self) -> str:
        """What stands for it as the name of a topic."""
        return f"exchange:{self.exchange}:{self.routing_key}"

    def __str__(self) -> str:
        return self.name
