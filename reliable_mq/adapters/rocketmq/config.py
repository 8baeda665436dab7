"""From a URL to where RocketMQ's proxies are, who we are there, and how it is asked.

    rocketmq://proxy:8081?namesrv=nameserver:9876
    rocketmq://access:secret@proxy-1:8081,proxy-2:8081?tls=yes&cafile=ca.pem

Several hosts are proxies of one cluster: whoever does not answer is left for the next. `namesrv` is
needed to make topics and groups, for `start_from`, lag and dead letters; all else goes through the
proxy.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

import grpc
from msgspec import Struct

from reliable_mq.adapters.rocketmq.wire import types
from reliable_mq.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Address", "Config", "Options", "parse"]

PROXY_PORT: Final = 8081
NAMESRV_PORT: Final = 9876
#: The broker takes 4 MiB; dead letters of a body of this size fit beside what we write about them.
LARGEST: Final = 4 * 1024 * 1024 - 32 * 1024

Address = tuple[str, int]
#: Kinds of addresses, as the protocol has them.
IPV4, IPV6, NAME = 1, 2, 3

NUMBERS: Final[dict[str, type]] = {
    "lease_timeout": float,
    "long_poll": float,
    "request_timeout": float,
    "connect_timeout": float,
    "max_body": int,
    "queues": int,
    "window": int,
}
FILES: Final = ("cafile", "certfile", "keyfile")
OTHERS: Final = ("namesrv", "namespace", "tls", "server_hostname")


class Options(Struct, frozen=True, kw_only=True):
    """What may be said behind the `?` of the URL. Seconds and bytes.

    lease_timeout: without a poll for so long, what is in hand goes to others. The proxy's own
        minimum is 10 s (`minInvisibleTimeMillsForRecv`).
    long_poll: for how long the broker may wait for a message to come.
    request_timeout: for one request; a send that is not answered is tried again until its deadline.
    connect_timeout: for the first connection.
    max_body: bytes of the largest body.
    queues: of topics that we make. On ordered topics so many deliveries run at once, at most.
    window: requests of a publisher that are on their way at once.
    """

    lease_timeout: float = 30.0
    long_poll: float = 5.0
    request_timeout: float = 5.0
    connect_timeout: float = 10.0
    max_body: int = LARGEST
    queues: int = 8
    window: int = 256


class Credentials(Struct, frozen=True):
    """An access key and its secret, which no text shows."""

    access: str
    secret: str

    def __repr__(self) -> str:
        return f"Credentials({self.access!r}, ***)"


class Config(Struct, frozen=True, kw_only=True, repr_omit_defaults=True):
    """What a URL says. Its text has no secret."""

    text: str
    proxies: tuple[Address, ...]
    namesrv: tuple[Address, ...]
    namespace: str
    options: Options
    credentials: Credentials | None = None
    tls: Any = None
    server_hostname: str = ""

    def __str__(self) -> str:
        return self.text

    def resource(self, name: str) -> Any:
        """The name of a topic or a group, as requests have it."""
        return types().Resource(resource_namespace=self.namespace, name=name)

    def endpoints(self) -> Any:
        """Our way in, as requests have it."""
        found = types().Endpoints(scheme=_scheme(self.proxies[0][0]))
        for host, port in self.proxies:
            found.addresses.add(host=host, port=port)
        return found


def parse(url: str) -> Config:
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
    text = f"{parts.scheme}://{'***@' if login else ''}{where}"
    if parts.path not in ("", "/"):
        msg = f"{text}: leave {parts.path!r} out; a namespace is the option `namespace`"
        raise ConfigurationError(msg)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    allowed = (*NUMBERS, *FILES, *OTHERS)
    for name in query:
        if name not in allowed:
            msg = f"{text}: unknown option {name!r}; there are {', '.join(sorted(allowed))}"
            raise ConfigurationError(msg)
    access, _, secret = login.partition(":")
    if login and not (access and secret):
        msg = f"{text}: write access key and secret, rocketmq://access:secret@host"
        raise ConfigurationError(msg)
    return Config(
        text=text,
        proxies=_addresses(text, where or "localhost", ",", PROXY_PORT),
        namesrv=_addresses(text, query.get("namesrv", ""), ",", NAMESRV_PORT),
        namespace=query.get("namespace", ""),
        options=_options(text, query),
        credentials=Credentials(unquote(access), unquote(secret)) if login else None,
        tls=_tls(text, query),
        server_hostname=query.get("server_hostname", ""),
    )


def _options(text: str, query: Mapping[str, str]) -> Options:
    given: dict[str, Any] = {}
    for name, kind in NUMBERS.items():
        if name not in query:
            continue
        try:
            given[name] = kind(query[name])
        except ValueError:
            msg = f"{text}: option {name!r} is no number: {query[name]!r}"
            raise ConfigurationError(msg) from None
        if not 0 < given[name] < float("inf"):
            msg = f"{text}: option {name!r} has to be above 0; there is no way to turn it off"
            raise ConfigurationError(msg)
    options = Options(**given)
    if options.max_body > LARGEST:
        msg = f"{text}: max_body={options.max_body}: the broker takes {LARGEST} at most"
        raise ConfigurationError(msg)
    return options


def _addresses(text: str, given: str, separator: str, default: int) -> tuple[Address, ...]:
    found = []
    for one in filter(None, given.split(separator)):
        try:
            parts = urlsplit(f"//{one}")
            found.append((parts.hostname or "localhost", parts.port or default))
        except ValueError:
            msg = f"{text}: {one!r} is no host and port"
            raise ConfigurationError(msg) from None
    return tuple(found)


def _tls(text: str, query: Mapping[str, str]) -> Any:
    wanted = query.get("tls", "yes" if any(name in query for name in FILES) else "no")
    if wanted not in ("yes", "no"):
        msg = f"{text}: tls={wanted!r}: it is 'yes' or 'no'"
        raise ConfigurationError(msg)
    if wanted == "no":
        if any(name in query for name in (*FILES, "server_hostname")):
            msg = f"{text}: tls=no with options of TLS: leave one of them out"
            raise ConfigurationError(msg)
        return None
    if ("certfile" in query) != ("keyfile" in query):
        msg = f"{text}: certfile and keyfile belong together"
        raise ConfigurationError(msg)
    try:
        contents = [Path(query[name]).read_bytes() if name in query else None for name in FILES]
    except OSError as error:
        msg = f"{text}: a certificate cannot be read: {error}"
        raise ConfigurationError(msg) from error
    ca, certificate, key = contents
    return grpc.ssl_channel_credentials(ca, key, certificate)


def _scheme(host: str) -> int:
    try:
        return IPV4 if isinstance(ipaddress.ip_address(host), ipaddress.IPv4Address) else IPV6
    except ValueError:
        return NAME
