"""A proxy before Kafka that knows messages when they come: what it does to answers begins there.

Clients ask for topics and leaders on the same connection, and these answers have to come.
"""

from __future__ import annotations

import struct
from typing import Any

from reliable_mq.testing.brokers import Proxy
from reliable_mq.testing.brokers.link import Link

#: Of a request: its length without these four bytes, and what it asks for.
HEAD = struct.Struct(">ih")
PRODUCE = 0


class Answers(Proxy):
    """On the listener that a node has for its proxy: clients of `url` do not get around it."""

    def __init__(self, node: Any) -> None:
        self._on_message = ""
        plan = node._plan
        super().__init__(f"kafka://127.0.0.1:{plan['behind']}", port=int(plan["proxy"]))

    def hold_from_next_message(self) -> None:
        """Keep all answers from the next message on, until `restore`."""
        self._on_message = "held"

    def lose_from_next_message(self) -> None:
        """Throw them away."""
        self._on_message = "swallowed"

    def restore(self) -> None:
        """See Proxy."""
        self._on_message = ""
        super().restore()

    def _pass_on(self, link: Link) -> None:
        if self._on_message and any(has_message(data) for _, data in link.pipes[0]._kept):
            setattr(self.down, self._on_message, True)
            self._on_message = ""
        super()._pass_on(link)


def has_message(data: bytes) -> bool:
    """Whether there is a message among these requests, the first of which begins the data."""
    while len(data) >= HEAD.size:
        length, asks = HEAD.unpack_from(data)
        if asks == PRODUCE:
            return True
        data = data[4 + length :]
    return False
