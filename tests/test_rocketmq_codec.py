"""A Message as a message of RocketMQ and back, byte by byte."""

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reliable_mq.adapters.rocketmq import codec
from reliable_mq.adapters.rocketmq.codec import from_wire, group_of, to_wire
from reliable_mq.adapters.rocketmq.unpack import LARGEST, Unreadable, unpacked
from reliable_mq.adapters.rocketmq.wire import types
from reliable_mq.envelope import ForgedHeader, ours
from reliable_mq.message import NOT_BEFORE, Message, header

NAMES = st.text("abcXYZ019_.-", min_size=1, max_size=12)
VALUES = st.one_of(st.text(max_size=20), st.binary(max_size=20))
MESSAGES = st.builds(
    Message,
    id=st.text(min_size=1, max_size=200).filter(str.isprintable),
    topic=st.just("orders"),
    key=st.none() | st.binary(max_size=100) | st.text(max_size=30).map(str.encode),
    body=st.none() | st.binary(max_size=100),
    headers=st.lists(st.tuples(NAMES, VALUES), max_size=6).map(tuple),
    created_at=st.floats(0, 2**33),
)


def there_and_back(message, due=None):
    """What a consumer gets: through the bytes of the protocol."""
    wire = types().Message.FromString(to_wire(message, due).SerializeToString())
    return from_wire(message.topic, wire), wire


def foreign(body=b"theirs", **system):
    """A message of another program."""
    wire = types().Message(body=body)
    wire.system_properties.message_id = "01AB"
    for name, value in system.items():
        setattr(wire.system_properties, name, value)
    return wire


def refused(message):
    """The core's reason for making a dead letter of it."""
    with pytest.raises(ForgedHeader):
        ours(message)
    return header(message, codec.UNREADABLE)


@given(MESSAGES)
def test_what_goes_in_comes_out(message):
    """Id, key, body, headers with their order and kinds, and the time."""
    assert there_and_back(message)[0] == message


@given(MESSAGES)
def test_properties_are_what_the_broker_takes(message):
    """None is empty, blank or has a control character, and all together are small enough."""
    wire = there_and_back(message)[1]
    size = 0
    for name, value in wire.user_properties.items():
        size += len(name) + len(value.encode())
        assert value.strip()
        assert all(ord(one) >= 0x20 and not 0x7F <= ord(one) <= 0x9F for one in name + value)
    assert size <= codec.MOST
    assert wire.body
    assert codec._plain_id(wire.system_properties.message_id)


def test_plain_headers_are_plain_properties():
    """Other programs read them."""
    message = Message("1", "t", headers=(("content-type", "text/plain"), ("a", "ü")))

    wire = to_wire(message)

    assert wire.user_properties["content-type"] == "text/plain"
    assert wire.user_properties["a"] == "ü"
    assert codec.HEADERS not in wire.user_properties


def test_tag_and_keys_are_rocketmqs_own():
    """Headers of these names, both ways."""
    message = Message("1", "t", headers=(("KEYS", "a b"), ("TAGS", "red"), ("x", "y")))

    arrived, wire = there_and_back(message)

    assert wire.system_properties.tag == "red"
    assert list(wire.system_properties.keys) == ["a", "b"]
    assert arrived.headers == message.headers


@pytest.mark.parametrize("name", ["UNIQ_KEY", "DELAY", "rmq-key"])
def test_names_that_are_the_brokers_are_kept_elsewhere(name):
    """A header of such a name comes back."""
    message = Message("1", "t", headers=((name, "mine"),))

    arrived, wire = there_and_back(message)

    assert wire.user_properties.get(name) != "mine"
    assert arrived.headers == message.headers


