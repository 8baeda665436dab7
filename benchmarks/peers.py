"""What one would write without the SDK: the plain loop, the hashed thread pool, a task a message.

Each takes the same messages from the same transport, runs the same handler in key order and acks
each message after its handler returned. None of them retries, dead-letters or watches anything.
"""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict, deque
from contextlib import contextmanager
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any
from zlib import crc32

from benchmarks.workload import GROUP, TOPIC
from reliable_mq.adapters.base import Subscribe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from benchmarks.workload import Running
    from reliable_mq.adapters.memory import MemorySubscription, MemoryTransport
    from reliable_mq.message import Delivery

CREDIT = 1_000


def subscribe(transport: MemoryTransport) -> MemorySubscription:
    """A place in the group, with the order of keys kept."""
    return transport.subscribe(Subscribe(topics=(TOPIC,), group=GROUP), lambda *_: None)


@contextmanager
def plain_loop(transport: MemoryTransport, handler: Callable[[bytes], Any]) -> Iterator[object]:
    """One thread that polls, handles and acks: what the transport allows with no SDK at all."""
    subscription = subscribe(transport)
    while deliveries := subscription.poll(CREDIT, 0).deliveries:
        for delivery in deliveries:
            handler(delivery.message.body or b"")
        subscription.ack(deliveries)
    subscription.poll(0, 0)  # takes the last acks along
    yield
    subscription.close()


@contextmanager
def plain_loop_async(
    transport: MemoryTransport, handler: Callable[[bytes], Any]
) -> Iterator[object]:
    """The same for an `async def`, awaited one after the other."""

    async def main() -> MemorySubscription:
        subscription = subscribe(transport)
        while deliveries := subscription.poll(CREDIT, 0).deliveries:
            for delivery in deliveries:
                await handler(delivery.message.body or b"")
            subscription.ack(deliveries)
        subscription.poll(0, 0)
        return subscription

    subscription = asyncio.run(main())
    yield
    subscription.close()


class _Owner:
    """The polling thread of a peer: hands deliveries out, acks what comes back."""

    def __init__(
        self, transport: MemoryTransport, hand_out: Callable[[Sequence[Delivery]], object]
    ) -> None:
        self._subscription = subscribe(transport)
        self._hand_out = hand_out
        self._done: deque[Delivery] = deque()
        self._rung = False
        self._over = False
        self._thread = threading.Thread(target=self._own, name="peer-owner", daemon=True)

    def start(self) -> None:
        """Begin to poll."""
        self._thread.start()

    def stop(self) -> None:
        """Ack what is done, and leave."""
        self._over = True
        self._subscription.wake()
        self._thread.join()

    def finished(self, delivery: Delivery) -> None:
        """Its handler returned. Any thread; one wake-up a burst."""
        self._done.append(delivery)
        if not self._rung:
            self._rung = True
            self._subscription.wake()

    def _own(self) -> None:
        subscription, done, in_hand = self._subscription, self._done, 0
        while not self._over:
            self._rung = False
            if acks := [done.popleft() for _ in range(len(done))]:
                subscription.ack(acks)
                in_hand -= len(acks)
            deliveries = subscription.poll(CREDIT - in_hand, 0.5).deliveries
            if deliveries:
                in_hand += len(deliveries)
                self._hand_out(deliveries)
        subscription.close()


def static_hash(workers: int) -> Running:
    """A pool of threads with a queue each; a key belongs to the thread its hash names."""

    @contextmanager
    def running(transport: MemoryTransport, handler: Callable[[bytes], Any]) -> Iterator[object]:
        queues: list[SimpleQueue[Delivery | None]] = [SimpleQueue() for _ in range(workers)]

        def hand_out(deliveries: Sequence[Delivery]) -> None:
            for delivery in deliveries:
                queues[crc32(delivery.message.key or b"") % workers].put(delivery)

        owner = _Owner(transport, hand_out)

        def work(queue: SimpleQueue[Delivery | None]) -> None:
            while (delivery := queue.get()) is not None:
                handler(delivery.message.body or b"")
                owner.finished(delivery)

        for queue in queues:
            threading.Thread(target=work, args=(queue,), daemon=True).start()
        owner.start()
        yield
        owner.stop()
        for queue in queues:
            queue.put(None)

    return running


@contextmanager
def task_per_message(
    transport: MemoryTransport, handler: Callable[[bytes], Any]
) -> Iterator[object]:
    """One asyncio task a message, with a fair lock for each key; a thread polls."""
    loop = asyncio.new_event_loop()
    locks: defaultdict[bytes, asyncio.Lock] = defaultdict(asyncio.Lock)
    tasks: set[asyncio.Task[None]] = set()

    async def handle(delivery: Delivery) -> None:
        async with locks[delivery.message.key or b""]:
            await handler(delivery.message.body or b"")
        owner.finished(delivery)

    def spawn(deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            task = loop.create_task(handle(delivery))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    owner = _Owner(transport, lambda deliveries: loop.call_soon_threadsafe(spawn, deliveries))
    thread = threading.Thread(target=loop.run_forever, name="peer-loop", daemon=True)
    thread.start()
    owner.start()
    yield
    owner.stop()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
