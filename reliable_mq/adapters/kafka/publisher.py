"""Publishing: any thread hands in, librdkafka sends in batches, one thread hears the reports.

    submit ──> produce ──> librdkafka ──> broker ──> report ──> Confirmation
       └─> waiting: its topic is not known yet, or librdkafka takes no more

librdkafka never gives a message up by itself (`message.timeout.ms=0`), so it leaves no gap that
later ones of a key would pass; when the deadline of a message is over, it ends as unknown here, and
may still be stored. After an error that is fatal for librdkafka (a sequence that the broker does
not know, a producer that is fenced), and when it has given up all brokers, all that is open goes to
a new one, in its order, with its ids: what had been stored is stored twice.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import confluent_kafka
from confluent_kafka import KafkaException

from reliable_mq.adapters.endings import OPEN, OPEN_BYTES
from reliable_mq.adapters.kafka.finding import Finding
from reliable_mq.adapters.kafka.reach import Reach
from reliable_mq.adapters.kafka.reports import Said, what_is_said
from reliable_mq.adapters.kafka.token import Token, not_behind_a_failed_one, token_of
from reliable_mq.adapters.kafka.wire import headers_of
from reliable_mq.adapters.process import HERE
from reliable_mq.confirmation import Confirmation
from reliable_mq.errors import (
    ConfigurationError,
    PublishError,
    PublishRejected,
    TransportError,
)
from reliable_mq.message import Receipt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from reliable_mq.adapters.kafka.config import Config
    from reliable_mq.clock import Clock
    from reliable_mq.message import Destination, Message

__all__ = ["KafkaPublisher"]

log = logging.getLogger("reliable_mq.kafka")

#: Seconds of one wait for reports, and between two looks for what is over its deadline.
LOOK: Final = 0.05
#: Seconds for the last words of a producer that is given up; between two: at first, and at most.
LAST_WORDS, PAUSE, LONGEST_PAUSE = 1.0, 0.1, 5.0


class KafkaPublisher:
    """Any thread may submit and close; the thread and the client start with the first message.

    Args:
        make_topic: Makes a retry topic that is missing; whether it is there afterwards.
    """

    def __init__(self, config: Config, clock: Clock, make_topic: Callable[[str], bool]) -> None:
        self._config = config
        self._clock = clock
        self._finding = Finding(make_topic)
        self._max_body = config.options.max_body
        self._now = clock.now
        self._forks = HERE.forks
        #: Guards all below.
        self._gate = threading.Lock()
        self._changed = threading.Condition(self._gate)
        self._producer: Any = None
        self._reach: Any = None
        self._thread: threading.Thread | None = None
        self._known: set[str] = set()
        self._waiting: deque[Token] = deque()
        #: All that has no ending, in the order it came.
        self._open: dict[Token, None] = {}
        self._bytes = 0
        self._next_deadline = float("inf")
        self._closed = False
        self._stopped = False
        self._reason = ""
        #: Why librdkafka takes no more; "" while it does.
        self._broken = ""
        # The thread's own from here on.
        self._stored: list[tuple[Token, int, int]] = []
        #: Stored, though something may have failed before it: they wait for the next producer.
        self._held: dict[Token, tuple[int, int]] = {}
        self._rebuild_at = 0.0
        self._pause = PAUSE

    def submit(
        self,
        message: Message,
        to: Destination,
        *,
        not_before: float | None = None,
        deadline: float | None = None,
    ) -> Confirmation:
        """See Publisher.submit."""
        if self._forks != HERE.forks:
            text = f"this publisher to {self._config} was made before a fork: make a new one"
            raise TransportError(text)
        try:
            token = token_of(self, message, to, not_before, deadline, self._now, self._max_body)
        except PublishError as error:
            ended = Confirmation(message)
            ended.settle(error)
            return ended
        with self._gate:
            refused = self._take_in(token)
        if refused is not None:
            token.settle(refused)
        return token

    def close(self, timeout: float) -> list[Message]:
        """See Publisher.close."""
        if self._forks != HERE.forks:
            return []  # all that is open is the parent's, and so is the thread
        with self._gate:
            self._closed = True
            self._changed.notify_all()
            thread = self._thread
            waits = thread is not threading.current_thread()  # from a callback it cannot
            if thread is not None and waits:
                self._changed.wait_for(lambda: not self._open, max(0.0, timeout))
            rest = list(self._open)
            self._waiting.clear()
            self._stopped = True
            self._changed.notify_all()
        rest = self._end_all(rest, "the publisher was closed")
        if waits and thread is not None:
            thread.join(LAST_WORDS)
        return [token.message for token in rest]

    # -- handing in ----------------------------------------------------------------------------

    def _take_in(self, token: Token) -> PublishError | None:
        if self._closed or len(self._open) >= OPEN or self._bytes >= OPEN_BYTES:
            return token.no_answer(self._reason, "there is no room")
        if self._thread is None and not self._start():
            return token.no_answer(self._reason, "there is no thread")
        if self._waiting or self._broken or token.to not in self._known:
            self._waiting.append(token)
            self._changed.notify_all()
        else:
            try:
                error = self._produce(token)
            except BufferError:
                return token.no_answer(self._reason, "librdkafka's queue is full")
            if error is not None:
                return error
        self._open[token] = None
        self._bytes += token.size
        if token.deadline is not None and token.deadline < self._next_deadline:
            self._next_deadline = token.deadline
        return None

    def _produce(self, token: Token) -> PublishError | None:
        """Hand it to librdkafka: what that refuses was not sent. BufferError: its queue is full."""
        message = token.message
        try:
            # Made here and not kept: librdkafka has a copy, and what is on its way is to be small.
            headers = headers_of(message, token.due)
            self._producer.produce(
                token.to, message.body, message.key, on_delivery=token, headers=headers
            )
        except KafkaException as error:
            return self._refused_at_once(token, error.args[0])
        except (TypeError, ValueError, OverflowError) as error:
            text = f"message {message.id!r} cannot be sent: {error}"
            return PublishRejected(text, message)
        token.sent = True
        return None

    def _refused_at_once(self, token: Token, error: Any) -> PublishError | None:
        if what_is_said(error) in (Said.UNSENT, Said.NOTHING):
            self._broken = str(error)
            self._waiting.append(token)
            return None
        return token.refused(self._reason, error)

    def _start(self) -> bool:
        try:
            self._producer = self._new_producer()
        except KafkaException as error:  # an option that librdkafka does not know
            text = f"{self._config}: {error.args[0].str()}"
            raise ConfigurationError(text) from error
        thread = threading.Thread(target=self._run, name="reliable-mq-kafka", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # no more threads in this process
            self._reason = str(error)
            return False
        self._thread = thread
        return True

    def _new_producer(self) -> Any:
        reach = Reach(str(self._config), self._config.patience, lambda: bool(self._open))
        told = {"logger": log, "error_cb": self._heard, "stats_cb": reach.said}
        producer = confluent_kafka.Producer(self._config.producer() | told)
        self._reach = reach
        return producer

    # -- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopped:
            try:
                self._round()
            except Exception as error:  # a bug must not end the thread: all would hang
                log.exception("%s: publishing failed", self._config)
                self._break(repr(error))
        self._give_up_producer()
        self._producer = None  # it knows us: the two would wait for the garbage collector

    def _round(self) -> None:
        self._poll(LOOK)
        if self._reach.given_up:
            self._break("librdkafka tries no broker any more")
        if self._broken and self._clock.monotonic() >= self._rebuild_at:
            self._rebuild()
        if self._waiting and not self._broken:
            self._send_waiting()
            self._poll(0.0)  # what was stored meanwhile is not over its deadline
        if self._clock.monotonic() >= self._next_deadline:
            self._expire()

    def _poll(self, seconds: float) -> None:
        """Hear the reports."""
        try:
            self._producer.poll(seconds)
        except KafkaException as error:  # a fatal one comes out here
            self._break(str(error))
        if self._stored:
            stored, self._stored = self._stored, []
            self._pause = PAUSE
            self._end_stored(stored)

    def _heard(self, error: Any) -> None:
        """Called from poll: what is wrong with the way to the brokers."""
        self._reason = str(error)

    def reported(self, token: Token, error: Any, record: Any) -> None:
        """What became of a message; called from poll."""
        if error is None:
            offset = record.offset()
            if offset is None or offset < 0:
                # It infers that from a later one that was stored; a broker that does not know the
                # producer stores the later one all the same, and this one nowhere.
                token.in_doubt = True
                self._break("librdkafka only infers that a message is stored")
            elif self._broken:
                self._held[token] = (record.partition(), offset)
            else:
                self._stored.append((token, record.partition(), offset))
            return
        said = what_is_said(error)
        if said in (Said.UNSENT, Said.NOTHING):
            # Also what is given back unsent: it may have been sent before, and wait to be again.
            token.in_doubt = token.in_doubt or token.sent
            self._break(str(error))
            return  # it is open; the next producer sends it
        if said is Said.MISSING:
            self._known.discard(token.to)
        self._end(token, token.refused(self._reason, error))

    def _break(self, why: str) -> None:
        """From here on librdkafka is given nothing: it would pass what is open."""
        with self._gate:
            self._broken = self._broken or why

    def _rebuild(self) -> None:
        """Give all that is open to a new producer, in its order."""
        log.warning("%s: %s; another producer goes on", self._config, self._broken)
        self._rebuild_at = self._clock.monotonic() + self._pause
        self._pause = min(LONGEST_PAUSE, 2 * self._pause)
        try:
            producer = self._new_producer()
        except KafkaException as error:  # no thread or file left; or a certificate is exchanged
            self._reason = str(error)
            return
        self._give_up_producer()
        with self._gate:
            stored = not_behind_a_failed_one(self._open, self._held)
        self._held = {}
        self._end_stored(stored)
        with self._gate:
            for token in self._open:
                token.in_doubt = token.in_doubt or token.sent
                token.sent = False
            self._waiting = deque(self._open)
            old, self._producer = self._producer, producer
            self._reason, self._broken = self._broken, ""
        del old  # not before: its end waits for its threads, and the gate would with it

    def _give_up_producer(self) -> None:
        """Hear its last words. What it has stored without a word may be sent again."""
        end = self._clock.monotonic() + LAST_WORDS
        self._producer.purge()
        while len(self._producer) and self._clock.monotonic() < end:
            self._poll(LOOK)
        self._poll(0.0)

    def _send_waiting(self) -> None:
        """Send what waited for its topic or for room, in its order."""
        self._find_topics()
        ended: list[tuple[Token, PublishError]] = []
        with self._gate:
            waiting, self._waiting = self._waiting, deque()
            while waiting and not self._broken:
                token = waiting.popleft()
                if token not in self._open:
                    continue
                if token.to not in self._known:
                    self._waiting.append(token)
                    continue
                try:
                    error = self._produce(token)
                except BufferError:  # it was taken in: it waits for room
                    waiting.appendleft(token)
                    break
                if error is not None:
                    ended.append((token, error))
            self._waiting += waiting
        for token, error in ended:
            self._end(token, error)

    def _find_topics(self) -> None:
        unknown = {token.to for token in tuple(self._waiting)} - self._known
        there, missing = self._finding.find(self._producer, unknown)
        self._reason = self._finding.reason or self._reason
        self._known.update(there)
        for name in missing:
            self._refuse_all(name)

    def _refuse_all(self, name: str) -> None:
        for token in [token for token in tuple(self._waiting) if token.to == name]:
            self._end(token, token.unroutable(self._reason))

    def _expire(self) -> None:
        now = self._clock.monotonic()
        with self._gate:
            deadlines = [(one.deadline, one) for one in self._open if one.deadline is not None]
            late = [one for deadline, one in deadlines if deadline <= now]
            self._next_deadline = min([one for one, _ in deadlines if one > now], default=1e300)
        self._end_all(late, "its deadline is over")

    # -- endings -------------------------------------------------------------------------------

    def _end_stored(self, stored: list[tuple[Token, int, int]]) -> None:
        with self._gate:
            ended = [one for one in stored if self._leave(one[0])]
        for token, partition, offset in ended:
            message = token.message
            token.settle(Receipt(message.id, message.topic, partition, offset))

    def _end_all(self, tokens: Iterable[Token], why: str) -> list[Token]:
        """Those that were still open."""
        return [token for token in tokens if self._end(token, token.no_answer(self._reason, why))]

    def _end(self, token: Token, outcome: PublishError) -> bool:
        with self._gate:
            ended = self._leave(token)
        if ended:
            token.settle(outcome)
        return ended

    def _leave(self, token: Token) -> bool:
        if token not in self._open:
            return False
        del self._open[token]
        self._bytes -= token.size
        if not self._open:
            self._changed.notify_all()
        return True
