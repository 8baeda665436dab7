"""Commit metadata: what is done above the committed offset survives, within what a broker takes."""

import random
import zlib
from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reliable_mq.adapters.kafka.metadata import LONGEST, SPAN, decode, encode

POSITIONS = st.integers(0, 2**62)
TOPIC_ID = "A" * 22


@given(POSITIONS, st.sets(st.integers(0, SPAN - 1), max_size=300))
def test_what_is_done_comes_back(position, above):
    """Whatever the pattern."""
    done = {position + one for one in above}
    text = encode(position, done, TOPIC_ID)
    assert decode(position, text) == (TOPIC_ID, done)
    assert len(text) <= LONGEST


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99, 1.0])
def test_the_whole_span_fits(share):
    """Also where nothing can be compressed."""
    draw = random.Random(1)
    done = {offset for offset in range(SPAN) if draw.random() < share}
    text = encode(0, done, TOPIC_ID)
    assert len(text) <= LONGEST
    assert decode(0, text).done == done


def test_what_is_beyond_the_span_runs_again():
    """It is left out; the rest stays."""
    assert decode(5, encode(5, {6, 5 + SPAN, 10**9})).done == {6}
    assert decode(5, encode(5, {1, 4})).done == set()


@given(POSITIONS, st.text(max_size=200))
def test_what_others_wrote_says_nothing(position, text):
    """Never an error, and never an offset that is not ours."""
    assert decode(position, text) == ("", frozenset()) or text.startswith("rmq1")


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "rmq1",
        "rmq1.x" + b64encode(b"\1").decode(),
        "rmq1.b!!!",
        "rmq1.z" + b64encode(b"no zlib").decode(),
        "rmq1.z" + b64encode(zlib.compress(bytes(10**7))).decode()[:4000],
        "rmq1.z" + b64encode(zlib.compress(bytes(10**6))).decode(),
        "rmq1.b" + "A" * 5_000,
    ],
)
def test_damage_says_nothing(text):
    """Also a bomb: it is unpacked no further than a span."""
    assert decode(0, text) == ("", frozenset())
