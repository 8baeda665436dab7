"""Publishing: any thread hands in, librdkafka sends in batches, one thread hears the reports.

    submit ──> produce ──> librdkafka ──> broker ──> report ──> Confirmation
       └─> waiting: its topic is not known yet

librdkafka never gives a message up by itself (`message.timeout.ms=0`), so it leaves no gap that
later ones of a key would pass; when the deadline of a message is over, it ends as unknown here, and
may still be stored. What a fatal error of librdkafka has to do to the producer is not built yet.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException

from reliable_mq.adapters.endings import OPEN, OPEN_BYTES, no_answer, size_of
from reliable_mq.adapters.kafka.names import LONGEST_NAME, is_legal, where
from reliable_mq.adapters.kafka.wire import headers_of
from reliable_mq.confirmation import Confirmation
from reliable_mq.errors import (
    PublishError,
    PublishRejected,
    TooLarge,
    TransportError,
    Unroutable,
)
from reliable_mq.message import Receipt, RetryCopy

if TYPE_CHECKING:
    from collections.abc import Callable

    from reliable_mq.adapters.kafka.config import Config
    from reliable_mq.clock import Clock
    from reliable_mq.message import Destination, Message

__all__ = ["KafkaPublisher"]

log = logging.getLogger("reliable_mq.kafka")

#: Seconds of one wait for reports, and between two looks for what is over its deadline.
LOOK: Final = 0.05
#: Seconds that asking for a topic takes at most.
ASKING: Final = 5.0

DEFINITE: Final = frozenset(
    {
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.INVALID_MSG_SIZE,
        KafkaError.RECORD_LIST_TOO_LARGE,
        KafkaError.INVALID_RECORD,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.TOPIC_EXCEPTION,
        KafkaError.POLICY_VIOLATION,
    }
)
MISSING: Final = frozenset(
    {KafkaError._UNKNOWN_TOPIC, KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_PARTITION}
)


class Token:
    """One publish on its way; librdkafka calls it with the report."""

    __slots__ = (
        "confirmation",
        "deadline",
        "ended",
        "headers",
        "number",
        "publisher",
        "size",
        "to",
    )

    def __init__(
        self,
        publisher: KafkaPublisher,
        confirmation: Confirmation,
        to: str,
        headers: list[tuple[str, bytes | str]],
        *,
        deadline: float | None,
        size: int,
    ) -> None:
        self.publisher = publisher
        self.confirmation = confirmation
        self.to = to
        self.headers = headers
        self.deadline = deadline
        self.size = size
        self.number = 0
        self.ended = False

    def __call__(self, error: Any, record: Any) -> None:
        """The report. Never raises: it would come out of somebody's poll."""
        self.publisher.reported(self, error, record)


