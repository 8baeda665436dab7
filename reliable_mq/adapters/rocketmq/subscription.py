"""One member's place in its groups: the owner thread polls and acks, RocketMQ's thread asks.

A nack of a message without order hides it for its delay, which the broker keeps. On a FIFO topic
that would hold up its whole queue, so there a copy goes to the retries of the group, and when that
is stored, the message is acked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import replace

from reliable_mq.adapters.base import Polled
from reliable_mq.adapters.rocketmq.codec import from_wire
from reliable_mq.adapters.rocketmq.hand import Held
from reliable_mq.adapters.rocketmq.receiving import Receiving
from reliable_mq.errors import ConfigurationError, ConnectionFailed
from reliable_mq.message import ATTEMPT, GROUP, NOT_BEFORE, Delivery, Receipt, RetryCopy, header
from reliable_mq.outcome import LONGEST

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from reliable_mq.adapters.rocketmq.client import Client
    from reliable_mq.adapters.rocketmq.config import Config
    from reliable_mq.adapters.rocketmq.io import Io
    from reliable_mq.adapters.rocketmq.mailbox import Mailbox
    from reliable_mq.adapters.rocketmq.sources import Source
    from reliable_mq.clock import Clock
    from reliable_mq.confirmation import Confirmation
    from reliable_mq.message import Destination, Message

__all__ = ["RocketSubscription"]

NOTHING: Final = Polled()
#: Seconds that `close` waits for the broker to take the last acks, and to take back the rest.
LAST_ACKS, GIVING_BACK = 2.0, 2.0
#: Seconds for which the broker may be told to hide a message: the proxy's limit is 12 hours.
LONGEST_HIDING: Final = 11 * 3600.0
#: What a header may say at most.
MOST_ATTEMPTS: Final = 10_000


class RocketSubscription:
    """The owner thread polls, acks, nacks and closes; `wake` any thread.

    Args:
        pass_on: Sends a copy to the retries of the group.
    """

    def __init__(
        self,
        io: Io,
        config: Config,
        *,
        clients: Mapping[str, Client],
        sources: Sequence[Source],
        mailbox: Mailbox,
        clock: Clock,
        group: str,
        pass_on: Callable[[Message, Destination], Confirmation],
    ) -> None:
        self._config = config
        self._clock = clock
        self._group = group
        self._pass_on = pass_on
        self._mailbox = mailbox
        self._gate = mailbox.gate
        self._hand = mailbox.hand
        #: Copies on their way: of these messages.
        self._copies: dict[Confirmation, tuple[Held, Delivery, float]] = {}
        self._closed = False
        options = config.options
        self._receiving = Receiving(
            io,
            clients,
            sources,
            mailbox,
            time=options.lease_timeout,
            long_poll=options.long_poll,
        )
        self._receiving.kick()

    # -- the port ------------------------------------------------------------------------------

    @property
    def standby(self) -> bool:
        """See Subscription.standby: never, every member takes what is free."""
        return False

    def poll(self, limit: int, timeout: float) -> Polled:
        """See Subscription.poll."""
        mailbox, clock = self._mailbox, self._clock
        end = clock.monotonic() + timeout
        while True:
            self._look_after_copies()
            with self._gate:
                mailbox.polled(limit)
                now = clock.monotonic()
                self._hand.expire(now)
                taken = self._hand.take(limit, now)
                settled, lost = self._hand.news()
                hungry = self._hand.fetched < limit
            if hungry:
                self._receiving.kick()
            deliveries = [one for held in taken if (one := self._delivery(held, now)) is not None]
            if deliveries or settled or lost:
                return Polled(deliveries, settled, lost)
            if taken:
                continue  # none of them is due yet
            with self._gate:
                if mailbox.was_woken():
                    return NOTHING
                if mailbox.is_missing:
                    raise ConfigurationError(mailbox.is_missing)
                reason = mailbox.is_cut_off(now)
                if now >= end:
                    break
                if not (self._hand.has_news or (self._hand.fetched and limit > 0)):
                    self._gate.wait(min(end, self._hand.next_at(), now + 1.0) - now)
        if reason:
            text = f"{self._config}: {reason}; it is tried again"
            raise ConnectionFailed(text)
        return NOTHING

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        """See Subscription.ack."""
        with self._gate:
            acked = [self._hand.ack(one.lease) for one in deliveries if isinstance(one.lease, Held)]
        if any(acked):
            self._receiving.kick()

    def nack(self, delivery: Delivery, delay: float) -> None:
        """See Subscription.nack."""
        held: Any = delivery.lease
        if not isinstance(held, Held):
            return
        if held.source.fifo or delay > LONGEST_HIDING:
            with self._gate:
                copied = self._hand.copy(held)
            if copied:
                self._copy(held, delivery, self._clock.now() + delay)
            return
        with self._gate:
            left = self._hand.leave(held, max(0.0, delay))
            if left:
                self._hand.remember(held, delivery.attempt, delivery.redelivered)
        if left:
            self._receiving.kick()

    def wake(self) -> None:
        """See Subscription.wake."""
        self._mailbox.wake()

    def close(self) -> None:
        """See Subscription.close."""
        if self._closed:
            return
        self._closed = True
        self._wait(lambda: not self._copies and not self._hand.unsettled, LAST_ACKS)
        with self._gate:
            self._hand.drop_all()
            self._mailbox.polled(0)
        self._receiving.stop()
        self._receiving.kick()
        self._wait(lambda: not self._hand.unsettled, GIVING_BACK)

    # -- parts ---------------------------------------------------------------------------------

    def _wait(self, is_over: Callable[[], bool], seconds: float) -> None:
        end = self._clock.monotonic() + seconds
        while True:
            self._look_after_copies()
            with self._gate:
                left = end - self._clock.monotonic()
                if is_over() or left <= 0:
                    return
                self._gate.wait(min(left, 0.1))

    def _delivery(self, held: Held, now: float) -> Delivery | None:
        """What the core gets; None when it is not due: it goes back until it is."""
        system = held.wire.system_properties
        message = from_wire(held.source.of, held.wire)
        with self._gate:
            attempt, redelivered = self._hand.recall(held)
        delivery = Delivery(
            message,
            held,
            attempt=attempt or _attempt_of(message),
            redelivered=redelivered,
            partition=system.queue_id,
            position=system.queue_offset,
            arrived=now,
        )
        early = _early(message, self._clock.now())
        if early:
            self.nack(delivery, early)
            return None
        held.wire = None  # the body is in the message now
        return delivery

    def _copy(self, held: Held, delivery: Delivery, due: float) -> None:
        message = delivery.message
        kept = tuple(pair for pair in message.headers if pair[0] not in (ATTEMPT, GROUP))
        ours = ((ATTEMPT, str(delivery.attempt)), (GROUP, self._group))
        copy = replace(message, headers=(*kept, *ours))
        delay = max(0.0, due - self._clock.now())
        confirmation = self._pass_on(copy, RetryCopy(message.topic, self._group, delay))
        self._copies[confirmation] = (held, delivery, due)
        confirmation.add_done_callback(lambda _: self._mailbox.wake_quietly())

    def _look_after_copies(self) -> None:
        """What is stored as a copy is acked; what is not is copied again, while it is ours."""
        for confirmation in [one for one in self._copies if one.done()]:
            held, delivery, due = self._copies.pop(confirmation)
            if isinstance(confirmation.outcome, Receipt):
                with self._gate:
                    self._hand.copied(held)
                self._receiving.kick()
            elif not self._closed:
                self._copy(held, delivery, due)


def _attempt_of(message: Message) -> int:
    """What the header says; the core checks it."""
    try:
        return min(max(1, int(header(message, ATTEMPT) or 1)), MOST_ATTEMPTS)
    except ValueError:
        return 1


def _early(message: Message, now: float) -> float:
    """Seconds until it may be handled."""
    text = header(message, NOT_BEFORE)
    try:
        early = 0.0 if text is None else float(text) - now
    except ValueError:
        return 0.0  # forged: the core says so
    return early if 0.0 < early <= LONGEST else 0.0
