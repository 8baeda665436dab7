"""From a URL to what pika connects with: hosts, credentials, TLS, and timeouts that are always set.

    amqp://user:password@host:5672,other:5672/vhost?heartbeat=10
    amqps://user:password@host/vhost?cafile=ca.pem&certfile=me.pem&keyfile=me.key

Several hosts are the nodes of one cluster: each attempt to connect takes the next.
"""

from __future__ import annotations

import ipaddress
import logging
import ssl
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

import pika
from msgspec import Struct

from reliable_mq.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Options", "Parameters", "parse"]

log = logging.getLogger("reliable_mq.rabbitmq")

#: Options of the URL, with their types.
NUMBERS: Final[dict[str, type]] = {
    "heartbeat": int,
    "blocked_timeout": float,
    "connect_timeout": float,
    "lease_timeout": float,
    "consumer_timeout": float,
    "max_body": int,
    "window": int,
}
FILES: Final = ("cafile", "certfile", "keyfile")
OTHERS: Final = ("verify", "server_hostname")


class Options(Struct, frozen=True, kw_only=True):
    """What may be said behind the `?` of the URL. Seconds and bytes.

    heartbeat: how often each side says that it lives; silence of about two means it does not.
    blocked_timeout: for how long the broker may block publishing before the connection is given up.
    connect_timeout: for one attempt: TCP, TLS and AMQP together.
    lease_timeout: without a poll for so long, what is in hand goes back to the queue.
    consumer_timeout: that of the broker (its default: 30 minutes); what nears it is given back.
    max_body: bytes of the largest body; the broker's own limit must be above it.
    window: publishes on their way to the broker without a confirm.
    """

    heartbeat: int = 10
    blocked_timeout: float = 60.0
    connect_timeout: float = 10.0
    lease_timeout: float = 30.0
    consumer_timeout: float = 1_800.0
    max_body: int = 15 * 1024 * 1024
    window: int = 1_000


class Parameters:
    """Where to connect. Its text has no secret."""

    def __init__(self, nodes: list[pika.ConnectionParameters], options: Options, text: str) -> None:
        self.nodes = nodes
        self.options = options
        self._text = text

    def __repr__(self) -> str:
        return self._text

    def __str__(self) -> str:
        return self._text


def parse(url: str) -> Parameters:
    """Read a URL; opens nothing but the files of certificates.

    Raises: ConfigurationError; its text has no password.
    """
    parts = urlsplit(url)
    login, _, where = parts.netloc.rpartition("@")
    if parts.fragment or "@" in parts.path + parts.query:
        msg = (
            f"{parts.scheme}://…: a user or password with one of / ? # @ has to be written in "
            "percent encoding, as %2F %3F %23 %40"
        )
        raise ConfigurationError(msg)
    text = f"{parts.scheme}://{'***@' if login else ''}{where}{parts.path}"
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    allowed = (*NUMBERS, *FILES, *OTHERS)
    for name in query:
        if name not in allowed:
            msg = f"{text}: unknown option {name!r}; there are {', '.join(sorted(allowed))}"
            raise ConfigurationError(msg)
    options = _options(text, query)
    user, _, password = login.partition(":")
    user, password = unquote(user) or "guest", unquote(password) or "guest"
    secure = parts.scheme == "amqps"
    context = _tls(text, query) if secure else None
    shared = {
        "virtual_host": unquote(parts.path[1:]) or "/",
        "credentials": pika.PlainCredentials(user, password, erase_on_connect=False),
        "heartbeat": options.heartbeat,
        "blocked_connection_timeout": options.blocked_timeout,
        "connection_attempts": 1,
        "socket_timeout": options.connect_timeout / 2,
        "stack_timeout": options.connect_timeout,
        "client_properties": {"connection_name": "reliable-mq", "product": "reliable-mq"},
        "tcp_options": {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3},
    }
    nodes = []
    for host, port in _hosts(text, where, 5671 if secure else 5672):
        name = query.get("server_hostname", host)
        tls = None if context is None else pika.SSLOptions(context, name)
        nodes.append(pika.ConnectionParameters(host, port, ssl_options=tls, **shared))
    if user == "guest" and not all(_is_loopback(node.host) for node in nodes):
        log.warning("%s: user guest away from this machine; give the app a user of its own", text)
    return Parameters(nodes, options, text)


def _options(text: str, query: Mapping[str, str]) -> Options:
    given: dict[str, Any] = {}
    for name, kind in NUMBERS.items():
        if name in query:
            try:
                given[name] = kind(query[name])
            except ValueError:
                msg = f"{text}: option {name!r} is no number: {query[name]!r}"
                raise ConfigurationError(msg) from None
            if not given[name] > 0:
                msg = f"{text}: option {name!r} has to be above 0; there is no way to turn it off"
                raise ConfigurationError(msg)
    return Options(**given)


def _hosts(text: str, where: str, default: int) -> list[tuple[str, int]]:
    hosts = []
    for one in where.split(","):
        try:
            parts = urlsplit(f"//{one}")
            hosts.append((parts.hostname or "localhost", parts.port or default))
        except ValueError:
            msg = f"{text}: {one!r} is no host and port"
            raise ConfigurationError(msg) from None
    return hosts


def _tls(text: str, query: Mapping[str, str]) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=query.get("cafile"))
        if "certfile" in query:
            context.load_cert_chain(query["certfile"], query.get("keyfile"))
    except (OSError, ssl.SSLError) as error:
        msg = f"{text}: a certificate cannot be read: {error}"
        raise ConfigurationError(msg) from error
    verify = query.get("verify", "yes")
    if verify not in ("yes", "no"):
        msg = f"{text}: verify={verify!r}: it is 'yes' or 'no'"
        raise ConfigurationError(msg)
    if verify == "no":
        log.warning("%s: verify=no: anybody on the way can read and change everything", text)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
