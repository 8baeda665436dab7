# ruff: noqa: UP007, UP045 - handlers may be annotated with either spelling of a union
import dataclasses
import enum
import subprocess
import sys
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, NewType, Optional, TypedDict, Union

import msgspec
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reliable_mq.codec import JSON, JsonCodec, decoder_for, encode
from reliable_mq.errors import CodecError, ConfigurationError
from reliable_mq.message import Message

SECRET = "hunter2-secret"


class Order(msgspec.Struct):
    """A payload."""

    id: int
    note: str = ""


class Placed(msgspec.Struct, tag="placed"):
    """A payload."""

    id: int


class Paid(msgspec.Struct, tag="paid"):
    """A payload."""

    id: int


@dataclasses.dataclass
class Point:
    """A payload."""

    x: int
    y: int = 0


class Shape(TypedDict):
    """A payload."""

    sides: int


class Colour(enum.Enum):
    """A payload."""

    RED = "red"


class Model(pydantic.BaseModel):
    """A payload."""

    number: int = pydantic.Field(alias="no")


class Cat(pydantic.BaseModel):
    """A payload."""

    kind: Literal["cat"]
    lives: int


class Dog(pydantic.BaseModel):
    """A payload."""

    kind: Literal["dog"]


Pet = Annotated[Union[Cat, Dog], pydantic.Field(discriminator="kind")]
Name = NewType("Name", str)


class Foreign:
    """A payload."""


class Picky(msgspec.Struct):
    """A payload."""

    note: str

    def __post_init__(self):
        raise ValueError(self.note)


class Reverser:
    """A codec of a user: it sees every content type."""

    def encode(self, value):
        """Turn it round."""
        return bytes(reversed(value)), "application/x-reversed"

    def decode(self, body, content_type, target):
        """Turn it round, or fail as the content type says."""
        if content_type == "broken":
            raise KeyError(SECRET)
        if content_type == "down":
            raise ConnectionError
        if content_type == "refused":
            raise CodecError("mine")
        return bytes(reversed(body)), content_type


def message(body, content_type=None):
    """A message as a broker gives it."""
    headers = () if content_type is None else (("a", b"b"), ("content-type", content_type))
    return Message("id-1", "orders", None, body, headers)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"raw\x00", (b"raw\x00", "application/octet-stream")),
        (bytearray(b"raw"), (b"raw", "application/octet-stream")),
        (memoryview(b"raw"), (b"raw", "application/octet-stream")),
        (None, (None, None)),
        ("text", (b'"text"', "application/json")),
        ({"a": [1, 2.5, True, None]}, (b'{"a":[1,2.5,true,null]}', "application/json")),
        ([1], (b"[1]", "application/json")),
        (7, (b"7", "application/json")),
        (Decimal("1.10"), (b'"1.10"', "application/json")),
        (uuid.UUID(int=1), (b'"00000000-0000-0000-0000-000000000001"', "application/json")),
        (Point(1), (b'{"x":1,"y":0}', "application/json")),
        (Order(1), (b'{"id":1,"note":""}', "application/json")),
        (Shape(sides=3), (b'{"sides":3}', "application/json")),
        (Model(no=3), (b'{"no":3}', "application/json")),
        ([Model(no=3)], (b'[{"no":3}]', "application/json")),
        (Colour.RED, (b'"red"', "application/json")),
    ],
)
def test_what_is_published(value, expected):
    """Each kind of value becomes the body and the content type of the table."""
    assert encode(value) == expected
    if value is not None:
        assert JsonCodec().encode(value) == expected


@pytest.mark.parametrize(
    ("value", "content_type", "expected"),
    [
        ("text", "text/plain", (b"text", "text/plain")),
        ("é", "text/plain; charset=utf-8", ("é".encode(), "text/plain; charset=utf-8")),
        ("x", "application/json", (b'"x"', "application/json")),
        ({}, "application/cloudevents+json", (b"{}", "application/cloudevents+json")),
        (b"\x08\x01", "application/x-protobuf", (b"\x08\x01", "application/x-protobuf")),
        (None, "application/json", (None, "application/json")),
    ],
)
def test_an_explicit_content_type(value, content_type, expected):
    """A content type that is given is kept, and text stays text."""
    assert encode(value, content_type=content_type) == expected


