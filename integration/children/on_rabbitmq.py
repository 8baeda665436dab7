"""What the child programs do on RabbitMQ: kill points at the socket, and safeties that it has.

fence       an ack of a channel that has ended counts on the next one, whose tags begin at 1 again
deadline    a publish may wait for its confirm as long as it likes
confirms    what was sent counts as stored when the connection ends without an answer
cancel-first    a member that leaves cancels its consumer, and closes the channel after that
adrift      what runs when the connection ends is forgotten, so that its copy is run as well
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from contextlib import contextmanager, suppress
from threading import local
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from pika.adapters.utils import io_services_utils

from integration.children.removed import Around
from reliable_mq import ReliableMQError
from reliable_mq.adapters.rabbitmq import RabbitTransport
from reliable_mq.adapters.rabbitmq.names import LADDER, Address, delay_queue, queue_of
from reliable_mq.adapters.rabbitmq.parameters import parse
from reliable_mq.adapters.rabbitmq.session import session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from integration.children.kit import Boundaries, Plan
    from reliable_mq.adapters.rabbitmq.session import Session

#: Seconds within which the broker has forgotten a consumer that has left.
GOODBYE = 2.0
#: Where a thread asks instead of working: nobody dies or stands still while asking.
_here = local()


class OnRabbitmq:
    """The broker of a plan."""

    def __init__(self, plan: Plan, boundaries: Boundaries) -> None:
        self._plan = plan
        logging.getLogger("pika").setLevel(logging.ERROR)  # each step of a connection is INFO
        count_calls(boundaries)
        # The broker gives a connection up after two heartbeats without a sign of life.
        heartbeat = max(1, round(plan.lease_timeout / 2))
        options = {"lease_timeout": plan.lease_timeout, "heartbeat": heartbeat}
        self._url = f"{plan.url}?{urlencode(options)}"
        self._queue = queue_of(plan.topic, plan.group)
        self._members = Members(None)

    def transport(self, removed: str) -> Any:
        """What the app runs on."""
        self._members = Members(RabbitTransport(self._url))
        if not removed:
            return self._members
        without = {
            "fence": Unfenced,
            "deadline": Patient,
            "confirms": Trusting,
            "adrift": Forgetful,
            "cancel-first": CancelsFirst,
        }
        return without[removed](self._members)

    def seems_done(self, health: Any) -> bool:
        """Whether there is nothing left, as far as can be seen: not what is on its way to us."""
        running = [one for one in health.consumers if one.state == "running"]
        return bool(running) and self._asked(self._queue)[0] == 0 and self._members.are_idle()

    def left(self) -> int:
        """What lies in the queue, and one more if somebody else is there, who may have some."""
        end = time.monotonic() + GOODBYE
        ready, members = self._asked(self._queue)
        while members and time.monotonic() < end:
            time.sleep(0.02)
            ready, members = self._asked(self._queue)
        return ready + bool(members)

    def waiting_copies(self) -> list[str]:
        """Retry copies that are not due: by the broker's own clock, which nobody can turn."""
        queues = [delay_queue(Address("", self._queue), step) for step in LADDER]
        with asking(self._url) as opened:
            return [id for queue in queues for id in _ids(opened, queue)]

    def _asked(self, queue: str) -> tuple[int, int]:
        """Messages, without those that somebody has in hand, and consumers."""
        with suppress(ReliableMQError), asking(self._url) as opened:
            answer = opened.channel.queue_declare(queue, passive=True).method
            return answer.message_count, answer.consumer_count
        return 1, 0  # nobody knows


@contextmanager
def asking(url: str) -> Iterator[Session]:
    """A connection whose calls do not count: nobody dies or stands still while asking."""
    _here.asking = True
    try:
        with session(parse(url)) as opened:
            yield opened
    finally:
        _here.asking = False


def _ids(opened: Session, queue: str) -> list[str]:
    """The ids of what lies in a queue, if there is one. All is given back in the end."""
    found = []

    def look(channel: Any) -> None:
        while (got := channel.basic_get(queue))[0] is not None:
            found.append(got[1].message_id)

    opened.ask(look)
    return found


