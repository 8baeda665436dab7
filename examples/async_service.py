"""An async service: `async with mq` is its lifespan, and handlers run on its own event loop.

So a pool or a client that the service has made on its loop works in the handlers, too. A web
framework takes `lifespan` as it is; here a plain `main` stands in for it.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from contextlib import asynccontextmanager
from typing import Annotated

from msgspec import Struct

from reliable_mq import Depends, ReliableMQ

mq = ReliableMQ()  # RELIABLE_MQ_URL says where
orders = mq.topic("orders", groups=("billing",))


class Order(Struct):
    """What is published; a dataclass or a pydantic model would do as well."""

    id: int
    total: float


class Pool:
    """Stands for the pool of an async database driver: bound to the loop it was made on."""

    def __init__(self, size: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._free = asyncio.Semaphore(size)
        self.rows: dict[int, float] = {}

    async def insert(self, id: int, total: float) -> None:
        """Write a row; on any other loop a real pool would break here."""
        assert asyncio.get_running_loop() is self._loop
        async with self._free:
            await asyncio.sleep(0.01)
            self.rows[id] = total


class State:
    """What the service has made for itself."""

    pool: Pool
    billed: asyncio.Event


def pool() -> Pool:
    """The pool of the running service; tests put another one in its place."""
    return State.pool


@mq.consumer(orders, group="billing", concurrency=8)
async def bill(order: Order, rows: Annotated[Pool, Depends(pool)]) -> None:
    """Write the order down, as often as it comes: at-least-once, so by its id."""
    await rows.insert(order.id, order.total)
    if len(rows.rows) == 20:
        State.billed.set()


@asynccontextmanager
async def lifespan(_: object = None):  # noqa: ANN201 - as frameworks write it
    """What runs around the service: first the pool, then the consumers; ended in reverse."""
    State.pool, State.billed = Pool(size=4), asyncio.Event()
    async with mq:
        yield


async def place_order(id: int) -> str:
    """What a request handler does. `publish` would stop the loop here, so it is `submit`."""
    receipt = await orders.submit(Order(id, 9.5), key=f"customer-{id % 5}")
    return f"accepted at position {receipt.position}"


async def main() -> None:
    """Serve twenty requests at once, and wait until all of them are billed."""
    async with lifespan():
        answers = await asyncio.gather(*(place_order(id) for id in range(20)))
        print(f"the first one was {answers[0]}")
        await asyncio.wait_for(State.billed.wait(), 10)
        print(f"{len(State.pool.rows)} orders are billed; ready: {mq.health().ready}")
    print("stopped")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        # As the environment of a container says it; it is read when the app first connects.
        os.environ.setdefault("RELIABLE_MQ_URL", f"sqlite:///{directory}/orders.sqlite3")
        asyncio.run(main())