@pytest.mark.parametrize(
    ("value", "content_type"),
    [({}, "application/x-protobuf"), ({}, "text/plain"), ("é", "text/plain; charset=latin-1")],
)
def test_a_content_type_that_the_body_would_not_have(value, content_type):
    """A content type that contradicts the encoding is a mistake in the program."""
    with pytest.raises(ConfigurationError, match="is sent as JSON"):
        encode(value, content_type=content_type)


@pytest.mark.parametrize("value", [Foreign(), {"a": Foreign()}, {(1, 2): 3}])
def test_types_that_cannot_be_sent(value):
    """A type that has no JSON is a mistake in the program, named with the remedy."""
    with pytest.raises(ConfigurationError, match=r"cannot be sent as JSON.*codec="):
        encode(value)


def test_values_that_cannot_be_sent():
    """A value that its type allows but JSON does not is a CodecError that does not show it."""
    endless = []
    endless.append(endless)
    for value in (endless, SECRET + "\ud800", [SECRET + "\ud800"]):
        with pytest.raises(CodecError, match="cannot be encoded as JSON") as caught:
            encode(value)
        assert SECRET not in str(caught.value)
        assert caught.value.__context__ is None
    with pytest.raises(CodecError, match="surrogate"):
        encode("\ud800", content_type="text/plain")


def test_own_codec_of_a_publisher():
    """A codec that is given encodes all but tombstones, bytes included."""
    assert encode(b"abc", Reverser()) == (b"cba", "application/x-reversed")
    assert encode(b"abc", Reverser(), "x/y") == (b"cba", "x/y")
    assert encode(None, Reverser()) == (None, None)


def test_own_codec_must_give_bytes():
    """A codec whose body is no bytes is a mistake in the program."""

    class Wrong(Reverser):
        def encode(self, value):
            return "text", "text/plain"

    with pytest.raises(ConfigurationError, match=r"Wrong\.encode gave str"):
        encode({}, Wrong())


@pytest.mark.parametrize(
    ("target", "body", "content_type", "expected"),
    [
        (bytes, b"\xff\x00", None, b"\xff\x00"),
        (bytes, b"{}", "application/x-protobuf", b"{}"),
        (Optional[bytes], None, None, None),
        (Annotated[bytes, "raw"], b"x", None, b"x"),
        (str, b'"caf\xc3\xa9"', None, "café"),
        (str, "café".encode(), "text/plain", "café"),
        (str, b"a,b", "TEXT/CSV; header=present; charset=US-ASCII", "a,b"),
        (Name, b"n", "text/plain", "n"),
        (Annotated[str, msgspec.Meta(max_length=3)], b"abc", "text/plain", "abc"),
        (Optional[str], b"t", "text/plain", "t"),
        (Any, b"t", "text/plain", "t"),
        (Any, b"[1]", None, [1]),
        (object, None, None, None),
        (dict, b'{"a":1}', b"application/json", {"a": 1}),
        (dict[str, int], b'{"a":1}', "application/vnd.api+json; charset=UTF-8", {"a": 1}),
        (list[int], b"[1,2]", "", [1, 2]),
        (int, b"7", None, 7),
        (Point, b'{"x":1}', None, Point(1)),
        (Shape, b'{"sides":3}', None, {"sides": 3}),
        (Order, b'{"id":1}', None, Order(1)),
        (Optional[Order], None, None, None),
        (Optional[Order], b"null", None, None),
        (Union[Placed, Paid], b'{"type":"paid","id":2}', None, Paid(2)),
        (Union[Placed, Paid, None], None, None, None),
        (Model, b'{"no":"3"}', None, Model(no=3)),
        (Optional[Model], None, None, None),
        (list[Model], b'[{"no":3}]', None, [Model(no=3)]),
        (Pet, b'{"kind":"cat","lives":9}', None, Cat(kind="cat", lives=9)),
        (Optional[Pet], b'{"kind":"dog"}', None, Dog(kind="dog")),
        (Annotated[Optional[Order], "x"], None, None, None),
    ],
)
def test_what_a_handler_reads(target, body, content_type, expected):
    """Each type of a handler reads what the table says."""
    assert decoder_for(target)(message(body, content_type)) == expected


def test_a_message_is_passed_as_it_is():
    """A handler of Message gets the message itself, tombstone or not."""
    for target in (Message, Optional[Message], Annotated[Message, 1]):
        sent = message(None)
        assert decoder_for(target)(sent) is sent


