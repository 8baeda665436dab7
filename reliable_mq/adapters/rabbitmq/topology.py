"""Declaring what is missing, comparing what is there, altering nothing.

AMQP tells no arguments. But to declare what exists does nothing when the arguments are the same,
and is refused with the difference when they are not: that is how they are compared. Bindings cannot
be compared; `create` makes ours, which does nothing where they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reliable_mq.adapters.rabbitmq.arguments import queue_arguments
from reliable_mq.adapters.rabbitmq.names import queue_of
from reliable_mq.errors import ConfigurationError
from reliable_mq.message import dead_letter_topic

if TYPE_CHECKING:
    from reliable_mq.adapters.base import Subscribe, Topology
    from reliable_mq.adapters.rabbitmq.session import Session

__all__ = ["check_subscribe", "ensure"]

NOT_FOUND = 404


def ensure(session: Session, topology: Topology) -> None:
    """See Transport.ensure. Raises ConfigurationError that lists every difference."""
    create = topology.mode == "create"
    wrong: list[str] = []
    for topic in topology.topics:
        if not _exchange(session, topic.name, wrong, create=create):
            continue
        for group in topic.groups:
            queue = queue_of(topic.name, group.name)
            arguments = queue_arguments(single=topic.ordered)
            if _queue(session, queue, arguments, wrong, create=create) and create:
                session.channel.queue_bind(queue, topic.name, "#")
            dead = dead_letter_topic(topic.name, group.name)
            _queue(session, dead, queue_arguments(single=False), wrong, create=create)
    if wrong:
        text = "the broker does not have what is declared: " + "; ".join(wrong)
        if not create:
            text += "; topology='create' makes what is missing"
        raise ConfigurationError(text)


def check_subscribe(session: Session, subscribe: Subscribe) -> dict[str, str]:
    """The queues of a subscription, and the topic of each.

    Raises: ConfigurationError when one is missing, or cannot keep the order that is asked for.
    """
    queues = {queue_of(topic, subscribe.group): topic for topic in subscribe.topics}
    wrong: list[str] = []
    for queue, topic in queues.items():
        arguments = queue_arguments(single=True)
        if not _queue(session, queue, None, wrong, create=False):
            wrong[-1] += f": declare it, mq.topic({topic!r}, groups=({subscribe.group!r},))"
        elif subscribe.order != "none" and not _queue(
            session, queue, arguments, wrong, create=False
        ):
            wrong[-1] += (
                f": order {subscribe.order!r} needs a queue with single active consumer; use "
                "order_by='none', or another group name, whose queue is then made so"
            )
    if wrong:
        raise ConfigurationError("; ".join(wrong))
    return queues


def _exchange(session: Session, name: str, wrong: list[str], *, create: bool) -> bool:
    if not create:
        refused = session.ask(lambda channel: channel.exchange_declare(name, passive=True))
        if refused is not None and refused.reply_code == NOT_FOUND:
            wrong.append(f"topic {name!r} is missing")
            return False
    refused = session.ask(
        lambda channel: channel.exchange_declare(name, exchange_type="topic", durable=True)
    )
    if refused is not None:
        wrong.append(f"topic {name!r}: {refused.reply_text}")
    return refused is None


def _queue(
    session: Session,
    name: str,
    arguments: dict[str, Any] | None,
    wrong: list[str],
    *,
    create: bool,
) -> bool:
    """Whether it is there with these arguments (None: any); says in `wrong` why not."""
    refused = None
    if not create:
        refused = session.ask(lambda channel: channel.queue_declare(name, passive=True))
        if refused is not None and refused.reply_code == NOT_FOUND:
            wrong.append(f"queue {name!r} is missing")
            return False
    if refused is None and arguments is not None:
        refused = session.ask(
            lambda channel: channel.queue_declare(name, durable=True, arguments=arguments)
        )
    if refused is not None:
        wrong.append(f"queue {name!r}: {refused.reply_text}")
    return refused is None
