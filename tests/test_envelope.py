import enum
import math
import uuid

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reliable_mq.envelope import (
    KEY_BYTES,
    LONGEST_DELAY,
    OUR_BYTES,
    Control,
    ForgedHeader,
    build,
    check,
    ours,
)
from reliable_mq.errors import CodecError, ConfigurationError, PublishRejected, TooLarge
from reliable_mq.headers import HEADER_BYTES, HEADERS, _good
from reliable_mq.message import Message
from reliable_mq.story import Failure, history_to_json

OCTETS = ("content-type", "application/octet-stream")
JSON = ("content-type", "application/json")


def built(value=b"x", *, max_body=None, **options):
    """A message with an id, a topic and a time, that has passed the check."""
    message = build("orders", value, id="id-1", now=17.5, **options)
    check(message, max_body)
    return message


def arrived(*headers):
    """A message as a broker gives it."""
    return Message("id-1", "orders", None, b"", (("content-type", b"text/plain"), *headers))


class Name(str, enum.Enum):
    """A key that is an enum, too."""

    ALICE = "alice"


class Number(enum.IntEnum):
    """A key that is an enum, too."""

    SEVEN = 7


def test_a_message_of_what_the_user_gave():
    """Every field of the message comes from its argument."""
    assert built(b"x", key="k") == Message("id-1", "orders", b"k", b"x", (OCTETS,), 17.5)
    assert built({"a": 1}) == Message("id-1", "orders", None, b'{"a":1}', (JSON,), 17.5)
    assert built(None) == Message("id-1", "orders", None, None, (), 17.5)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (None, None),
        (b"", b""),
        (b"\xff", b"\xff"),
        (bytearray(b"b"), b"b"),
        ("é", "é".encode()),
        ("", b""),
        (-7, b"-7"),
        (uuid.UUID(int=5), b"00000000-0000-0000-0000-000000000005"),
        (Name.ALICE, b"alice"),
        (Number.SEVEN, b"7"),
    ],
)
def test_keys(key, expected):
    """A key is the UTF-8 of its text, the same on every version of Python; bytes stay."""
    assert built(key=key).key == expected


@pytest.mark.parametrize("key", [1.5, True, ("a",), object()])
def test_keys_of_other_types(key):
    """A key of a type whose text is no identity is a mistake in the program."""
    with pytest.raises(ConfigurationError, match="key= is a"):
        built(key=key)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"headers": {"a": "b"}}, (("a", "b"), OCTETS)),
        ({"headers": [("a", "1"), ("a", b"\x00\xff")]}, (("a", "1"), ("a", b"\x00\xff"), OCTETS)),
        ({"headers": {}}, (OCTETS,)),
        ({"content_type": "image/png"}, (("content-type", "image/png"),)),
        ({"headers": {"Content-Type": "image/png"}}, (("Content-Type", "image/png"),)),
        ({"headers": {"content-type": b"image/png"}}, (("content-type", b"image/png"),)),
        (
            {"headers": {"content-type": "image/png"}, "content_type": "image/png"},
            (("content-type", "image/png"),),
        ),
        ({"value": None, "headers": {"a": "b"}}, (("a", "b"),)),
        (
            {"value": "t", "headers": {"content-type": "text/plain"}},
            (("content-type", "text/plain"),),
        ),
    ],
)
def test_headers(options, expected):
    """Headers keep their order and duplicates; the content type is said once, and last."""
    assert built(**options).headers == expected


def test_the_header_decides_how_text_is_sent():
    """A header `content-type` does what the argument does."""
    assert built("t", headers={"content-type": "text/plain"}).body == b"t"


@pytest.mark.parametrize(
    ("headers", "content_type"),
    [
        ({"content-type": "a/b"}, "a/c"),
        ([("content-type", "a/b"), ("Content-Type", "a/b")], None),
    ],
)
def test_two_content_types(headers, content_type):
    """Two answers to the same question are a mistake in the program, even if they agree."""
    with pytest.raises(ConfigurationError, match="say it once"):
        built(headers=headers, content_type=content_type)


@pytest.mark.parametrize("headers", ["text", [("a",)], 7, {"a": 1}, {1: "a"}, [("a", None)]])
def test_headers_of_other_types(headers):
    """Headers that are no names and values are a mistake in the program."""
    with pytest.raises(ConfigurationError, match="header"):
        built(headers=headers)


@pytest.mark.parametrize(
    "header",
    [
        ("rmq-attempt", "2"),
        ("RMQ-other", "2"),
        ("", "x"),
        ("with space", "x"),
        ("ümlaut", "x"),
        ("a\x00b", "x"),
        ("a\n", "x"),
        ("x" * 65, "x"),
        ("a", "line\nline"),
        ("a", "nul\x00"),
        ("a", "\x85"),
        ("a", "\ud800"),
    ],
)
def test_headers_that_no_broker_could_carry(header):
    """Names of ours, unsafe names and control characters are refused, with the message."""
    with pytest.raises(PublishRejected, match="header") as caught:
        built(headers=[header])
    assert caught.value.message.id == "id-1"
    assert caught.value.message.headers[0] == header


