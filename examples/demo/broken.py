"""For the tests of the demo: a transport with one safety removed.

It acks whatever arrives, before anybody has handled it, as consumers with automatic commit do. The
demo has to notice: what is in hand when a process is killed is lost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reliable_mq.clock import SYSTEM_CLOCK
from reliable_mq.settings import open_transport

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reliable_mq.adapters.base import OnRevoke, Polled, Subscribe, Subscription, Transport
    from reliable_mq.message import Delivery


def ack_first(url: str) -> Any:
    """The transport of this URL, made unsafe."""
    return _AckFirst(open_transport(url, clock=SYSTEM_CLOCK))


class _AckFirst:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def subscribe(self, subscribe: Subscribe, on_revoke: OnRevoke) -> _AckFirstSubscription:
        return _AckFirstSubscription(self._transport.subscribe(subscribe, on_revoke))


class _AckFirstSubscription:
    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription

    def __getattr__(self, name: str) -> Any:
        return getattr(self._subscription, name)

    def poll(self, limit: int, timeout: float) -> Polled:
        polled = self._subscription.poll(limit, timeout)
        if polled.deliveries:
            self._subscription.ack(polled.deliveries)
            self._subscription.poll(0, 0.0)  # takes the ack along
        return polled

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        """Too late: it was acked when it came."""

    def nack(self, delivery: Delivery, delay: float) -> None:
        """The same."""
