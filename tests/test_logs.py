import logging

import pytest

from reliable_mq.context import enter
from reliable_mq.logs import MessageFilter
from reliable_mq.message import Message

FIELDS = ("message_id", "topic", "group", "key", "attempt")


def filtered(**extra):
    """The fields of a record that has passed the filter."""
    record = logging.makeLogRecord({"msg": "hello", **extra})
    assert MessageFilter().filter(record) is True
    return tuple(getattr(record, name) for name in FIELDS)


@pytest.fixture(autouse=True)
def _nothing_in_hand():
    enter(None)
    yield
    enter(None)


def test_inside_a_handler():
    """A record tells which message is in hand."""
    enter((Message("id-1", "orders", b"customer-7"), "billing", 2))
    assert filtered() == ("id-1", "orders", "billing", "customer-7", 2)


def test_outside_of_handlers():
    """A record that belongs to no message says so, and can be formatted all the same."""
    assert filtered() == ("-", "-", "-", "-", 0)


def test_keys_that_are_no_text():
    """No key, an empty one and a binary one are told apart, and are text."""
    expected = {None: "-", b"": "", b"\xff\x00": r"\\xff\x00", "é".encode(): "é"}
    for key, text in expected.items():
        enter((Message("id-1", "orders", key), "g", 1))
        assert filtered()[3] == text


def test_nothing_can_forge_a_line():
    """Control characters of ids and keys are escaped, and long ones are cut."""
    enter((Message("id\nERROR forged", "t\x1b[31m", b"k\r\n" * 1000), "g", 1))
    message_id, topic, _, key, _ = filtered()
    assert message_id == r"id\nERROR forged"
    assert topic == r"t\x1b[31m"
    assert key.isprintable()
    assert len(key) < 500


def test_what_a_record_has_already_stays():
    """`extra=` and a filter that ran in the handler's thread win."""
    enter((Message("id-1", "orders"), "g", 1))
    assert filtered(key="mine", message_id="theirs")[:4] == ("theirs", "orders", "g", "mine")


def test_the_package_leaves_logging_alone():
    """The package's logger has a NullHandler, no level and nothing else."""
    logger = logging.getLogger("reliable_mq")
    assert logger.handlers
    assert all(isinstance(handler, logging.NullHandler) for handler in logger.handlers)
    assert logger.level == logging.NOTSET
    assert logger.propagate
