"""One member's place in its groups: the owner thread polls and acks, the I/O thread does the rest.

A delivery is in hand from the poll that brought it to its ack, its nack, or the end of its channel.
When the channel ends, the broker gives all of it to somebody else, perhaps to us again. Then what
has not started is forgotten, and what still runs goes on: if the broker brings its message here
again, the copy is not run but takes the place of the first, and the end of the run settles it.
"""

from __future__ import annotations

import heapq
import logging
from itertools import count
from typing import TYPE_CHECKING, Any, Final

import pika
from msgspec.structs import replace

from reliable_mq.adapters.base import Polled
from reliable_mq.adapters.rabbitmq.adrift import Adrift, RabbitLease, name_of
from reliable_mq.adapters.rabbitmq.consuming import Consuming
from reliable_mq.adapters.rabbitmq.mail import Mail
from reliable_mq.adapters.rabbitmq.properties import read
from reliable_mq.adapters.rabbitmq.wire import from_wire
from reliable_mq.errors import ConfigurationError, ConnectionFailed
from reliable_mq.message import NOT_BEFORE, Delivery, Receipt, header
from reliable_mq.outcome import LONGEST

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from reliable_mq.adapters.base import OnRevoke
    from reliable_mq.adapters.rabbitmq.adrift import Name
    from reliable_mq.adapters.rabbitmq.mail import Arrival
    from reliable_mq.adapters.rabbitmq.parameters import Parameters
    from reliable_mq.clock import Clock
    from reliable_mq.confirmation import Confirmation
    from reliable_mq.message import Lease, Message

__all__ = ["RabbitSubscription"]

log = logging.getLogger("reliable_mq.rabbitmq")

NOTHING: Final = Polled()
#: Seconds that `close` waits for the broker to take the last acks.
LAST_ACKS: Final = 2.0
#: Seconds between two looks for what is in hand for too long.
LOOK: Final = 0.25
#: Seconds for which a message that is not due is kept here; for longer it goes back to the ladder.
HOLD: Final = 30.0


