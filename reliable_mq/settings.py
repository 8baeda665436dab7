"""From a URL, a keyword or an environment variable to what the app runs on.

An argument beats the environment, the environment beats the default. The environment is read when
the app first connects, never at import and never by a constructor. Only this module knows which
adapter a URL means.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Literal, cast
from urllib.parse import parse_qsl, urlsplit

from msgspec.structs import replace

from reliable_mq.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from reliable_mq.adapters.base import Transport
    from reliable_mq.clock import Clock

__all__ = ["Settings", "open_transport", "read_settings"]

DEFAULT_PUBLISH_TIMEOUT: Final = 10.0
#: Schemes whose adapters are not built yet, and what they will be.
COMING: Final = {
    "rocketmq": "RocketMQ",
    "rocketmq-legacy": "RocketMQ",
}
#: Options of a URL, `?name=value`, that the embedded brokers take.
OPTIONS: Final[dict[str, type]] = {"lease_timeout": float, "retention": float, "max_body": int}

TopologyMode = Literal["create", "check"]


class Settings:
    """What an app was given, completed from the environment."""

    def __init__(self, url: str, topology: TopologyMode, publish_timeout: float) -> None:
        self.url = url
        self.topology = topology
        self.publish_timeout = publish_timeout


def read_settings(
    url: str | None,
    topology: str | None,
    publish_timeout: float | None,
    *,
    name: str,
    environ: Mapping[str, str] = os.environ,
) -> Settings:
    """Complete what the constructor was given.

    With name="legacy" the variables are RELIABLE_MQ_LEGACY_URL, RELIABLE_MQ_LEGACY_TOPOLOGY and so
    on; without one RELIABLE_MQ_URL, RELIABLE_MQ_TOPOLOGY, RELIABLE_MQ_PUBLISH_TIMEOUT.

    Raises: ConfigurationError when there is no URL, or a value that cannot be.
    """
    prefix = f"RELIABLE_MQ_{name.upper().replace('-', '_')}_" if name else "RELIABLE_MQ_"
    url = url or environ.get(prefix + "URL")
    if not url:
        msg = f"no broker given: ReliableMQ('sqlite:///file.db'), or {prefix}URL in the environment"
        raise ConfigurationError(msg)
    topology = topology or environ.get(prefix + "TOPOLOGY") or "create"
    if topology not in ("create", "check"):
        msg = f"topology={topology!r}: it is 'create' or 'check'"
        raise ConfigurationError(msg)
    if publish_timeout is None:
        text = environ.get(prefix + "PUBLISH_TIMEOUT", str(DEFAULT_PUBLISH_TIMEOUT))
        publish_timeout = _number(f"{prefix}PUBLISH_TIMEOUT", text, float)
    if not 0 < publish_timeout < float("inf"):
        msg = f"publish_timeout={publish_timeout!r}: seconds, above 0"
        raise ConfigurationError(msg)
    return Settings(url, cast("TopologyMode", topology), publish_timeout)


def open_transport(url: str, *, clock: Clock) -> Transport:
    """The adapter that a URL means. Opens nothing yet.

    sqlite:///orders.db is a file in the working directory, sqlite:////var/lib/orders.db an absolute
    path; memory:// is a broker of this app alone, which ends with it.

    Raises: ConfigurationError for a URL that means nothing here; its text hides the password.
    """
    scheme = urlsplit(url).scheme
    if scheme in COMING:
        broker = COMING[scheme]
        msg = f"{shown(url)}: the adapter for {broker} is not built yet; use sqlite:///file.db"
        raise ConfigurationError(msg)
    if scheme not in BUILT:
        built = ("sqlite:///file", "memory://", "amqp://host", "kafka://host")
        known = ", ".join([*built, *(f"{name}://" for name in COMING)])
        what = f"{scheme}://" if scheme else "this"
        msg = f"{shown(url)}: no adapter for {what}; there are {known}"
        raise ConfigurationError(msg)
    return BUILT[scheme](url, clock)


# Adapters are imported here: an app pays for the one it uses, and for its client library, only.


def _memory(url: str, clock: Clock) -> Transport:
    from reliable_mq.adapters.memory import CAPABILITIES, MemoryBroker, MemoryTransport

    capabilities = replace(CAPABILITIES, **_options(url, "lease_timeout", "max_body"))
    return MemoryTransport(MemoryBroker(clock, capabilities=capabilities))


def _sqlite(url: str, clock: Clock) -> Transport:
    from reliable_mq.adapters.sqlite import SqliteTransport

    parts = urlsplit(url)
    path = parts.path.removeprefix("/")
    if parts.netloc or not path:
        msg = f"{shown(url)}: write sqlite:///file.db, or sqlite:////absolute/path.db"
        raise ConfigurationError(msg)
    return SqliteTransport(path, clock=clock, **_options(url, *OPTIONS))


def _rabbitmq(url: str, clock: Clock) -> Transport:
    with _extra(url, "pika", "rabbitmq"):
        from reliable_mq.adapters.rabbitmq import RabbitTransport

    return RabbitTransport(url, clock=clock)


def _kafka(url: str, clock: Clock) -> Transport:
    with _extra(url, "confluent_kafka", "kafka"):
        from reliable_mq.adapters.kafka import KafkaTransport

    return KafkaTransport(url, clock=clock)


@contextmanager
def _extra(url: str, package: str, extra: str) -> Iterator[None]:
    """What an import within lacks is told as what to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        name = package.replace("_", "-")
        msg = f"{shown(url)} needs {name}: pip install 'reliable-mq[{extra}]'"
        raise ConfigurationError(msg) from error


BUILT: Final[dict[str, Callable[[str, Clock], Transport]]] = {
    "memory": _memory,
    "sqlite": _sqlite,
    "amqp": _rabbitmq,
    "amqps": _rabbitmq,
    "kafka": _kafka,
}


def shown(url: str) -> str:
    """A URL fit for a text: without user, password and options."""
    parts = urlsplit(url)
    if parts.fragment or "@" in parts.path + parts.query:
        return f"{parts.scheme}://…"  # a password that is not encoded may stand anywhere
    host = parts.netloc.rpartition("@")[2]
    secret = "***@" if "@" in parts.netloc else ""
    return f"{parts.scheme}://{secret}{host}{parts.path}"


def _options(url: str, *allowed: str) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for name, text in parse_qsl(urlsplit(url).query, keep_blank_values=True):
        if name not in allowed:
            msg = f"{shown(url)}: unknown option {name!r}; there are {', '.join(sorted(allowed))}"
            raise ConfigurationError(msg)
        given[name] = _number(f"option {name!r}", text, OPTIONS[name])
    return given


def _number(name: str, text: str, kind: type) -> Any:
    try:
        return kind(text)
    except ValueError:
        msg = f"{name}: {text!r} is no number"
        raise ConfigurationError(msg) from None
