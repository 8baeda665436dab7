"""The broker's side of one subscription: receives under the credit, acks, renewals, giving back.

Everything runs on RocketMQ's thread; what it finds goes into the hand, under the gate that the
owner thread shares. A receive that is under way is never cancelled: the broker would give messages
to nobody, and keep them from all others until their time is over. Whatever one brings that nobody
wants any more goes back at once.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from reliable_mq.adapters.rocketmq.answers import NOT_FOUND, text_of
from reliable_mq.adapters.rocketmq.asking import Asking
from reliable_mq.adapters.rocketmq.connection import CallFailed
from reliable_mq.adapters.rocketmq.hand import Held
from reliable_mq.adapters.rocketmq.routes import Missing
from reliable_mq.adapters.rocketmq.wire import Code, span, types
from reliable_mq.errors import ReliableMQError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from reliable_mq.adapters.rocketmq.client import Client
    from reliable_mq.adapters.rocketmq.connection import Connection
    from reliable_mq.adapters.rocketmq.io import Io
    from reliable_mq.adapters.rocketmq.mailbox import Mailbox
    from reliable_mq.adapters.rocketmq.routes import Place
    from reliable_mq.adapters.rocketmq.sources import Source

__all__ = ["Receiving"]

#: Messages of one receive: the proxy gives no more.
BATCH: Final = 32
#: Receives of one source under way.
RECEIVES: Final = 16
#: Messages of one receive of a FIFO source, at least. It may bring some of several queues, all of
#: which others do not get until these are settled: who takes little leaves them a share.
FIFO_BATCH: Final = 8
#: Seconds that a receive may take beyond its long poll.
BEYOND: Final = 3.0
#: Seconds after a failure: at first, and at most; and until a source that may not exist is looked
#: for again.
PAUSE, LONGEST_PAUSE, MISSING_PAUSE = 0.1, 1.0, 5.0
#: Seconds for which a topic may be missing before the owner is told.
MISSING_FOR: Final = 20.0
#: Share of its time for which a message is ours: the answer took some of it.
MARGIN: Final = 0.95
#: Seconds for which the end of the last receives is waited for, beyond their long poll.
LAST_ONES: Final = 5.0
LOOK: Final = 0.05


class Feed:
    """One source, and what is under way for it: `most` receives, fewer while it is empty."""

    __slots__ = (
        "asked",
        "missing_since",
        "most",
        "pause",
        "ready_at",
        "source",
        "turn",
        "under_way",
    )

    def __init__(self, source: Source) -> None:
        self.source = source
        self.under_way = 0
        self.asked = 0
        self.most = 1
        self.turn = 0
        self.pause = 0.0
        self.ready_at = 0.0
        self.missing_since: float | None = None


class Receiving:
    """Of one subscription. RocketMQ's thread only, but for `kick`, `start` and `stop`."""

    def __init__(
        self,
        io: Io,
        clients: Mapping[str, Client],
        sources: Sequence[Source],
        mailbox: Mailbox,
        *,
        time: float,
        long_poll: float,
    ) -> None:
        self._io = io
        self._clients = clients
        self._feeds = [Feed(source) for source in sources]
        self._mailbox = mailbox
        self._now = mailbox.monotonic
        self._time = time
        self._long_poll = long_poll
        self._asking = Asking(io, clients, mailbox, time, self._tick)
        self._kicked = False
        self._timer: Any = None
        self._waiting: set[Connection] = set()
        self._stopping = False
        self._in_trouble = False

    def kick(self) -> None:
        """Something has changed. Any thread."""
        if not self._kicked:
            self._kicked = True
            self._io.call(self._tick)

    def stop(self) -> None:
        """Take no more; connections are closed when the last receive has ended. Any thread."""
        self._io.call(self._begin_to_stop)

    # -- what is to do -------------------------------------------------------------------------

    def _tick(self) -> None:
        self._kicked = False
        now = self._now()
        self._look_at_connections()
        with self._mailbox.gate:
            self._mailbox.look_for_silence(now)
            wanted = 0 if self._stopping else self._mailbox.wanted()
            fetched = self._mailbox.hand.fetched
        self._asking.work(now)
        if wanted > fetched:
            for feed in self._feeds:
                if feed.ready_at <= now:
                    self._feed(feed, wanted, fetched)
        self._set_timer(now)

    def _look_at_connections(self) -> None:
        """Who takes nothing for now learns of a broker that is gone, too."""
        trouble = next(filter(None, (one.trouble for one in self._clients.values())), "")
        if trouble:
            self._mailbox.cut_off(trouble)
        elif self._in_trouble:
            self._mailbox.reached()
        self._in_trouble = bool(trouble)

    def _set_timer(self, now: float) -> None:
        with self._mailbox.gate:
            at = min(self._mailbox.hand.next_at(), self._mailbox.silent_at())
        resting = [feed.ready_at for feed in self._feeds if feed.ready_at > now]
        at = min(at, *resting, now + LONGEST_PAUSE)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._io.later(max(0.01, at - now), self._tick)

    # -- receiving -----------------------------------------------------------------------------

    def _feed(self, feed: Feed, wanted: int, fetched: int) -> None:
        if feed.source.fifo:
            # More than is asked for: while one of a queue is in hand, no more of that queue comes.
            batch = min(BATCH, max(FIFO_BATCH, wanted // FIFO_BATCH))
            most = min(feed.most, 1 + (wanted - fetched - 1) // batch)
            while feed.under_way < most:
                self._start(feed, self._mailbox.within_credit(batch))
            return
        while feed.under_way < feed.most:
            batch = min(BATCH, wanted - fetched - feed.asked)
            if feed.under_way:
                batch = self._mailbox.within_credit(batch, least=0)
            if batch <= 0:
                return
            self._start(feed, batch)

    def _start(self, feed: Feed, batch: int) -> None:
        feed.under_way += 1
        feed.asked += batch
        self._io.start(self._receive(feed, batch), f"receiving from {feed.source.topic}")

    async def _receive(self, feed: Feed, batch: int) -> None:
        try:
            await self._receive_once(feed, batch)
        except Missing as missing:
            self._is_missing(feed, str(missing))
        except ReliableMQError as error:
            self._rest(feed)
            self._mailbox.cut_off(str(error))
        finally:
            feed.under_way -= 1
            feed.asked -= batch
        self._tick()

    async def _receive_once(self, feed: Feed, batch: int) -> None:
        source = feed.source
        client = self._clients[source.group]
        route = await client.routes.find(source.topic)
        feed.turn += 1
        place = route.places[feed.turn % len(route.places)]
        connection = client.connection(place.addresses)
        if not connection.answered.is_set():
            await self._wait_answered(connection)
        status, messages = await connection.receive(
            self._request(source, place, batch), self._long_poll + BEYOND
        )
        now = self._now()
        feed.most = min(2 * feed.most, RECEIVES) if messages else max(feed.most // 2, 1)
        if messages:
            time = self._time * MARGIN
            held = [Held(source, one, now, time, place.addresses) for one in messages]
            self._mailbox.arrived(held, wanted=not self._stopping)
        code = Code.OK if status is None else status.code
        if code in (Code.OK, Code.NO_MESSAGE):
            feed.pause, feed.missing_since = 0.0, None
            self._mailbox.reached()
        elif code in NOT_FOUND or code == Code.GROUP_NOT_FOUND:
            client.routes.forget(source.topic)
            self._is_missing(feed, text_of(status))
        else:
            client.routes.forget(source.topic)
            self._rest(feed)
            self._mailbox.cut_off(f"{connection.place}: {text_of(status)}")

    async def _wait_answered(self, connection: Connection) -> None:
        """Whoever receives before its settings are answered is refused."""
        try:
            await asyncio.wait_for(connection.answered.wait(), LONGEST_PAUSE)
        except (asyncio.TimeoutError, TimeoutError):
            text = connection.reason or f"{connection.place}: our settings have no answer"
            raise CallFailed(text, sent=False) from None

    def _request(self, source: Source, place: Place, batch: int) -> Any:
        config = self._clients[source.group].config
        request = types().ReceiveMessageRequest(batch_size=batch)
        request.group.CopyFrom(config.resource(source.group))
        queue = request.message_queue
        queue.topic.CopyFrom(config.resource(source.topic))
        queue.broker.name = place.broker
        request.filter_expression.type, request.filter_expression.expression = 1, "*"
        span(self._time, request.invisible_duration)
        span(self._long_poll, request.long_polling_timeout)
        return request

    def _rest(self, feed: Feed) -> None:
        feed.pause = min(max(PAUSE, 2 * feed.pause), LONGEST_PAUSE)
        feed.ready_at = self._now() + feed.pause

    def _is_missing(self, feed: Feed, why: str) -> None:
        now = self._now()
        if feed.source.optional:
            feed.ready_at = now + MISSING_PAUSE
            return
        self._rest(feed)
        if feed.missing_since is None:
            feed.missing_since = now
        elif now - feed.missing_since > MISSING_FOR:
            self._mailbox.missing(f"topic {feed.source.topic!r}: {why}; declare it again")

    # -- the end -------------------------------------------------------------------------------

    def _begin_to_stop(self) -> None:
        self._stopping = True
        self._io.start(self._stop(), "leaving a group")

    async def _stop(self) -> None:
        """Wait for the last receives, which may bring something: it goes back."""
        end = self._now() + self._long_poll + BEYOND + LAST_ONES
        while self._now() < end and (  # noqa: ASYNC110 - once, at the end; it is many events
            any(feed.under_way for feed in self._feeds) or self._mailbox.has_unsettled()
        ):
            await asyncio.sleep(LOOK)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._asking.stop()
        for client in self._clients.values():
            await client.close()
