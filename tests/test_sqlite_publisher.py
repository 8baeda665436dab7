import sqlite3
import threading

import pytest

from reliable_mq.errors import (
    Backpressure,
    PublishRejected,
    PublishUnknown,
    TooLarge,
    TransportError,
    Unroutable,
)
from reliable_mq.message import DeadLetter, Receipt, RetryCopy
from tests.sqlite_faults import FULL, IO_ERROR, LOCKED, Gate, broker_file, write_lock
from tests.sqlite_kit import Kit, ending, ids, take
from tests.waiting import eventually

INSERT = "INSERT INTO mq_message"


@pytest.fixture
def kit():
    """A file, a topic and a group."""
    with broker_file() as path:
        kit = Kit(path, max_body=1000)
        kit.declare()
        yield kit
        kit.close()


def failure(confirmation):
    """The error of a publish that is on its way."""
    eventually(confirmation.done)
    return ending(confirmation)


def stored(kit):
    """The ids in the file, in the order of their positions."""
    return [one for (one,) in kit.sql("SELECT id FROM mq_message ORDER BY position")]


# -- what a Receipt means ----------------------------------------------------------------------


def test_no_receipt_before_commit_returned(kit):
    """As long as COMMIT has not returned there is no Receipt, and others do not see the message."""
    gate = Gate()
    kit.connect.before("COMMIT", gate)
    confirmation = kit.submit(kit.message())
    assert gate.reached.wait(20)

    assert not confirmation.done()
    assert stored(kit) == []

    gate.open()
    assert isinstance(confirmation.result(20), Receipt)


def test_a_receipt_has_the_position_of_its_own_message(kit):
    """Receipts of a burst, of retry copies and of dead letters name the rows they belong to."""
    gate = Gate()
    kit.connect.before("COMMIT", gate)
    confirmations = [kit.submit(kit.message())]
    assert gate.reached.wait(20)
    for number in range(150):  # one burst, in statements of several sizes
        to = {7: RetryCopy("t", "g"), 30: DeadLetter("t", "g")}.get(number)
        message = kit.message(b"k%d" % (number % 3))
        confirmations.append(kit.submit(message, to) if to else kit.submit(message))
    gate.open()

    receipts = [one.result(20) for one in confirmations]

    rows = dict(kit.sql("SELECT position, id FROM mq_message"))
    assert {one.position: one.id for one in receipts} == rows
    assert [one.position for one in receipts] == sorted(rows)
    assert {one.topic for one in receipts} == {"t", "t.g.dlq"}
    assert kit.connect.count("COMMIT") < 10


def test_a_burst_is_one_transaction(kit):
    """What gathers while the disk is busy is stored in one commit."""
    gate = Gate()
    kit.connect.before("COMMIT", gate)
    first = kit.submit(kit.message())
    assert gate.reached.wait(20)
    rest = [kit.submit(kit.message()) for _ in range(900)]
    before = kit.connect.count("COMMIT")

    gate.open()
    assert all(isinstance(one.result(20), Receipt) for one in [first, *rest])

    assert kit.connect.count("COMMIT") - before <= 3


def test_positions_are_never_used_again(kit):
    """The position of a message that is gone goes to no other one."""
    (first,) = kit.send(kit.message())
    kit.sql("DELETE FROM mq_message")

    (second,) = kit.send(kit.message())

    assert second.position > first.position


def test_callbacks_run_on_the_publishers_thread_and_may_submit(kit):
    """A callback runs on the thread that writes, and can hand in the next message."""
    gate, threads, follow = Gate(), [], []

    def callback(_):
        threads.append(threading.current_thread().name)
        follow.append(kit.submit(kit.message()))

    kit.connect.before("COMMIT", gate)
    confirmation = kit.submit(kit.message())
    confirmation.add_done_callback(callback)
    gate.open()
    confirmation.result(20)
    eventually(lambda: follow)

    assert isinstance(follow[0].result(20), Receipt)
    assert threads == ["reliable-mq-sqlite"]


# -- refused for good --------------------------------------------------------------------------


def test_a_missing_topic_says_what_to_do(kit):
    """Unroutable names the topic and the declaration; the others of the burst are stored."""
    lost = kit.submit(kit.message(topic="orders"))
    kit.send(kit.message())

    error = ending(lost)
    assert isinstance(error, Unroutable)
    assert "mq.topic('orders', groups=" in str(error)
    assert kit.connect.count("COMMIT") > 0
    assert len(stored(kit)) == 1


