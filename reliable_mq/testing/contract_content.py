"""The contract of content: what went in comes out, byte by byte."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from reliable_mq.message import without_ours

if TYPE_CHECKING:
    from reliable_mq.message import Header
    from reliable_mq.testing.rig import Rig

__all__ = ["ContentContract"]

BODIES = {
    "empty": b"",
    "text": "grün ☃ \U0001f600".encode(),
    "json": b'{"total": 1.5, "items": [null, true]}',
    "nul": b"\x00\x01\x00",
    "all-bytes": bytes(range(256)),
    "not-utf8": b"\xff\xfe\xfa",
}
KEYS = {
    "none": None,
    "empty": b"",
    "ascii": b"order-1",
    "non-ascii": "schlüssel ☃".encode(),
    "control": b"a\x00b\n\r\t",
    "binary": b"\xff\x80\xfe",
    "long": b"k" * 200,
}
HEADERS: dict[str, tuple[Header, ...]] = {
    "duplicates": (("tag", "one"), ("other", "x"), ("tag", "two"), ("tag", "one")),
    "binary": (("signature", b"\x00\xff\x80"),),
    "empty": (("nothing", ""), ("no-bytes", b"")),
    "non-ascii": (("name", "Ørsted ☃"),),
}


class ContentContract:
    """Bodies, keys, headers and ids that brokers like to change."""

    @pytest.mark.parametrize("name", BODIES)
    def test_bodies(self, rig: Rig, name: str) -> None:
        """A body comes out as it went in."""
        topic, group = rig.declare()
        rig.send(rig.message(topic, BODIES[name]))

        (arrived,) = rig.join(topic, group).take(1)

        assert arrived.message.body == BODIES[name]

    def test_a_null_body(self, rig: Rig) -> None:
        """A null body stays apart from an empty one."""
        rig.need(tombstones=True)
        topic, group = rig.declare()
        rig.send(rig.message(topic, None, key=b"k"), rig.message(topic, b"", key=b"k"))

        taken = rig.join(topic, group).take(2)

        assert {None, b""} == {one.message.body for one in taken}

    def test_the_largest_body(self, rig: Rig) -> None:
        """A body of exactly `max_body` bytes is taken and comes out whole."""
        topic, group = rig.declare()
        body = bytes(range(256)) * (rig.capabilities.max_body // 256 + 1)
        body = body[: rig.capabilities.max_body]
        rig.send(rig.message(topic, body))

        (arrived,) = rig.join(topic, group).take(1)

        assert arrived.message.body == body

    @pytest.mark.parametrize("name", KEYS)
    def test_keys(self, rig: Rig, name: str) -> None:
        """A key comes out as it went in; b"" is a key, None is none."""
        topic, group = rig.declare()
        rig.send(rig.message(topic, key=KEYS[name]))

        (arrived,) = rig.join(topic, group).take(1)

        assert arrived.message.key == KEYS[name]

    @pytest.mark.parametrize("name", HEADERS)
    def test_headers(self, rig: Rig, name: str) -> None:
        """Headers keep their order, their duplicates and their bytes.

        A broker that has only bytes gives texts back as their UTF-8.
        """
        topic, group = rig.declare()
        rig.send(rig.message(topic, headers=HEADERS[name]))

        (arrived,) = rig.join(topic, group).take(1)

        assert _as_bytes(arrived.message.headers) == _as_bytes(HEADERS[name])

    @pytest.mark.parametrize("name", ["placed-1", "größe-☃", "a b/c:d%e", "x" * 200])
    def test_ids(self, rig: Rig, name: str) -> None:
        """An id comes out as it went in, with the topic and the time of creation."""
        topic, group = rig.declare()
        sent = rig.message(topic, id=name)
        rig.send(sent)

        (arrived,) = rig.join(topic, group).take(1)

        assert (arrived.message.id, arrived.message.topic) == (name, topic)
        assert abs(arrived.message.created_at - sent.created_at) < 1.0
        assert (arrived.attempt, arrived.redelivered, arrived.weak_id) == (1, 0, False)


def _as_bytes(headers: tuple[Header, ...]) -> list[tuple[str, bytes]]:
    theirs = without_ours(headers)
    return [(name, value.encode() if isinstance(value, str) else value) for name, value in theirs]
