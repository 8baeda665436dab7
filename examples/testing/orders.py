"""An app as it is written for production; `test_orders` tests it without a broker."""

# ruff: noqa: EM101, TRY003 - handlers raise as people write it

from typing import Annotated

from msgspec import Struct

from reliable_mq import Context, Depends, Reject, ReliableMQ, RetryPolicy

mq = ReliableMQ("sqlite:///orders.sqlite3")
invoices = mq.topic("invoices", groups=("ledger",))


class Order(Struct):
    """What customers send."""

    id: int
    total: float


class Payments:
    """A client of the payment provider."""

    def charge(self, order: Order) -> str:
        """Charge the customer; returns the number of the payment."""
        raise NotImplementedError


def payments() -> Payments:
    """The client that production uses."""
    return Payments()


@mq.consumer("orders", group="billing", retry=RetryPolicy(attempts=3, retry_on=(OSError,)))
def bill(order: Order, ctx: Context, payments: Annotated[Payments, Depends(payments)]) -> None:
    """Charge, then publish an invoice, which leaves only if this returns."""
    if order.total < 0:
        raise Reject("a negative total")
    payment = payments.charge(order)
    ctx.publish(invoices, {"order": order.id, "payment": payment}, key=ctx.key)
