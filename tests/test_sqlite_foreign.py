"""Rows that other programs write and read, and the envelope in columns."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reliable_mq.adapters.sqlite.record import COLUMNS, from_row, to_row
from reliable_mq.message import DeadLetter, Message
from tests.sqlite_faults import broker_file
from tests.sqlite_kit import Kit, ids, take

INSERT = """INSERT INTO mq_message (topic, key, body, headers, id)
    VALUES ((SELECT id FROM mq_topic WHERE name = 't'), ?, ?, ?, ?)"""


@pytest.fixture
def kit():
    """A file, a topic and a group."""
    with broker_file() as path:
        kit = Kit(path)
        kit.declare()
        yield kit
        kit.close()


def test_what_a_foreign_program_leaves_out_has_a_default(kit):
    """No id, no headers, no time: an id of its own that stays, and the time when it came."""
    kit.sql(INSERT, (None, b"one", None, None))
    kit.sql(INSERT, (None, b"one", None, None))
    member = kit.join()
    first = [one.message for one in take(member)]
    member.close()

    again = [one.message for one in take(kit.join())]

    assert again == first
    assert len({one.id for one in first}) == 2
    assert {(one.topic, one.key, one.body, one.headers) for one in first} == {
        ("t", None, b"one", ())
    }
    assert all(one.created_at > 1_600_000_000 for one in first)


def test_text_is_taken_for_its_bytes(kit):
    """A key in text is the same key as one in bytes: its order holds over both kinds."""
    kit.sql(INSERT, ("k", '{"total": 1}', '{"content-type": "application/json"}', "theirs"))
    kit.send(kit.message(b"k"))
    member, other = kit.join(), kit.join()

    (first,) = take(member, 1)

    assert take(other) == []
    assert first.message.key == b"k"
    assert first.message.body == b'{"total": 1}'
    assert first.message.headers == (("content-type", "application/json"),)
    assert ids(take(member)) == ["m1"]


def test_the_columns_can_be_read_by_others(kit):
    """Id, key and body lie in the file as they are."""
    kit.send(kit.message(b"\x00k", id="größe", body=b"\x00\xff"))

    rows = kit.sql("SELECT id, key, body, headers, origin FROM mq_message")

    assert rows == [("größe", b"\x00k", b"\x00\xff", None, None)]


def test_a_dead_letter_keeps_its_topic(kit):
    """It lies in another topic and says which one it was published to."""
    kit.send(kit.message(b"k"), to=DeadLetter("t", "g"))
    kit.declare("t.g.dlq", "readers")

    (letter,) = take(kit.join("t.g.dlq", group="readers"))

    assert letter.message.topic == "t"
    assert kit.sql("SELECT origin FROM mq_message") == [("t",)]


messages = st.builds(
    Message,
    id=st.text(st.characters(codec="utf-8")),
    topic=st.text(st.characters(codec="utf-8"), max_size=10),
    key=st.none() | st.binary(max_size=20),
    body=st.none() | st.binary(max_size=50),
    headers=st.lists(
        st.tuples(
            st.text(st.characters(codec="utf-8")),
            st.text(st.characters(codec="utf-8")) | st.binary(),
        )
    ).map(tuple),
    created_at=st.floats(allow_nan=False),
)


def test_every_message_comes_back_as_it_was(kit):
    """To a row, through SQLite, and back; and no two columns can be exchanged unseen."""
    connection = kit.transport._broker.connection()
    insert = """INSERT INTO mq_message (topic, id, key, body, headers, created_at, origin, crc)
        VALUES (1, ?, ?, ?, ?, ?, ?, ?) RETURNING position"""
    select = f"SELECT {COLUMNS} FROM mq_message AS m WHERE position = ?"  # noqa: S608 - constants
    seen = Counter()

    @given(messages)
    def check(message):
        (position,) = connection.row(insert, to_row(message, "t"))
        row = connection.row(select, (position,))
        assert from_row(row, "t", "file", position) == message
        changed = (row[0], row[2], row[1], *row[3:])
        if row[1] != row[2]:
            assert from_row(changed, "t", "file", position) is None
            seen["changed"] += 1
        assert from_row(row, "another", "file", position) is None

    check()
    connection.drop()
    assert seen["changed"] > 10


def test_a_time_that_is_no_number(kit):
    """SQLite has no NaN: the message is not taken for damaged, its time is unknown."""
    kit.send(kit.message(created_at=math.nan), kit.message(created_at=-0.0))

    assert [one.message.created_at for one in take(kit.join())] == [0.0, 0.0]
