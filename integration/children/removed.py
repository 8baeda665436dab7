"""Safeties, taken away one at a time: each test of a fault has a run without one, to be caught.

settle-first    a Receipt comes before the broker has the message
ack-first       a delivery is acked as soon as it arrives
dead-letters    dead letters are confirmed and thrown away

Those that only one broker has stand with it, in `on_sqlite`, `on_rabbitmq` and `on_kafka`.
"""

from __future__ import annotations

from typing import Any

from reliable_mq import Confirmation, Receipt
from reliable_mq.adapters.base import Polled
from reliable_mq.message import DeadLetter


def without(safety: str, broker: Any) -> Any:
    """A transport to this broker without this safety; "" takes none away."""
    general = {"settle-first": SettleFirst, "ack-first": AckFirst, "dead-letters": ThrowAway}
    if safety in general:
        return general[safety](broker.transport(""))
    return broker.transport(safety)


class Around:
    """All that `inner` is, but for what a subclass does otherwise."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class SettleFirst(Around):
    """Confirms what the broker has not stored yet."""

    def publisher(self) -> Any:
        """A publisher whose Receipts come too early."""
        return _EarlyPublisher(self.inner.publisher())


class _EarlyPublisher(Around):
    def submit(self, message: Any, to: Any, **options: Any) -> Confirmation:
        early = Confirmation(message)
        early.settle(Receipt(message.id, message.topic, 0, 0))
        self.inner.submit(message, to, **options).add_done_callback(lambda one: one.outcome)
        return early


class ThrowAway(Around):
    """Confirms dead letters and stores none."""

    def publisher(self) -> Any:
        """A publisher that loses them."""
        return _CarelessPublisher(self.inner.publisher())


class _CarelessPublisher(Around):
    def submit(self, message: Any, to: Any, **options: Any) -> Confirmation:
        if not isinstance(to, DeadLetter):
            return self.inner.submit(message, to, **options)
        early = Confirmation(message)
        early.settle(Receipt(message.id, message.topic, 0, 0))
        return early


class AckFirst(Around):
    """Acks what arrives before anybody has seen it, as consumers with auto-ack do."""

    def subscribe(self, *arguments: Any) -> Any:
        """A subscription that acks too early."""
        return _EarlySubscription(self.inner.subscribe(*arguments))


class _EarlySubscription(Around):
    def poll(self, limit: int, timeout: float) -> Polled:
        polled = self.inner.poll(limit, timeout)
        if polled.deliveries:
            self.inner.ack(polled.deliveries)
            acked = {one.lease for one in polled.deliveries}
            while acked:  # acks go with the next polls
                answer = self.inner.poll(0, 0.01)
                acked.difference_update(answer.settled, answer.lost)
        return polled

    def ack(self, deliveries: Any) -> None:
        pass
