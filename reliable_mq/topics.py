"""Declaring topics; each is a handle with its name, its payload type, and publishing to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from reliable_mq.adapters.base import GroupSpec, TopicSpec
from reliable_mq.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reliable_mq.confirmation import Confirmation
    from reliable_mq.message import Message, Receipt
    from reliable_mq.publishing import Publishing

__all__ = ["TopicHandle", "Topics"]

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


class Topics:
    """Declares topics. For the app, which holds them."""

    _topics: dict[str, TopicSpec]

    @overload
    def topic(
        self, name: str, type: type[T], *, groups: Sequence[str] = (), ordered: bool = True
    ) -> TopicHandle[T]: ...
    @overload
    def topic(
        self, name: str, type: None = None, *, groups: Sequence[str] = (), ordered: bool = True
    ) -> TopicHandle[Any]: ...
    def topic(
        self,
        name: str,
        type: type[T] | None = None,  # noqa: A002 - it types the handle
        *,
        groups: Sequence[str] = (),
        ordered: bool = True,
    ) -> TopicHandle[Any]:
        """Declare a topic, with the groups whose queues shall exist before anybody publishes.

        Raises: ConfigurationError when it is declared already, otherwise.
        """
        if isinstance(groups, str):
            msg = (
                f"topic({name!r}, groups={groups!r}): a sequence of names, as groups=({groups!r},)"
            )
            raise ConfigurationError(msg)
        spec = TopicSpec(name, ordered, tuple(GroupSpec(group) for group in groups))
        if self._topics.setdefault(name, spec) != spec:
            msg = f"topic {name!r} is declared twice, with different options"
            raise ConfigurationError(msg)
        self._topics_changed()
        return TopicHandle(self, name, ordered=ordered, groups=tuple(groups))  # type: ignore[arg-type]  # an app is both

    def _topics_changed(self) -> None:
        """For the app, which may have to tell the broker."""
