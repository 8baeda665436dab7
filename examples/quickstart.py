"""The smallest complete program: it publishes an order, and bills what it has published.

The file is the broker. Run it twice: the second run goes on where the first one ended.
"""

import threading

from reliable_mq import ReliableMQ

mq = ReliableMQ("sqlite:///quickstart.sqlite3")
billed = threading.Event()


@mq.consumer("orders", group="billing")
def bill(order: dict) -> None:
    """Returning means done; raising means again, and after five attempts a dead letter."""
    print(f"billing order {order['id']}: {order['total']} EUR")
    billed.set()


with mq:  # consumers run in threads until the block ends
    receipt = mq.publish("orders", {"id": 1, "total": 9.5}, key="customer-7")
    print(f"stored at position {receipt.position}")
    billed.wait(10)
