"""Ways to consume a topic as a group, and how long they take from the first message to the last.

A topic is full before; each run is a group that nobody has used. Joining it is not measured, what
it has fetched meanwhile neither: everybody has that. Behind each run all has to be committed.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from benchmarks import kafka_raw as raw
from benchmarks.harness import Counts, Meter, Sample
from benchmarks.kafka import left, new_group
from benchmarks.workload import STUCK_SECONDS, count
from reliable_mq import ReliableMQ
from reliable_mq.adapters.kafka import KafkaTransport
from reliable_mq.testing.brokers.base import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from benchmarks import workload
    from benchmarks.kafka import Place
    from reliable_mq.adapters.base import OnRevoke, Subscribe
    from reliable_mq.adapters.kafka.subscription import KafkaSubscription

    #: Consumes as a group with a handler while it is entered; the event says that all was seen.
    Running = Callable[
        [Place, str, Callable[[bytes], Any], threading.Event], AbstractContextManager[object]
    ]


class Seen:
    """What ran, and how long it took: from the first handler to the end of the last.

    Args:
        lead: Seconds that the first had taken when it told that it ran.
    """

    def __init__(self, total: int, lead: float = 0.0) -> None:
        self.bodies: list[bytes] = []
        self.meter = Meter()
        self.over = threading.Event()
        self._total = total
        self._lead = lead

    def append(self, body: bytes) -> None:
        """One more."""
        bodies = self.bodies
        if not bodies:
            self.meter.__enter__()
        bodies.append(body)
        if len(bodies) == self._total:
            self.meter.__exit__(None, None, None)
            self.meter.seconds += self._lead
            self.over.set()

    def wait(self) -> None:
        """Until all of them ran, or nothing moves any more: the counters tell what is missing."""
        before = 0
        while not self.over.wait(STUCK_SECONDS):
            if len(self.bodies) == before:
                self._give_up()
            before = len(self.bodies)

    def _give_up(self) -> None:
        if not self.bodies:
            self.meter.__enter__()
        self.meter.__exit__(None, None, None)
        self.over.set()


def measure(
    place: Place, total: int, work: workload.Work, running: Running, lead: float = 0.0
) -> tuple[Meter, Counts]:
    """Consume so many messages; what is not committed in the end would come once more."""
    seen, group = Seen(total, lead), new_group()
    with running(place, group, work(seen.append), seen.over):
        seen.wait()
    counts = count(total, seen.bodies)
    return seen.meter, counts + Counts(duplicated=left(place, group) if not counts.lost else 0)


def rate(
    place: Place, total: int, work: workload.Work, running: Running, lead: float = 0.0
) -> Callable[[], Sample]:
    """A run whose figure is messages a second."""

    def sample() -> Sample:
        meter, counts = measure(place, total, work, running, lead)
        return meter.rate(total, counts)

    return sample


def duration(
    place: Place, total: int, work: workload.Work, running: Running, lead: float = 0.0
) -> Callable[[], Sample]:
    """A run whose figure is seconds."""

    def sample() -> Sample:
        meter, counts = measure(place, total, work, running, lead)
        return meter.took(total, counts)

    return sample


def ours(concurrency: int) -> Running:
    """The whole SDK: poll, lane, handler, ack, commit, in key order."""

    @contextmanager
    def running(
        place: Place, group: str, handler: Callable[[bytes], Any], over: threading.Event
    ) -> Iterator[object]:
        mq = ReliableMQ(place.url)
        mq.consumer(place.topic, group=group, concurrency=concurrency)(handler)
        with mq:
            yield mq

    return running


@contextmanager
def plain_loop(
    place: Place, group: str, handler: Callable[[bytes], Any], over: threading.Event
) -> Iterator[object]:
    """confluent-kafka alone, the handler called inline."""
    raw.plain_loop(place.hosts, place.topic, group, handler, over.is_set)
    over.set()
    yield


@contextmanager
def plain_loop_at_defaults(
    place: Place, group: str, handler: Callable[[bytes], Any], over: threading.Event
) -> Iterator[object]:
    """The same with librdkafka's defaults, by which it waits for a second now and then."""
    raw.plain_loop(place.hosts, place.topic, group, handler, over.is_set, settings={})
    over.set()
    yield


def on_kafka(running: workload.Running) -> Running:
    """A peer of the memory scenarios on our transport."""

    @contextmanager
    def on_topic(
        place: Place, group: str, handler: Callable[[bytes], Any], over: threading.Event
    ) -> Iterator[object]:
        with running(OneTopic(place, group), handler):  # type: ignore[arg-type]
            yield
            until_committed(place, group)

    return on_topic


class OneTopic:
    """Our transport, where a topic and a group stand for those that peers ask for."""

    def __init__(self, place: Place, group: str) -> None:
        self._transport = KafkaTransport(place.url)
        self._topic, self._group = place.topic, group

    def subscribe(self, asks: Subscribe, on_revoke: OnRevoke) -> KafkaSubscription:
        """A place in the group."""
        asks = replace(asks, topics=(self._topic,), group=self._group)
        return self._transport.subscribe(asks, on_revoke)


def until_committed(place: Place, group: str) -> None:
    """Of a peer that does not do it as it stops; what is not committed then is counted."""
    until(lambda: not left(place, group), STUCK_SECONDS)


def in_thread(main: Callable[[], None]) -> AbstractContextManager[object]:
    """A peer that ends by itself when all was seen."""

    @contextmanager
    def running() -> Iterator[object]:
        thread = threading.Thread(target=main, name="peer")
        thread.start()
        yield
        thread.join(STUCK_SECONDS)

    return running()
