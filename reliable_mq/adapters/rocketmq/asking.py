"""Acks and changes of time: in batches where the broker takes them, with an answer for each."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from reliable_mq.adapters.rocketmq.connection import CallFailed
from reliable_mq.adapters.rocketmq.hand import State
from reliable_mq.adapters.rocketmq.wire import Code, span, types
from reliable_mq.errors import ReliableMQError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from reliable_mq.adapters.rocketmq.client import Client
    from reliable_mq.adapters.rocketmq.connection import Connection
    from reliable_mq.adapters.rocketmq.hand import Held
    from reliable_mq.adapters.rocketmq.io import Io
    from reliable_mq.adapters.rocketmq.mailbox import Mailbox

__all__ = ["Asking"]

#: Changes of time under way at once: each message needs one of its own.
AT_ONCE: Final = 64
#: Seconds that one request may take.
WITHIN: Final = 3.0
#: Share of the time asked for that is believed: clocks differ.
MARGIN: Final = 0.95


class Asking:
    """Of one subscription; RocketMQ's thread only.

    Args:
        time: Seconds for which a message is asked for again.
        on_change: Called when there may be more to do.
    """

    def __init__(
        self,
        io: Io,
        clients: Mapping[str, Client],
        mailbox: Mailbox,
        time: float,
        on_change: Callable[[], object],
    ) -> None:
        self._io = io
        self._clients = clients
        self._mailbox = mailbox
        self._now = mailbox.monotonic
        self._time = time
        self._on_change = on_change
        self._room = asyncio.Semaphore(AT_ONCE)
        self._stopped = False

    def stop(self) -> None:
        """Begin nothing more."""
        self._stopped = True

    def work(self, now: float) -> None:
        """Send what is due."""
        if self._stopped:
            return
        with self._mailbox.gate:
            hand = self._mailbox.hand
            hand.expire(now)
            acks = hand.to_ack(now)
            leaving = hand.to_leave(now)
            renewed = hand.to_renew(now)
            self._mailbox.tell()
        for batch in acks:
            self._io.start(self._ack(batch), f"acks of {batch[0].source.topic}")
        for held in leaving:
            self._io.start(
                self._change(held, held.leave_for, keep=False),
                f"giving back to {held.source.topic}",
            )
        for held in renewed:
            self._io.start(
                self._change(held, self._time, keep=True), f"keeping of {held.source.topic}"
            )

    async def _connection(self, held: Held) -> Connection:
        """To the proxy that it came from."""
        connection = self._clients[held.source.group].connection(held.addresses)
        if not await connection.up(WITHIN):
            text = connection.reason or f"{connection.place} cannot be reached"
            raise CallFailed(text, sent=False)
        return connection

    async def _ack(self, batch: list[Held]) -> None:
        source = batch[0].source
        config = self._clients[source.group].config
        request = types().AckMessageRequest()
        request.group.CopyFrom(config.resource(source.group))
        request.topic.CopyFrom(config.resource(source.topic))
        for held in batch:
            request.entries.add(message_id=held.wire_id, receipt_handle=held.handle)
        codes: dict[str, int] = {}
        whole = 0
        try:
            connection = await self._connection(batch[0])
            answer = await connection.ask("AckMessage", request, WITHIN)
        except ReliableMQError as error:
            self._mailbox.cut_off(str(error))
        else:
            whole = answer.status.code
            codes = {entry.receipt_handle: entry.status.code for entry in answer.entries}
        now = self._now()
        with self._mailbox.gate:
            for held in batch:
                code = codes.get(held.handle, whole)
                self._mailbox.hand.acked(held, taken=_taken(code), now=now)
            self._mailbox.tell()
        self._on_change()

    async def _change(self, held: Held, seconds: float, *, keep: bool) -> None:
        config = self._clients[held.source.group].config
        request = types().ChangeInvisibleDurationRequest()
        request.group.CopyFrom(config.resource(held.source.group))
        request.topic.CopyFrom(config.resource(held.source.topic))
        request.receipt_handle, request.message_id = held.handle, held.wire_id
        span(seconds, request.invisible_duration)
        async with self._room:
            asked_at = self._now()
            try:
                connection = await self._connection(held)
                answer = await connection.ask("ChangeInvisibleDuration", request, WITHIN)
                code, handle = answer.status.code, answer.receipt_handle
            except ReliableMQError as error:
                self._mailbox.cut_off(str(error))
                code, handle = 0, ""
        again = False
        with self._mailbox.gate:
            hand = self._mailbox.hand
            if code == Code.OK and not keep:
                hand.left(held)
            elif code == Code.OK:
                hand.changed(held, handle, asked_at, self._time * MARGIN)
                again = held.state in (State.ACKING, State.LEAVING)
            elif _taken(code) is False:
                hand.changed(held, None, asked_at, self._time)
            else:
                hand.not_changed(held, self._now())
            self._mailbox.tell()
        if again or not keep:
            self._on_change()


def _taken(code: int) -> bool | None:
    """What an answer means for one message: taken, not ours any more, or nobody knows."""
    if code == Code.OK:
        return True
    return False if code == Code.INVALID_HANDLE else None
