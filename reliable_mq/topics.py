"""A declared topic as a handle: its name, its payload type, and publishing to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from typing import Any

    from reliable_mq.confirmation import Confirmation
    from reliable_mq.message import Message, Receipt
    from reliable_mq.publishing import Publishing

__all__ = ["TopicHandle"]

T = TypeVar("T")


class TopicHandle(Generic[T]):
    """Stands where a topic's name does, and publishes values of its type. Any thread."""

    def __init__(
        self, app: Publishing, name: str, *, ordered: bool, groups: tuple[str, ...]
    ) -> None:
        self.name = name
        self.ordered = ordered
        self.groups = groups
        self._app = app

    def publish(self, value: T, **options: Any) -> Receipt:
        """As `ReliableMQ.publish`, to this topic."""
        return self._app.publish(self.name, value, **options)

    def submit(self, value: T, **options: Any) -> Confirmation:
        """As `ReliableMQ.submit`, to this topic."""
        return self._app.submit(self.name, value, **options)

    def message(self, value: T, **options: Any) -> Message:
        """As `ReliableMQ.message`, to this topic."""
        return self._app.message(self.name, value, **options)

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"<topic {self.name!r}>"
