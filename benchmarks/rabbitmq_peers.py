"""Other clients that publish with confirms, as their documentation shows it.

Each gets the numbered bodies with their ids, publishes the first to open the way, and is measured
over the others. What is not installed (dependency group `bench-peers`) is left out, and named.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import closing
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pika

from benchmarks.harness import Meter
from benchmarks.rabbitmq_raw import WINDOW
from benchmarks.workload import TOPIC

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from reliable_mq.message import Message

    #: Publishes them to the broker at a URL; the Meter of all but the first.
    Peer = Callable[[str, Sequence[Message]], Meter]


def blocking(url: str, messages: Sequence[Message]) -> Meter:
    """Pika's BlockingConnection: each publish waits for its confirm."""
    with closing(pika.BlockingConnection(pika.URLParameters(url))) as connection:
        channel = connection.channel()
        channel.confirm_delivery()

        def send(one: Message) -> None:
            properties = pika.BasicProperties(
                message_id=one.id, delivery_mode=2, headers=headers(one)
            )
            channel.basic_publish(TOPIC, TOPIC, one.body, properties, mandatory=True)

        return _one_by_one(send, messages)


def kombu(url: str, messages: Sequence[Message]) -> Meter:
    """Kombu on py-amqp, with `confirm_publish`: each publish waits for its confirm."""
    from kombu import Connection, Exchange

    options = {"confirm_publish": True}
    with Connection(url, transport_options=options) as connection:
        exchange = Exchange(TOPIC, type="topic", durable=True, no_declare=True)
        producer = connection.Producer(exchange=exchange, routing_key=TOPIC)

        def send(one: Message) -> None:
            producer.publish(
                one.body,
                message_id=one.id,
                headers=headers(one),
                delivery_mode=2,
                mandatory=True,
                content_type="application/octet-stream",
                content_encoding="binary",
            )

        return _one_by_one(send, messages)


def aio_pika(url: str, messages: Sequence[Message]) -> Meter:
    """aio-pika, with as many publishes awaited at once as the window of the others is large."""
    import aio_pika

    async def main() -> Meter:
        connection = await aio_pika.connect_robust(url)
        async with connection:
            channel = await connection.channel(publisher_confirms=True)
            exchange = await channel.get_exchange(TOPIC)

            async def send(one: Message) -> None:
                made = aio_pika.Message(
                    one.body or b"",
                    message_id=one.id,
                    headers=headers(one),
                    delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
                )
                await exchange.publish(made, TOPIC, mandatory=True)

            return await _many_at_once(send, messages)

    return asyncio.run(main())


def faststream(url: str, messages: Sequence[Message]) -> Meter:
    """FastStream, with as many publishes awaited at once."""
    from faststream.rabbit import ExchangeType, RabbitBroker, RabbitExchange

    async def main() -> Meter:
        exchange = RabbitExchange(TOPIC, type=ExchangeType.TOPIC, durable=True, declare=False)
        async with RabbitBroker(url, logger=None) as broker:

            async def send(one: Message) -> None:
                await broker.publish(
                    one.body,
                    exchange=exchange,
                    routing_key=TOPIC,
                    message_id=one.id,
                    headers=headers(one),
                    persist=True,
                    mandatory=True,
                )

            return await _many_at_once(send, messages)

    return asyncio.run(main())


def headers(message: Message) -> dict[str, str]:
    """The key, as everybody sends it: ours beside more of its own."""
    return {"key": (message.key or b"").decode()}


def installed(*peers: Peer) -> tuple[dict[str, Peer], list[str]]:
    """By name those that can be measured here, and the names of those that cannot."""
    here = {one.__name__.replace("_", "-"): one for one in peers if _is_there(one.__name__)}
    return here, [one.__name__ for one in peers if one not in here.values()]


def _is_there(name: str) -> bool:
    # kombu, once imported, is a module that find_spec does not understand.
    return name in sys.modules or find_spec(name) is not None


def _one_by_one(send: Callable[[Message], object], messages: Sequence[Message]) -> Meter:
    send(messages[0])
    with Meter() as meter:
        for one in messages[1:]:
            send(one)
    return meter


async def _many_at_once(
    send: Callable[[Message], Awaitable[object]], messages: Sequence[Message]
) -> Meter:
    await send(messages[0])
    rest = iter(messages[1:])

    async def publish() -> None:
        for one in rest:
            await send(one)

    with Meter() as meter:
        await asyncio.gather(*[publish() for _ in range(WINDOW)])
    return meter
