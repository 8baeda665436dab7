"""What an operator does with dead letters: read their stories, replay some, discard the others."""

# ruff: noqa: EM101, TRY003 - handlers raise as people write it

from __future__ import annotations

import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from reliable_mq import Reject, ReliableMQ, RetryPolicy
from reliable_mq.events import DeadLettered

if TYPE_CHECKING:
    from reliable_mq.events import Event

directory = tempfile.TemporaryDirectory()
mq = ReliableMQ(f"sqlite:///{Path(directory.name) / 'orders.sqlite3'}")

provider_is_up = False
two_dead_letters = threading.Semaphore(0)
billed = threading.Event()


@mq.consumer("orders", group="billing", retry=RetryPolicy(attempts=2, backoff=0.01))
def bill(order: dict) -> None:
    """Refuses a negative total for good; all else depends on the payment provider."""
    if order["total"] < 0:
        raise Reject("a negative total")
    if not provider_is_up:
        raise OSError("the payment provider cannot be reached")
    print(f"billed order {order['id']}")
    billed.set()


@mq.observe
def hear(event: Event) -> None:
    """Observers hear what happens, and can change nothing."""
    if isinstance(event, DeadLettered):
        two_dead_letters.release()


with mq:
    mq.publish("orders", {"id": 1, "total": 9.5}, key="customer-7")
    mq.publish("orders", {"id": 2, "total": -1.0}, key="customer-8")
    for _ in range(2):
        two_dead_letters.acquire(timeout=10)

    letters = mq.dead_letters("orders", "billing")
    for letter in letters:
        print(f"{letter.message.body!r}: {letter.reason} after {letter.attempts} runs")
        for failure in letter.history:
            print(f"    run {failure.attempt}: {failure.type}: {failure.text}")

    provider_is_up = True  # the cause is mended
    # A replay keeps the id, reaches this group alone, and starts counting the attempts anew.
    count = letters.replay(where=lambda one: one.reason == "retries-exhausted", rate=100)
    print(f"replayed {count}")
    billed.wait(10)

    count = letters.discard([one.message.id for one in letters])
    print(f"discarded {count}, {len(list(letters))} left")

directory.cleanup()
