"""Publishing: any thread hands in, the I/O thread sends, many on their way at once.

    submit ──> (deque) ──> window ──> one write a burst ──> broker
                             ^                                │ ack, nack, return
                             └────────────────────────────────┘

What decides the order is `window`; this module ends Confirmations, and talks to the channel.
"""

from __future__ import annotations

import logging
import os
import struct
import threading
from collections import deque
from typing import TYPE_CHECKING, Final

from reliable_mq.adapters.endings import OPEN, OPEN_BYTES, no_answer, size_of
from reliable_mq.adapters.rabbitmq.channel import PublishChannel
from reliable_mq.adapters.rabbitmq.link import Link, cause_of
from reliable_mq.adapters.rabbitmq.names import Route, address_of, rung
from reliable_mq.adapters.rabbitmq.window import Entry, Window
from reliable_mq.adapters.rabbitmq.wire import properties_of
from reliable_mq.confirmation import Confirmation
from reliable_mq.errors import (
    Backpressure,
    PublishError,
    PublishRejected,
    PublishUnknown,
    TooLarge,
    TransportError,
    Unroutable,
)
from reliable_mq.message import Receipt, RetryCopy, Topic

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pika

    from reliable_mq.adapters.rabbitmq.parameters import Parameters
    from reliable_mq.adapters.rabbitmq.properties import Properties
    from reliable_mq.clock import Clock
    from reliable_mq.message import Destination, Message

__all__ = ["RabbitPublisher"]

log = logging.getLogger("reliable_mq.rabbitmq")

#: Routes that are kept, so that those of a topic are one object.
ROUTES: Final = 1_000
#: Seconds between two looks for what is over its deadline.
LOOK: Final = 0.05
#: Seconds of nothing but refusals before another connection is tried: at first, and at most.
PATIENCE: Final = 2.0
LONGEST_PATIENCE: Final = 60.0


