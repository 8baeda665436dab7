"""A consumer process. It writes down what it does, so that a kill -9 can take nothing of it."""

from __future__ import annotations

import argparse
import logging
import os
import threading
from typing import TYPE_CHECKING

from examples.demo.shop import Order, declare_billing, numbered
from reliable_mq import Limits, ReliableMQ
from reliable_mq.events import Retried
from reliable_mq.testing.history import History, Numbered

if TYPE_CHECKING:
    from reliable_mq.events import Event


def main() -> None:
    """Consume until SIGTERM."""
    parser = argparse.ArgumentParser()
    for option in ("broker", "run", "orders", "invoices", "history"):
        parser.add_argument(f"--{option}", required=True)
    given = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)  # read when this process ends by itself
    # Nobody is left behind: the pipe ends with the demo, however the demo ends.
    threading.Thread(target=_end_with_parent, daemon=True).start()

    history = History(given.history)
    seen: dict[str, Numbered] = {}

    def note(kind: str, id: str, order: Order) -> None:
        seen[id] = numbered(given.run, order)
        history.note(kind, id, seen[id])

    def hear(event: Event) -> None:
        if isinstance(event, Retried):
            id = event.message.id
            history.note("retry", id, seen.get(id), why=type(event.error).__name__)

    mq = ReliableMQ(_broker(given.broker), limits=Limits(credit=12))
    mq.observe(hear)
    declare_billing(mq, given.orders, given.invoices, note=note)
    mq.run(drain=10.0)


def _broker(url: str) -> object:
    if os.environ.get("DEMO_BREAK") == "ack_first":
        from examples.demo.broken import ack_first

        return ack_first(url)
    return url


def _end_with_parent() -> None:
    os.read(0, 1)  # not sys.stdin: its lock would be held when the interpreter ends
    os._exit(4)


if __name__ == "__main__":
    main()