def test_more_than_properties_can_hold_goes_in_front_of_the_body():
    """A dead letter's history, a long key: nothing is lost."""
    headers = (("rmq-history", "x" * 14_000), ("b", b"\x00"))
    message = Message("1", "t", key=b"\xff" * 8_000, body=b"body", headers=headers)

    arrived, wire = there_and_back(message)

    assert arrived == message
    assert codec.ENVELOPE in wire.user_properties
    assert arrived == there_and_back(arrived)[0]


def test_not_before_is_told_once():
    """The one that is due counts, in place of an older one."""
    message = Message("1", "t", headers=((NOT_BEFORE, "1.0"), ("a", "b")))

    arrived, _ = there_and_back(message, due=2.5)

    assert arrived.headers == (("a", "b"), (NOT_BEFORE, "2.5"))


@pytest.mark.parametrize(
    ("key", "expected"), [(b"order-1", "order-1"), (b"k" * 63, "k" * 63), (b"a/b:c", "a/b:c")]
)
def test_a_plain_key_is_the_message_group(key, expected):
    """So that programs without this library keep its order, too."""
    assert group_of(Message("1", "t", key=key)) == expected


@pytest.mark.parametrize("key", [b"", b"k" * 64, b"a b", b"\xff", "ü".encode(), b"a\nb"])
def test_another_key_is_hashed(key):
    """To something that RocketMQ takes, the same for the same key."""
    group = group_of(Message("1", "t", key=key))

    assert group == group_of(Message("2", "u", key=key)) != group_of(Message("1", "t", key=b"x"))
    assert len(group) < 64
    assert group.isascii()


def test_without_a_key_each_has_a_group_of_its_own():
    """It waits for nobody, and resending it does not move it."""
    groups = {group_of(Message(str(number), "t")) for number in range(100)}

    assert len(groups) == 100
    assert group_of(Message("1", "t")) in groups


def test_a_message_of_another_program():
    """Its id, its group as the key, its properties, its tag."""
    wire = foreign(message_group="customer-7", tag="red")
    wire.user_properties["color"] = "blue"
    wire.system_properties.born_timestamp.seconds = 5

    message = from_wire("t", wire)

    assert message == Message(
        "01AB", "t", b"customer-7", b"theirs", (("TAGS", "red"), ("color", "blue")), 5.0
    )


@pytest.mark.parametrize("pack", [zlib.compress, gzip.compress])
def test_compressed_bodies_of_others_are_unpacked(pack):
    """Java's clients write zlib."""
    assert from_wire("t", foreign(pack(b"x" * 999), body_encoding=2)).body == b"x" * 999


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"\x04\x22\x4d\x18data", "LZ4"),
        (b"\x28\xb5\x2f\xfddata", "Zstandard"),
        (b"plain text", "neither"),
        (zlib.compress(b"x" * 999)[:-5], "cut off"),
        (b"\x78\x9c" + b"\xff" * 20, "damaged"),
    ],
)
def test_what_cannot_be_unpacked_becomes_a_dead_letter(body, text):
    """As it came, with the reason; it is never delivered for ever."""
    message = from_wire("t", foreign(body, body_encoding=2))

    assert text in refused(message)
    assert (message.id, message.body) == ("01AB", body)


def test_a_bomb_is_not_unpacked():
    """A kilobyte that becomes gigabytes takes no more memory than the limit."""
    with pytest.raises(Unreadable, match="more than 1000"):
        unpacked(zlib.compress(bytes(100_000)), 1_000)
    assert LARGEST < 1 << 30


def test_bytes_that_have_changed_are_found_out():
    """By our own digest: the broker checks none."""
    wire = to_wire(Message("1", "t", body=b"hundred"))
    wire.body = b"hundrEd"

    assert "bytes" in refused(from_wire("t", wire))


@pytest.mark.parametrize("name", [codec.HEADERS, codec.ENVELOPE])
def test_properties_that_cannot_be_decoded_become_a_dead_letter(name):
    """Somebody else's of our names."""
    wire = foreign()
    wire.user_properties[name] = "!"

    assert refused(from_wire("t", wire))
