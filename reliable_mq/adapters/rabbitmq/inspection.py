"""With which arguments a queue was declared, which AMQP has no call for.

To declare what is there with other arguments is refused, and the refusal names one that differs,
with its value. So a queue is declared as it is known so far, until the broker agrees: it is never
altered. Policies stay unseen.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from reliable_mq.errors import TransportError

if TYPE_CHECKING:
    from reliable_mq.adapters.rabbitmq.session import Session

__all__ = ["arguments_of", "may_discard"]

#: A queue has fewer arguments than this.
MOST: Final = 40
PRECONDITION_FAILED: Final = 406
ACCESS_REFUSED: Final = 403
#: From this release on a quorum queue without a delivery limit has one of 20.
LIMITED: Final = 4
_difference = re.compile(
    r"inequivalent arg '([^']+)' for queue .*: received .* but current is "
    r"(?:none|the value '(.*)' of type '(\w+)'|'(.*)')",
    re.DOTALL,
).search


def arguments_of(
    session: Session, queue: str, guess: dict[str, Any] | None = None
) -> dict[str, Any] | None:
    """The arguments of a queue that is there, and "durable", "exclusive", "auto_delete".

    None: we may not ask, as that takes the permission to configure. `guess`: what they may well be:
    the broker cuts what it says at 255 bytes, which for long names is too soon.
    """
    flags = {"durable": True, "exclusive": False, "auto_delete": False}
    if guess is not None:
        refused = session.ask(
            lambda channel: channel.queue_declare(queue, arguments=guess, **flags)
        )
        if refused is None:
            return guess | flags
    found: dict[str, Any] = {}
    refused = None
    for _ in range(MOST):
        refused = session.ask(
            lambda channel: channel.queue_declare(queue, arguments=dict(found), **flags)
        )
        if refused is None:
            return found | flags
        if refused.reply_code == ACCESS_REFUSED:
            return None
        difference = _difference(refused.reply_text)
        if refused.reply_code != PRECONDITION_FAILED or difference is None:
            break
        name, value, kind, flag = difference.groups()
        if name in flags:
            flags[name] = flag == "true"
        elif name in found:
            break
        else:
            found[name] = _value(value, kind)
    text = f"queue {queue!r} cannot be inspected: {refused.reply_text if refused else 'no end'}"
    raise TransportError(text)


def _value(text: str, kind: str) -> Any:
    if kind == "bool":
        return text == "true"
    if kind in ("longstr", "binary"):
        return text
    return int(text)


def may_discard(arguments: dict[str, Any], release: int) -> str:
    """How a queue with these arguments may drop messages by itself; "" where it does not.

    Args:
        release: The broker's, its first number.
    """
    bounded = {"x-max-length", "x-max-length-bytes"} & set(arguments)
    leads_on = "x-dead-letter-exchange" in arguments
    limited = "x-delivery-limit" in arguments
    by_default = release >= LIMITED and arguments.get("x-queue-type") == "quorum"
    temporary = not arguments.get("durable", True) or arguments.get("exclusive")
    ways = {
        "x-max-length without x-overflow=reject-publish drops the oldest": (
            bounded and arguments.get("x-overflow") != "reject-publish"
        ),
        "x-message-ttl without a dead letter exchange drops what waits": (
            "x-message-ttl" in arguments and not leads_on
        ),
        "x-delivery-limit without a dead letter exchange drops what comes back too often": (
            limited and not leads_on
        ),
        "without x-delivery-limit or a dead letter exchange what comes back 20 times is dropped": (
            by_default and not (limited or leads_on)
        ),
        "x-expires removes it with all that waits": "x-expires" in arguments,
        "it is removed with all that waits when its last consumer leaves": (
            arguments.get("auto_delete")
        ),
        "it does not survive a restart of the broker, or the end of a connection": temporary,
    }
    return next((how for how, is_so in ways.items() if is_so), "")
