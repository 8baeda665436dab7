"""Other clients that publish to Kafka with confirms, as their documentation shows it.

Each gets the numbered bodies, publishes the first to open the way, and is measured over the others.
What is not installed (dependency group `bench-peers`) is left out, and named.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import confluent_kafka
from confluent_kafka.aio import AIOProducer

from benchmarks.harness import Meter
from benchmarks.kafka_raw import producer_settings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence

    from benchmarks.kafka import Place
    from reliable_mq.message import Message

#: Coroutines that wait for a confirm each, in `many_await`.
AWAITING = 100


def aioproducer(place: Place, messages: Sequence[Message]) -> Meter:
    """confluent_kafka's AIOProducer at its defaults; without headers, which it refuses."""

    async def main() -> Meter:
        async with AIOProducer(producer_settings(place.hosts)) as producer:
            first = await producer.produce(place.topic, messages[0].body, messages[0].key)
            await producer.flush()
            await first
            with Meter() as meter:
                futures = [
                    await producer.produce(place.topic, one.body, one.key) for one in messages[1:]
                ]
                await producer.flush()
                await asyncio.gather(*futures)
            return meter

    return asyncio.run(main())


def aiokafka(place: Place, messages: Sequence[Message]) -> Meter:
    """aiokafka, idempotent: `send` each, then gather."""
    from aiokafka import AIOKafkaProducer

    async def main() -> Meter:
        producer = AIOKafkaProducer(
            bootstrap_servers=place.hosts, enable_idempotence=True, acks="all", linger_ms=5
        )
        async with producer:
            one = messages[0]
            await producer.send_and_wait(place.topic, one.body, key=one.key)
            with Meter() as meter:
                futures = [
                    await producer.send(place.topic, one.body, key=one.key, headers=headers(one))
                    for one in messages[1:]
                ]
                await asyncio.gather(*futures)
            return meter

    return asyncio.run(main())


def aioproducer_awaited(place: Place, messages: Sequence[Message]) -> Meter:
    """AIOProducer at its defaults, each of 100 coroutines awaiting one confirm after the other."""

    async def main() -> Meter:
        async with AIOProducer(producer_settings(place.hosts)) as producer:

            async def send(one: Message) -> None:
                await (await producer.produce(place.topic, one.body, one.key))

            return await many_await(send, messages)

    return asyncio.run(main())


def bridge(place: Place, messages: Sequence[Message]) -> Meter:
    """A Producer, a thread that polls it, and one wake-up of the loop for a burst of reports."""

    async def main() -> Meter:
        with _bridged(place) as send:
            return await many_await(send, messages)

    return asyncio.run(main())


@contextmanager
def _bridged(place: Place) -> Iterator[Callable[[Message], Awaitable[object]]]:
    producer = confluent_kafka.Producer(producer_settings(place.hosts, linger=0))
    loop = asyncio.get_running_loop()
    ended: deque[tuple[asyncio.Future[Any], Any, Any]] = deque()
    over = threading.Event()
    rung = False

    def drain() -> None:
        nonlocal rung
        rung = False
        while ended:
            future, error, record = ended.popleft()
            assert error is None, error
            future.set_result(record)

    def poll() -> None:
        while not over.is_set():
            producer.poll(0.05)

    def send(one: Message) -> Awaitable[object]:
        future = loop.create_future()

        def reported(error: Any, record: Any) -> None:
            nonlocal rung
            ended.append((future, error, record))
            if not rung:
                rung = True
                loop.call_soon_threadsafe(drain)

        producer.produce(place.topic, one.body, one.key, on_delivery=reported, headers=headers(one))
        return future

    thread = threading.Thread(target=poll)
    thread.start()
    yield send
    over.set()
    thread.join()


async def many_await(
    send: Callable[[Message], Awaitable[object]], messages: Sequence[Message]
) -> Meter:
    """100 coroutines, each of which waits for its confirm before it sends the next."""
    await send(messages[0])

    async def publish(mine: Iterable[Message]) -> None:
        for one in mine:
            await send(one)

    rest = messages[1:]
    with Meter() as meter:
        await asyncio.gather(*[publish(rest[at::AWAITING]) for at in range(AWAITING)])
    return meter


def headers(message: Message) -> list[tuple[str, bytes]]:
    """Two headers, as everybody sends them: ours beside more of its own."""
    return [("tenant", b"bench"), ("trace", message.id.encode())]


def not_installed(*names: str) -> list[str]:
    """Those of these modules that are not here."""
    return [name for name in names if find_spec(name) is None]
