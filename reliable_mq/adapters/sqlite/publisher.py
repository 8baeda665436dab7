"""Publishing: any thread hands in, one thread writes, as many as have gathered in one commit.

The invariant: entries leave the queue in the order they came in, and only with their ending, so
what failed for now is sent again before anything behind it. A Receipt exists only after COMMIT
returned.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Final

from reliable_mq.adapters.endings import OPEN, OPEN_BYTES, no_answer, size_of
from reliable_mq.adapters.sqlite.connection import Locked
from reliable_mq.adapters.sqlite.record import to_row
from reliable_mq.adapters.sqlite.writer import Entry, Writer
from reliable_mq.confirmation import Confirmation
from reliable_mq.errors import (
    Backpressure,
    PublishError,
    PublishRejected,
    PublishUnknown,
    TooLarge,
    TransportError,
)
from reliable_mq.message import DeadLetter, RetryCopy, dead_letter_topic

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reliable_mq.adapters.sqlite.broker import Broker
    from reliable_mq.adapters.sqlite.writer import Ending
    from reliable_mq.message import Destination, Message

__all__ = ["SqlitePublisher"]

log = logging.getLogger("reliable_mq.sqlite")

#: Messages, and bytes of them, of one transaction.
BURST: Final = 1_000
BURST_BYTES: Final = 8 * 1024 * 1024
#: Seconds between two tries when the file cannot be written.
FIRST_PAUSE: Final = 0.01
LONGEST_PAUSE: Final = 0.25


class SqlitePublisher:
    """Any thread may submit and close; the thread that writes starts with the first message."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._pid = os.getpid()
        #: Guards all below.
        self._changed = threading.Condition()
        self._queue: deque[Entry] = deque()
        self._bytes = 0
        self._thread: threading.Thread | None = None
        self._asleep = False
        self._closed = False
        #: Given up by `close`: what the thread is still at counts for nothing.
        self._abandoned = False
        #: How many at the head of the queue are in a transaction that may be stored.
        self._sending = 0
        self._reason = ""
        self._nap = threading.Event()  # never set: something to wait on

    def submit(
        self,
        message: Message,
        to: Destination,
        *,
        not_before: float | None = None,
        deadline: float | None = None,
    ) -> Confirmation:
        """See Publisher.submit."""
        if self._pid != os.getpid():
            text = f"this publisher to {self._broker.path} was made before a fork: make a new one"
            raise TransportError(text)
        confirmation = Confirmation(message)
        entry = self._entry(confirmation, to, not_before, deadline)
        if isinstance(entry, PublishError):
            confirmation.settle(entry)
            return confirmation
        with self._changed:
            room = self._take_in(entry)
        if not room:
            confirmation.settle(self._no_answer(entry, "there is no room"))
        return confirmation

    def close(self, timeout: float) -> list[Message]:
        """See Publisher.close."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            thread = self._thread
        # From a callback, which runs on the thread itself, there is nothing to wait for.
        if thread is not None and thread is not threading.current_thread():
            thread.join(max(0.0, timeout))
        with self._changed:
            rest, self._queue = list(self._queue), deque()
            self._abandoned = True
            sending = self._sending
        for number, entry in enumerate(rest):
            entry.in_doubt = entry.in_doubt or number < sending
            entry.confirmation.settle(self._no_answer(entry, "the publisher was closed"))
        return [entry.confirmation.message for entry in rest]

    # -- handing in ----------------------------------------------------------------------------

    def _entry(
        self,
        confirmation: Confirmation,
        to: Destination,
        not_before: float | None,
        deadline: float | None,
    ) -> Entry | PublishRejected:
        message = confirmation.message
        where, group, due = message.topic, None, not_before
        if isinstance(to, RetryCopy):
            where, group = to.topic, to.group
            # At once is a time long ago: a wall clock that is set back must not hold it up.
            due = self._broker.clock.now() + to.delay if to.delay > 0 else 0.0
            due = max(due, not_before or 0.0)
        elif isinstance(to, DeadLetter):
            where = dead_letter_topic(to.topic, to.group)
        try:
            columns = to_row(message, where)
        except (TypeError, ValueError) as error:
            text = (
                f"message {message.id!r} cannot be stored: {type(error).__name__} in its envelope"
            )
            return PublishRejected(text, message)
        try:
            size = size_of(message, to, self._broker.max_body)
        except TooLarge as error:
            return error
        return Entry(confirmation, where, group, columns, due, deadline, size)

    def _take_in(self, entry: Entry) -> bool:
        if self._closed or len(self._queue) >= OPEN or self._bytes >= OPEN_BYTES:
            return False
        if self._thread is None and not self._start():
            return False
        self._queue.append(entry)
        self._bytes += entry.size
        if self._asleep:
            self._asleep = False
            self._changed.notify_all()
        return True

    def _start(self) -> bool:
        thread = threading.Thread(target=self._run, name="reliable-mq-sqlite", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # no more threads in this process
            self._reason = str(error)
            return False
        self._thread = thread
        return True

    # -- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        writer = Writer(self._broker)
        pause = FIRST_PAUSE
        try:
            while burst := self._next_burst():
                if self._work(writer, burst):
                    pause = FIRST_PAUSE
                else:
                    self._nap.wait(pause)
                    pause = min(2 * pause, LONGEST_PAUSE)
                    self._expire()
        finally:
            writer.close()

    def _work(self, writer: Writer, burst: Sequence[Entry]) -> bool:
        """One transaction, or a look at how the last one ended. False: it failed for now."""
        try:
            if writer.in_doubt:
                self._finish(writer.find_out())
            else:
                self._finish(writer.write(burst, lambda: self._may_send(len(burst))))
            self._reason = ""
        except Locked as error:
            self._reason = str(error)
            self._expire()  # and no pause: it has waited for the lock
        except TransportError as error:
            self._reason = str(error)
            return False
        except Exception as error:  # a bug of ours: no message may hang because of it
            log.exception("writing to %s failed", self._broker.path)
            self._reason = f"{type(error).__name__} in the publisher"
            return False
        finally:
            self._sending = 0
        return True

    def _next_burst(self) -> list[Entry]:
        """What to send next; waits for it. Empty: closed, and nothing is left."""
        while True:
            with self._changed:
                while not self._queue and not self._closed:
                    self._asleep = True
                    self._changed.wait()
                burst: list[Entry] = []
                size = 0
                for entry in islice(self._queue, BURST):
                    burst.append(entry)
                    size += entry.size
                    if size >= BURST_BYTES:
                        break
            now = self._broker.clock.monotonic()
            if not any(_is_over(entry, now) for entry in burst):
                return burst
            self._expire()

    def _may_send(self, count: int) -> bool:
        """From here on the head of the queue may be stored, unless it was given up."""
        with self._changed:
            self._sending = 0 if self._abandoned else count
            return not self._abandoned

    def _finish(self, endings: Sequence[Ending]) -> None:
        """Let these go, and tell. They are the head of the queue, but for what is over by now."""
        with self._changed:
            if self._abandoned:
                return
            for entry, _ in endings:
                entry.ended = True
            while self._queue and self._queue[0].ended:
                self._bytes -= self._queue.popleft().size
        for entry, outcome in endings:
            entry.confirmation.settle(outcome)

    def _expire(self) -> None:
        """End what is over its deadline, wherever it stands."""
        now = self._broker.clock.monotonic()
        with self._changed:
            late = [entry for entry in self._queue if _is_over(entry, now)]
            if late:
                self._queue = deque(entry for entry in self._queue if not _is_over(entry, now))
                self._bytes -= sum(entry.size for entry in late)
        for entry in late:
            entry.confirmation.settle(self._no_answer(entry, "its deadline is over"))

    def _no_answer(self, entry: Entry, why: str) -> Backpressure | PublishUnknown:
        message = entry.confirmation.message
        return no_answer(message, why, self._reason, in_doubt=entry.in_doubt)


def _is_over(entry: Entry, now: float) -> bool:
    return entry.deadline is not None and now >= entry.deadline