def test_a_topic_that_was_declared_meanwhile_is_found(kit):
    """Nobody remembers that a topic did not exist."""
    lost = kit.submit(kit.message(topic="later"))
    assert isinstance(failure(lost), Unroutable)
    kit.declare("later", "g")

    assert kit.send(kit.message(topic="later"))


def test_too_large_is_refused_before_anything_is_written(kit):
    """A body or an envelope over the limit is TooLarge at once; what is larger by headers fits."""
    kit.send(kit.message(body=bytes(1000)))
    kit.send(kit.message(body=bytes(1000), headers=(("h", "x" * 60_000),)), to=DeadLetter("t", "g"))
    statements = len(kit.connect.statements)
    refused = [
        kit.submit(kit.message(body=bytes(1001))),
        kit.submit(kit.message(headers=(("h", "x" * 50_000),))),
        kit.submit(kit.message(key=bytes(50_000))),
        kit.submit(kit.message(headers=(("h", "x" * 70_000),)), DeadLetter("t", "g")),
        kit.submit(kit.message(body=bytes(70_000)), RetryCopy("t", "g")),
    ]

    assert [type(ending(one)) for one in refused] == [TooLarge] * 5
    assert len(kit.connect.statements) == statements


@pytest.mark.parametrize("fields", [{"id": "\ud800"}, {"headers": (("h", object()),)}])
def test_what_cannot_be_encoded_is_refused(kit, fields):
    """An id that is no Unicode, a header that is no value: PublishRejected, and nothing hangs."""
    refused = kit.submit(kit.message(**fields))

    assert type(ending(refused)) is PublishRejected
    assert kit.send(kit.message())


# -- for now -----------------------------------------------------------------------------------


@pytest.mark.parametrize("statement", ["BEGIN", INSERT, "INSERT INTO mq_publisher", "COMMIT"])
@pytest.mark.parametrize("text", [LOCKED, FULL, IO_ERROR])
def test_a_failure_that_passes_changes_nothing(kit, statement, text):
    """Whatever fails for now is done again: each message is stored once, in the order of submit."""
    kit.connect.fail(statement, text, times=2)
    messages = [kit.message(b"ab"[at % 2 : at % 2 + 1]) for at in range(40)]

    kit.send(*messages)

    assert stored(kit) == [one.id for one in messages]


def test_an_error_that_nobody_foresaw_is_tried_again(kit, caplog):
    """Whatever goes wrong on the publisher's thread, it lives on, and no message hangs."""

    def run_out_of_memory():
        raise MemoryError

    kit.connect.before(INSERT, run_out_of_memory)

    kit.send(kit.message(), kit.message())

    assert stored(kit) == ["m1", "m2"]
    assert "MemoryError" in caplog.text


def test_a_commit_whose_answer_is_lost_is_found_out(kit):
    """Stored without an answer: the Receipt comes all the same, and nothing is stored twice."""
    kit.connect.lose("COMMIT", IO_ERROR)
    messages = [kit.message(b"k") for _ in range(5)]

    receipts = kit.send(*messages)

    assert stored(kit) == [one.id for one in messages]
    rows = dict(kit.sql("SELECT position, id FROM mq_message"))
    assert {one.position: one.id for one in receipts} == rows


def test_a_commit_that_nobody_can_ask_about_is_unknown(kit):
    """While the file cannot be opened again, a message that may be stored ends as unknown."""

    def lose():
        kit.connect.down = True
        raise sqlite3.OperationalError(IO_ERROR)

    kit.connect.before("COMMIT", lose)
    sent = kit.submit(kit.message(), within=5.0)
    eventually(lambda: kit.connect.down)
    behind = kit.submit(kit.message(), within=5.0)
    kit.clock.advance(6.0)

    assert isinstance(failure(sent), PublishUnknown)
    assert isinstance(failure(behind), Backpressure)


def test_the_deadline_of_what_was_never_sent(kit):
    """Locked out until its deadline it is Backpressure, definitely not stored; later ones go on."""
    with write_lock(kit.path):
        late = kit.submit(kit.message(b"k"), within=5.0)
        patient = kit.submit(kit.message(b"k"), within=50.0)
        eventually(lambda: "locked" in kit.publisher._reason)
        kit.clock.advance(6.0)
        error = failure(late)
        assert not patient.done()

    assert isinstance(error, Backpressure)
    assert "locked" in str(error)
    assert isinstance(patient.result(20), Receipt)
    assert stored(kit) == [patient.message.id]


