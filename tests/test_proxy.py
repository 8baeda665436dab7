from __future__ import annotations

import socket
import struct
import threading
import time
from contextlib import closing
from typing import cast

import pytest

from reliable_mq.testing.brokers import Proxy
from reliable_mq.testing.brokers.flow import Flow, Pipe

#: SO_LINGER: close as usual, or by a reset.
FIN, RST = struct.pack("ii", 0, 0), struct.pack("ii", 1, 0)


class Echo:
    """A server that sends back what it gets, and remembers it."""

    def __init__(self) -> None:
        self.got = bytearray()
        self.ended: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"amqp://guest:guest@127.0.0.1:{self._listener.getsockname()[1]}/vhost"
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                one, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(one,), daemon=True)
            thread.start()
            self._threads.append(thread)

    def _serve(self, one: socket.socket) -> None:
        with closing(one):
            try:
                while data := one.recv(65536):
                    self.got += data
                    one.sendall(data)
                self.ended.append("end")
            except OSError as error:
                self.ended.append(type(error).__name__)

    def close(self) -> None:
        """End it and its threads."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)


@pytest.fixture
def echo():
    """A server."""
    server = Echo()
    yield server
    server.close()


@pytest.fixture
def proxy(echo):
    """A proxy before it."""
    with Proxy(echo.url) as made:
        yield made


@pytest.fixture
def client(proxy):
    """A client of the proxy."""
    with socket.create_connection(("127.0.0.1", proxy.port), 10) as one:
        yield one


def take(client: socket.socket, count: int) -> bytes:
    """So many bytes, or fewer where the connection ends first."""
    data = b""
    while len(data) < count and (more := client.recv(count - len(data))):
        data += more
    return data


def take_one(proxy: Proxy) -> bytes:
    """Connect, and take a byte."""
    with socket.create_connection(("127.0.0.1", proxy.port), 10) as client:
        return client.recv(1)


def end(client: socket.socket, how: bytes) -> None:
    """Close it this way."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, how)
    client.close()


def nothing_ends(proxy: Proxy) -> bool:
    """Whether its connections stay for a while."""
    return not proxy.comes_to(lambda it: it.connections == 0, 0.1)


def nothing_comes(client: socket.socket, within: float = 0.1) -> bool:
    """Whether nothing arrives for a while, not even the end."""
    client.settimeout(within)
    try:
        client.recv(1)
    except TimeoutError:
        return True
    finally:
        client.settimeout(10)
    return False


def test_it_passes_what_it_gets_and_counts_it(proxy, client, echo) -> None:
    """Both ways, in order, to the last byte of much; and the end of it."""
    sent = bytes(range(256)) * 4_096
    sender = threading.Thread(target=client.sendall, args=(sent,))
    sender.start()

    assert take(client, len(sent)) == sent
    sender.join()
    client.shutdown(socket.SHUT_WR)
    assert client.recv(1) == b""
    assert (proxy.accepted, proxy.up.passed, proxy.down.passed) == (1, len(sent), len(sent))
    assert proxy.comes_to(lambda it: it.connections == 0)
    assert echo.ended == ["end"]


def test_its_url_is_the_brokers_with_another_port(proxy, echo) -> None:
    """User, password and path stay."""
    assert proxy.url == f"amqp://guest:guest@127.0.0.1:{proxy.port}/vhost"
    with pytest.raises(ValueError, match="one node"):
        Proxy("amqp://127.0.0.1:1,127.0.0.1:2/")


def test_latency_is_added_once_to_each_byte(proxy, client) -> None:
    """Ten messages on their way together take one latency, not ten."""
    proxy.up.latency = 0.15
    began = time.monotonic()
    for _ in range(10):
        client.sendall(b"0123456789")

    assert take(client, 100) == b"0123456789" * 10
    assert 0.15 <= time.monotonic() - began < 1.0


def test_a_rate_bounds_the_bytes_per_second(proxy, client) -> None:
    """20 kB at 100 kB/s take a fifth of a second."""
    proxy.down.rate = 100_000
    began = time.monotonic()
    client.sendall(bytes(20_000))

    assert len(take(client, 20_000)) == 20_000
    assert 0.15 <= time.monotonic() - began < 3.0


def test_a_slicer_makes_small_pieces(proxy, client) -> None:
    """What was sent at once arrives in pieces of at most that size."""
    proxy.down.slice = 3
    proxy.down.pause = 0.01
    client.sendall(b"0123456789")

    pieces = []
    while sum(map(len, pieces)) < 10:
        pieces.append(client.recv(100))
    assert b"".join(pieces) == b"0123456789"
    assert len(pieces) > 1


def test_a_cut_resets_and_refuses_until_it_is_restored(proxy, client, echo) -> None:
    """Who was connected gets an error at once, who comes is refused; the same port works again."""
    client.sendall(b"x")
    assert take(client, 1) == b"x"

    proxy.cut()

    with pytest.raises(ConnectionResetError):
        client.recv(1)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", proxy.port), 10)
    assert proxy.comes_to(lambda it: len(echo.ended) == 1)
    proxy.restore()
    with socket.create_connection(("127.0.0.1", proxy.port), 10) as again:
        again.sendall(b"y")
        assert take(again, 1) == b"y"


def test_a_cut_that_does_not_refuse(proxy, client) -> None:
    """Connections end, and the next one works."""
    client.sendall(b"x")
    assert take(client, 1) == b"x"

    proxy.cut(refuse=False)

    with pytest.raises(ConnectionResetError):
        client.recv(1)
    with socket.create_connection(("127.0.0.1", proxy.port), 10) as again:
        again.sendall(b"y")
        assert take(again, 1) == b"y"


