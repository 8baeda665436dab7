"""The publishing side of an app: publish and wait, submit and go on, or many at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reliable_mq.outcome import seconds
from reliable_mq.refusals import refuse_all

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import timedelta

    from reliable_mq.confirmation import Confirmation, Confirmations
    from reliable_mq.envelope import Headers, Key
    from reliable_mq.message import Message, Named, Receipt
    from reliable_mq.producer import Producer

__all__ = ["Publishing"]


class Publishing:
    """What publishes. Any thread; the broker is connected at first use."""

    _producer: Producer

    def publish(
        self,
        topic: str | Named,
        value: Any,
        *,
        key: Key = None,
        id: str | None = None,
        headers: Headers = None,
        content_type: str | None = None,
        delay: Any = None,
        deliver_at: Any = None,
        expires: Any = None,
        timeout: float | timedelta | None = None,
        native: Any = None,
    ) -> Receipt:
        """Publish and wait for the Receipt.

        Args:
            topic: Its name, or a handle made by `topic`.
            value: bytes as they are, None as a tombstone, all else as JSON.
            key: str, int, UUID or bytes; messages of one key stay in order. None: no key.
            id: Of the message; None: a new one. Publishing again with the same id is safe.
            headers: Names and values, as a mapping or as pairs.
            content_type: What to say of the body.
            delay: Not built yet; nor are deliver_at, expires and native.
            timeout: Seconds to wait at most; None: the app's `publish_timeout`.

        Raises: PublishRejected, PublishUnknown (publish again with the same id), Backpressure;
            ConfigurationError on a thread with a running event loop: `await mq.submit(...)` there.
        """
        if not (delay is deliver_at is expires is native is None):
            refuse_all(
                "publish", delay=delay, deliver_at=deliver_at, expires=expires, native=native
            )
        name = topic if isinstance(topic, str) else topic.name
        message = self._producer.message(
            name, value, key=key, id=id, headers=headers, content_type=content_type
        )
        return self._producer.send_and_wait(message, timeout=_seconds(timeout), built=True)

    def submit(
        self,
        topic: str | Named,
        value: Any,
        *,
        key: Key = None,
        id: str | None = None,
        headers: Headers = None,
        content_type: str | None = None,
        delay: Any = None,
        deliver_at: Any = None,
        expires: Any = None,
        timeout: float | timedelta | None = None,
        native: Any = None,
    ) -> Confirmation:
        """Publish without waiting: `.result(timeout)`, or `await` it. Never blocks once connected.

        Without room the Confirmation has ended with Backpressure already. Options as `publish`.
        """
        if not (delay is deliver_at is expires is native is None):
            refuse_all("submit", delay=delay, deliver_at=deliver_at, expires=expires, native=native)
        name = topic if isinstance(topic, str) else topic.name
        message = self._producer.message(
            name, value, key=key, id=id, headers=headers, content_type=content_type
        )
        return self._producer.send(
            message, timeout=None if timeout is None else _seconds(timeout), built=True
        )

    def message(
        self,
        topic: str | Named,
        value: Any,
        *,
        key: Key = None,
        id: str | None = None,
        headers: Headers = None,
        content_type: str | None = None,
        delay: Any = None,
        deliver_at: Any = None,
        expires: Any = None,
    ) -> Message:
        """The message that `publish` would send, its id fixed, for `submit_all`."""
        if not (delay is deliver_at is expires is None):
            refuse_all("message", delay=delay, deliver_at=deliver_at, expires=expires)
        name = topic if isinstance(topic, str) else topic.name
        return self._producer.message(
            name, value, key=key, id=id, headers=headers, content_type=content_type
        )

    def resend(self, message: Message) -> Confirmation:
        """Publish a message again with the id it has, as after `except PublishUnknown as error`."""
        return self._producer.send(message)

    def submit_all(self, messages: Iterable[Message]) -> Confirmations:
        """Publish many, in their order; `.result()` or `await` gives one Receipt per input.

        Inputs are drawn as room comes: the call waits for room on a plain thread, the await does
        on an event loop. There is no Backpressure before `publish_timeout` without any room.
        """
        return self._producer.send_all(messages)


def _seconds(duration: float | timedelta | None) -> float | None:
    return None if duration is None else seconds("timeout", duration)
