"""Numbered messages through RabbitMQ: published and handled here, while the way there is hurt.

What publishes and what consumes have a proxy of their own, so that each can be hurt alone. Nobody
is killed, so the history is kept in memory; `finish` heals, lets everything end, and judges.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from integration.faults import until
from reliable_mq import Confirmation, Context, Limits, ReliableMQ
from reliable_mq.adapters.base import GroupSpec, TopicSpec, Topology
from reliable_mq.adapters.rabbitmq import RabbitTransport
from reliable_mq.adapters.rabbitmq.names import queue_of
from reliable_mq.adapters.rabbitmq.publisher import RabbitPublisher
from reliable_mq.errors import PublishUnknown
from reliable_mq.message import Receipt
from reliable_mq.testing.brokers import Proxy
from reliable_mq.testing.brokers.rabbitmq import connect
from reliable_mq.testing.history import Entry, Kind, Numbered, Verdict, check, ending

#: Short, so that a dead connection is noticed soon.
OPTIONS = "heartbeat=1&connect_timeout=2"
GROUP = "billing"
KEYS = ("a", "b", None)
#: Deliveries in hand at most.
CREDIT = 20
#: A publish may take this much longer than its timeout says, on a machine with much to do.
GRACE = 1.5


class Notes:
    """A history in memory. Any thread."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def note(self, kind: Kind, id: str, one: Numbered | None = None, *, why: str = "") -> None:
        """Write an event down."""
        known = ("", "", None, -1) if one is None else (one.run, one.producer, one.key, one.seq)
        self.entries.append(Entry(kind, id, time.monotonic(), os.getpid(), *known, why))

    def of(self, *kinds: Kind) -> list[Entry]:
        """Those of these kinds."""
        return [one for one in tuple(self.entries) if one.kind in kinds]

    def ids(self, *kinds: Kind) -> set[str]:
        """The messages that have one of these."""
        return {one.id for one in self.of(*kinds)}


