"""The channel that consumes, through as many connections and channels as it takes.

Each channel that was told to consume is a generation. What a generation delivered, only its
channel can ack; when the channel ends, for whatever reason, the broker gives all of it to somebody
else, and what is still said about it here is dropped.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, Final, Protocol

import pika
import pika.exceptions

from reliable_mq.adapters.rabbitmq.link import Link, cause_of
from reliable_mq.adapters.rabbitmq.reader import Reader, deliveries
from reliable_mq.adapters.rabbitmq.tags import Tags

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from reliable_mq.adapters.rabbitmq.parameters import Parameters
    from reliable_mq.adapters.rabbitmq.reader import Delivered

__all__ = ["Consuming", "Mailroom"]

log = logging.getLogger("reliable_mq.rabbitmq")

#: Seconds before a channel that the broker closed is opened again; doubled with each in a row.
FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 5.0
#: Seconds for which a queue may be missing, as while its node is away, before it counts as gone.
MISSING: Final = 10.0
#: Seconds for which acks are gathered before the broker is asked whether it has them.
ANSWER: Final = 0.01
#: Seconds between two looks at the queues while nothing comes.
LOOK: Final = 0.25


class Mailroom(Protocol):
    """The side of the owner thread. Called on the I/O thread."""

    def began(self, generation: int) -> None:
        """This generation consumes: what comes from now on belongs to it."""

    def arrived(self, deliveries: Sequence[Delivered]) -> None:
        """Some deliveries, in their order."""

    def settled(self, tags: Sequence[int]) -> None:
        """The broker has taken these acks."""

    def ended(self, why: str, *, cut_off: bool) -> None:
        """No generation consumes; the next begins by itself. `cut_off`: we cannot get in."""

    def gone(self, queue: str) -> None:
        """A queue is not there any more."""

    def joined(self, *, free: bool) -> None:
        """The generation is a member. `free`: of one of its queues it is the only one."""

    def look(self) -> None:
        """A moment has passed."""


class Consuming:
    """`start`, `ack`, `recycle`, `resume` and `stop` from any thread; else the I/O thread.

    Args:
        queues: Name of each queue, and the topic whose messages it holds.
        prefetch: How many messages without an ack the broker hands out, for each queue.
    """

    def __init__(
        self,
        parameters: Parameters,
        queues: Mapping[str, str],
        prefetch: int,
        mailroom: Mailroom,
    ) -> None:
        self._queues = queues
        self._prefetch = prefetch
        self._mailroom = mailroom
        self._link = Link(parameters, self, "rabbitmq-consume")
        self._generation = 0
        #: The channel that consumes; before that, it is being opened.
        self._channel: Any = None
        self._opening: Any = None
        self._tags = Tags()
        #: Queues by the tags of their consumers.
        self._consumers: dict[bytes, str] = {}
        self._waiting_for_answer = False
        self._unanswered: list[int] = []
        #: Whether the broker has taken us for a member.
        self._joined = False
        self._failures = 0
        self._missing_since: float | None = None
        self._resting = False
        #: Which chain of ticks counts: there is another one when a timer may be lost.
        self._ticks = 0
        #: Whether a queue has no other consumer, as far as it was asked.
        self._free = False
        #: The queue that is asked for, while none is consumed.
        self._asking: str | None = None

    def start(self) -> None:
        """Connect, and consume as soon as that is done. Raises RuntimeError: no more threads."""
        self._link.start()
        self._link.call(lambda: self._tick(0))

    def ack(self, generation: int, tags: Sequence[int]) -> None:
        """Tell the broker that these are finished, if that generation still lives."""
        self._link.call(lambda: self._ack(generation, tags))

    def recycle(self, why: str) -> None:
        """Give all that is in hand back."""
        self._link.call(lambda: self._recycle(why))

    def rest(self, why: str) -> None:
        """The same on the I/O thread, at once; take nothing new until `resume`."""
        self._recycle(why, rest=True)

    def resume(self) -> None:
        """Consume again, after a `rest`."""
        self._link.call(self._resume)

    def stop(self) -> None:
        """Leave: what has no ack goes to others at once."""
        self._link.call(lambda: _keep_consumers(self._channel))
        self._link.stop(1.0)

    # -- connections ---------------------------------------------------------------------------

    def opened(self, connection: pika.SelectConnection) -> None:
        """See Peer.opened."""
        Reader.install(connection, self._take)
        self._open()

    def closed(self, error: BaseException) -> None:
        """See Peer.closed."""
        self._end(cause_of(error), cut_off=True)

    def shaken(self) -> None:
        """See Peer.shaken."""
        self._ticks += 1
        self._tick(self._ticks)
        self._waiting_for_answer = False
        self._ask_for_answer()
        self._open()

    # -- channels ------------------------------------------------------------------------------

    def _open(self) -> None:
        connection = self._link.connection
        idle = self._channel is None and self._opening is None and not self._resting
        if idle and connection is not None and connection.is_open:
            self._opening = connection.channel(on_open_callback=self._channel_opened)

    def _channel_opened(self, channel: Any) -> None:
        if channel is not self._opening:
            channel.close()  # nobody waits for it any more
            return
        channel.add_on_close_callback(self._channel_closed)
        channel.add_on_cancel_callback(lambda _: self._cancelled(channel))
        self._free = False
        self._look_for(channel, list(self._queues))

    def _look_for(self, channel: Any, queues: list[str]) -> None:
        """Consume once all queues are there: a missing one closes the channel, and is told."""
        if not queues:
            self._consume(channel)
            return

        def found(frame: Any) -> None:
            # Only now: of a queue with a single active consumer, one is counted, whoever it is.
            self._free = self._free or not frame.method.consumer_count
            if channel is self._opening:
                self._look_for(channel, queues[1:])

        self._asking = queues[0]
        channel.queue_declare(queues[0], passive=True, callback=found)

    def _consume(self, channel: Any) -> None:
        self._generation += 1
        self._channel, self._opening = channel, None
        self._tags = Tags()
        self._unanswered = []
        self._waiting_for_answer = False
        self._mailroom.began(self._generation)
        channel.basic_qos(prefetch_count=self._prefetch)
        self._consumers = {}
        for queue in self._queues:
            name = channel.basic_consume(queue, self._deliver_from(queue))
            self._consumers[name.encode()] = queue
        channel.basic_qos(prefetch_count=self._prefetch, callback=self._has_joined)

    def _has_joined(self, _: object) -> None:
        """Only now: a user without the permission is refused when it consumes, not before."""
        self._joined = True
        self._failures = 0
        self._missing_since = None
        self._mailroom.joined(free=self._free)

    def _deliver_from(self, queue: str) -> Callable[[Any, Any, Any, bytes], None]:
        generation, arrived = self._generation, self._mailroom.arrived

        def deliver(_channel: Any, method: Any, properties: Any, body: bytes) -> None:
            if generation == self._generation:
                arrived([(queue, method.delivery_tag, method.redelivered, properties, body)])

        return deliver

    def _take(self, data: bytes, at: int) -> int:
        """The same for what need not go through pika: see Reader."""
        channel = self._channel
        if channel is None or not channel.is_open:
            return at
        found: list[Delivered] = []
        place = deliveries(data, at, channel.channel_number, self._consumers, found)
        if found:
            self._mailroom.arrived(found)
        return place

    def _channel_closed(self, channel: Any, error: BaseException) -> None:
        if channel not in (self._channel, self._opening):
            return  # we have let go of it
        connection = self._link.connection
        if connection is None or not connection.is_open:
            return  # the link says so
        why = cause_of(error)
        if isinstance(error, pika.exceptions.ChannelClosedByBroker):
            why = error.reply_text
            log.warning("%s: the broker closed the channel: %s", self._link.parameters, why)
            self._is_missing(error.reply_code)
        self._end(why, cut_off=not self._joined)
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(self._failures, 10))
        self._failures += 1
        self._link.later(pause, self._open)

    def _is_missing(self, code: int) -> None:
        queue = self._asking
        if queue is None or code != 404:  # noqa: PLR2004 - NOT_FOUND in AMQP
            return
        now = time.monotonic()
        self._missing_since = self._missing_since or now
        if now - self._missing_since >= MISSING:
            self._mailroom.gone(queue)

    def _cancelled(self, channel: Any) -> None:
        if channel is self._channel:
            self._recycle("the broker cancelled a consumer")

    def _recycle(self, why: str, *, rest: bool = False) -> None:
        self._resting = rest
        channel = self._channel or self._opening
        if channel is not None:
            log.warning("%s: %s; what is in hand goes back", self._link.parameters, why)
            self._end(why)
            if channel.is_open:
                _keep_consumers(channel)
                channel.close()
        self._open()

    def _resume(self) -> None:
        if self._resting:
            self._resting = False
            self._open()

    def _end(self, why: str, *, cut_off: bool = False) -> None:
        self._channel = self._opening = self._asking = None
        self._joined = False
        self._mailroom.ended(why, cut_off=cut_off)

    # -- acks ----------------------------------------------------------------------------------

    def _ack(self, generation: int, tags: Sequence[int]) -> None:
        channel = self._channel
        if channel is None or generation != self._generation or not channel.is_open:
            return
        for tag, multiple in self._tags.ack(tags):
            channel.basic_ack(tag, multiple=multiple)
        self._unanswered += tags
        self._ask_for_answer()

    def _ask_for_answer(self) -> None:
        """AMQP answers no ack; the answer to a call behind them says that the channel had them.

        Not for each at once: one call for all of a moment costs both sides less.
        """
        if self._waiting_for_answer or not self._unanswered:
            return
        self._waiting_for_answer = True
        generation = self._generation

        def ask() -> None:
            channel = self._channel
            if generation == self._generation and channel is not None and channel.is_open:
                tags, self._unanswered = self._unanswered, []
                channel.basic_qos(prefetch_count=self._prefetch, callback=lambda _: answered(tags))

        def answered(tags: list[int]) -> None:
            if generation == self._generation:
                self._waiting_for_answer = False
                self._mailroom.settled(tags)
                self._ask_for_answer()

        self._link.later(ANSWER, ask)

    # -- looking -------------------------------------------------------------------------------

    def _tick(self, chain: int) -> None:
        if chain == self._ticks:
            self._link.later(LOOK, lambda: self._tick(chain))
            self._mailroom.look()


def _keep_consumers(channel: Any) -> None:
    """Let pika close this channel without cancelling its consumers one by one before that.

    A consumer that is cancelled is no longer the active one, though what it has in hand is still
    its own until the channel ends: the next member would get what comes behind that, out of order.
    """
    if channel is not None:
        channel._cancelled.update(channel._consumers)  # noqa: SLF001 - pika knows no other way
