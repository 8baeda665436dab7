"""A queue and an exchange that another team made, used as they are.

    python -m examples.rabbitmq.attach [amqp://guest:guest@localhost/]

The shop publishes orders with plain pika, as it always did. Billing moves to handlers: retries,
dead letters and order come with them, and nothing of the shop's topology is altered.
"""

# ruff: noqa: EM101, TRY003 - handlers raise as people write it

from __future__ import annotations

import json
import sys
import threading
import time
from uuid import uuid4

import pika

from reliable_mq import Context, Reject, ReliableMQ, RetryPolicy
from reliable_mq.rabbitmq import Exchange, Queue


def the_shop(url: str, exchange: str, queue: str) -> None:
    """What is there already: topology, and a publisher that knows nothing of this library."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    channel.exchange_declare(exchange, exchange_type="direct", durable=True)
    arguments = {"x-queue-type": "quorum", "x-single-active-consumer": True}
    channel.queue_declare(queue, durable=True, arguments=arguments)
    channel.queue_bind(queue, exchange, "order.paid")
    for number in range(5):
        body = json.dumps({"id": number, "total": -1 if number == 3 else 9.5})
        properties = pika.BasicProperties(message_id=f"order-{number}", delivery_mode=2)
        channel.basic_publish(exchange, "order.paid", body, properties)
    connection.close()


def main(url: str) -> None:
    """Attach, bill what is there, and look at what could not be billed."""
    suffix = uuid4().hex[:8]
    exchange, queue = f"shop-{suffix}", f"billing-{suffix}"
    the_shop(url, exchange, queue)

    mq = ReliableMQ(url)
    orders = Queue(queue)
    invoices = Exchange(exchange, routing_key="order.paid")  # another queue may be bound to it
    done = threading.Event()

    @mq.consumer(orders, group="billing", retry=RetryPolicy(attempts=3))
    def bill(order: dict, ctx: Context) -> None:
        if order["total"] < 0:
            raise Reject("a negative total")
        print(f"billed {ctx.id}")
        if order["id"] == 5:
            done.set()

    with mq:
        mq.publish(invoices, {"id": 5, "total": 9.5}, id="order-5")
        done.wait(20)
        letters = mq.dead_letters(orders, "billing")
        while not (found := list(letters)):  # it is stored before its order is acked: any moment
            time.sleep(0.05)
        for letter in found:
            print(f"dead letter {letter.message.id}: {letter.reason}")
        print(f"discarded {letters.discard([letter.message.id for letter in found])}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "amqp://guest:guest@localhost/")
