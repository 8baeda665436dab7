"""Publishing: what `mq.publish`, `submit`, `submit_all` and `resend` do.

The adapter confirms; this module gives ids, bounds what is on its way, and waits where the caller
asked to wait. A publish has three endings: a Receipt, a definite rejection, or unknown.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections import deque
from typing import TYPE_CHECKING, Final
from weakref import WeakSet

from reliable_mq.confirmation import Confirmation, Confirmations
from reliable_mq.envelope import build, check
from reliable_mq.errors import Backpressure, ConfigurationError, PublishError
from reliable_mq.events import Published, PublishFailed
from reliable_mq.ids import IdSource
from reliable_mq.message import Message, Receipt, Topic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from reliable_mq.adapters.base import Publisher
    from reliable_mq.clock import Clock
    from reliable_mq.envelope import Headers, Key
    from reliable_mq.events import Observers
    from reliable_mq.message import Destination
    from reliable_mq.policy import Limits

__all__ = ["Producer"]

log = logging.getLogger("reliable_mq.producer")

EVERY_GROUP: Final = Topic()
#: Failures that are kept until somebody looks at them; all of them are logged.
KEPT: Final = 1_000


class Producer:
    """Publishes for one app. Any thread.

    Args:
        connect: Gives the adapter's publisher and the bytes of the largest body that the broker
            takes; connects at the first call.
    """

    def __init__(
        self,
        connect: Callable[[], tuple[Publisher, int]],
        *,
        publish_timeout: float,
        limits: Limits,
        clock: Clock,
        observers: Observers,
    ) -> None:
        self.new_id: Callable[[], str] = IdSource()
        #: Seconds until a publish without a timeout of its own ends as unknown.
        self.publish_timeout = publish_timeout
        self._connect = connect
        self._publisher: Publisher | None = None
        self._max_body = 0
        self._window = limits.window
        self._window_bytes = limits.window_bytes
        self._now = clock.now
        self._monotonic = clock.monotonic
        self._observers = observers
        # Guards the counters; publishers end confirmations on threads of their own.
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._pending = 0
        self._pending_bytes = 0
        self._waiting = 0
        self._connecting = threading.Lock()
        #: The last failures, among them those that nobody has looked at.
        self._failed: deque[Confirmation] = deque(maxlen=KEPT)
        #: Made once: one for each message in flight would be as large as the Confirmation.
        self._at_end = self._ended
        _producers.add(self)

    def message(
        self,
        topic: str,
        value: object,
        *,
        key: Key = None,
        id: str | None = None,
        headers: Headers = None,
        content_type: str | None = None,
    ) -> Message:
        """The message that `publish` would send, for `submit_all`, with its id already fixed.

        Raises: ConfigurationError for a value, key or header of a kind that cannot be sent.
        """
        return build(
            topic,
            value,
            key=key,
            id=self.new_id() if id is None else id,
            headers=headers,
            content_type=content_type,
            now=self._now(),
        )

    def send(
        self,
        message: Message,
        to: Destination = EVERY_GROUP,
        *,
        timeout: float | None = None,
        built: bool = False,
    ) -> Confirmation:
        """Hand a message to the broker; never blocks. Its failures come in the Confirmation.

        timeout: seconds until it ends as PublishUnknown; None: the app's `publish_timeout`.
        built: it comes from `message` as it is, and was checked there.
        """
        confirmation = self._send(message, to, timeout, built=built)
        # Looking must not count as seeing it.
        if type(confirmation._outcome) is Backpressure and confirmation.unseen:  # noqa: SLF001
            self._note(confirmation)
        return confirmation

    def _send(
        self, message: Message, to: Destination, timeout: float | None, *, built: bool
    ) -> Confirmation:
        """As `send`, for who tries again when there is no room."""
        publisher = self._publisher
        if publisher is None:
            publisher = self._connected()
        body = message.body
        size = 0 if body is None else len(body)
        with self._lock:
            pending = self._pending
            if pending and (
                pending >= self._window or self._pending_bytes + size > self._window_bytes
            ):
                return _ended(message, self._no_room(message))
            self._pending = pending + 1
            self._pending_bytes += size
        try:
            # Copies for one group carry headers that a user's message may not.
            if size > self._max_body or (to is EVERY_GROUP and not built):
                check(message, self._max_body)
            seconds = self.publish_timeout if timeout is None else timeout
            confirmation = publisher.submit(message, to, deadline=self._monotonic() + seconds)
        except PublishError as error:
            confirmation = _ended(message, error)
        except BaseException:
            self._leave(size)
            raise
        if confirmation.done():
            self._ended(confirmation)
        else:
            confirmation.add_done_callback(self._at_end)
        return confirmation

    def send_and_wait(
        self,
        message: Message,
        to: Destination = EVERY_GROUP,
        *,
        timeout: float | None = None,
        built: bool = False,
    ) -> Receipt:
        """Send, waiting for room and for the confirm, `timeout` seconds in all.

        Raises: ConfigurationError on a thread with a running event loop; PublishError.
        """
        refuse_in_loop("publish", "await mq.submit(...)")
        seconds = self.publish_timeout if timeout is None else timeout
        deadline = self._monotonic() + seconds
        while True:
            left = max(0.0, deadline - self._monotonic())
            confirmation = self._send(message, to, left, built=built)
            try:
                # The adapter answers by the deadline; a second more tells its answer from ours.
                return confirmation.result(left + 1.0)
            except Backpressure:
                if not self._wait_for_room(deadline):
                    raise

    def send_all(self, messages: Iterable[Message]) -> Confirmations:
        """Send all, drawing them as room comes; see `ReliableMQ.submit_all`."""
        batch = Confirmations(self._draw(messages))
        if asyncio._get_running_loop() is None:  # noqa: SLF001 - the public one raises, and costs
            batch.draw_all()
        else:
            batch.draw_some()
        return batch

    def unconfirmed(self) -> int:
        """Messages on their way."""
        return self._pending

    def unseen(self) -> int:
        """Publishes that failed and that nobody has looked at."""
        return sum(one.unseen for one in tuple(self._failed))

    def disconnect(self) -> None:
        """Ask for a connection at the next publish."""
        with self._connecting:  # whoever connects now would keep what is being closed
            self._publisher = None

    def forked(self) -> None:
        """The same in the child of a fork, where a lock may be held for ever."""
        self._connecting = threading.Lock()
        self._publisher = None

    def close(self, publisher: Publisher, timeout: float) -> list[Message]:
        """Close the adapter's publisher and return what is not confirmed, or failed unseen."""
        self.disconnect()
        left = list(publisher.close(timeout))
        known = {message.id for message in left}
        unseen = [one.message for one in tuple(self._failed) if one.unseen]
        left += [message for message in unseen if message.id not in known]
        self._failed.clear()
        return left

    def _connected(self) -> Publisher:
        with self._connecting:
            publisher, self._max_body = self._connect()
            self._publisher = publisher
        return publisher

    def _draw(self, messages: Iterable[Message]) -> Iterable[Confirmation | float]:
        """Yield a Confirmation per message, and in between the seconds one may wait for room."""
        deadline: float | None = None  # of the wait for room that goes on
        for message in messages:
            while True:
                confirmation = self._send(message, EVERY_GROUP, None, built=False)
                if not isinstance(confirmation.outcome, Backpressure):
                    deadline = None
                    break
                if deadline is None:
                    deadline = self._monotonic() + self.publish_timeout
                left = deadline - self._monotonic()
                if left <= 0:  # so it stays until there is some: one wait, not one a message
                    break
                yield left
            yield confirmation

    def _wait_for_room(self, deadline: float) -> bool:
        """Wait until something has ended; False when it is too late for that."""
        left = deadline - self._monotonic()
        if left <= 0:
            return False
        with self._room:
            self._waiting += 1
            # The broker, too, may be out of room: then nothing of ours need end, so look again.
            self._room.wait(min(left, 0.05))
            self._waiting -= 1
        return True

    def _ended(self, confirmation: Confirmation) -> None:
        """Runs on the publisher's thread."""
        body = confirmation.message.body
        self._leave(0 if body is None else len(body))
        outcome = confirmation._outcome  # noqa: SLF001 - looking must not count as seeing it
        if isinstance(outcome, PublishError):
            self._note(confirmation)
        elif self._observers and outcome is not None:
            self._observers.emit(Published(confirmation.message, outcome))

    def _note(self, confirmation: Confirmation) -> None:
        """A publish failed: it is unseen until somebody looks."""
        self._failed.append(confirmation)
        outcome = confirmation._outcome  # noqa: SLF001 - looking must not count as seeing it
        if isinstance(outcome, PublishError):
            self._observers.emit(PublishFailed(confirmation.message, outcome))

    def _leave(self, size: int) -> None:
        with self._lock:
            self._pending -= 1
            self._pending_bytes -= size
            if self._waiting:
                self._room.notify_all()

    def _no_room(self, message: Message) -> Backpressure:
        text = (
            f"message {message.id} was not sent: {self._pending} messages wait for their confirm, "
            f"which is the window; wait for some, or raise Limits(window=, window_bytes=)"
        )
        return Backpressure(text, message)


def _ended(message: Message, error: PublishError) -> Confirmation:
    confirmation = Confirmation(message)
    confirmation.settle(error)
    return confirmation


def refuse_in_loop(name: str, remedy: str) -> None:
    """Raise where waiting would stop an event loop."""
    if asyncio._get_running_loop() is not None:  # noqa: SLF001 - the public one raises, and costs
        msg = f"{name}() waits, and this thread runs an event loop: use {remedy}"
        raise ConfigurationError(msg)


_producers: WeakSet[Producer] = WeakSet()


def _disconnect_all() -> None:
    """In the child of a fork: the next publish asks the app for a connection, which refuses."""
    for producer in _producers:
        producer.forked()


if hasattr(os, "register_at_fork"):  # pragma: no branch - all but Windows
    os.register_at_fork(after_in_child=_disconnect_all)