def test_a_full_disk_is_backpressure_and_says_so(kit):
    """Where the file may not grow, nothing is confirmed, and the error says that it is full."""
    kit.send(kit.message())
    pages = kit.sql("PRAGMA page_count")[0][0]
    kit.connect.options = [f"PRAGMA max_page_count={pages + 2}"]
    kit.close()
    kit._publisher = None
    confirmations = [kit.submit(kit.message(body=bytes(1000)), within=5.0) for _ in range(100)]
    eventually(lambda: "full" in kit.publisher._reason)
    kit.clock.advance(6.0)
    eventually(lambda: all(one.done() for one in confirmations))
    errors = [one.outcome for one in confirmations if not isinstance(one.outcome, Receipt)]
    confirmed = [one.message.id for one in confirmations if isinstance(one.outcome, Receipt)]

    kit.connect.options = []
    kit.close()
    kit._publisher = None
    kit.send(kit.message(id="last"))

    assert {type(one) for one in errors} == {Backpressure}
    assert "the disk is full" in str(errors[0])
    assert stored(kit) == ["m1", *confirmed, "last"]


def test_the_window_is_bounded(kit):
    """What is handed in and has no ending is limited, by number and by bytes."""
    kit.options["max_body"] = 20_000_000
    publisher = kit.another().publisher()
    with write_lock(kit.path):
        large = [
            publisher.submit(kit.message(body=bytes(17_000_000)), DeadLetter("t", "g"))
            for _ in range(5)
        ]
        rest = publisher.close(0.0)

    assert [one.done() for one in large] == [True] * 5
    assert isinstance(ending(large[4]), Backpressure)
    assert len(rest) == 4
    assert {type(ending(one)) for one in large[:4]} == {Backpressure}


# -- the end -----------------------------------------------------------------------------------


def test_close_while_a_commit_hangs(kit):
    """What is in a COMMIT that does not return ends as unknown, what is behind it as not sent."""
    gate = Gate()
    kit.connect.before("COMMIT", gate)
    sent = kit.submit(kit.message())
    assert gate.reached.wait(20)
    behind = kit.submit(kit.message())

    rest = kit.publisher.close(0.05)
    gate.open()
    kit.publisher._thread.join(20)

    assert [one.id for one in rest] == [sent.message.id, behind.message.id]
    assert isinstance(ending(sent), PublishUnknown)
    assert isinstance(ending(behind), Backpressure)
    assert stored(kit) == [sent.message.id]
    assert kit.publisher.close(1.0) == []


def test_what_was_given_up_is_not_sent_later(kit):
    """A message that `close` returned as not sent is not stored afterwards."""
    begun = kit.connect.count("BEGIN")
    with write_lock(kit.path):
        given_up = kit.submit(kit.message())
        eventually(lambda: kit.connect.count("BEGIN") > begun)
        assert [one.id for one in kit.publisher.close(0.0)] == [given_up.message.id]
    kit.publisher._thread.join(20)

    assert isinstance(ending(given_up), Backpressure)
    assert stored(kit) == []


def test_close_from_a_callback_does_not_wait_for_itself(kit):
    """A callback that closes the publisher does not hang."""
    closed = []
    kit.submit(kit.message()).add_done_callback(lambda _: closed.append(kit.publisher.close(20)))

    eventually(lambda: closed)


def test_no_more_threads(kit, monkeypatch):
    """Where no thread can be started, a publish is Backpressure that says why."""

    def start(_):
        text = "can't start new thread"
        raise RuntimeError(text)

    monkeypatch.setattr(threading.Thread, "start", start)

    error = ending(kit.submit(kit.message()))

    assert isinstance(error, Backpressure)
    assert "can't start new thread" in str(error)


def test_after_a_fork(kit, monkeypatch):
    """In the child of a fork the publisher and the subscription refuse to work."""
    member = kit.join()
    kit.send(kit.message())
    assert ids(take(member)) == ["m1"]
    monkeypatch.setattr("os.getpid", lambda: 1)

    with pytest.raises(TransportError, match="fork"):
        kit.submit(kit.message())
    with pytest.raises(TransportError, match="fork"):
        member.poll(1, 0.0)
    member.close()
    monkeypatch.undo()
    assert ids(take(kit.join())) == []  # the member of the parent has it
    kit.close()
    kit.connect.close()
