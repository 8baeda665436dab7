"""Whether a client reaches its brokers, and whether it still tries to.

A broker that was frozen may answer, for a moment, that the cluster has no broker. librdkafka then
drops those that it knows, and in a race with its own re-bootstrap it attempts nothing any more: no
error, no metadata, for ever (its issue 5301, of 2.13; seen here with 2.16). Nothing tells of that
but its statistics: nobody is connected, nobody is being connected to, and no attempt is counted.
Whoever asks `given_up` makes another client.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final

import msgspec
from confluent_kafka import KafkaError, KafkaException
from msgspec import Struct

from reliable_mq.errors import ConnectionFailed

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Reach", "close"]

#: Nobody is connected, nor being connected to.
RESTING: Final = frozenset({"INIT", "DOWN"})
#: Seconds between two tries to reach a broker that is gone.
RETRY: Final = 1.0


class _Broker(Struct):
    """source: "logical" is the coordinator, which waits for another one's address."""

    source: str = ""
    state: str = ""
    connects: int = 0

    def is_reached_for(self) -> bool:
        """Whether it is connected, or will be. A new bootstrap tries those of the configuration."""
        if self.source == "logical":
            return self.state == "UP"
        return self.source == "configured" or self.state not in RESTING


class _Statistics(Struct):
    """ts: microseconds of librdkafka's clock."""

    ts: int
    brokers: dict[str, _Broker]


_read = msgspec.json.Decoder(_Statistics).decode


class Reach:
    """Of one client. The thread that polls it.

    Args:
        shown: Where it connects to, without a secret.
        patience: Seconds without an attempt after which there will be none.
        wanted: Whether there is anything to ask a broker for. A client that has nothing to do may
            rest for hours.
    """

    def __init__(
        self, shown: str, patience: float, wanted: Callable[[], bool] = lambda: True
    ) -> None:
        self._shown = shown
        self._patience = patience
        self._wanted = wanted
        self._attempts = -1
        self._since = 0.0
        self._cut_off = ""
        self._look_again = 0.0
        #: Whether it will never reach a broker again.
        self.given_up = False

    def said(self, statistics: str) -> None:
        """Called from inside a poll: what the client says of itself."""
        try:
            found = _read(statistics)
        except msgspec.MsgspecError:  # of another form it tells nothing
            return
        now = found.ts / 1e6  # not ours: it may have waited for the poll
        brokers = found.brokers.values()
        # Not of the coordinator, which counts one each time that it has no address.
        attempts = sum(one.connects for one in brokers if one.source != "logical")
        if (
            attempts != self._attempts
            or any(one.is_reached_for() for one in brokers)
            or not self._wanted()
        ):
            self._attempts, self._since = attempts, now
        self.given_up = now - self._since > self._patience

    def heard(self, error: Any) -> None:
        """Called from inside a poll: what is wrong with the way to the brokers."""
        if error.code() in (KafkaError._ALL_BROKERS_DOWN, KafkaError._AUTHENTICATION):
            self._cut_off = str(error)

    def ask(self, now: float, client: Any) -> None:
        """If all brokers were gone, look whether one is back, now and then.

        Raises: ConnectionFailed while none is.
        """
        if not self._cut_off:
            return
        if now >= self._look_again:
            self._look_again = now + RETRY
            try:
                client.list_topics(timeout=0.5)
            except KafkaException as error:
                self._cut_off = str(error)
            else:
                self._cut_off = ""
                return
        text = f"{self._shown}: {self._cut_off}; it is tried again"
        raise ConnectionFailed(text)


def close(consumer: Any, seconds: float) -> None:
    """Leave the group, and wait so long for that: a client without a broker may never end."""
    closing = threading.Thread(target=consumer.close, name="reliable-mq-kafka-close", daemon=True)
    try:
        closing.start()
    except RuntimeError:  # no more threads in this process
        consumer.close()
    else:
        closing.join(seconds)