class RabbitPublisher:
    """Any thread may submit and close; the connection is made with the first message.

    Args:
        declared: Routes that are known to be there; shared by the publishers of a transport.
    """

    def __init__(self, parameters: Parameters, clock: Clock, declared: set[Route]) -> None:
        self._parameters = parameters
        self._clock = clock
        self._pid = os.getpid()
        #: Guards what `submit` and `close` share with the I/O thread; and tells `close` of it.
        self._gate = threading.Lock()
        self._changed = threading.Condition(self._gate)
        self._submitted: deque[Entry] = deque()
        self._open = 0
        self._bytes = 0
        self._called = False
        #: By topic. Any thread: whoever finds none makes one.
        self._routes: dict[str, Route] = {}
        self._closed = False
        self._link: Link | None = None
        # The I/O thread's own from here on.
        self._declared = declared
        self._window = Window(parameters.options.window, declared)
        self._channel: PublishChannel | None = None
        self._stored = 0
        self._reason = "there is no connection yet"
        self._timer: float | None = None
        #: Since when the broker has refused everything; and for how long that is borne.
        self._refused_since: float | None = None
        self._patience = PATIENCE

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
            text = f"this publisher to {self._parameters} was made before a fork: make a new one"
            raise TransportError(text)
        confirmation = Confirmation(message)
        try:
            entry = self._entry(confirmation, to, not_before, deadline)
        except PublishError as error:
            confirmation.settle(error)
            return confirmation
        with self._gate:
            room = self._take_in(entry)
            link = self._link if room and not self._called else None
            self._called = self._called or room
        if link is not None:
            # Without the lock: a call writes to a pipe, and whom it wakes wants the lock at once.
            link.call(self._pump)
        elif not room:
            confirmation.settle(self._no_answer(entry, "there is no room"))
        return confirmation

    def close(self, timeout: float) -> list[Message]:
        """See Publisher.close."""
        with self._gate:
            self._closed = True
            link = self._link
            if link is None:
                return []
            if not link.on_its_thread():  # from a callback there is nothing to wait for
                self._changed.wait_for(lambda: not self._open, max(0.0, timeout))
        rest: list[Message] = []
        if link.on_its_thread():
            rest += self._give_up()
            link.stop(0.0)
            return rest
        given_up = threading.Event()

        def give_up() -> None:
            rest.extend(self._give_up())
            given_up.set()

        link.call(give_up)
        given_up.wait(1.0)
        link.stop(0.0)
        if not given_up.is_set():  # the thread has ended before: nobody else touches it any more
            rest.extend(self._give_up())
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
        delay = to.delay if isinstance(to, RetryCopy) else 0.0
        if not_before is not None:
            delay = max(delay, not_before - self._clock.now())
        due = self._clock.now() + delay if delay > 0 else None
        properties = self._properties(message, due)
        route: Route | None
        if delay > 0:
            route = Route(address_of(message, to), rung(delay))
            address = route.first()
        elif isinstance(to, Topic):
            route = self._routes.get(message.topic) or self._route(message, to)
            address = route.address
        else:
            route, address = None, address_of(message, to)
        size = size_of(message, to, self._parameters.options.max_body)
        key = None if message.key is None else (address, message.key)
        return Entry(confirmation, address, properties, key, route, deadline, size)

    def _route(self, message: Message, to: Topic) -> Route:
        if len(self._routes) >= ROUTES:
            self._routes.clear()
        route = self._routes[message.topic] = Route(address_of(message, to))
        return route

    def _properties(self, message: Message, due: float | None) -> Properties:
        try:
            return properties_of(message, due)
        except (TypeError, ValueError, OverflowError, struct.error) as error:
            text = f"message {message.id!r} cannot be sent: {type(error).__name__} in its envelope"
            raise PublishRejected(text, message) from error

    def _take_in(self, entry: Entry) -> bool:
        if self._closed or self._open >= OPEN or self._bytes >= OPEN_BYTES:
            return False
        if self._link is None and not self._start():
            return False
        self._submitted.append(entry)
        self._open += 1
        self._bytes += entry.size
        return True

    def _start(self) -> bool:
        link = Link(self._parameters, self, "rabbitmq-publish")
        try:
            link.start()
        except RuntimeError as error:  # no more threads in this process
            self._reason = str(error)
            return False
        self._link = link
        return True

    # -- the I/O thread ------------------------------------------------------------------------

    def opened(self, connection: pika.SelectConnection) -> None:
        """See Peer.opened."""
        self._channel = PublishChannel(connection, self)

    def closed(self, error: BaseException) -> None:
        """See Peer.closed."""
        self._channel = None
        self._reason = cause_of(error)
        self._window.lost()
        self._tick()

    def shaken(self) -> None:
        """See Peer.shaken."""
        self._timer, self._called = None, False
        self._tick()

    def ready(self) -> None:
        """The channel takes messages."""
        self._reason = "no answer yet"
        self._pump()

    def blocked(self, why: str) -> None:
        """It takes none for now; what is on its way may get there yet."""
        self._reason = why

    def channel_closed(self, why: str) -> None:
        """The broker closed the channel: over one of the messages, or for want of an exchange."""
        self._reason = why
        self._declared.clear()  # one of them may be gone: from now on each is asked for
        entry = None if "NOT_FOUND" in why else self._window.be_careful()
        if entry is not None:
            entry.over = True
            message = entry.confirmation.message
            text = f"message {message.id} was refused by the broker: {why}"
            self._end(entry, PublishRejected(text, message))
        self._window.lost()

    def channel_lost(self) -> None:
        """We closed the channel."""
        self._window.lost()

    def unsendable(self, entry: Entry, why: str) -> None:
        """A message has more headers than the broker takes."""
        entry.over = True
        message = entry.confirmation.message
        self._end(entry, TooLarge(f"message {message.id}: {why}: send a reference", message))

    def acked(self, acks: Sequence[tuple[int, bool]]) -> None:
        """The broker has stored these: tags, and whether all below them, too."""
        self._refused_since, self._patience = None, PATIENCE
        ended: dict[Entry, Receipt] = {}
        size = 0
        for tag, multiple in acks:
            for entry in self._window.acked(tag, multiple=multiple):
                self._stored += 1
                if not (entry.over or entry.confirmation.done() or entry in ended):
                    message = entry.confirmation.message
                    ended[entry] = Receipt(message.id, message.topic, 0, self._stored)
                    size += entry.size
        if ended:
            self._leave(len(ended), size)
            for entry, receipt in ended.items():
                entry.confirmation.settle(receipt)
        self._pump()

    def nacked(self, tag: int, *, multiple: bool) -> None:
        """The broker refused these for now."""
        now = self._clock.monotonic()
        self._reason = "the broker refused it for now"
        self._refused_since = self._refused_since or now
        self._window.nacked(tag, now, multiple=multiple)
        self._pump()

    def returned(self, id: str, exchange: str, routing_key: str, why: str) -> None:
        """A message could not be routed; its ack follows."""
        entry = self._window.find(id, exchange, routing_key)
        if entry is not None:
            self._refuse(entry, why)

    def answered(self, route: Route, why: str) -> None:
        """Whether a route is there."""
        if why:
            for entry in self._window.refuse(route):
                self._refuse(entry, why)
        else:
            self._window.answer(route)
        self._pump()

    def _pump(self) -> None:
        with self._gate:
            self._called = False
            submitted, self._submitted = self._submitted, deque()
        self._window.take(submitted)
        if self._channel is not None:
            self._channel.send(self._window)
        self._tick()
        if self._window.full and self._timer is not None:
            self._called = True  # nobody need call: what makes room, or the timer, brings us here

    def _tick(self) -> None:
        """Look again in a while, as long as there is something to look after."""
        link = self._link
        if self._timer is None and self._open and link is not None:
            now = self._clock.monotonic()
            due = self._window.due()
            pause = LOOK if due is None else min(LOOK, max(0.001, due - now))
            self._timer = now + pause
            link.later(pause, self._look)

    def _look(self) -> None:
        self._timer = None
        now = self._clock.monotonic()
        for entry in self._window.overdue(now):
            self._end(entry, self._no_answer(entry, "its deadline is over"))
        self._window.release(now)
        self._change_connection(now)
        self._pump()

    def _change_connection(self, now: float) -> None:
        """Where nothing but refusals has come for a while, try another connection.

        RabbitMQ 3.10 goes on to refuse everything on one that was made while the leader of a queue
        was dying. A queue that is full refuses, too: each change that does not help is waited for
        twice as long.
        """
        since, link = self._refused_since, self._link
        if link is not None and since is not None and now - since > self._patience:
            self._refused_since = None
            self._patience = min(LONGEST_PATIENCE, 2 * self._patience)
            link.reconnect("the broker refuses everything")

    def _refuse(self, entry: Entry, why: str) -> None:
        entry.over = True
        message = entry.confirmation.message
        if entry.in_doubt:  # it may have got there before what is missing went missing
            self._end(entry, self._no_answer(entry, why))
            return
        text = (
            f"message {message.id} cannot be routed ({why}): declare the topic and its groups, "
            f"mq.topic({message.topic!r}, groups=(…,))"
        )
        self._end(entry, Unroutable(text, message))

    def _end(self, entry: Entry, outcome: Receipt | PublishError) -> None:
        if entry.confirmation.done():  # a copy
            return
        self._leave(1, entry.size)
        entry.confirmation.settle(outcome)

    def _leave(self, count: int, size: int) -> None:
        # Before they are settled: who hears of it finds room for more.
        with self._gate:
            self._open -= count
            self._bytes -= size
            if not self._open:
                self._changed.notify_all()

    def _give_up(self) -> list[Message]:
        with self._gate:
            submitted, self._submitted = self._submitted, deque()
        entries: Sequence[Entry] = [*self._window.all(), *submitted]
        rest = []
        for entry in entries:
            entry.in_doubt = entry.in_doubt or entry.on_its_way
            entry.over = True
            if not entry.confirmation.done():
                rest.append(entry.confirmation.message)
                self._end(entry, self._no_answer(entry, "the publisher was closed"))
        return rest

    def _no_answer(self, entry: Entry, why: str) -> Backpressure | PublishUnknown:
        in_doubt = entry.in_doubt or entry.on_its_way
        return no_answer(entry.confirmation.message, why, self._reason, in_doubt=in_doubt)