NAMES = st.sampled_from(["a", "Tenant", "Content-Type", "content-type", "rmq-a", "a b", "x" * 65])
VALUES = st.one_of(st.binary(max_size=3), st.text(max_size=3), st.just("v" * 5_000), st.none())


def outcome_of(headers, content_type):
    """What becomes of a message with these headers."""
    try:
        return built(headers=headers, content_type=content_type).headers
    except (ConfigurationError, PublishRejected) as error:
        return str(error)


@given(
    st.one_of(
        st.lists(st.tuples(NAMES, VALUES), max_size=4),
        st.dictionaries(NAMES, VALUES, max_size=4),
        st.lists(st.lists(st.text(max_size=1), max_size=3), max_size=2),
    ),
    st.sampled_from([None, "text/plain"]),
)
def test_names_that_were_seen_before_are_treated_the_same(headers, content_type):
    """The short way of usual headers allows, and makes, nothing else than the long one."""
    _good.clear()
    expected = outcome_of(headers, content_type)
    _good.clear()
    for name in ("a", "Tenant", "Content-Type", "content-type"):
        built(headers={name: "v"})
    assert outcome_of(headers, content_type) == expected


def test_printable_text_of_any_script_is_a_value():
    """Values may be any text without control characters, private and exotic ones included."""
    headers = {"a": "żółć 日本\u3000 \u200b \ue000", "b": ""}
    assert built(headers=headers).headers[0] == ("a", headers["a"])


