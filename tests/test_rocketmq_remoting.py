from __future__ import annotations

import json
import socket
import struct
import threading
import time

import pytest

from reliable_mq.testing.brokers.rocketmq_remoting import Refused, ask


class Server:
    """It takes one connection, keeps the request, and answers with what it was told."""

    def __init__(self, *answers: bytes, keeps_open: bool = False) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self.header: dict = {}
        self.body = b""
        self._answers = answers
        self._keeps_open = keeps_open
        self._release = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self._socket.accept()
        with connection, connection.makefile("rb") as stream:
            length, size = struct.unpack(">ii", stream.read(8))
            self.header = json.loads(stream.read(size))
            self.body = stream.read(length - 4 - size)
            for answer in self._answers:
                connection.sendall(answer)
            if self._keeps_open:
                self._release.wait(10)

    def close(self) -> None:
        """End it."""
        self._release.set()
        self._thread.join(10)
        self._socket.close()


@pytest.fixture
def serving():
    """A function that makes a server, until the test ends."""
    made = []

    def serve(*answers: bytes, **options) -> Server:
        made.append(Server(*answers, **options))
        return made[-1]

    yield serve
    for one in made:
        one.close()


def frame(header: dict, body: bytes = b"", *, written_as: int = 0) -> bytes:
    """As a broker writes it."""
    data = json.dumps(header).encode()
    return struct.pack(">iI", 4 + len(data) + len(body), written_as << 24 | len(data)) + data + body


OK = {"code": 0, "flag": 1, "opaque": 1}


def test_a_request_is_written_as_java_reads_it(serving) -> None:
    """Values are texts, and truth is written small; the body of the answer comes back."""
    server = serving(frame(OK, b"done"))

    answer = ask(server.address, 207, {"groupName": "billing", "cleanOffset": True, "n": 4}, b"it")

    assert answer == b"done"
    assert server.header["code"] == 207
    assert server.header["extFields"] == {"groupName": "billing", "cleanOffset": "true", "n": "4"}
    assert server.body == b"it"


def test_an_answer_may_come_in_pieces_and_behind_others(serving) -> None:
    """What has another `opaque` is not for us."""
    other = frame(OK | {"opaque": 7}, b"other")
    ours = frame(OK, b"x" * 100_000)
    server = serving(other, ours[:3], ours[3:40], ours[40:])

    assert ask(server.address, 26) == b"x" * 100_000


def test_a_refusal_says_why(serving) -> None:
    """In the broker's own words, with the code for programs."""
    server = serving(frame(OK | {"code": 29, "remark": "MIXED message type is not supported."}))

    with pytest.raises(Refused, match=r"refused request 17: 29, MIXED") as caught:
        ask(server.address, 17)

    assert (caught.value.code, caught.value.remark) == (29, "MIXED message type is not supported.")


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        frame(OK)[:-1],
        frame(OK, written_as=1),
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        struct.pack(">ii", 8, 100),
        struct.pack(">ii", -1, 0),
    ],
)
def test_what_is_no_answer_is_an_error_of_the_connection(serving, answer) -> None:
    """A server that hangs up, in the middle or at once, and one that is none of RocketMQ's."""
    with pytest.raises(ConnectionError):
        ask(serving(answer).address, 26)


def test_nobody_listens() -> None:
    """Known at once."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"

    with pytest.raises(ConnectionRefusedError):
        ask(address, 26)


def test_the_deadline_is_one_for_all_of_it(serving) -> None:
    """A server that has begun to answer does not get its time anew."""
    server = serving(frame(OK)[:10], keeps_open=True)
    began = time.monotonic()

    with pytest.raises(TimeoutError):
        ask(server.address, 26, within=0.2)

    assert 0.15 < time.monotonic() - began < 5
