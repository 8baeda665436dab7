# ruff: noqa: D101, D103
"""What a type checker must make of the public API; checked by mypy, never run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from typing_extensions import assert_type

from reliable_mq import (
    Batch,
    Confirmation,
    Confirmations,
    Context,
    Depends,
    Message,
    Receipt,
    ReliableMQ,
    RetryPolicy,
    Stopped,
    TopicHandle,
)


@dataclass
class Order:
    id: int


mq = ReliableMQ("memory://")
orders = mq.topic("orders", Order, groups=("billing",))
assert_type(orders, TopicHandle[Order])
raw = mq.topic("raw", groups=("audit",))
assert_type(raw, TopicHandle[Any])


def rates() -> dict[str, float]:
    return {}


@mq.consumer(orders, "refunds", group="billing", retry=RetryPolicy(3), timeout=5)
def bill(order: Order, ctx: Context, rate: Annotated[dict[str, float], Depends(rates)]) -> None: ...


@mq.consumer("orders", group="stats", batch=Batch(100, wait=0.5))
async def count(batch: list[Order]) -> None: ...


# The decorator gives the function back as it was.
assert_type(bill(Order(1), Context.__new__(Context), {}), None)

assert_type(orders.publish(Order(1), key="a"), Receipt)
assert_type(mq.publish("orders", {"id": 1}), Receipt)
assert_type(mq.submit("orders", b"x"), Confirmation)
assert_type(mq.message(orders, Order(1)), Message)
assert_type(mq.submit_all([mq.message(orders, Order(1))]), Confirmations)
assert_type(mq.stop(), Stopped)


async def awaits() -> None:
    assert_type(await mq.submit("orders", b"x"), Receipt)
    assert_type(await mq.submit_all([]), list[Receipt])
    async with mq as entered:
        assert_type(entered, ReliableMQ)


orders.publish("no order")  # type: ignore[arg-type]
