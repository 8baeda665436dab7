"""From a URL to what librdkafka is configured with: a profile that loses nothing by default.

    kafka://user:password@host:9092,other:9092?security.protocol=SASL_SSL&sasl.mechanism=PLAIN

Names with a dot are librdkafka's own and are passed through, but for those that would break a
promise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from msgspec import Struct

from reliable_mq.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Config", "Options", "parse"]

#: Seconds that librdkafka may be late to notice that nobody polls.
LATE: Final = 0.5
#: Names of librdkafka that would break a promise, and why.
REFUSED: Final[dict[str, str]] = {
    "acks": "a Receipt means that all in-sync replicas have the message",
    "request.required.acks": "a Receipt means that all in-sync replicas have the message",
    "enable.idempotence": "without it, retries change the order and store twice",
    "enable.gapless.guarantee": "order after a failure is kept here",
    "max.in.flight": "idempotence sets it",
    "max.in.flight.requests.per.connection": "idempotence sets it",
    "enable.auto.commit": "offsets are committed when the work is done",
    "enable.auto.offset.store": "offsets are committed when the work is done",
    "auto.offset.reset": "say start_from=, and on_out_of_range= in the URL",
    "message.timeout.ms": "say publish_timeout= or timeout=",
    "delivery.timeout.ms": "say publish_timeout= or timeout=",
    "partitioner": "all producers of a topic have to agree; murmur2_random is Java's",
    "group.id": "it is the group of the consumer",
    "max.poll.interval.ms": "say lease_timeout= in the URL, in seconds",
    "session.timeout.ms": "say session_timeout= in the URL, in seconds",
    "partition.assignment.strategy": "say assignment= in the URL",
    "group.protocol": "say group_protocol= in the URL",
    "allow.auto.create.topics": "publishing creates nothing",
    "bootstrap.servers": "it is the host of the URL",
    "metadata.broker.list": "it is the host of the URL",
    "message.send.max.retries": "after the last one, what follows would go on without it",
    "delivery.report.only.error": "no Receipt would ever come",
    "transactional.id": "publishing is not transactional",
    "enable.partition.eof": "it would come as an error",
}


#: Milliseconds: at most between two attempts to connect to a broker, and between two reports of a
#: client about itself, by which `reach` sees that it attempts nothing any more.
RECONNECT, STATISTICS = 2_000, 5_000
#: Seconds without such an attempt, at least, after which there will be none.
PATIENCE: Final = 9.0

#: How far ahead a consumer fetches, unless the URL says otherwise. librdkafka's own 100,000 records
#: of a partition take much memory for no speed, and when it has them it stops for a second.
FETCHING: Final[dict[str, Any]] = {
    "check.crcs": True,
    "topic.metadata.refresh.interval.ms": 5_000,
    "fetch.wait.max.ms": 100,
    "fetch.queue.backoff.ms": 10,
    "queued.min.messages": 2_000,
    "queued.max.messages.kbytes": 32 * 1024,
}


class Options(Struct, frozen=True, kw_only=True):
    """What may be said behind the `?` of the URL. Seconds and bytes.

    lease_timeout: without a poll for so long, what a member has in hand goes to others.
    session_timeout: without a heartbeat for so long, a member counts as dead.
    commit_interval: between two commits, while there is something to commit.
    drain_timeout: what runs when a partition is taken away has so long to end.
    on_out_of_range: where to go on when the committed offset is not there any more: "error",
        "earliest" or "latest".
    group_protocol: "classic", or "consumer" (KIP-848).
    assignment: the classic protocol's strategy.
    max_body: bytes of the largest body.
    """

    lease_timeout: float = 300.0
    session_timeout: float = 45.0
    commit_interval: float = 0.5
    drain_timeout: float = 5.0
    on_out_of_range: str = "error"
    group_protocol: str = "classic"
    assignment: str = "cooperative-sticky"
    max_body: int = 900 * 1024
    partitions: int = 6


class Config:
    """Where to connect, and how. Its text has no secret."""

    def __init__(self, native: Mapping[str, Any], options: Options, text: str) -> None:
        self.options = options
        self._native = dict(native)
        self._text = text

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return self._text

    @property
    def patience(self) -> float:
        """Seconds without an attempt to connect after which a client will make none."""
        try:
            longest = float(self._common()["reconnect.backoff.max.ms"])
        except ValueError:  # librdkafka refuses it
            longest = 0.0
        return max(PATIENCE, 3 * longest / 1000)  # it adds up to a half to it

    def admin(self) -> dict[str, Any]:
        """Of a client that only asks and declares. What goes wrong is in the answers."""
        return self._common() | {"log_level": 0, "statistics.interval.ms": 0}

    def producer(self) -> dict[str, Any]:
        """Idempotent, acks=all; a message waits until we give it up."""
        return self._common() | {
            "enable.idempotence": True,
            "acks": "all",
            "enable.gapless.guarantee": True,  # what fails stops it: nothing of a key passes
            "partitioner": "murmur2_random",
            "linger.ms": self._native.get("linger.ms", 0),  # under load batches form by themselves
            "compression.type": self._native.get("compression.type", "none"),
            "message.timeout.ms": 0,  # without end: our own deadlines tell, and leave no gap
            "queue.buffering.max.kbytes": self._native.get("queue.buffering.max.kbytes", 64 * 1024),
            "message.max.bytes": self.options.max_body + 512 * 1024,
            "allow.auto.create.topics": False,
            "topic.metadata.refresh.interval.ms": self._native.get(
                "topic.metadata.refresh.interval.ms", 10_000
            ),
        }

    def consumer(self, group: str) -> dict[str, Any]:
        """Nothing automatic; `group` is its group.id."""
        options = self.options
        config = (
            FETCHING
            | self._common()
            | {
                "group.id": group,
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "auto.offset.reset": "error",
                "isolation.level": "read_committed",
                "enable.partition.eof": True,  # behind the last message there may be other records
                "allow.auto.create.topics": False,
                "max.poll.interval.ms": int((options.lease_timeout - LATE) * 1000),
            }
        )
        if options.group_protocol == "consumer":
            return config | {"group.protocol": "consumer"}
        return config | {
            "session.timeout.ms": int(options.session_timeout * 1000),
            "heartbeat.interval.ms": max(100, int(options.session_timeout * 1000 / 10)),
            "partition.assignment.strategy": options.assignment,
        }

    def _common(self) -> dict[str, Any]:
        return {
            "client.id": "reliable-mq",
            "log_level": 3,
            "reconnect.backoff.max.ms": RECONNECT,
            "statistics.interval.ms": STATISTICS,
        } | self._native


def parse(url: str) -> Config:
    """Read a URL; opens nothing. Raises ConfigurationError; its text has no secret."""
    parts = urlsplit(url)
    login, _, hosts = parts.netloc.rpartition("@")
    odd = parts.path not in ("", "/") or parts.fragment or "@" in parts.query
    if odd or not all(hosts.split(",")):
        # None of it is shown: it may be a part of the password.
        msg = "it has to be kafka://user:password@host,host?option=value, / ? # @ in them as %2F …"
        raise ConfigurationError(msg)
    text = f"{parts.scheme}://{'***@' if login else ''}{hosts}"
    native: dict[str, Any] = {
        "bootstrap.servers": ",".join(_with_port(host) for host in hosts.split(","))
    }
    user, _, password = login.partition(":")
    if user:
        native["sasl.username"], native["sasl.password"] = unquote(user), unquote(password)
    given: dict[str, Any] = {}
    kinds = {name: type(getattr(Options(), name)) for name in Options.__struct_fields__}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name in REFUSED:
            msg = f"{text}: {name}={value} is refused: {REFUSED[name]}"
            raise ConfigurationError(msg)
        if name in kinds:
            given[name] = _number(text, name, value, kinds[name])
        elif "." in name:
            native[name] = value
        else:
            msg = f"{text}: unknown option {name!r}; there are {', '.join(sorted(kinds))}"
            raise ConfigurationError(msg)
    return Config(native, _checked(text, Options(**given)), text)


def _checked(text: str, options: Options) -> Options:
    choices = {
        "on_out_of_range": ("error", "earliest", "latest"),
        "group_protocol": ("classic", "consumer"),
        "assignment": ("cooperative-sticky", "range", "roundrobin"),
    }
    for name, allowed in choices.items():
        if getattr(options, name) not in allowed:
            msg = f"{text}: {name}={getattr(options, name)!r}: it is one of {', '.join(allowed)}"
            raise ConfigurationError(msg)
    if options.lease_timeout < options.session_timeout + LATE:
        msg = f"{text}: lease_timeout has to be at least session_timeout and {LATE} s"
        raise ConfigurationError(msg)
    return options


def _number(text: str, name: str, value: str, kind: type) -> Any:
    try:
        number = kind(value)
    except ValueError:
        msg = f"{text}: option {name!r} is no number: {value!r}"
        raise ConfigurationError(msg) from None
    if kind is not str and not number > 0:
        msg = f"{text}: option {name!r} has to be above 0"
        raise ConfigurationError(msg)
    return number


def _with_port(host: str) -> str:
    return host if ":" in host.rpartition("]")[2] else f"{host}:9092"
