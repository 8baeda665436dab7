"""What a handler can know and do beside its payload: Context, and the message in hand.

A Context belongs to one run of a handler. What it publishes is kept until the handler has returned;
then it is sent, and confirmed before the delivery is acked, so a failed run publishes nothing.
"""

from __future__ import annotations

import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from reliable_mq.clock import SYSTEM_CLOCK
from reliable_mq.codec import JSON
from reliable_mq.envelope import build, check
from reliable_mq.errors import ConfigurationError
from reliable_mq.ids import derived_id

if TYPE_CHECKING:
    from collections.abc import Callable

    from reliable_mq.codec import Codec
    from reliable_mq.envelope import Headers, Key
    from reliable_mq.message import Delivery, Header, Message, Named

__all__ = ["Context", "current", "current_message", "enter"]

# What runs in this thread or task: message, group, attempt.
_current: ContextVar[tuple[Message, str, int] | None] = ContextVar("reliable_mq", default=None)

# Guards the end of contexts against a publish from another thread. Held for an append only.
_GATE = threading.Lock()


def current_message() -> Message | None:
    """The message whose handler runs in this thread or task; None outside of handlers."""
    entry = _current.get()
    return None if entry is None else entry[0]


def current() -> tuple[Message, str, int] | None:
    """The same with the group and the attempt."""
    return _current.get()


#: Say what this thread or task handles from now on: message, group, attempt; None: nothing.
#: For workers, before each handler, so there is no def around it.
enter = _current.set


class Context:
    """One run of a handler, as the handler sees it.

    Attributes:
        message: What is handled.
        group: For which group.
        attempt: Which run it is: failed runs before this one, plus one.
        deadline: Monotonic seconds at which the run is overdue; None: it has no timeout.
        fence: A number that rises with every claim of the message; None without a store.
        outputs: What was published so far; sent after the handler has returned.

    The handler's thread or task; `publish` may be called from threads that the handler started and
    waits for, but then the order of the messages, and with it their ids, may differ in a rerun.
    """

    __slots__ = (
        "_codec",
        "_ended",
        "_lease",
        "_max_body",
        "_max_outputs",
        "_max_outputs_bytes",
        "_now",
        "_ordinal",
        "_output_bytes",
        "attempt",
        "deadline",
        "fence",
        "group",
        "message",
        "outputs",
    )

    def __init__(
        self,
        delivery: Delivery,
        *,
        group: str,
        attempt: int,
        deadline: float | None = None,
        now: Callable[[], float] = SYSTEM_CLOCK.now,
        codec: Codec = JSON,
        max_body: int | None = None,
        max_outputs: int = 1_000,
        max_outputs_bytes: int = 16 * 1024 * 1024,
    ) -> None:
        self.message: Message = delivery.message
        self.group = group
        self.attempt = attempt
        self.deadline = deadline
        self.fence: int | None = None
        self.outputs: list[Message] = []
        self._lease = delivery.lease
        self._now = now
        self._codec = codec
        self._max_body = max_body
        self._max_outputs = max_outputs
        self._output_bytes = 0
        self._max_outputs_bytes = max_outputs_bytes
        self._ordinal = 0
        self._ended = False

    @property
    def id(self) -> str:
        """The id of the message."""
        return self.message.id

    @property
    def topic(self) -> str:
        """Where the message was published."""
        return self.message.topic

    @property
    def key(self) -> bytes | None:
        """The key of the message; None: it has none."""
        return self.message.key

    @property
    def headers(self) -> tuple[Header, ...]:
        """The headers of the message, in their order, with duplicates."""
        return self.message.headers

    def lost(self) -> bool:
        """Whether the broker took the delivery back: another member may be running it by now."""
        return self._lease.lost

    def publish(
        self,
        topic: str | Named,
        value: object,
        *,
        key: Key = None,
        id: str | None = None,
        headers: Headers = None,
        content_type: str | None = None,
        delay: Any = None,
        deliver_at: Any = None,
        expires: Any = None,
    ) -> str:
        """Publish a message if, and only if, this run ends well. Returns its id.

        The id is derived from the incoming message, the group and how many were published before,
        so a rerun publishes the same ids, and consumers that know the first ones skip the second.

        Args:
            topic: Its name, or a handle made by `mq.topic`.
            value: Becomes the body.
            key: str, int, UUID, bytes, or None for no key.
            id: In place of the derived one.
            headers: Names and values.
            content_type: What to say of the body.
            delay: Not built yet.
            deliver_at: Not built yet.
            expires: Not built yet.

        Raises:
            ConfigurationError: A type that does not fit, an option that is not built yet, or the
                handler has ended.
            CodecError, PublishRejected, TooLarge: The message could never be sent.
        """
        for name, given in (("delay", delay), ("deliver_at", deliver_at), ("expires", expires)):
            if given is not None:
                msg = f"ctx.publish({name}=) is not built yet; leave it out"
                raise ConfigurationError(msg)
        with _GATE:
            self._refuse_after_the_end()
            ordinal = self._ordinal
            self._ordinal += 1
        incoming = self.message
        if id is None:
            id = derived_id(incoming.id, self.group, ordinal, topic=incoming.topic)
        message = build(
            topic if isinstance(topic, str) else topic.name,
            value,
            key=key,
            id=id,
            headers=headers,
            content_type=content_type,
            codec=self._codec,
            now=self._now(),
        )
        if self._max_body is not None:
            check(message, self._max_body)
        with _GATE:
            self._refuse_after_the_end()
            self._refuse_too_many(message)
            self.outputs.append(message)
        return id

    def end(self) -> None:
        """The handler has returned or raised: from now on `outputs` stays as it is."""
        with _GATE:
            self._ended = True

    def _refuse_too_many(self, message: Message) -> None:
        self._output_bytes += len(message.body or b"")
        full = len(self.outputs) >= self._max_outputs
        if full or self._output_bytes > self._max_outputs_bytes:
            msg = (
                f"the handler of message {self.message.id!r} publishes more than "
                f"Limits(outputs={self._max_outputs}, outputs_bytes={self._max_outputs_bytes})"
            )
            raise ConfigurationError(msg)

    def _refuse_after_the_end(self) -> None:
        if self._ended:
            msg = (
                f"the handler has ended: ctx.publish for message {self.message.id!r} came too late "
                "to be sent with it; publish inside the handler, or use mq.publish"
            )
            raise ConfigurationError(msg)
