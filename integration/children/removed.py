"""Safeties, taken away one at a time: each test of a fault has a run without one, to be caught.

settle-first    a Receipt comes before COMMIT
ack-first       a delivery is acked as soon as it arrives
fence           an ack of a lost lease counts
dead-letters    dead letters are confirmed and thrown away
deadline        SQLite may wait for a lock as long as it likes
sync            COMMIT does not wait for the disk
journal         a transaction is written into the file at once, without a log
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any

from reliable_mq import Confirmation, Receipt
from reliable_mq.adapters.base import Polled
from reliable_mq.message import DeadLetter

if TYPE_CHECKING:
    from collections.abc import Callable

    from reliable_mq.adapters.base import Transport

#: Seconds that SQLite may wait where it should not.
FOR_EVER = 60.0


def without(safety: str, path: str, make: Callable[[Any], Transport], connect: Any) -> Any:
    """The transport that `make(connect)` gives, without this safety; "" takes none away."""
    if safety == "deadline":
        return make(lambda path, **options: connect(path, **{**options, "timeout": FOR_EVER}))
    if safety in ("sync", "journal"):
        pragma = {
            "sync": ("synchronous", "OFF", 2),
            "journal": ("journal_mode", "OFF", "wal"),
        }[safety]
        return make(lambda path, **options: _careless(connect(path, **options), *pragma))
    transport = make(connect)
    if not safety:
        return transport
    if safety == "fence":
        return Unfenced(transport, path)
    return {"settle-first": SettleFirst, "ack-first": AckFirst, "dead-letters": ThrowAway}[safety](
        transport
    )


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
            self.inner.poll(0, 0.0)  # acks go with the next poll
        return polled

    def ack(self, deliveries: Any) -> None:
        pass


class Unfenced(Around):
    """Lets the late ack of a lost lease settle what is somebody else's by now."""

    def __init__(self, inner: Any, path: str) -> None:
        super().__init__(inner)
        self._path = path

    def subscribe(self, *arguments: Any) -> Any:
        """A subscription that acks whatever it is given."""
        return _UnfencedSubscription(self.inner.subscribe(*arguments), self._path)


class _UnfencedSubscription(Around):
    def __init__(self, inner: Any, path: str) -> None:
        super().__init__(inner)
        self._path = path

    def ack(self, deliveries: Any) -> None:
        lost = [one.position for one in deliveries if one.lease.lost]
        self.inner.ack(deliveries)
        with sqlite3.connect(self._path) as file:
            file.executemany("DELETE FROM mq_state WHERE position = ?", [(one,) for one in lost])
        file.close()


def _careless(file: sqlite3.Connection, name: str, value: str, claimed: Any) -> Any:
    """Sets a pragma of its own, and answers as if it were the one that was asked for."""

    class Careless(Around):
        def execute(self, sql: str, *parameters: Any) -> Any:
            if sql.startswith(f"PRAGMA {name}"):
                self.inner.execute(f"PRAGMA {name}={value}")
                return self.inner.execute("SELECT ?", (claimed,))
            return self.inner.execute(sql, *parameters)

    return Careless(file)
