"""Who we are to the broker: what every request says of us, signed where there are credentials."""

from __future__ import annotations

import hashlib
import hmac
import os
import platform
import socket
from datetime import datetime, timezone
from itertools import count
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from reliable_mq.adapters.rocketmq.wire import types
from reliable_mq.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from reliable_mq.adapters.rocketmq.config import Config

__all__ = ["Identity"]

#: Of the protocol that we speak; the proxy compares it with the versions that features came with.
PROTOCOL_VERSION: Final = "5.0.8"
PRODUCER, SIMPLE_CONSUMER = 1, 3


class Identity:
    """One producer, or one member of one group. The loop's thread only.

    Args:
        group: None for a producer.
        now: Epoch seconds: the proxy refuses a signature whose time is far from its own.
    """

    def __init__(self, config: Config, group: str | None, now: Callable[[], float]) -> None:
        self.config = config
        self.group = group
        self.client_id = f"{socket.gethostname()}@{os.getpid()}@{uuid4().hex[:12]}"
        self._now = now
        self._numbers = count(1)
        self._second = -1
        self._shared: tuple[tuple[str, str], ...] = ()

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The headers of one request."""
        second = int(self._now())
        if second != self._second:
            self._second, self._shared = second, self._of_second(second)
        return (*self._shared, ("x-mq-request-id", f"{self.client_id}-{next(self._numbers)}"))

    def heartbeat(self) -> Any:
        """The request of a heartbeat."""
        request = types().HeartbeatRequest(client_type=self._kind())
        if self.group is not None:
            request.group.CopyFrom(self.config.resource(self.group))
        return request

    def termination(self) -> Any:
        """The request that tells that we leave."""
        request = types().NotifyClientTerminationRequest()
        if self.group is not None:
            request.group.CopyFrom(self.config.resource(self.group))
        return request

    def settings(self, topics: Sequence[str]) -> Any:
        """What the proxy is told first: which topics we publish to, or consume."""
        settings = types().Settings(client_type=self._kind())
        settings.access_point.CopyFrom(self.config.endpoints())
        settings.request_timeout.seconds = max(1, int(self.config.options.request_timeout))
        agent = settings.user_agent
        agent.language, agent.version = 6, __version__
        agent.platform, agent.hostname = platform.system(), socket.gethostname()
        if self.group is None:
            settings.publishing.topics.extend(self.config.resource(topic) for topic in topics)
            settings.publishing.SetInParent()
            return settings
        subscription = settings.subscription
        subscription.group.CopyFrom(self.config.resource(self.group))
        for topic in topics:
            entry = subscription.subscriptions.add()
            entry.topic.CopyFrom(self.config.resource(topic))
            entry.expression.type, entry.expression.expression = 1, "*"
        return settings

    def _kind(self) -> int:
        return PRODUCER if self.group is None else SIMPLE_CONSUMER

    def _of_second(self, second: int) -> tuple[tuple[str, str], ...]:
        time = _timestamp(second)
        found = [
            ("x-mq-client-id", self.client_id),
            ("x-mq-language", "PYTHON"),
            ("x-mq-protocol", "v2"),
            ("x-mq-client-version", PROTOCOL_VERSION),
            ("x-mq-date-time", time),
        ]
        if self.config.namespace:
            found.append(("x-mq-namespace", self.config.namespace))
        credentials = self.config.credentials
        if credentials is not None:
            digest = hmac.new(credentials.secret.encode(), time.encode(), hashlib.sha1)
            text = (
                f"MQv2-HMAC-SHA1 Credential={credentials.access}, SignedHeaders=x-mq-date-time, "
                f"Signature={digest.hexdigest().upper()}"
            )
            found.append(("authorization", text))
        return tuple(found)


def _timestamp(second: int) -> str:
    """The protocol's own way to write a time."""
    return datetime.fromtimestamp(second, tz=timezone.utc).strftime("%Y%m%dT%H%M%SZ")