class KafkaPublisher:
    """Any thread may submit and close; the thread and the client start with the first message.

    Args:
        make_topic: Makes a retry topic that is missing; whether it is there afterwards.
    """

    def __init__(self, config: Config, clock: Clock, make_topic: Callable[[str], bool]) -> None:
        self._config = config
        self._clock = clock
        self._make_topic = make_topic
        self._pid = os.getpid()
        #: Guards all below.
        self._changed = threading.Condition()
        self._producer: Any = None
        self._thread: threading.Thread | None = None
        self._known: set[str] = set()
        self._waiting: deque[Token] = deque()
        self._open: dict[int, Token] = {}
        self._numbers = 0
        self._bytes = 0
        self._next_deadline = float("inf")
        self._closed = False
        self._stopped = False
        self._reason = ""

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
            token = self._token(confirmation, to, not_before, deadline)
        except PublishError as error:
            confirmation.settle(error)
            return confirmation
        with self._changed:
            refused = self._take_in(token)
        if refused is not None:
            confirmation.settle(refused)
        return confirmation

    def close(self, timeout: float) -> list[Message]:
        """See Publisher.close."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            thread = self._thread
            if thread is not None and thread is not threading.current_thread():
                self._changed.wait_for(lambda: not self._open, max(0.0, timeout))
            rest = list(self._open.values())
            self._open.clear()
            waiting = {id(one) for one in self._waiting}
            self._waiting.clear()
            self._stopped = True
            self._changed.notify_all()
        for token in rest:
            self._end(token, self._no_answer(token, "the publisher was closed", waiting))
        if thread is not None and thread is not threading.current_thread():
            thread.join(1.0)
        return [token.confirmation.message for token in rest]

    # -- handing in ----------------------------------------------------------------------------

    def _token(
        self,
        confirmation: Confirmation,
        to: Destination,
        not_before: float | None,
        deadline: float | None,
    ) -> Token:
        message = confirmation.message
        size = size_of(message, to, self._config.options.max_body)
        name = where(message, to)
        if len(name) > LONGEST_NAME or not is_legal(name):
            text = f"message {message.id!r}: {name!r} cannot be the name of a topic of Kafka"
            raise Unroutable(text, message)
        due = not_before
        if isinstance(to, RetryCopy) and to.delay > 0:
            due = max(due or 0.0, self._clock.now() + to.delay)
        headers = headers_of(message, None if due is None else repr(due))
        return Token(self, confirmation, name, headers, deadline=deadline, size=size)

    def _take_in(self, token: Token) -> PublishError | None:
        if self._closed or len(self._open) >= OPEN or self._bytes >= OPEN_BYTES:
            return self._no_answer(token, "there is no room", in_doubt=False)
        if self._thread is None and not self._start():
            return self._no_answer(token, "there is no thread", in_doubt=False)
        self._numbers += 1
        token.number = self._numbers
        if self._waiting or token.to not in self._known:
            self._waiting.append(token)
            self._changed.notify_all()
        else:
            error = self._produce(token)
            if error is not None:
                return error
        self._open[token.number] = token
        self._bytes += token.size
        if token.deadline is not None and token.deadline < self._next_deadline:
            self._next_deadline = token.deadline
        return None

    def _produce(self, token: Token) -> PublishError | None:
        """Hand it to librdkafka; what it refuses at once was certainly not sent."""
        message = token.confirmation.message
        try:
            self._producer.produce(
                token.to,
                message.body,
                message.key,
                on_delivery=token,
                headers=token.headers,
                timestamp=int(message.created_at * 1000),
            )
        except BufferError:
            return self._no_answer(token, "librdkafka's queue is full", in_doubt=False)
        except KafkaException as error:
            return self._refused(message, error.args[0])
        except (TypeError, ValueError) as error:
            text = f"message {message.id!r} cannot be sent: {type(error).__name__} in its envelope"
            return PublishRejected(text, message)
        return None

    def _start(self) -> bool:
        thread = threading.Thread(target=self._run, name="reliable-mq-kafka", daemon=True)
        self._producer = confluent_kafka.Producer(self._config.producer() | {"logger": log})
        try:
            thread.start()
        except RuntimeError as error:  # no more threads in this process
            self._reason = str(error)
            return False
        self._thread = thread
        return True

    # -- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopped:
            try:
                self._producer.poll(LOOK)
            except KafkaException as error:  # a fatal one comes out here
                self._reason = str(error)
            if self._waiting:
                self._send_waiting()
            if self._clock.monotonic() >= self._next_deadline:
                self._expire()
        self._producer.purge()
        self._producer.poll(0)

    def _send_waiting(self) -> None:
        """Find out about topics, and send what waited for them, in its order."""
        for name in dict.fromkeys([token.to for token in tuple(self._waiting)]):
            if name not in self._known:
                there = self._ask(name)
                if there is None:
                    continue  # nobody answers: the next round asks again
                if not there:
                    self._refuse_all(name)
                else:
                    self._known.add(name)
        ended = []
        with self._changed:
            rest: deque[Token] = deque()
            for token in self._waiting:
                if token.ended:
                    continue
                if token.to not in self._known:
                    rest.append(token)
                elif (error := self._produce(token)) is not None:
                    ended.append((token, error))
            self._waiting = rest
        for token, error in ended:
            self._end(token, error)

    def _ask(self, name: str) -> bool | None:
        """Whether a topic is there; None: nobody answers."""
        try:
            found = self._producer.list_topics(name, timeout=ASKING).topics.get(name)
        except KafkaException as error:
            self._reason = str(error)
            return None
        if found is not None and found.error is None:
            return True
        if found is not None and found.error.code() not in MISSING:
            self._reason = str(found.error)
            return None if found.error.retriable() else False
        return self._make_topic(name)

    def _refuse_all(self, name: str) -> None:
        with self._changed:
            tokens = [token for token in self._waiting if token.to == name]
            self._waiting = deque(token for token in self._waiting if token.to != name)
        for token in tokens:
            message = token.confirmation.message
            text = (
                f"message {message.id} cannot be routed: there is no topic {name!r}: declare it, "
                f"mq.topic({message.topic!r}, groups=(…,))"
            )
            self._end(token, Unroutable(text, message))

    def _expire(self) -> None:
        now = self._clock.monotonic()
        with self._changed:
            late, soonest = [], float("inf")
            for token in self._open.values():
                if token.deadline is None:
                    continue
                if token.deadline <= now:
                    late.append(token)
                else:
                    soonest = min(soonest, token.deadline)
            self._next_deadline = soonest
            waiting = {id(one) for one in self._waiting}
        for token in late:
            self._end(token, self._no_answer(token, "its deadline is over", waiting))

    def reported(self, token: Token, error: Any, record: Any) -> None:
        """What became of a message, on the thread that polls."""
        message = token.confirmation.message
        if error is None:
            position = record.offset()
            self._end(token, Receipt(message.id, message.topic, record.partition(), position))
        elif error.code() in MISSING:
            self._known.discard(token.to)
            text = f"message {message.id} cannot be routed: topic {token.to!r} is gone: {error}"
            self._end(token, Unroutable(text, message))
        else:
            self._end(token, self._refused(message, error))

    def _refused(self, message: Message, error: Any) -> PublishError:
        code = error.code()
        if code in (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_MSG_SIZE):
            return TooLarge(f"message {message.id} is too large for the broker: {error}", message)
        if code in DEFINITE:
            return PublishRejected(f"message {message.id} was refused: {error}", message)
        in_doubt = code not in (KafkaError._PURGE_QUEUE, KafkaError._QUEUE_FULL)
        return no_answer(message, "the broker gave it up", str(error), in_doubt=in_doubt)

    # -- endings -------------------------------------------------------------------------------

    def _end(self, token: Token, outcome: Receipt | PublishError) -> None:
        with self._changed:
            if token.ended:
                return
            token.ended = True
            self._bytes -= token.size
            self._open.pop(token.number, None)
            if not self._open:
                self._changed.notify_all()
        token.confirmation.settle(outcome)

    def _no_answer(
        self,
        token: Token,
        why: str,
        waiting: set[int] | None = None,
        *,
        in_doubt: bool = True,
    ) -> PublishError:
        doubt = in_doubt and not (waiting and id(token) in waiting)
        return no_answer(token.confirmation.message, why, self._reason, in_doubt=doubt)
