"""A process of its own, as a container or a systemd unit runs it: `mq.run()`.

It handles SIGTERM and SIGINT, lets handlers end within the budget, and exits with 1 when anything
was left undone, so that whoever started it knows. Here the handler of the last order sends the
signal, where otherwise an operator does.
"""

# ruff: noqa: EM101, TRY003 - handlers raise as people write it

import logging
import os
import signal
import tempfile
from pathlib import Path

from reliable_mq import Context, Reject, ReliableMQ, RetryPolicy
from reliable_mq.logs import MessageFilter

log = logging.getLogger("shop")

directory = tempfile.TemporaryDirectory()
mq = ReliableMQ(f"sqlite:///{Path(directory.name) / 'orders.sqlite3'}")


@mq.consumer("orders", group="billing", retry=RetryPolicy(attempts=3, backoff=0.05))
def bill(order: dict, ctx: Context) -> None:
    """The first run of order 1 fails and is repeated; order 2 is refused for good."""
    if order["id"] == 1 and ctx.attempt == 1:
        raise OSError("the payment provider cannot be reached")
    if order["total"] < 0:
        raise Reject("a negative total")
    log.info("billed order %d", order["id"])
    if order["id"] == 3:
        os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Log with the message in hand on every line, publish three orders, and be a consumer."""
    handler = logging.StreamHandler()
    handler.addFilter(MessageFilter())
    line = "%(levelname)s %(name)s [key %(key)s, attempt %(attempt)s] %(message)s"
    handler.setFormatter(logging.Formatter(line))
    logging.basicConfig(level=logging.INFO, handlers=[handler])

    for id, total in ((1, 9.5), (2, -1.0), (3, 20.0)):
        mq.publish("orders", {"id": id, "total": total}, key="customer-7")
    mq.run(drain=10)  # returns after a clean end; else raises SystemExit(1)
    log.info("drained")


if __name__ == "__main__":
    main()
    directory.cleanup()
