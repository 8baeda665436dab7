"""A blocking channel for what is done rarely: declaring, checking, reading dead letters."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pika
import pika.exceptions

from reliable_mq.adapters.rabbitmq.link import cause_of
from reliable_mq.errors import ConnectionFailed, TransportError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from reliable_mq.adapters.rabbitmq.parameters import Parameters

__all__ = ["Session", "session"]


class Session:
    """A connection, and a channel that is opened again when the broker has closed it."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._channel: Any = None

    @property
    def channel(self) -> Any:
        """An open channel."""
        if self._channel is None or not self._channel.is_open:
            self._channel = self._connection.channel()
        return self._channel

    @property
    def release(self) -> int:
        """The first number of the broker's version; 0: it does not say."""
        version = str(self._connection._impl.server_properties.get("version", ""))  # noqa: SLF001
        first = version.partition(".")[0]
        return int(first) if first.isdigit() else 0

    def ask(self, call: Callable[[Any], object]) -> pika.exceptions.ChannelClosedByBroker | None:
        """Do something with the channel: None, or how the broker refused it."""
        try:
            call(self.channel)
        except pika.exceptions.ChannelClosedByBroker as error:
            return error
        return None


@contextmanager
def session(parameters: Parameters) -> Iterator[Session]:
    """Connect to the first node that answers.

    Raises: ConnectionFailed when none does; TransportError when the connection breaks.
    """
    failed: Exception | None = None
    connection = None
    for node in parameters.nodes:
        try:
            connection = pika.BlockingConnection(node)
            break
        except (pika.exceptions.AMQPError, OSError, RuntimeError) as error:
            failed = error  # RuntimeError: no thread left to look the name up
    if connection is None:
        why = cause_of(failed) if failed is not None else "no host"
        text = f"{parameters}: no connection: {why}"
        raise ConnectionFailed(text) from failed
    try:
        yield Session(connection)
    except pika.exceptions.AMQPError as error:
        text = f"{parameters}: {cause_of(error)}"
        raise TransportError(text) from error
    finally:
        with suppress(pika.exceptions.AMQPError, OSError):
            connection.close()
