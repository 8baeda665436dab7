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
_difference = re.compile(
    r"inequivalent arg '([^']+)' for queue .*: received .* but current is "
    r"(?:none|the value '(.*)' of type '(\w+)'|'(.*)')",
    re.DOTALL,
).search


def arguments_of(session: Session, queue: str) -> dict[str, Any]:
    """The arguments of a queue that is there, and "durable", "exclusive", "auto_delete"."""
    flags = {"durable": True, "exclusive": False, "auto_delete": False}
    found: dict[str, Any] = {}
    refused = None
    for _ in range(MOST):
        refused = session.ask(
            lambda channel: channel.queue_declare(queue, arguments=dict(found), **flags)
        )
        if refused is None:
            return found | flags
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


def may_discard(arguments: dict[str, Any]) -> str:
    """How a queue with these arguments may drop messages by itself; "" where it does not."""
    bounded = {"x-max-length", "x-max-length-bytes"} & set(arguments)
    leads_on = "x-dead-letter-exchange" in arguments
    if bounded and arguments.get("x-overflow") != "reject-publish":
        return f"{min(bounded)} without x-overflow=reject-publish drops the oldest"
    if "x-message-ttl" in arguments and not leads_on:
        return "x-message-ttl without a dead letter exchange drops what waits"
    if "x-delivery-limit" in arguments and not leads_on:
        return "x-delivery-limit without a dead letter exchange drops what comes back too often"
    if "x-expires" in arguments:
        return "x-expires removes it with all that waits"
    if not arguments.get("durable", True):
        return "it does not survive a restart of the broker"
    return ""
