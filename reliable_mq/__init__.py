"""Reliability between an application and the message broker it already runs.

The smallest complete program:

    from reliable_mq import ReliableMQ

    mq = ReliableMQ("sqlite:///shop.db")

    @mq.consumer("orders", group="billing")
    def bill(order: dict) -> None:
        print("billing", order["id"])

    with mq:
        mq.publish("orders", {"id": 1}, key="customer-7")
        input("Enter ends it")

A confirmed message is not lost; a delivery is settled only after its handler returned, or after a
retry copy or a dead letter of it was confirmed; the first runs of a key follow its order. What each
promise depends on stands in the README.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NoReturn

from reliable_mq.app import Health, ReliableMQ
from reliable_mq.clock import Clock
from reliable_mq.codec import Codec, JsonCodec
from reliable_mq.confirmation import Confirmation, Confirmations
from reliable_mq.context import Context, current_message
from reliable_mq.errors import (
    Backpressure,
    BatchFailed,
    BatchIncomplete,
    Busy,
    CodecError,
    ConfigurationError,
    ConnectionFailed,
    LeaseLost,
    PublishError,
    PublishRejected,
    PublishUnknown,
    ReliableMQError,
    StoreUnavailable,
    TooLarge,
    TransportError,
    Unroutable,
)
from reliable_mq.handlers import Depends
from reliable_mq.message import Delivery, Lease, Message, Receipt
from reliable_mq.ordering.executor import KeyedExecutor
from reliable_mq.ordering.tracker import OffsetTracker
from reliable_mq.outcome import Reject, Retry
from reliable_mq.policy import Batch, Limits, RetryPolicy
from reliable_mq.process import run
from reliable_mq.refusals import refuse
from reliable_mq.routes import Routes
from reliable_mq.runtime import Stopped
from reliable_mq.topics import TopicHandle
from reliable_mq.version import __version__

__all__ = [
    "Auditor",
    "Backpressure",
    "Batch",
    "BatchFailed",
    "BatchIncomplete",
    "Busy",
    "Clock",
    "Codec",
    "CodecError",
    "ConfigurationError",
    "Confirmation",
    "Confirmations",
    "ConnectionFailed",
    "Context",
    "Delivery",
    "Depends",
    "Health",
    "JsonCodec",
    "KeyedExecutor",
    "Lease",
    "LeaseLost",
    "Limits",
    "Message",
    "OffsetTracker",
    "Outbox",
    "PublishError",
    "PublishRejected",
    "PublishUnknown",
    "Receipt",
    "Reject",
    "ReliableMQ",
    "ReliableMQError",
    "Retry",
    "RetryPolicy",
    "Routes",
    "Stopped",
    "StoreUnavailable",
    "TooLarge",
    "TopicHandle",
    "TransportError",
    "Unroutable",
    "__version__",
    "current_message",
    "idempotent",
    "run",
]

logging.getLogger("reliable_mq").addHandler(logging.NullHandler())


def _refused(name: str, option: str) -> Any:
    """A name that is taken and not built yet: using it says so."""

    def refuses(*_: object, **__: object) -> NoReturn:
        raise refuse(option, name)

    refuses.__name__ = refuses.__qualname__ = name
    refuses.__doc__ = f"Not built yet: calling it raises ConfigurationError ({name})."
    return refuses


if TYPE_CHECKING:
    Outbox: Any
    Auditor: Any
    idempotent: Any
else:
    Outbox = _refused("Outbox", "outbox")
    Auditor = _refused("Auditor", "audit")
    idempotent = _refused("idempotent", "store")
