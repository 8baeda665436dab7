"""Publishing: any thread hands in, RocketMQ's thread sends and hears the answers.

    submit ──> Flights ──> a request ──> broker ──> answer ──> Confirmation
                  ▲                                    │ not stored, or nobody knows
                  └────────────── again, with its id ──┘ until its deadline

A request without an answer may have been stored: its messages go again with their ids, first in
line, and end as unknown when their deadline is over. What was never sent ends as Backpressure.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from reliable_mq.adapters.endings import OPEN, OPEN_BYTES, no_answer, size_of
from reliable_mq.adapters.rocketmq.client import Client
from reliable_mq.adapters.rocketmq.codec import group_of, to_wire
from reliable_mq.adapters.rocketmq.flights import Entry, Flights
from reliable_mq.adapters.rocketmq.io import the_io
from reliable_mq.adapters.rocketmq.names import place_of
from reliable_mq.adapters.rocketmq.sending import Sending
from reliable_mq.confirmation import Confirmation
from reliable_mq.errors import PublishError, PublishRejected, TransportError
from reliable_mq.message import RetryCopy

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

    from reliable_mq.adapters.rocketmq.config import Config
    from reliable_mq.adapters.rocketmq.io import Io
    from reliable_mq.clock import Clock
    from reliable_mq.errors import Backpressure, PublishUnknown
    from reliable_mq.message import Destination, Message, Receipt

__all__ = ["RocketPublisher"]

#: Seconds that giving up what is left may take.
LAST_WORDS: Final = 1.0
#: Seconds between two looks for what is over its deadline, at least.
LOOK: Final = 0.02


class RocketPublisher:
    """Any thread may submit and close; it connects with the first message.

    Args:
        made: Topics that this transport has made.
    """

    def __init__(self, config: Config, clock: Clock, made: Container[str]) -> None:
        self._config = config
        self._clock = clock
        self._made = made
        self._pid = os.getpid()
        #: Guards what threads share with RocketMQ's; and tells `close` of it.
        self._gate = threading.Lock()
        self._changed = threading.Condition(self._gate)
        self._submitted: deque[Entry] = deque()
        #: All that has no ending, in the order it came.
        self._open: dict[Entry, None] = {}
        self._bytes = 0
        self._called = False
        self._closed = False
        self._io: Io | None = None
        # RocketMQ's thread's own from here on.
        self._flights = Flights(config.options.window)
        self._sending: Sending | None = None
        self._stopped = False
        self._timer: Any = None
        self._next_deadline = float("inf")
        self._reason = "there is no connection yet"

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
            text = f"this publisher to {self._config} was made before a fork: make a new one"
            raise TransportError(text)
        confirmation = Confirmation(message)
        try:
            entry = self._entry(confirmation, to, not_before, deadline)
        except PublishError as error:
            confirmation.settle(error)
            return confirmation
        io = None
        with self._gate:
            room = self._take_in(entry)
            if room and not self._called:
                self._called, io = True, self._io
        if io is not None:
            io.call(self._pump)  # without the lock: whom it wakes wants the lock at once
        if not room:
            confirmation.settle(self._no_answer(entry, "there is no room"))
        return confirmation

    def close(self, timeout: float) -> list[Message]:
        """See Publisher.close."""
        if self._pid != os.getpid():
            return []  # all that is open is the parent's, and so is the thread
        with self._gate:
            self._closed = True
            io = self._io
            if io is None:
                return []
            on_its_thread = io.on_its_thread()  # from a callback there is nothing to wait for
            if not on_its_thread:
                self._changed.wait_for(lambda: not self._open, max(0.0, timeout))
        rest: list[Message] = []
        if on_its_thread:
            return self._give_up()
        given_up = threading.Event()

        def give_up() -> None:
            rest.extend(self._give_up())
            given_up.set()

        io.call(give_up)
        given_up.wait(LAST_WORDS)
        return rest

    # -- handing in ----------------------------------------------------------------------------

    def _entry(
        self,
        confirmation: Confirmation,
        to: Destination,
        not_before: float | None,
        deadline: float | None,
    ) -> Entry:
        message = confirmation.message
        size = size_of(message, to, self._config.options.max_body)
        now = self._clock.now()
        due = not_before
        if isinstance(to, RetryCopy):
            due = max(due or 0.0, now + to.delay)
        elif due is not None and due <= now:
            due = None
        topic = place_of(message, to, later=due is not None)
        try:
            wire = to_wire(message, due)
        except (TypeError, ValueError, OverflowError) as error:
            text = f"message {message.id!r} cannot be sent: {type(error).__name__} in its envelope"
            raise PublishRejected(text, message) from error
        return Entry(confirmation, topic, group_of(message), wire, due, deadline, size)

    def _take_in(self, entry: Entry) -> bool:
        if self._closed or len(self._open) >= OPEN or self._bytes >= OPEN_BYTES:
            return False
        if self._io is None:
            self._io = the_io()
        self._submitted.append(entry)
        self._open[entry] = None
        self._bytes += entry.size
        return True

    # -- RocketMQ's thread ---------------------------------------------------------------------

    def _pump(self) -> None:
        """Take what was handed in, and send what can be sent."""
        io = self._io
        if self._stopped or io is None:
            return
        if self._sending is None:
            client = Client(io, self._config, self._clock, made=self._made)
            self._sending = Sending(io, client, self._clock, self)
        with self._gate:
            self._called = False
            taken, self._submitted = self._submitted, deque()
        for entry in taken:
            self._flights.add(entry)
            if entry.deadline is not None and entry.deadline < self._next_deadline:
                self._next_deadline = entry.deadline
        self.go_on()

    def go_on(self) -> None:
        """Something has changed: send what can be sent. RocketMQ's thread."""
        sending = self._sending
        if self._stopped or sending is None:
            return
        for topic in self._flights.unknown():
            sending.find_out(topic)
        for flight in self._flights.draw(self._clock.monotonic()):
            sending.send(flight)
        self._set_timer()

    @property
    def flights(self) -> Flights:
        """What waits and what is under way. RocketMQ's thread."""
        return self._flights

    def note(self, reason: str) -> None:
        """Why messages have no answer. RocketMQ's thread."""
        self._reason = reason

    def end(self, entry: Entry, outcome: Receipt | PublishError) -> bool:
        """Its ending; whether it had none before. RocketMQ's thread."""
        return self.end_all([(entry, outcome)]) > 0

    def end_all(self, endings: list[tuple[Entry, Receipt | PublishError]]) -> int:
        """The same for many at once: how many had none before."""
        ended = []
        with self._gate:
            for entry, outcome in endings:
                if entry.over:
                    continue
                entry.over = True
                self._open.pop(entry, None)
                self._bytes -= entry.size
                ended.append((entry, outcome))
            if not self._open:
                self._changed.notify_all()
        for entry, outcome in ended:
            entry.wire = None
            entry.confirmation.settle(outcome)
        return len(ended)

    def end_without_answer(self, entries: Iterable[Entry], why: str) -> int:
        """Unknown for those that may be stored, Backpressure for all others."""
        return self.end_all([(entry, self._no_answer(entry, why)) for entry in entries])

    def _set_timer(self) -> None:
        rested = self._flights.next_at()
        at = self._next_deadline if rested is None else min(rested, self._next_deadline)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if at < float("inf") and self._io is not None:
            left = max(LOOK, at - self._clock.monotonic())
            self._timer = self._io.later(left, self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = self._clock.monotonic()
        if now >= self._next_deadline:
            self._expire(now)
        self.go_on()

    def _expire(self, now: float) -> None:
        with self._gate:
            deadlines = [(one.deadline, one) for one in self._open if one.deadline is not None]
        late = [entry for deadline, entry in deadlines if deadline <= now]
        self._next_deadline = min([one for one, _ in deadlines if one > now], default=float("inf"))
        if self.end_without_answer(late, "its deadline is over"):
            self._flights.purge()

    def _give_up(self) -> list[Message]:
        """End all that is open, and the connections."""
        with self._gate:
            rest = list(self._open)
            self._submitted.clear()
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        self.end_without_answer(rest, "the publisher was closed")
        sending, self._sending = self._sending, None
        if sending is not None:
            sending.stop()
        return [entry.confirmation.message for entry in rest]

    def _no_answer(self, entry: Entry, why: str) -> Backpressure | PublishUnknown:
        in_doubt = entry.in_doubt or entry.sent
        return no_answer(entry.confirmation.message, why, self._reason, in_doubt=in_doubt)