class Traffic:
    """One topic with one group: a publisher, a consumer, and what they wrote down.

    Args:
        to_publish, to_consume: Make the transport of each from its URL; a control hands in one
            without a safety.
        user: Name and password of the consumer.
        timeout: Seconds of a publish.
        work: Seconds of a handler.
    """

    def __init__(
        self,
        broker: Any,
        *,
        options: str = OPTIONS,
        to_publish: Callable[[str], Any] = RabbitTransport,
        to_consume: Callable[[str], Any] = RabbitTransport,
        consume_url: str = "",
        user: str = "guest:guest",
        timeout: float = 2.0,
        work: float = 0.0,
    ) -> None:
        self.broker = broker
        self.topic = f"traffic-{secrets.token_hex(4)}"
        self.queue = queue_of(self.topic, GROUP)
        self.timeout = timeout
        self.work = work
        self.notes = Notes()
        self.events: list[Any] = []
        self.publishing, self.consuming = Proxy(broker.url), Proxy(broker.url)
        self.proxies = (self.publishing, self.consuming)
        self._sent: list[tuple[Numbered, Confirmation]] = []
        self._seq = 0
        self.producer = ReliableMQ(
            to_publish(f"{self.publishing.url}?{options}"), publish_timeout=timeout
        )
        self.orders = self.producer.topic(self.topic, groups=(GROUP,))
        url = consume_url or self.consuming.url.replace("guest:guest", user)
        self.worker = ReliableMQ(
            to_consume(f"{url}?{options}"), limits=Limits(credit=CREDIT), publish_timeout=timeout
        )
        self.worker.topic(self.topic, groups=(GROUP,))
        self.worker.observe(self.events.append)

    # -- life ----------------------------------------------------------------------------------

    def __enter__(self):
        self.consume()
        return self

    def __exit__(self, *_):
        for proxy in self.proxies:
            proxy.restore()
        self.worker.stop(5.0)
        self.producer.stop(5.0)
        for proxy in self.proxies:
            proxy.close()
        with plain(self.broker) as channel:
            channel.queue_delete(self.queue)
            channel.queue_delete(f"{self.queue}.dlq")
            channel.exchange_delete(self.topic)

    def consume(self) -> None:
        """Start the consumer; by key, with `CREDIT`."""

        @self.worker.consumer(self.topic, group=GROUP, concurrency=4)
        def handle(one: Numbered, ctx: Context) -> None:
            self.notes.note("deliver", ctx.id, one)
            if not one.whole() or one.id != ctx.id:
                self.notes.note("damaged", ctx.id, one)
            time.sleep(self.work)
            self.handling(one, ctx)
            self.notes.note("effect", ctx.id, one)

        self.worker.start()

    def handling(self, one: Numbered, ctx: Context) -> None:
        """What a handler does beside; for a test to replace."""

    # -- publishing ----------------------------------------------------------------------------

    def burst(self, count: int, keys: Iterable[str | None] = KEYS) -> list[Confirmation]:
        """So many of each key, all on their way at once."""
        first = len(self._sent)
        for _ in range(count):
            for key in keys:
                one = Numbered("run", "p", key, self._seq).sealed()
                self._sent.append((one, self._submit(one)))
            self._seq += 1
        return [confirmation for _, confirmation in self._sent[first:]]

    def publish_for(self, seconds: float, *, pause: float = 0.02) -> None:
        """Publish at a steady rate for so long, whatever becomes of it."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.burst(1)
            threading.Event().wait(pause)

    def endings(self) -> list[Any]:
        """How each publish ended, in order; the first endings, where one was tried again."""
        return [confirmation.outcome for _, confirmation in self._sent]

    def _submit(self, one: Numbered) -> Confirmation:
        self.notes.note("invoke", one.id, one)
        confirmation = self.orders.submit(one, key=one.key, id=one.id)

        def ended(done: Confirmation) -> None:
            why = f"{type(done.outcome).__name__}: {done.outcome}"
            self.notes.note(ending(done.outcome), one.id, one, why=why)

        confirmation.add_done_callback(ended)
        return confirmation

    # -- what became of it ---------------------------------------------------------------------

    def comes_to(self, count: int, *kinds: Kind, seconds: float = 30.0) -> None:
        """Wait until so many messages have an event of these kinds."""
        what = f"{count} of {kinds}"
        until(lambda: len(self.notes.ids(*kinds)) >= count, what, seconds)

    def state(self) -> str:
        """How the consumer says that it is."""
        return self.worker.health().consumers[0].state

    def why(self) -> str:
        """What it says is wrong."""
        return self.worker.health().consumers[0].why

    def declare(self) -> None:
        """Make what is missing, as an operator or the next start of the app does."""
        topology = Topology((TopicSpec(self.topic, groups=(GroupSpec(GROUP),)),))
        RabbitTransport(self.broker.url).ensure(topology)

    def happened(self, kind: type[Any]) -> list[Any]:
        """The events of this kind that the consumer told."""
        return [one for one in tuple(self.events) if isinstance(one, kind)]

    def in_doubt(self) -> int:
        """Messages that somebody may have stored without telling: each may be there twice."""
        return sum(isinstance(outcome, PublishUnknown) for outcome in self.endings())

    def lag(self) -> int:
        """Messages in the queue that nobody has in hand."""
        with plain(self.broker) as channel:
            answer = channel.queue_declare(self.queue, passive=True)
            return int(answer.method.message_count)

    def note_dead_letters(self) -> None:
        """Write down what the broker has among the dead letters."""
        for letter in self.producer.dead_letters(self.topic, GROUP):
            self.notes.note("dead_letter", letter.message.id, why=letter.reason)

    def finish(self, within: float = 30.0, **options: Any) -> Verdict:
        """Heal; publish again what has no Receipt; let all be handled; stop, and judge."""
        for proxy in self.proxies:
            proxy.restore()
        drained = self.settles(within)
        self.worker.stop(10.0)
        if drained:  # what was not acked is in the queue again; and copies may come late
            drained = self.lag() <= self.in_doubt()
        return check([self.notes.entries], drained=drained, **options)

    def settles(self, within: float) -> bool:
        """Whether everything gets a Receipt and an effect in time."""
        end = time.monotonic() + within
        try:
            for _, confirmation in self._sent:
                until(confirmation.done, "an ending", end - time.monotonic())
            while again := self._without_a_receipt():
                for confirmation in [self._submit(one) for one in again]:
                    until(confirmation.done, "an ending", end - time.monotonic())
            until(
                lambda: self.notes.ids("ok") <= self.notes.ids("effect", "dead_letter"),
                "all are handled",
                max(0.0, end - time.monotonic()),
            )
            until(lambda: not self.lag(), "the queue is empty", max(0.0, end - time.monotonic()))
        except AssertionError:
            return False
        return True

    def _without_a_receipt(self) -> list[Numbered]:
        stored = self.notes.ids("ok")
        return [one for one, _ in self._sent if one.id not in stored]


@contextmanager
def pika_is_quiet() -> Iterator[None]:
    """What it logs about connections that are cut is no news."""
    logger = logging.getLogger("pika")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def plain(broker: Any) -> Iterator[Any]:
    """A channel of pika's own that goes past every proxy."""
    connection = connect(broker.url, within=10.0)
    try:
        yield connection.channel()
    finally:
        if connection.is_open:
            connection.close()


class Believes(RabbitPublisher):
    """What was on its way when the connection ended counts as stored, and is not sent again."""

    def closed(self, error):
        """The Receipts of a client that believes the socket."""
        for entry in [one for one in self._window.all() if one.on_its_way]:
            entry.over = True
            self._end(entry, Receipt(entry.confirmation.message.id, "believed", 0, 0))
        super().closed(error)


class BelievesTheSocket(RabbitTransport):
    """A transport whose publishers do."""

    def publisher(self):
        """See Believes."""
        return Believes(self._parameters, self._clock, self._declared)