@pytest.mark.parametrize("name", ["content-type", "Content-Type", "CONTENT-TYPE"])
def test_header_of_other_programs(name):
    """The header is found in whatever case other programs write it, and the last one counts."""
    sent = Message(
        "id", "t", None, b"hi", (("content-type", "application/json"), (name, "text/plain"))
    )
    assert decoder_for(str)(sent) == "hi"


def test_assumed_content_type():
    """`content_type=` stands in for a missing header, and only for that."""
    decode = decoder_for(str, JSON, "text/plain")
    assert decode(message(b"plain")) == "plain"
    assert decode(message(b'"json"', "application/json")) == "json"


@pytest.mark.parametrize(
    ("target", "assumed"), [(dict, "text/plain"), (str, "application/octet-stream"), (str, "nope")]
)
def test_an_assumed_content_type_that_cannot_be_read(target, assumed):
    """`content_type=` that the handler's type cannot read is refused when it is made."""
    with pytest.raises(ConfigurationError, match=r"cannot be read as .*codec="):
        decoder_for(target, JSON, assumed)


@pytest.mark.parametrize(
    ("target", "content_type"),
    [
        (dict, "application/x-python-pickle"),
        (dict, "text/plain"),
        (dict, "application/octet-stream"),
        (str, "application/octet-stream"),
        (str, "text/plain; charset=utf-16"),
        (dict, "nonsense"),
        (dict, b"\xff"),
        (dict, "x" * 9_000),
    ],
)
def test_content_types_that_are_not_on_the_list(target, content_type):
    """Everything else is refused, naming the content type and the remedy."""
    with pytest.raises(CodecError, match=r"its content type is .*codec=") as caught:
        decoder_for(target)(message(b"{}", content_type))
    assert len(str(caught.value)) < 300
    assert caught.value.body == b"{}"


@pytest.mark.parametrize("target", [bytes, str, dict, Order, Model, Union[Placed, Paid]])
def test_tombstones_need_an_optional_type(target):
    """A tombstone for a type without None is a CodecError that says how to take it."""
    with pytest.raises(CodecError, match=r"message 'id-1' of 'orders'.*\| None"):
        decoder_for(target)(message(None))
    with pytest.raises(CodecError, match="tombstone"):
        decoder_for(target, Reverser())(message(None))


@pytest.mark.parametrize(
    ("target", "body"),
    [
        (Order, b""),
        (Order, b"{"),
        (Order, b'{"id":1} hunter2-secret'),
        (Order, b'{"id":"hunter2-secret"}'),
        (dict, b"\xffhunter2-secret"),
        (str, b'"\xffhunter2-secret"'),
        (dict[str, int], b'{"hunter2-secret":"x"}'),
        (dict[int, int], b'{"hunter2-secret":1}'),
        (Union[Placed, Paid], b'{"type":"hunter2-secret","id":1}'),
        (Colour, b'"hunter2-secret - at `$.hunter2-secret`"'),
        (list[Colour], b'["hunter2-secret"]'),
        (Picky, b'{"note":"hunter2-secret"}'),
        (Model, b'{"no":"hunter2-secret"}'),
        (Model, b'{"hunter2-secret":1}'),
        (dict[str, Model], b'{"hunter2-secret":{"no":"x"}}'),
        (Pet, b'{"kind":"hunter2-secret"}'),
        (int, b'"Expected `hunter2-secret`"'),
        (list, b"[" * 100_000),
        (Any, b'{"a":' * 100_000),
        (list[Model], b"[" * 100_000),
    ],
)
def test_what_cannot_be_read_is_never_shown(target, body):
    """An unreadable body is a CodecError with the body in it, and none of it in any text."""
    with pytest.raises(CodecError) as caught:
        decoder_for(target)(message(body))
    error = caught.value
    assert error.body == body
    assert "id-1" in str(error)
    assert SECRET not in str(error)
    assert error.__cause__ is None
    assert error.__context__ is None


