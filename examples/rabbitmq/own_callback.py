"""Your own pika callback, and two parts of this library beside it.

    python -m examples.rabbitmq.own_callback [amqp://guest:guest@localhost/]

KeyedExecutor runs deliveries side by side, those of a key in order; RetryPolicy says what follows a
failure. The connection, the channel and the acks stay yours.
"""

# ruff: noqa: EM101, TRY003 - handlers raise as people write it

from __future__ import annotations

import functools
import sys
import time
from typing import Any
from uuid import uuid4

import pika

from reliable_mq import KeyedExecutor, Reject, RetryPolicy

MESSAGES = 40
policy = RetryPolicy(attempts=3, backoff=0.01, retry_on=(OSError,))
billed: list[tuple[str, int]] = []
failed_once: set[int] = set()


def bill(customer: str, number: int) -> None:
    """What you want done; it fails now and then."""
    if number % 10 == 0 and number not in failed_once:
        failed_once.add(number)
        raise OSError("the payment provider cannot be reached")
    billed.append((customer, number))


def handle(channel: Any, tag: int, customer: str, number: int) -> None:
    """On a worker: run until it is done or given up; the ack goes back to pika's own thread."""
    attempt = 1
    while True:
        try:
            bill(customer, number)
        except Exception as error:  # noqa: BLE001 - the policy decides
            follows = policy.decide(attempt, error)
            if isinstance(follows, Reject):
                break  # where you publish a dead letter, wait here until it is confirmed
            time.sleep(follows.after or 0.0)
            attempt += 1
        else:
            break
    acknowledge = functools.partial(channel.basic_ack, tag)
    channel.connection.add_callback_threadsafe(acknowledge)


def main(url: str) -> None:
    """Publish some, consume them with a callback, stop after the last."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    queue = f"own-callback-{uuid4().hex[:8]}"
    channel.queue_declare(queue, durable=True, arguments={"x-queue-type": "quorum"})
    channel.confirm_delivery()
    for number in range(MESSAGES):
        properties = pika.BasicProperties(headers={"customer": f"c{number % 4}"}, delivery_mode=2)
        channel.basic_publish("", queue, str(number), properties, mandatory=True)

    with KeyedExecutor(concurrency=8, limit=100) as executor:

        def received(channel: Any, method: Any, properties: Any, body: bytes) -> None:
            customer = properties.headers["customer"]
            executor.submit(customer, handle, channel, method.delivery_tag, customer, int(body))

        channel.basic_qos(prefetch_count=100)
        channel.basic_consume(queue, received)
        while len(billed) < MESSAGES:
            connection.process_data_events(time_limit=0.1)
    connection.process_data_events(time_limit=0.1)  # the last acks

    orders: dict[str, list[int]] = {}
    for customer, number in billed:
        orders.setdefault(customer, []).append(number)
    in_order = all(numbers == sorted(numbers) for numbers in orders.values())
    print(f"billed {len(billed)}, failed once {len(failed_once)}, in order: {in_order}")
    channel.queue_delete(queue)
    connection.close()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "amqp://guest:guest@localhost/")
