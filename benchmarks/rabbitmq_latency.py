"""B17: from the moment at which a message ought to be published to its handler, open loop.

The schedule does not wait for anybody: what is late is late from the time it was due, so that a
stall counts for all that it held up.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pika

from benchmarks.harness import Bench, Counts, Floor, Meter, Result, Sample, scenario
from benchmarks.rabbitmq import KEYS, QUEUE, fresh_queue, left
from benchmarks.rabbitmq_raw import PREFETCH
from benchmarks.workload import GROUP, HEAD, STUCK_SECONDS, TOPIC, count
from reliable_mq import ReliableMQ
from reliable_mq.errors import Backpressure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.harness import Series
    from reliable_mq.confirmation import Confirmation

    #: What publishes a body of a key, and how many of them were refused for want of room.
    Sides = tuple[Callable[[bytes, int], Any], Callable[[], int]]
    #: Given what to do with each body that arrives, gives these.
    Way = Callable[[str, Callable[[bytes], object]], Any]

#: Seconds of the schedule, and the part of them in front that is not counted.
SECONDS, WARM_UP = 6.0, 1.0
#: Milliseconds that ours may add: to the median, and to the 99th of a hundred.
P50, P99 = 0.5, 2.0
#: Threads of the consumer.
THREADS = 16

_measured: dict[tuple[Bench, str], dict[str, Series]] = {}


@scenario("B17", "1000-p50", "1000-p99", "5000-p50", "5000-p99")
def latency(bench: Bench, case: str) -> Result:
    """Publish -> handler -> ack, 100 bytes, 1,000 or 5,000 messages a second; ms ours adds to raw.

    Ours: `mq.submit` and a consumer of 16 threads in key order, one app. Limit: two
    SelectConnections with a thread each, confirms counted, the handler called inline, an ack each.
    Both are handed messages by the same thread. What ours refuses, as 10,000 are without a confirm,
    counts as `refused`; raw pika takes any number. p50 and p99 of a rate come from the same runs.
    """
    rate, which = case.split("-")
    if (bench, rate) not in _measured:
        _measured.clear()
        _measured[bench, rate] = bench.interleave(
            {
                "ours, whole": lambda: _sample(bench, int(rate), by_ours),
                "limit": lambda: _sample(bench, int(rate), by_hand),
            }
        )
    series = _measured[bench, rate]
    mine, limit = series["ours, whole"], series["limit"]
    whole, bare = mine.detail(which), limit.detail(which)
    names = ("p50", "p90", "p99", "p999", "max")
    return Result(
        "ms",
        whole - bare,
        bare,
        whole / bare,
        Floor("ours", "<=", P50 if which == "p50" else P99),
        series,
        cpu_us=mine.cpu_us,
        detail={
            "ours_ms": {name: round(mine.detail(name), 2) for name in names},
            "limit_ms": {name: round(limit.detail(name), 2) for name in names},
            "achieved": round(mine.detail("achieved")),
            "refused": max(int(one.detail["refused"]) for one in mine.samples),
            "limit_cpu_us": round(limit.cpu_us, 1),
        },
    )


@contextmanager
def by_ours(url: str, arrived: Callable[[bytes], object]) -> Iterator[Sides]:
    """The whole SDK, publisher and consumer in one app."""
    mq = ReliableMQ(url)

    @mq.consumer(TOPIC, group=GROUP, concurrency=THREADS)
    def handle(body: bytes) -> None:
        arrived(body)

    keys = [f"key-{key}" for key in range(KEYS)]
    refused: list[Confirmation] = []  # the others are not kept: that would cost collections

    def send(body: bytes, key: int) -> None:
        confirmation = mq.submit(TOPIC, body, key=keys[key])
        if confirmation.done() and isinstance(confirmation.outcome, Backpressure):
            refused.append(confirmation)

    with mq:
        yield send, lambda: len(refused)


@contextmanager
def by_hand(url: str, arrived: Callable[[bytes], object]) -> Iterator[Sides]:
    """Pika alone: a connection and a thread to publish, and another of each to consume."""
    publishing, consuming = _Publishing(url), _Consuming(url, arrived)
    for one in (publishing, consuming):
        one.start()
    yield publishing.send, int
    for one in (publishing, consuming):
        one.stop()
    assert not publishing.open


class _Side:
    """One connection, its channel and its thread."""

    def __init__(self, url: str) -> None:
        self.channel: Any = None
        self.ready = threading.Event()
        self.connection = pika.SelectConnection(
            pika.URLParameters(url),
            on_open_callback=lambda one: one.channel(on_open_callback=self.opened),
            on_close_callback=lambda one, _: one.ioloop.stop(),
        )
        self._thread = threading.Thread(target=self.connection.ioloop.start)

    def opened(self, channel: Any) -> None:
        """The channel is there."""
        raise NotImplementedError

    def start(self) -> None:
        """Return when it is ready."""
        self._thread.start()
        assert self.ready.wait(STUCK_SECONDS)

    def stop(self) -> None:
        """Return when the connection is closed."""
        self.connection.ioloop.add_callback_threadsafe(self.connection.close)
        self._thread.join()
        self.connection.ioloop.close()


class _Publishing(_Side):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.open: dict[int, str] = {}
        self._submitted: deque[tuple[bytes, int]] = deque()
        self._asked = False
        self._sent = 0

    def opened(self, channel: Any) -> None:
        self.channel = channel
        channel.confirm_delivery(self._confirmed, callback=lambda _: self.ready.set())

    def send(self, body: bytes, key: int) -> None:
        """Any thread; many of them wake the connection's own only once."""
        self._submitted.append((body, key))
        if not self._asked:
            self._asked = True
            self.connection.ioloop.add_callback_threadsafe(self._pump)

    def _pump(self) -> None:
        self._asked = False
        while self._submitted:
            body, key = self._submitted.popleft()
            self._sent += 1
            id = self.open[self._sent] = f"{self._sent:032x}"
            properties = pika.BasicProperties(
                message_id=id, delivery_mode=2, headers={"key": f"key-{key}"}
            )
            self.channel.basic_publish(TOPIC, TOPIC, body, properties, mandatory=True)

    def _confirmed(self, frame: Any) -> None:
        tag = frame.method.delivery_tag
        if not frame.method.multiple:
            del self.open[tag]
            return
        while self.open and (first := next(iter(self.open))) <= tag:
            del self.open[first]


