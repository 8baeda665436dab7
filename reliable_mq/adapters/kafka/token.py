"""One publish on its way. librdkafka calls it with the report, which has no headers to tell by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import Struct

from reliable_mq.confirmation import Confirmation

if TYPE_CHECKING:
    from reliable_mq.adapters.kafka.publisher import KafkaPublisher

__all__ = ["Token"]


class Token(Struct, eq=False, gc=False):  # its cycle ends with it
    """`sent`: librdkafka has it, and may have sent it; `in_doubt`: an earlier producer had."""

    publisher: Any
    confirmation: Confirmation
    to: str
    headers: list[tuple[str, bytes | str]]
    deadline: float | None
    size: int
    sent: bool = False
    in_doubt: bool = False

    def __call__(self, error: Any, record: Any) -> None:
        """The report. Never raises: it would come out of somebody's poll."""
        publisher: KafkaPublisher = self.publisher
        publisher.reported(self, error, record)
