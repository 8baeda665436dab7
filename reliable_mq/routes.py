"""Declaring consumers: the decorator, its options, and what is wrong with them.

Nothing here touches a broker: an option that is unknown, contradictory or not built yet is refused
while the module is imported; what depends on the broker is checked at start, by `runtime`.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, Union

from msgspec import Struct

from reliable_mq.errors import ConfigurationError
from reliable_mq.handlers import compile_handler
from reliable_mq.outcome import seconds
from reliable_mq.policy import Batch, RetryPolicy
from reliable_mq.refusals import NOT_BUILT, refuse, unknown

if TYPE_CHECKING:
    from collections.abc import Callable

    from reliable_mq.codec import Codec
    from reliable_mq.message import Message, Named

__all__ = ["ConsumerOptions", "Declared", "Routes"]

F = TypeVar("F", bound="Callable[..., Any]")

OrderBy = Union[Literal["key", "partition", "none"], "Callable[[Message], object]"]


#: What `retry` is unless it is given: five attempts.
DEFAULT_RETRY: Final = RetryPolicy()


class ConsumerOptions(Struct, frozen=True, kw_only=True):
    """One `@consumer(...)`, checked as far as it can be without a broker."""

    topics: tuple[str, ...]
    group: str
    concurrency: int = 1
    order_by: Any = "key"
    retry: RetryPolicy = DEFAULT_RETRY
    on_failure: Literal["dead_letter", "block"] = "dead_letter"
    dead_letter_limit: int = 50
    timeout: float | None = None
    start_from: Literal["earliest", "latest"] | float | None = None
    content_type: str | None = None
    codec: Any = None
    max_stuck: int = 4
    batch: Batch | None = None


class Declared(Struct, frozen=True):
    """A handler and the options it was declared with."""

    function: Any
    options: ConsumerOptions


class Routes:
    """Consumers of a module that has no app; `mq.include(routes)` adds them to one."""

    def __init__(self) -> None:
        self.declared: list[Declared] = []

    def consumer(
        self,
        *topics: str | Named,
        group: str | None = None,
        concurrency: int = 1,
        order_by: OrderBy = "key",
        retry: RetryPolicy | None = DEFAULT_RETRY,
        on_failure: Literal["dead_letter", "block", "park"] = "dead_letter",
        dead_letter_limit: int = 50,
        timeout: float | timedelta | None = None,
        start_from: Literal["earliest", "latest"] | datetime | None = None,
        content_type: str | None = None,
        codec: Codec | None = None,
        max_stuck: int = 4,
        batch: Batch | None = None,
        **others: Any,
    ) -> Callable[[F], F]:
        """Declare a handler of these topics; returns the function itself, so it can be stacked.

        Args:
            topics: Names, or handles made by `mq.topic`.
            group: Members of one group share the messages; each group gets them all.
            concurrency: Deliveries at once: threads for `def`, coroutines for `async def`.
            order_by: What runs one at a time, in order: "key", "partition" (as the queue gives
                them), "none", or a function of the Message that returns a key.
            retry: How failed runs are repeated; None: one attempt.
            on_failure: When a message is given up: "dead_letter" lets its key go on without it,
                "block" halts the key until an operator retries or skips it.
            dead_letter_limit: So many dead letters in a row pause the consumer.
            timeout: Seconds a handler may take. An `async def` is cancelled; a `def` cannot be
                stopped, it is reported overdue and its key waits.
            start_from: Where a group that has no position begins, also at a time, by a datetime
                with its zone; None: the earliest that the broker retains.
            content_type: What to assume of messages that do not say.
            codec: How bytes become the handler's type.
            max_stuck: Overdue threads from which on the consumer takes no more work.
            batch: The handler takes a list: up to `size` messages, or what came within `wait`.

        Raises: ConfigurationError, naming the remedy.
        """
        self._may_declare()
        for name, value in others.items():
            _refuse_option(name, value)
        names = tuple(str(getattr(topic, "name", topic)) for topic in topics)
        options = ConsumerOptions(
            topics=names,
            group=_group(names, group),
            concurrency=_at_least(1, "concurrency", concurrency),
            order_by=_order_by(order_by),
            retry=_policy(retry),
            on_failure=_on_failure(on_failure),
            dead_letter_limit=_at_least(1, "dead_letter_limit", dead_letter_limit),
            timeout=_timeout(timeout),
            start_from=_start_from(start_from),
            content_type=content_type,
            codec=codec,
            max_stuck=_at_least(0, "max_stuck", max_stuck),
            batch=_batch(batch),
        )
        _contradictions(options)

        def declare(function: F) -> F:
            compile_handler(
                function, codec=codec, content_type=content_type, batch=batch is not None
            )
            self.declared.append(Declared(function, options))
            return function

        return declare

    def _may_declare(self) -> None:
        """Raise where it is too late; for routes of a module it never is."""


def _policy(retry: object) -> RetryPolicy:
    if retry is None:
        return RetryPolicy(1)
    if not isinstance(retry, RetryPolicy):
        msg = f"retry={retry!r}: a RetryPolicy, or None for one attempt"
        raise ConfigurationError(msg)
    return retry


def _refuse_option(name: str, value: object) -> None:
    if name in ("store", "inbox", "filter", "idempotency_key", "native") and value is None:
        return  # switched off is what it is
    if name == "broadcast" and value is False:
        return
    if name in NOT_BUILT:
        raise refuse(name, f"consumer({name}=)")
    raise unknown(Routes.consumer, "consumer", name)


def _group(topics: tuple[str, ...], group: str | None) -> str:
    if not topics:
        msg = 'consumer() names no topic: @mq.consumer("orders", group="billing")'
        raise ConfigurationError(msg)
    if not group or not isinstance(group, str):
        msg = f"consumer({topics[0]!r}): group= is missing; its members share the messages"
        raise ConfigurationError(msg)
    return group


def _at_least(least: int, name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        msg = f"consumer({name}={value!r}): a whole number from {least} up"
        raise ConfigurationError(msg)
    return value


def _order_by(order_by: OrderBy) -> OrderBy:
    if order_by not in ("key", "partition", "none") and not callable(order_by):
        msg = f"order_by={order_by!r}: 'key', 'partition', 'none' or a function of the Message"
        raise ConfigurationError(msg)
    return order_by


def _on_failure(on_failure: str) -> Any:
    if on_failure == "park":
        msg = "park"
        raise refuse(msg, 'on_failure="park"')
    if on_failure not in ("dead_letter", "block"):
        msg = f"on_failure={on_failure!r}: 'dead_letter' or 'block'"
        raise ConfigurationError(msg)
    return on_failure


def _timeout(timeout: float | timedelta | None) -> float | None:
    if timeout is None:
        return None
    length = seconds("timeout", timeout)
    if not length:
        msg = f"timeout={timeout!r}: seconds above 0, or None"
        raise ConfigurationError(msg)
    return length


def _start_from(start: object) -> Any:
    if isinstance(start, datetime):
        if start.tzinfo is None:
            msg = f"start_from={start!r} names no time zone: datetime(…, tzinfo=timezone.utc)"
            raise ConfigurationError(msg)
        return start.timestamp()
    if start not in (None, "earliest", "latest"):
        msg = f"start_from={start!r}: 'earliest', 'latest', a datetime with a time zone, or None"
        raise ConfigurationError(msg)
    return start


def _batch(batch: object) -> Batch | None:
    if batch is None:
        return None
    if not isinstance(batch, Batch):
        msg = f"batch={batch!r}: Batch(size, wait=seconds)"
        raise ConfigurationError(msg)
    return Batch(_at_least(1, "batch.size", batch.size), seconds("batch.wait", batch.wait))


def _contradictions(options: ConsumerOptions) -> None:
    if options.on_failure == "block" and options.order_by == "none":
        msg = 'on_failure="block" needs an order to keep: order_by="key" or "partition"'
        raise ConfigurationError(msg)
