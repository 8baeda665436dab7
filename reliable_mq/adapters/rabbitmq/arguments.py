"""With which arguments queues are declared: the settings that lose nothing by themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from reliable_mq.adapters.rabbitmq.names import Address

__all__ = ["delay_arguments", "queue_arguments"]

#: Redeliveries after which the broker would throw a message away (its default since 4.0: 20). More
#: than any policy: only our dead letters end a message.
DELIVERY_LIMIT: Final = 1_000_000


def queue_arguments(*, single: bool) -> dict[str, Any]:
    """Of a group's queue, or of its dead letters. `single`: one consumer at a time has it all."""
    arguments: dict[str, Any] = {
        "x-queue-type": "quorum",
        "x-delivery-limit": DELIVERY_LIMIT,
    }
    if single:
        arguments["x-single-active-consumer"] = True
    return arguments


def delay_arguments(address: Address, step: int) -> dict[str, Any]:
    """Of a queue where messages wait `step` seconds on their way to an address.

    At least once: the broker keeps a message until the target has it, and refuses new ones rather
    than dropping old ones (reliability.md, finding 17).
    """
    return {
        "x-queue-type": "quorum",
        "x-delivery-limit": DELIVERY_LIMIT,
        "x-message-ttl": step * 1_000,
        "x-dead-letter-exchange": address.exchange,
        "x-dead-letter-routing-key": address.routing_key,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }
