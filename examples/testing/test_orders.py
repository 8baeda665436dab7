"""Handlers, retries and dead letters tested in memory and in virtual time: `pytest examples`."""

# ruff: noqa: EM101, TRY003 - handlers raise as people write it

import json
from collections.abc import Callable

from examples.testing.orders import Order, mq, payments
from reliable_mq import ReliableMQ
from reliable_mq.testing.inmemory import InMemory, inmemory


class FakePayments:
    """Fails as often as it is told to, then accepts."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures

    def charge(self, order: Order) -> str:
        """As Payments does."""
        if self.failures:
            self.failures -= 1
            raise OSError("cannot be reached")
        return f"payment-{order.id}"


def test_an_order_is_billed_after_retries() -> None:
    """Two failures cost two backoffs of virtual time, and one invoice comes out."""
    fake = FakePayments(failures=2)
    with inmemory(mq) as t, t.override(payments, lambda: fake):
        t.publish("orders", Order(1, 9.5), key="customer-7")
        t.run_until_idle()

        assert [delivery.attempt for delivery in t.deliveries] == [1, 2, 3]
        invoice = t.published[-1]
        assert (invoice.topic, invoice.key) == ("invoices", b"customer-7")
        assert json.loads(invoice.body) == {"order": 1, "payment": "payment-1"}
        assert t.dead_letters("orders", "billing") == []


def test_poison_does_not_hold_up_the_customer(
    reliable_mq_memory: Callable[[ReliableMQ], InMemory],
) -> None:
    """The fixture of the pytest plugin does the same as `with inmemory(mq)`."""
    t = reliable_mq_memory(mq)
    with t.override(payments, FakePayments):
        t.publish("orders", b"{", key="customer-7", content_type="application/json")
        t.publish("orders", Order(2, -1.0), key="customer-7")
        t.publish("orders", Order(3, 9.5), key="customer-7")
        t.run_until_idle()

    letters = t.dead_letters("orders", "billing")
    assert [letter.reason for letter in letters] == ["undecodable", "rejected"]
    assert letters[1].history[0].text == "a negative total"
    assert json.loads(t.published[-1].body)["order"] == 3
