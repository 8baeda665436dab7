"""Other clients that consume from Kafka, as their documentation shows it.

Each commits what its handlers have finished and nothing else. What is not installed (dependency
group `bench-peers`) is left out, and named.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from contextlib import suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from benchmarks.kafka_raw import COMMIT_EVERY, FETCH
from benchmarks.kafka_running import in_thread, until_committed

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from benchmarks.kafka import Place
    from benchmarks.kafka_running import Running


def aiokafka(
    place: Place, group: str, handler: Callable[[bytes], Any], over: threading.Event
) -> AbstractContextManager[object]:
    """aiokafka: `getmany`, the handler called inline, a commit each second."""
    from aiokafka import AIOKafkaConsumer

    async def main() -> None:
        consumer = AIOKafkaConsumer(
            place.topic,
            bootstrap_servers=place.hosts,
            group_id=group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
        )
        async with consumer:
            committed = time.monotonic()
            while not over.is_set():
                batches = await consumer.getmany(timeout_ms=10, max_records=FETCH)
                for records in batches.values():
                    for one in records:
                        handler(one.value)
                if time.monotonic() - committed > COMMIT_EVERY:
                    committed = time.monotonic()
                    await consumer.commit()
            await consumer.commit()

    return in_thread(lambda: asyncio.run(main()))


def faststream(
    place: Place, group: str, handler: Callable[[bytes], Any], over: threading.Event
) -> AbstractContextManager[object]:
    """FastStream on confluent-kafka, which acks after each handler: a commit each."""
    from faststream import AckPolicy
    from faststream.confluent import KafkaBroker, KafkaMessage

    async def main() -> None:
        broker = KafkaBroker(place.hosts, logger=None)

        async def handle(message: Any) -> None:
            handler(message.body)

        handle.__annotations__["message"] = KafkaMessage  # it is read, and is imported here only
        broker.subscriber(
            place.topic, group_id=group, auto_offset_reset="earliest", ack_policy=AckPolicy.ACK
        )(handle)
        async with broker:
            await broker.start()
            await asyncio.to_thread(over.wait)
            await asyncio.to_thread(until_committed, place, group)

    return in_thread(lambda: asyncio.run(main()))


def pyrallel_consumer(
    place: Place, group: str, handler: Callable[[bytes], Any], over: threading.Event
) -> AbstractContextManager[object]:
    """pyrallel-consumer: an asyncio task a message, in key order; 1,000 in flight, its default."""
    from pyrallel_consumer.config import KafkaConfig
    from pyrallel_consumer.consumer import PyrallelConsumer

    logging.getLogger("pyrallel_consumer").setLevel(logging.ERROR)

    async def work(item: Any) -> None:
        done = handler(item.payload)
        if inspect.isawaitable(done):
            await done

    async def main() -> None:
        config = KafkaConfig(BOOTSTRAP_SERVERS=place.hosts, CONSUMER_GROUP=group)
        config.dlq_enabled = False
        consumer = PyrallelConsumer(config=config, worker=work, topic=place.topic)
        await consumer.start()
        await asyncio.to_thread(over.wait)
        await asyncio.to_thread(until_committed, place, group)
        with suppress(asyncio.CancelledError):
            await consumer.stop()

    return in_thread(lambda: asyncio.run(main()))


#: By the module that each needs.
PEERS: dict[str, tuple[str, Running]] = {
    "aiokafka": ("aiokafka", aiokafka),
    "faststream": ("FastStream", faststream),
    "pyrallel_consumer": ("pyrallel-consumer", pyrallel_consumer),
}


def installed(*modules: str) -> tuple[dict[str, Running], list[str]]:
    """By name those that can be measured here, and the names of those that cannot."""
    here = {PEERS[one][0]: PEERS[one][1] for one in modules if find_spec(one)}
    return here, [PEERS[one][0] for one in modules if PEERS[one][0] not in here]