def count_calls(boundaries: Boundaries) -> None:
    """Let every call of pika to a socket be a boundary."""
    transport: Any = io_services_utils._AsyncTransportBase
    send, receive = transport._sigint_safe_send, transport._sigint_safe_recv

    def counted_send(sock: Any, data: bytes) -> int:
        if getattr(_here, "asking", False):
            return send(sock, data)
        boundaries.cross("before send")
        sent = send(sock, data)
        boundaries.cross("behind send")
        return sent

    def counted_receive(sock: Any, most: int) -> bytes:
        data = receive(sock, most)
        if not getattr(_here, "asking", False):
            boundaries.cross("behind receive")
        return data

    transport._sigint_safe_send = staticmethod(counted_send)
    transport._sigint_safe_recv = staticmethod(counted_receive)


class Members(Around):
    """Remembers its subscriptions, to ask them."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self._all: list[_Member] = []

    def subscribe(self, *arguments: Any) -> Any:
        """A subscription, remembered."""
        self._all.append(_Member(self.inner.subscribe(*arguments)))
        return self._all[-1]

    def are_idle(self) -> bool:
        """Whether they have nothing in hand, nothing to run later, and no ack without an answer."""
        return not any(one.open or one.acked or +one.nacked for one in self._all)


class _Member(Around):
    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.open: set[Any] = set()
        self.acked: set[Any] = set()
        self.nacked: Counter[str] = Counter()

    def poll(self, limit: int, timeout: float) -> Any:
        polled = self.inner.poll(limit, timeout)
        for delivery in polled.deliveries:
            self.open.add(delivery.lease)
            self.nacked[delivery.message.id] -= self.nacked[delivery.message.id] > 0
        self.acked.difference_update(polled.settled, polled.lost)
        self.open.difference_update(polled.settled, polled.lost)
        return polled

    def ack(self, deliveries: Any) -> None:
        leases = {one.lease for one in deliveries} & self.open
        self.open -= leases
        self.acked |= leases
        self.inner.ack(deliveries)

    def nack(self, delivery: Any, delay: float) -> None:
        if delivery.lease in self.open:
            self.open.discard(delivery.lease)
            self.nacked[delivery.message.id] += 1
        self.inner.nack(delivery, delay)


class Unfenced(Around):
    """Lets the late ack of an ended channel settle what has the same tag on the next one."""

    def subscribe(self, *arguments: Any) -> Any:
        """A subscription that acks by number alone."""
        return _UnfencedSubscription(self.inner.subscribe(*arguments))


class _UnfencedSubscription(Around):
    def ack(self, deliveries: Any) -> None:
        late = [one.lease.tag for one in deliveries if one.lease not in self.inner._in_hand]
        self.inner.ack(deliveries)
        if late:
            self.inner._io.ack(self.inner._known, late)


class Patient(Around):
    """Publishes without a deadline."""

    def publisher(self) -> Any:
        """A publisher that waits for ever."""
        return _PatientPublisher(self.inner.publisher())


class _PatientPublisher(Around):
    def submit(self, message: Any, to: Any, *, deadline: Any = None, **options: Any) -> Any:
        return self.inner.submit(message, to, **options)


class Trusting(Around):
    """Takes for stored what was on its way when the connection ended."""

    def publisher(self) -> Any:
        """A publisher that publishes nothing again."""
        publisher = self.inner.publisher()
        window, closed = publisher._window, publisher.closed

        def trusting(error: BaseException) -> None:
            publisher.acked([(window._tag + len(window._flight) - 1, True)])
            closed(error)

        publisher.closed = trusting
        return publisher


class Forgetful(Around):
    """Has nothing left of a connection that has ended."""

    def subscribe(self, subscribe: Any, on_revoke: Callable[..., Any]) -> Any:
        """A subscription that does not know what still runs."""

        def forget(*arguments: Any) -> None:
            on_revoke(*arguments)

        return self.inner.subscribe(subscribe, forget)


class CancelsFirst(Around):
    """Leaves as pika does by itself: the consumer first, then the channel."""

    def subscribe(self, *arguments: Any) -> Any:
        """As ever; it is the end that differs."""
        from reliable_mq.adapters.rabbitmq import consuming

        consuming._keep_consumers = lambda _channel: None
        return self.inner.subscribe(*arguments)
