import multiprocessing
import os
import threading
import uuid

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reliable_mq.ids import IdSource, derived_id


def test_ids_of_a_source_are_never_alike():
    """Threads that draw from one source at once get different ids of 32 hex digits."""
    source = IdSource()
    drawn: list[list[str]] = [[] for _ in range(4)]
    threads = [
        threading.Thread(target=lambda into=into: into.extend(source() for _ in range(2_000)))
        for into in drawn
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ids = {one for part in drawn for one in part}
    assert len(ids) == 8_000
    assert all(len(one) == 32 and int(one, 16) >= 0 for one in ids)


def test_ids_are_a_prefix_and_a_counter():
    """The bits are drawn once, and again when the counter is used up."""
    draws = iter([b"a" * 12, b"b" * 12, b"c" * 12])
    source = IdSource(lambda size: next(draws)[:size])
    assert [source(), source()] == ["61" * 12 + "00000000", "61" * 12 + "00000001"]
    source.renew(first=2**32 - 1)
    assert [source(), source()] == ["62" * 12 + "ffffffff", "63" * 12 + "00000000"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_draws_its_own_bits():
    """Parent and child never give the same id."""
    source = IdSource()
    before = source()
    context = multiprocessing.get_context("fork")
    ours_, theirs = context.Pipe()
    child = context.Process(target=lambda: theirs.send(source()))
    child.start()
    child_id = ours_.recv()
    child.join()
    assert source()[:24] == before[:24]
    assert child_id[:24] != before[:24]


def test_derived_ids():
    """The id of an output is a UUID of version 5 that depends on all that it is derived from."""
    one = derived_id("id-1", "billing", 0, topic="orders")
    assert (uuid.UUID(one).version, str(uuid.UUID(one))) == (5, one)
    name = "6:orders4:id-17:billing0"
    assert one == str(uuid.uuid5(uuid.UUID("5a9d8a4e-6b1f-5d0c-9a5e-3f1c7e0b2d64"), name))
    assert one == derived_id("id-1", "billing", 0, topic="orders")
    others = [
        derived_id("id-1", "billing", 1, topic="orders"),
        derived_id("id-1", "billin", 0, topic="orders"),
        derived_id("id-2", "billing", 0, topic="orders"),
        derived_id("id-1", "billing", 0, topic="refunds"),
        derived_id("id-1b", "illing", 0, topic="orders"),
        derived_id("\ud800\n", "billing", 0, topic="orders"),
    ]
    assert len({one, *others}) == 7


names = st.text(max_size=4)


@given(
    st.lists(
        st.tuples(names, names, st.integers(0, 20), names), min_size=2, max_size=8, unique=True
    )
)
@settings(max_examples=50, deadline=None)
def test_derived_ids_never_collide(sources):
    """Whatever the names, two different sources never give the same id."""
    ids = {derived_id(i, group, n, topic=topic) for i, group, n, topic in sources}
    assert len(ids) == len(sources)