@pytest.mark.parametrize("count", [0, 1, 7, 9])
def test_a_reset_after_n_bytes_lets_exactly_n_through(proxy, client, echo, count) -> None:
    """The server has n bytes, not one more or less, and both ends see a reset; then all is well."""
    client.sendall(b"before")
    assert take(client, 6) == b"before"

    proxy.up.reset_after = count
    with pytest.raises(OSError, match=r"reset|Broken"):  # noqa: PT012 - either may see it
        client.sendall(b"0123456789")
        take(client, count + 1)

    assert proxy.comes_to(lambda it: len(echo.ended) == 1)
    assert bytes(echo.got) == b"before" + b"0123456789"[:count]
    assert echo.ended == ["ConnectionResetError"]
    assert proxy.up.reset_after is None
    with socket.create_connection(("127.0.0.1", proxy.port), 10) as again:
        again.sendall(b"again")
        assert take(again, 5) == b"again"


class Quick:
    """A sink whose other end sets a reset as soon as it has the bytes, before `send` is back."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow

    def send(self, data: bytes) -> int:
        """See socket."""
        if self.flow.reset_after is None:
            self.flow.reset_after = 18
        return len(data)


def test_what_has_passed_already_does_not_count_for_a_reset() -> None:
    """Its other end has the bytes, and sets a reset behind the next 18."""
    flow = Flow()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        pipe = Pipe(flow, ours, cast("socket.socket", Quick(flow)))
        theirs.sendall(b"x" * 21)
        pipe.take(0.0)

        assert not pipe.give(0.0)

        assert flow.reset_after == 18
        theirs.sendall(b"y" * 21)
        pipe.take(0.0)
        assert pipe.give(0.0)
        assert flow.passed == 21 + 18


def test_a_reset_of_answers_comes_after_the_request_has_arrived(proxy, client, echo) -> None:
    """The server did what it was told, and the client gets the first n bytes of the answer."""
    proxy.down.reset_after = 4

    client.sendall(b"0123456789")

    assert take(client, 4) == b"0123"
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    assert bytes(echo.got) == b"0123456789"


def test_held_answers_come_later_and_whole(proxy, client, echo) -> None:
    """What flows up arrives meanwhile."""
    proxy.down.held = True
    client.sendall(b"0123456789")
    assert proxy.comes_to(lambda it: bytes(echo.got) == b"0123456789")
    assert nothing_comes(client)

    proxy.down.held = False

    assert take(client, 10) == b"0123456789"


@pytest.mark.parametrize("how", [FIN, RST], ids=["fin", "rst"])
def test_a_partition_keeps_also_the_end(proxy, client, echo, how) -> None:
    """Nothing gets through, and neither end learns that the other has gone, until it heals."""
    client.sendall(b"x")
    assert take(client, 1) == b"x"
    proxy.hold()
    client.sendall(b"y")
    assert proxy.comes_to(lambda it: it.up.read == 2)
    end(client, how)
    assert nothing_ends(proxy)
    assert (bytes(echo.got), echo.ended) == (b"x", [])

    proxy.restore()

    assert proxy.comes_to(lambda it: bool(echo.ended))
    assert bytes(echo.got) == b"xy"


def test_a_black_hole_takes_everything_and_gives_nothing(proxy, client, echo) -> None:
    """Connections are accepted and stay open; neither way does a byte or an end arrive."""
    proxy.swallow()

    client.sendall(b"lost")

    assert proxy.comes_to(lambda it: it.up.read == 4)
    assert nothing_comes(client)
    with socket.create_connection(("127.0.0.1", proxy.port), 10) as another:
        assert nothing_comes(another)
    assert (bytes(echo.got), echo.ended) == (b"", [])


@pytest.mark.parametrize("fault", ["hold", "swallow"])
@pytest.mark.parametrize("how", [FIN, RST], ids=["fin", "rst"])
def test_who_leaves_in_silence_is_not_missed(proxy, client, echo, fault, how) -> None:
    """Also where no byte is on its way: the broker keeps a connection that nobody has."""
    client.sendall(b"x")
    assert take(client, 1) == b"x"
    getattr(proxy, fault)()

    end(client, how)

    assert nothing_ends(proxy)
    assert echo.ended == []


def test_answers_that_are_dropped(proxy, client, echo) -> None:
    """One way only: the request arrives, the answer never does, later ones do."""
    proxy.down.swallowed = True
    client.sendall(b"lost")
    assert proxy.comes_to(lambda it: it.down.read == 4)

    proxy.down.swallowed = False
    client.sendall(b"kept")

    assert take(client, 4) == b"kept"
    assert bytes(echo.got) == b"lostkept"


def test_a_broker_that_is_down_is_a_connection_that_ends(echo) -> None:
    """The proxy accepts, and the client is told at once."""
    with Proxy("amqp://127.0.0.1:1/") as proxy:
        with pytest.raises(ConnectionResetError):
            take_one(proxy)
        assert proxy.comes_to(lambda it: it.connections == 0)


def test_closing_ends_its_connections(echo) -> None:
    """Twice is once."""
    proxy = Proxy(echo.url)
    with socket.create_connection(("127.0.0.1", proxy.port), 10) as client:
        client.sendall(b"x")
        assert take(client, 1) == b"x"
        proxy.close()
        proxy.close()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