class _Consuming(_Side):
    def __init__(self, url: str, arrived: Callable[[bytes], object]) -> None:
        super().__init__(url)
        self._arrived = arrived

    def opened(self, channel: Any) -> None:
        channel.basic_qos(prefetch_count=PREFETCH)
        channel.basic_consume(QUEUE, self._deliver, callback=lambda _: self.ready.set())

    def _deliver(self, channel: Any, method: Any, _properties: Any, body: bytes) -> None:
        self._arrived(body)
        channel.basic_ack(method.delivery_tag)


def _sample(bench: Bench, rate: int, way: Way) -> Sample:
    seconds, warm_up = (0.4, 0.1) if bench.quick else (SECONDS, WARM_UP)
    total = int(seconds * rate)
    seen: list[tuple[float, bytes]] = []
    now = time.perf_counter

    def arrived(body: bytes) -> None:
        seen.append((now(), body))

    with fresh_queue() as url:
        with way(url, arrived) as (send, refused), Meter() as meter:
            began = now() + 0.05
            _send_all(send, rate, total, began)
            end = now() + STUCK_SECONDS
            while len(seen) + refused() < total and now() < end:
                time.sleep(0.01)
            too_many = refused()
        again = left()
    late = sorted(
        (at - due) * 1e3
        for at, body in seen
        if (due := HEAD.unpack_from(body)[2]) >= began + warm_up
    )
    bodies = [body for _, body in seen]
    counts = count(total - too_many, bodies) + Counts(duplicated=again)
    detail = {f"p{name}": late[int(len(late) * share)] for name, share in SHARES.items()}
    last = max((at for at, _ in seen), default=began)
    detail |= {"max": late[-1], "achieved": len(seen) / (last - began), "refused": too_many}
    return Sample(detail["p99"], meter.cpu / total * 1e6, counts, detail)


SHARES = {"50": 0.5, "90": 0.9, "99": 0.99, "999": 0.999}


def _send_all(send: Callable[[bytes, int], Any], rate: int, total: int, began: float) -> None:
    """Hand in each message when it is due, or as soon after that as this thread gets to it."""
    padding = b"." * (100 - HEAD.size)
    pack, now, number = HEAD.pack, time.perf_counter, 0
    while number < total:
        pause = began + number / rate - now()
        if pause > 0:
            time.sleep(pause)
        due = min(total, int((now() - began) * rate) + 1)
        while number < due:
            key = number % KEYS
            send(pack(key, number // KEYS, began + number / rate) + padding, key)
            number += 1
