"""A member of a group in a process of its own, which is killed with its work in hand."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from reliable_mq.adapters.base import Subscribe
from reliable_mq.clock import SYSTEM_CLOCK
from reliable_mq.settings import open_transport
from reliable_mq.testing.contracts import victim

if TYPE_CHECKING:
    from reliable_mq.adapters.base import Subscription

__all__ = ["Order", "kill_after"]


class Order(Struct):
    """What the victim does before it dies: see `reliable_mq.testing.contracts.victim`."""

    url: str
    subscribe: Subscribe
    take: int
    ack: list[int]
    nack: dict[int, float]


def kill_after(order: Order) -> list[str]:
    """The ids of what it had taken when it was killed."""
    command = [sys.executable, "-m", "integration.victims", msgspec.json.encode(order).decode()]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        taken = msgspec.json.decode(process.stdout.readline(), type=list[str])
        process.send_signal(signal.SIGKILL)
    return taken


def be_killed(order: Order) -> None:
    """The life of the victim."""
    transport = open_transport(order.url, clock=SYSTEM_CLOCK)
    member: Subscription = transport.subscribe(order.subscribe, lambda *_: None)
    taken = victim(
        lambda limit: member.poll(limit, 0.05), member, order.take, ack=order.ack, nack=order.nack
    )
    print(msgspec.json.encode(taken).decode(), flush=True)
    signal.pause()


if __name__ == "__main__":
    be_killed(msgspec.json.decode(sys.argv[1], type=Order))
