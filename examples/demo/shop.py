"""What an order is, what billing does with it, and which orders give trouble.

All about an order follows from its number, so every process, and every run, knows the same.
"""

# ruff: noqa: EM101, EM102, TRY003 - handlers raise as people write it

from __future__ import annotations

import random
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from reliable_mq import Context, Message, Reject, ReliableMQ, RetryPolicy
from reliable_mq.testing.history import Numbered

if TYPE_CHECKING:
    from collections.abc import Callable

#: Runs that an order gets before it is given up.
ATTEMPTS: Final = 3
#: Euros for one unit of a currency. "XAU" is missing: a programming error, as real ones are.
RATES: Final = {"EUR": 1.0, "USD": 0.9}
#: One in so many orders meets a payment provider that cannot be reached at first.
FLAKY: Final = 12


class Order(Struct, frozen=True):
    """The body of an order's message."""

    number: int
    customer: str
    seq: int  #: counts the orders of this customer
    total: float
    currency: str = "EUR"
    unreachable: int = 0  #: so many times the payment provider cannot be reached


class Invoice(Struct, frozen=True):
    """What billing publishes."""

    order: int
    customer: str
    seq: int
    euros: float


class Planned(Struct, frozen=True):
    """An order as it will be published, and what has to become of it."""

    order: Order
    body: Any
    id: str
    numbered: Numbered
    reason: str = ""  #: why it must become a dead letter; "": it must not
    attempts: int = 0  #: after how many runs


def numbered(run: str, order: Order) -> Numbered:
    """How the history calls an order."""
    return Numbered(run, "shop", order.customer, order.seq)


def plan(run: str, orders: int, customers: int) -> list[Planned]:
    """The orders of a run. A few are poison: two of each kind, wherever they fall."""
    dice = random.Random(orders)
    kinds = ["undecodable", "rejected", "retries-exhausted", "fatal-exception"] * 2
    poison = dict(zip(dice.sample(range(orders), len(kinds)), kinds, strict=True))
    count: Counter[str] = Counter()
    planned = []
    for number in range(orders):
        customer = f"customer-{dice.randrange(customers):03}"
        kind = poison.get(number, "")
        order = Order(
            number,
            customer,
            count[customer],
            round(dice.uniform(5, 500), 2) * (-1 if kind == "rejected" else 1),
            currency="XAU" if kind == "fatal-exception" else dice.choice(("EUR", "USD")),
            unreachable=ATTEMPTS
            if kind == "retries-exhausted"
            else dice.choice((1, 2)) * (number % FLAKY == 0),
        )
        count[customer] += 1
        name = numbered(run, order)
        body = b'{"number": oops' if kind == "undecodable" else order
        attempts = ATTEMPTS if kind == "retries-exhausted" else 1
        planned.append(Planned(order, body, name.id, name, kind, attempts if kind else 0))
    return planned


def message(mq: ReliableMQ, topic: str, planned: Planned) -> Message:
    """The message of an order: its key is the customer, its id is the order's own."""
    return mq.message(
        topic,
        planned.body,
        key=planned.order.customer,
        id=planned.id,
        content_type="application/json",
    )


def work_seconds(order: Order) -> float:
    """How long it takes to bill this order."""
    return random.Random(order.number).uniform(0.01, 0.05)


def declare_billing(
    mq: ReliableMQ,
    orders: str,
    invoices: str,
    *,
    note: Callable[[str, str, Order], None],
    concurrency: int = 4,
) -> None:
    """The handler. `note` writes down what happened, and returns when that is on the disk."""

    @mq.consumer(
        orders,
        group="billing",
        concurrency=concurrency,
        retry=RetryPolicy(attempts=ATTEMPTS, backoff=0.2, retry_on=(OSError,)),
    )
    def bill(order: Order, ctx: Context) -> None:
        note("deliver", ctx.id, order)
        if order.total < 0:
            raise Reject(f"order {order.number} has a negative total")
        euros = order.total * RATES[order.currency]
        if ctx.attempt <= order.unreachable:
            raise OSError("the payment provider cannot be reached")
        time.sleep(work_seconds(order))
        note("effect", ctx.id, order)
        invoice = Invoice(order.number, order.customer, order.seq, euros)
        ctx.publish(invoices, invoice, key=order.customer)