def test_texts_say_what_is_wrong():
    """The text says what does not fit and where, as far as that is no part of the body."""
    expected = {
        (Order, b'{"id":"x"}'): r"Expected `int`, got `str` - at `\$\.id`",
        (Order, b"{}"): "Object missing required field `id`",
        (list[Colour], b'["blue"]'): r"does not allow at \$\[0\]",
        (Model, b'{"no":"x"}'): "1 errors: int_parsing at 'no'",
        (Picky, b'{"note":"x"}'): "refused it with ValueError",
        (str, b'"\xff"'): "not valid UTF-8",
        (list, b"[" * 100_000): "nested too deeply",
    }
    for (target, body), text in expected.items():
        with pytest.raises(CodecError, match=text):
            decoder_for(target)(message(body))


@pytest.mark.parametrize(
    "target",
    [
        Union[Order, Point],
        Foreign,
        list[Foreign],
        Union[bytes, Order],
        Union[Message, Order],
        bytearray,
        Optional[memoryview],
    ],
)
def test_types_that_no_message_fits(target):
    """A type that nothing can be read as is refused when the handler is made."""
    with pytest.raises(ConfigurationError):
        decoder_for(target)


def test_a_type_with_a_name_that_is_not_there():
    """An annotation inside a payload that cannot be resolved is named."""

    @dataclasses.dataclass
    class Broken:
        other: "Missing"  # noqa: F821 - it is missing

    with pytest.raises(ConfigurationError, match="Missing"):
        decoder_for(Broken)


def test_a_recursive_type():
    """A type that contains itself is compiled as any other."""
    decode = decoder_for(Tree)
    assert decode(message(b'{"children":[{"children":[]}]}')) == Tree([Tree([])])


class Tree(msgspec.Struct):
    """A payload."""

    children: "list[Tree]"


def test_own_codec_of_a_consumer():
    """A codec that is given reads every content type; only Message passes it by."""
    decode = decoder_for(bytes, Reverser(), "assumed")
    assert decode(message(b"abc", b"application/x-any")) == (b"cba", "application/x-any")
    assert decode(message(b"abc")) == (b"cba", "assumed")
    assert decoder_for(Message, Reverser())(message(b"abc")).body == b"abc"
    assert decoder_for(Optional[Order], Reverser())(message(None)) is None


def test_failures_of_an_own_codec():
    """What a codec cannot read is a CodecError; an outage behind it is not the message's fault."""
    decode = decoder_for(Order, Reverser())
    with pytest.raises(CodecError, match="refused it with KeyError") as caught:
        decode(message(b"x", "broken"))
    assert SECRET not in str(caught.value)
    with pytest.raises(CodecError, match=r"^mine$"):
        decode(message(b"x", "refused"))
    with pytest.raises(ConnectionError):
        decode(message(b"x", "down"))


def test_a_codec_built_on_the_json_codec():
    """Own codecs can call JsonCodec for what is inside theirs."""
    assert JSON.decode(b'{"id":1}', None, Order) == Order(1)
    assert JSON.decode(b"hi", "text/plain", str) == "hi"
    unhashable = Annotated[dict, []]
    assert JSON.decode(b"{}", None, unhashable) == {}
    with pytest.raises(CodecError, match="the body cannot be read as Order"):
        JSON.decode(b"", None, Order)


def test_pydantic_is_never_imported_by_us():
    """Without a pydantic type in sight, pydantic is not loaded."""
    code = (
        "import sys; from reliable_mq.codec import *; decoder_for(dict); encode({}); "
        "sys.exit('pydantic' in sys.modules or 'pickle' in sys.modules)"
    )
    root = Path(__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.floats(allow_nan=False, allow_infinity=False)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(values.filter(lambda value: value is not None))
@settings(max_examples=60, deadline=None)
def test_json_values_always_round_trip(value):
    """What is published is what a handler reads, for all JSON values."""
    body, content_type = encode(value)
    assert decoder_for(Any)(message(body, content_type)) == value


@given(st.binary(max_size=40), st.sampled_from([Order, Union[Placed, Paid], str, dict, Pet, Shape]))
@settings(max_examples=60, deadline=None)
def test_no_body_ever_raises_anything_else(body, target):
    """Whatever the bytes, decoding gives a value or a CodecError."""
    try:
        decoder_for_cached(target)(message(body))
    except CodecError as error:
        assert error.body == body  # noqa: PT017 - both endings are right


CACHE = {}


def decoder_for_cached(target):
    """Compiled once, as a consumer does it."""
    return CACHE.get(str(target)) or CACHE.setdefault(str(target), decoder_for(target))