class RabbitSubscription:
    """The owner thread polls, acks, nacks and closes; `wake` any thread.

    Args:
        pass_on: Sends a message to a queue again, not before a time (epoch seconds).
    """

    def __init__(
        self,
        parameters: Parameters,
        queues: Mapping[str, str],
        on_revoke: OnRevoke,
        clock: Clock,
        *,
        prefetch: int,
        max_hold: float,
        one_at_a_time: bool,
        pass_on: Callable[[Message, str, float], Confirmation],
    ) -> None:
        self._parameters = parameters
        self._queues = queues
        self._on_revoke = on_revoke
        self._clock = clock
        self._max_hold = max_hold
        self._pass_on = pass_on
        #: On their way through the ladder of delays once more.
        self._passed_on: list[tuple[Confirmation, Delivery]] = []
        self._closed = False
        # The owner thread's own: which generation it knows, and what it has of it.
        self._known = 0
        self._in_hand: set[RabbitLease] = set()
        #: Acked, and the broker has not answered yet: by tag.
        self._acked: dict[int, RabbitLease] = {}
        #: nacked: when each is due again.
        self._later: list[tuple[float, int, Delivery]] = []
        self._tickets = count()
        self._adrift = Adrift()
        #: What a channel had that has just ended, while it is found out what of it still runs.
        self._leaving: set[Lease] = set()
        self._lost: list[Lease] = []
        self._look_at = 0.0
        options = parameters.options
        self._mail = Mail(
            clock,
            options.lease_timeout,
            one_at_a_time=one_at_a_time,
            on_silence=lambda: self._io.rest("nobody polled for too long"),
        )
        self._io = Consuming(parameters, queues, prefetch, self._mail)
        self._io.start()
        self._mail.wait_joined(options.connect_timeout)

    # -- the port ------------------------------------------------------------------------------

    @property
    def standby(self) -> bool:
        """See Subscription.standby."""
        return self._mail.standby

    def poll(self, limit: int, timeout: float) -> Polled:
        """See Subscription.poll."""
        mail = self._mail
        end = self._clock.monotonic() + timeout
        while True:
            due = self._later[0][0] if limit > 0 and self._later else end
            in_hand = bool(self._in_hand or self._acked)
            news = mail.wait(self._known, min(end, due), arrivals=limit > 0, in_hand=in_hand)
            now = self._clock.monotonic()
            if news.expired:
                self._lose_all()
                self._io.resume()
            elif self._too_long_in_hand(now, up=news.up):
                # In this order: nobody else has any of it before it is known here to be lost.
                self._let_go(news.generation, now)
                self._io.recycle("a message was in hand for nearly as long as the broker allows")
            elif news.generation != self._known or not news.up:
                self._let_go(news.generation, now)
            self._look_after_the_adrift(now, up=news.up)
            polled = self._collect(limit, now)
            if polled is not NOTHING:
                return polled
            if mail.missing:
                text = f"queue {mail.missing!r} is gone: declare its topic and group again"
                raise ConfigurationError(text)
            if news.woken:
                return NOTHING
            if now >= end:
                if mail.cut_off:
                    text = f"{self._parameters}: {mail.cut_off}; it is tried again"
                    raise ConnectionFailed(text)
                return NOTHING

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        """See Subscription.ack."""
        tags: list[int] = []
        for delivery in deliveries:
            lease: Any = delivery.lease
            if lease in self._in_hand:
                self._in_hand.discard(lease)
                self._acked[lease.tag] = lease
                tags.append(lease.tag)
            elif lease in self._leaving:
                self._leaving.discard(lease)
                self._adrift.remember(lease, self._clock.monotonic())
            elif isinstance(lease, RabbitLease):
                self._adrift.end(lease, self._clock.monotonic())
        if tags:
            self._io.ack(self._known, tags)

    def nack(self, delivery: Delivery, delay: float) -> None:
        """See Subscription.nack: it is kept here, unacked, until it is due."""
        lease: Any = delivery.lease
        if lease not in self._in_hand:
            return
        self._in_hand.discard(lease)
        again = RabbitLease(lease.tag, lease.name, lease.arrived)
        self._in_hand.add(again)
        copy = replace(delivery, lease=again, redelivered=0)
        due = self._clock.monotonic() + delay
        heapq.heappush(self._later, (due, next(self._tickets), copy))

    def wake(self) -> None:
        """See Subscription.wake."""
        self._mail.wake()

    def close(self) -> None:
        """See Subscription.close."""
        if self._closed:
            return
        self._closed = True
        end = self._clock.monotonic() + LAST_ACKS
        while self._acked and (left := end - self._clock.monotonic()) > 0:
            up = self._mail.wait_settled(left)
            self._note_settled()
            if not up:
                break
        self._io.stop()
        self._lose_all()

    # -- the owner thread ----------------------------------------------------------------------

    def _collect(self, limit: int, now: float) -> Polled:
        deliveries: list[Delivery] = []
        if self._passed_on:
            self._note_passed_on(now)
        while len(deliveries) < limit and self._later and self._later[0][0] <= now:
            due = heapq.heappop(self._later)[2]
            if due.lease in self._in_hand and not self._still_early(due, now):
                deliveries.append(due)
        for arrival in self._mail.take(self._known, limit - len(deliveries)):
            delivery = self._received(arrival, now)
            if delivery is not None:
                deliveries.append(delivery)
        settled = self._note_settled()
        lost, self._lost = self._lost, []
        if not (deliveries or settled or lost):
            return NOTHING
        return Polled(deliveries, settled, lost)

    def _note_settled(self) -> list[Lease]:
        tags = self._mail.take_settled(self._known)
        return [self._acked.pop(tag) for tag in tags if tag in self._acked]

    def _received(self, arrival: Arrival, now: float) -> Delivery | None:
        (queue, tag, again, properties, body), at = arrival
        message, weak, properties = self._read(queue, properties, body)
        times = _times(properties, again=again)
        name = None if weak else name_of(queue, message)
        if times and name is not None and self._stands_in(name, tag, at):
            return None
        lease = RabbitLease(tag, name, at)
        self._in_hand.add(lease)
        delivery = Delivery(
            message,
            lease,
            redelivered=times,
            position=tag,
            weak_id=weak,
            arrived=now,
        )
        early = _early(message, self._clock.now())
        if early:
            self._not_yet(delivery, queue, early, now)
            return None
        return delivery

    def _read(self, queue: str, properties: Any, body: bytes) -> tuple[Message, bool, Any]:
        """A message whose properties nobody can read is its body alone: it must not stop others."""
        topic = self._queues[queue]
        try:
            if isinstance(properties, bytes):
                properties = read(properties)
            return (*from_wire(topic, queue, properties, body), properties)
        except Exception as error:  # noqa: BLE001 - pika's decoder raises whatever it comes upon
            log.warning("queue %s: properties of a message cannot be read: %r", queue, error)
            nothing = pika.BasicProperties()
            return (*from_wire(topic, queue, nothing, body), nothing)

    def _not_yet(self, delivery: Delivery, queue: str, early: float, now: float) -> None:
        """It has passed the longest step, or the clocks differ: keep it, or send it on."""
        if early <= HOLD:
            heapq.heappush(self._later, (now + early, next(self._tickets), delivery))
            return
        confirmation = self._pass_on(delivery.message, queue, self._clock.now() + early)
        confirmation.add_done_callback(lambda _: self._mail.wake())
        self._passed_on.append((confirmation, delivery))

    def _still_early(self, delivery: Delivery, now: float) -> bool:
        early = _early(delivery.message, self._clock.now())
        if early:
            heapq.heappush(self._later, (now + min(early, HOLD), next(self._tickets), delivery))
        return bool(early)

    def _note_passed_on(self, now: float) -> None:
        """What the ladder has got is acked; what it did not get is kept until it is due."""
        open_ones, self._passed_on = self._passed_on, []
        for confirmation, delivery in open_ones:
            outcome = confirmation.outcome
            if isinstance(outcome, Receipt):
                # What was passed on has the name of this one: were its end remembered, a copy of
                # that which comes again would be acked and not run.
                delivery.lease.name = None  # type: ignore[attr-defined]  # it is one of ours
                self.ack([delivery])
            elif outcome is not None:
                again = min(HOLD, _early(delivery.message, self._clock.now()))
                heapq.heappush(self._later, (now + again, next(self._tickets), delivery))
            else:
                self._passed_on.append((confirmation, delivery))

    def _stands_in(self, name: Name, tag: int, at: float) -> bool:
        """Whether this is a copy of what runs here still, or has ended since."""
        lease = self._adrift.claim(name)
        if lease is not None:
            lease.tag, lease.arrived = tag, at
            self._in_hand.add(lease)
            return True
        if self._adrift.has_ended(name):
            self._acked[tag] = RabbitLease(tag, name, at)  # remembered again if this is lost, too
            self._io.ack(self._known, [tag])
            return True
        return False

    # -- what the broker took back -------------------------------------------------------------

    def _let_go(self, generation: int, now: float) -> None:
        """The channel has ended: forget what has not started, and keep what runs."""
        self._known = generation
        for lease in self._acked.values():  # the broker may not have had these acks
            self._adrift.remember(lease, now)
        leases, self._in_hand = self._in_hand, set()
        self._acked.clear()
        self._later.clear()
        if not leases:
            return
        self._adrift.since = now
        self._leaving = {*leases}
        running = self._on_revoke([*leases], now) or ()
        for lease in leases:
            if lease not in self._leaving:
                continue  # acked in there, and remembered
            if not (lease in running and self._adrift.keep(lease)):
                self._lose(lease)
        self._leaving.clear()

    def _lose_all(self) -> None:
        """We did not poll for too long, or leave: others get it, whatever runs here."""
        for lease in (*self._in_hand, *self._adrift, *self._acked.values()):
            self._lose(lease)
        self._in_hand.clear()
        self._adrift.clear()
        self._acked.clear()
        self._later.clear()

    def _lose(self, lease: Lease) -> None:
        lease.lost = True
        self._lost.append(lease)

    def _too_long_in_hand(self, now: float, *, up: bool) -> bool:
        if not up or now < self._look_at:
            return False
        self._look_at = now + LOOK
        came = [lease.arrived for lease in self._in_hand]
        oldest = self._mail.oldest()  # the broker counts from when it sent it, not from the poll
        return now - min([*came, now if oldest is None else oldest]) > self._max_hold

    def _look_after_the_adrift(self, now: float, *, up: bool) -> None:
        if not up:
            self._adrift.since = now
        elif self._adrift and now - self._adrift.since > self._parameters.options.lease_timeout:
            for lease in self._adrift:  # somebody else has got it
                self._lose(lease)
            self._adrift.clear()


def _early(message: Message, now: float) -> float:
    """Seconds until it may be handled."""
    text = header(message, NOT_BEFORE)
    try:
        early = 0.0 if text is None else float(text) - now
    except ValueError:
        return 0.0  # forged: the core says so
    return early if 0.0 < early <= LONGEST else 0.0


def _times(properties: Any, *, again: bool) -> int:
    """How often it came before. The broker counts what was given back cleanly, too."""
    if not again:
        return 0  # whatever the publisher wrote into the header
    found = (properties.headers or {}).get("x-delivery-count")
    if isinstance(found, int) and not isinstance(found, bool) and found > 0:
        return found
    return 1
