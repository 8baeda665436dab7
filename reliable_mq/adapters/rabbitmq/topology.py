"""Declaring what is missing, comparing what is there, altering nothing.

Bindings cannot be compared; `create` makes ours, which does nothing where they are.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from reliable_mq.adapters.rabbitmq.arguments import queue_arguments
from reliable_mq.adapters.rabbitmq.inspection import (
    ACCESS_REFUSED,
    PRECONDITION_FAILED,
    arguments_of,
    may_discard,
)
from reliable_mq.adapters.rabbitmq.names import dead_letters_of, place_of, queue_of
from reliable_mq.errors import ConfigurationError

if TYPE_CHECKING:
    from reliable_mq.adapters.base import Subscribe, Topology
    from reliable_mq.adapters.rabbitmq.names import Place
    from reliable_mq.adapters.rabbitmq.session import Session

__all__ = ["check_subscribe", "ensure"]

log = logging.getLogger("reliable_mq.rabbitmq")

NOT_FOUND = 404


def ensure(session: Session, topology: Topology) -> None:
    """See Transport.ensure. Raises ConfigurationError that lists every difference."""
    create = topology.mode == "create"
    wrong = _shared_queues(topology)
    for topic in topology.topics:
        place = place_of(topic.name)
        if not _is_there(session, topic.name, place, wrong, create=create):
            continue
        for group in topic.groups:
            if place.queue is None:
                queue = queue_of(topic.name, group.name)
                arguments = queue_arguments(single=topic.ordered)
                if _queue(session, queue, arguments, wrong, create=create) and create:
                    session.channel.queue_bind(queue, place.address.exchange, place.binding)
            dead = dead_letters_of(topic.name, group.name)
            _queue(session, dead, queue_arguments(single=False), wrong, create=create)
    if wrong:
        text = "the broker does not have what is declared: " + "; ".join(wrong)
        if not create:
            text += "; topology='create' makes what is missing"
        raise ConfigurationError(text)


def _shared_queues(topology: Topology) -> list[str]:
    """Groups of different topics whose queues would be one: "a" with "b.c", and "a.b" with "c"."""
    owners: dict[str, tuple[str, str]] = {}
    wrong = []
    for topic in topology.topics:
        for group in topic.groups:
            queue, owner = queue_of(topic.name, group.name), (topic.name, group.name)
            other = owners.setdefault(queue, owner)
            if other != owner and place_of(topic.name).queue is None:
                wrong.append(f"queue {queue!r} would belong to {other} and {owner}: rename one")
    return wrong


def check_subscribe(session: Session, subscribe: Subscribe) -> dict[str, str]:
    """The queues of a subscription, and the topic of each.

    Raises: ConfigurationError when one is missing, cannot keep the order that is asked for, or is
        not ours and may drop messages by itself.
    """
    queues = {queue_of(topic, subscribe.group): topic for topic in subscribe.topics}
    wrong: list[str] = []
    for queue, topic in queues.items():
        if not _queue(session, queue, None, wrong, create=False):
            wrong[-1] += f": declare it, mq.topic({topic!r}, groups=({subscribe.group!r},))"
            continue
        found = arguments_of(session, queue, queue_arguments(single=subscribe.order != "none"))
        if found is None:
            log.warning("queue %r cannot be inspected without the permission to configure", queue)
            continue
        if subscribe.order != "none" and not found.get("x-single-active-consumer"):
            wrong.append(
                f"queue {queue!r} has no single active consumer, so order {subscribe.order!r} does "
                "not hold over processes: use order_by='none', or have it declared again with "
                "x-single-active-consumer"
            )
        place = place_of(topic)
        attached = place.queue is not None and not place.unsafe
        if attached and (how := may_discard(found, session.release)):
            wrong.append(
                f"queue {queue!r} may discard messages: {how}; mend that, or say "
                "rabbitmq.Queue(…, unsafe_may_discard=True)"
            )
    if wrong:
        raise ConfigurationError("; ".join(wrong))
    return queues


def _is_there(
    session: Session, topic: str, place: Place, wrong: list[str], *, create: bool
) -> bool:
    """Whether the exchange, or the queue that stands for the topic, is there; ours is made."""
    if place.queue is not None:
        return _queue(session, place.queue, None, wrong, create=False)
    name = place.address.exchange
    if not (create and place.ours):
        refused = session.ask(lambda channel: channel.exchange_declare(name, passive=True))
        if refused is not None:
            missing = refused.reply_code == NOT_FOUND
            wrong.append(f"topic {topic!r} {'is missing' if missing else refused.reply_text}")
            return False
    if place.ours:
        refused = session.ask(
            lambda channel: channel.exchange_declare(name, exchange_type="topic", durable=True)
        )
        if refused is not None and refused.reply_code == ACCESS_REFUSED and not create:
            log.warning("topic %r cannot be compared without the permission to configure", topic)
        elif refused is not None:
            wrong.append(f"topic {topic!r}: {refused.reply_text}")
            return False
    return True


def _queue(
    session: Session,
    name: str,
    arguments: dict[str, Any] | None,
    wrong: list[str],
    *,
    create: bool,
) -> bool:
    """Whether it is there with these arguments (None: any); says in `wrong` why not."""
    if not create:
        refused = session.ask(lambda channel: channel.queue_declare(name, passive=True))
        if refused is not None:
            missing = refused.reply_code == NOT_FOUND
            wrong.append(f"queue {name!r} {'is missing' if missing else refused.reply_text}")
            return False
    if arguments is None:
        return True
    refused = session.ask(
        lambda channel: channel.queue_declare(name, durable=True, arguments=arguments)
    )
    if refused is None:
        return True
    if refused.reply_code == ACCESS_REFUSED and not create:
        log.warning("queue %r cannot be compared without the permission to configure", name)
        return True
    if refused.reply_code == PRECONDITION_FAILED:
        wrong.append(f"queue {name!r} is there with {_differences(session, name, arguments)}")
    else:
        wrong.append(f"queue {name!r}: {refused.reply_text}")
    return False


def _differences(session: Session, queue: str, wanted: dict[str, Any]) -> str:
    wanted = {"durable": True, "exclusive": False, "auto_delete": False, **wanted}
    found = arguments_of(session, queue) or {}
    return ", ".join(
        f"{name}={found.get(name)!r} in place of {wanted.get(name)!r}"
        for name in sorted(found.keys() | wanted.keys())
        if found.get(name) != wanted.get(name)
    )