def test_limits_of_headers():
    """Headers are limited in number and in bytes, the content type counted with them."""
    most = [(f"h{n}", "v") for n in range(HEADERS - 1)]
    assert len(built(headers=most).headers) == HEADERS
    with pytest.raises(PublishRejected, match=f"{HEADERS + 1} headers"):
        built(headers=[*most, ("one", "more")])
    room = HEADER_BYTES - len("a") - sum(map(len, OCTETS))
    assert built(headers={"a": "v" * room})
    for value in ("v" * (room + 1), b"v" * (room + 1), "é" * (room // 2 + 1)):
        with pytest.raises(PublishRejected, match="limits are"):
            built(headers={"a": value})


@pytest.mark.parametrize("text", ["", "x" * 201, "a\nb", "a\x00", "\x7f", "\ud800"])
def test_ids_and_topics_that_no_broker_could_carry(text):
    """An id or topic that is empty, too long or has control characters is refused."""
    with pytest.raises(PublishRejected, match="its id must"):
        check(build("orders", b"", id=text, now=0.0), None)
    with pytest.raises(PublishRejected, match="its topic must"):
        check(build(text, b"", id="id-1", now=0.0), None)


def test_ids_and_topics_of_other_types():
    """An id or topic that is no str is a mistake in the program."""
    with pytest.raises(ConfigurationError, match="id is a int"):
        check(build("orders", b"", id=7, now=0.0), None)
    with pytest.raises(ConfigurationError, match="topic is a NoneType"):
        check(build(None, b"", id="id-1", now=0.0), None)


def test_what_is_built_is_checked():
    """A message that no broker could carry is refused when it is made, not only when it is sent."""
    for options in ({"id": ""}, {"id": "i", "headers": {"rmq-attempt": "1"}}):
        with pytest.raises(PublishRejected):
            build("orders", b"", now=0.0, **options)


def test_a_str_subclass_is_a_str():
    """An id may be an instance of a subclass of str."""
    assert build(Name.ALICE, b"", id=Name.ALICE, now=0.0).id == "alice"


def test_limit_of_the_key():
    """A key is limited, too, and the refusal keeps it."""
    assert built(key=b"k" * KEY_BYTES)
    with pytest.raises(PublishRejected, match="use a digest") as caught:
        built(key="k" * (KEY_BYTES + 1))
    assert caught.value.message.key == b"k" * (KEY_BYTES + 1)


def test_limit_of_the_body():
    """A body over the limit is TooLarge, with both numbers; a tombstone never is."""
    assert built(b"12345", max_body=5)
    assert built(None, max_body=0)
    with pytest.raises(TooLarge, match=r"6 bytes.*limit is 5") as caught:
        built(b"123456", max_body=5)
    with pytest.raises(TooLarge):
        check(caught.value.message, 5)


def test_values_that_cannot_be_encoded():
    """The codec's errors pass, and a key that is no text is one, too."""
    with pytest.raises(CodecError, match="key="):
        built(key="\ud800")
    with pytest.raises(CodecError):
        built(["\ud800"])
    with pytest.raises(ConfigurationError):
        built(object())


@pytest.mark.parametrize(
    "wrong",
    [
        {"key": "k"},
        {"body": "text"},
        {"headers": [("a", "b")]},
        {"headers": (("a", 1),)},
        {"id": 1},
    ],
)
def test_messages_that_were_made_by_hand(wrong):
    """`check` finds the wrong types of a Message that did not come from `build`."""
    message = msgspec.structs.replace(built(), **wrong)
    with pytest.raises(ConfigurationError):
        check(message, None)


def test_a_message_without_headers_of_ours():
    """What others published is a first run for every group."""
    assert ours(Message("i", "t")) == Control()
    assert ours(arrived(("rm", "x"), ("rmq", "x"), ("rmq.x", "x"), ("zz", "x"))) == Control()


def test_what_our_headers_say():
    """All that a retry copy carries is read back."""
    history = history_to_json([Failure(1.5, 1, "ValueError", "x", "host", 2.0)])
    message = arrived(
        ("rmq-attempt", "3"),
        ("rmq-not-before", "1000.250"),
        ("rmq-group", "billing"),
        ("rmq-history", history),
        ("rmq-generation", "2"),
        ("rmq-replay-id", "r"),
        ("rmq-dl-reason", "rejected"),
        ("rmq-orig-topic", "orders"),
    )
    assert ours(message, now=900.0) == Control(3, 1000.25, 2, "billing", history)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("rmq-attempt", "0", Control(attempt=1)),
        ("rmq-attempt", "-5", Control(attempt=1)),
        ("rmq-attempt", "9" * 5_000, Control(attempt=10_000)),
        ("rmq-not-before", "-1", Control(not_before=0.0)),
        ("rmq-not-before", "9" * 400, Control(not_before=100.0 + LONGEST_DELAY)),
        ("rmq-not-before", "101", Control(not_before=101.0)),
        ("rmq-generation", "-1", Control(generation=0)),
    ],
)
def test_numbers_are_cut(name, value, expected):
    """A number beyond what makes sense is cut to that."""
    assert ours(arrived((name, value)), now=100.0) == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rmq-attempt", b"2"),
        ("rmq-attempt", ""),
        ("rmq-attempt", "two"),
        ("rmq-attempt", "1e3"),
        ("rmq-attempt", "\u0661"),
        ("rmq-attempt", "1_0"),
        ("rmq-attempt", " 1"),
        ("rmq-attempt", "1\n"),
        ("rmq-not-before", "nan"),
        ("rmq-not-before", "inf"),
        ("rmq-generation", "x"),
        ("rmq-group", ""),
        ("rmq-group", "a\nb"),
        ("rmq-group", "g" * 201),
        ("rmq-history", "{}"),
        ("rmq-history", "[1]"),
        ("rmq-history", "[" * 10_000),
        ("rmq-history", "\ud800"),
        ("rmq-", "x"),
        ("rmq-new", "x"),
        ("rmq-dl-made-up", "x"),
        ("rmq-dl-history", "x" * OUR_BYTES),
    ],
)
def test_forged_headers(name, value):
    """Whatever this library does not write is forged, and the text names the header."""
    with pytest.raises(ForgedHeader) as caught:
        ours(arrived(("a", "b"), (name, value)))
    assert caught.value.name == name
    assert name in str(caught.value)
    assert len(str(caught.value)) < 200


def test_a_header_of_ours_that_comes_twice():
    """Two answers are no answer."""
    with pytest.raises(ForgedHeader, match="'rmq-attempt' comes twice"):
        ours(arrived(("rmq-attempt", "1"), ("rmq-attempt", "2")))


header_names = st.sampled_from(
    ["rmq-attempt", "rmq-not-before", "rmq-group", "rmq-history", "rmq-x"]
)


@given(st.lists(st.tuples(header_names, st.text(max_size=20) | st.binary(max_size=3)), max_size=3))
@settings(max_examples=80, deadline=None)
def test_reading_never_raises_anything_else(headers):
    """Whatever the headers, they are within bounds or forged."""
    try:
        control = ours(arrived(*headers), now=0.0)
    except ForgedHeader:
        return
    assert 1 <= control.attempt <= 10_000
    assert control.not_before is None or 0 <= control.not_before <= LONGEST_DELAY
    assert not math.isnan(control.not_before or 0.0)


@given(
    st.text(max_size=8) | st.integers() | st.binary(max_size=8) | st.none(),
    st.lists(
        st.tuples(st.text(max_size=8), st.text(max_size=8) | st.binary(max_size=8)), max_size=4
    ),
)
@settings(max_examples=80, deadline=None)
def test_what_is_built_passes_the_check(key, headers):
    """Whatever the user gives, it is refused, or a message that can be read back without harm."""
    try:
        message = built(key=key, headers=headers)
    except (PublishRejected, ConfigurationError, CodecError):
        return
    check(message, 10)
    assert ours(message) == Control()
    assert [pair for pair in message.headers if pair != OCTETS] == headers
