import logging
import random
import signal
import sqlite3
import subprocess
import sys

import pytest

from reliable_mq.adapters.base import TopicSpec, Topology
from reliable_mq.adapters.sqlite import SqliteTransport
from reliable_mq.errors import ConfigurationError, ConnectionFailed, TransportError
from reliable_mq.message import DeadLetter, Message, Receipt, Topic
from tests.sqlite_faults import FULL, broker_file
from tests.sqlite_kit import Kit, ids, take
from tests.waiting import eventually


@pytest.fixture
def kit():
    """A file, a topic and a group."""
    with broker_file() as path:
        kit = Kit(path)
        kit.declare()
        yield kit
        kit.close()


# -- settings ----------------------------------------------------------------------------------


class Stubborn(sqlite3.Connection):
    """A SQLite that does not do as it is told."""

    refused = ""

    def execute(self, sql, parameters=()):
        """Anything but the setting that is refused."""
        if sql.startswith(f"PRAGMA {self.refused}="):
            sql = "SELECT 'no'"
        return super().execute(sql, parameters)


@pytest.mark.parametrize("setting", ["journal_mode", "synchronous", "foreign_keys"])
def test_what_durability_rests_on_is_checked(setting):
    """Where SQLite cannot give WAL, FULL or foreign keys, nothing is written, and that is told."""
    factory = type("Stubborn", (Stubborn,), {"refused": setting})
    off = {"synchronous": "PRAGMA synchronous=OFF", "foreign_keys": "PRAGMA foreign_keys=OFF"}

    def connect(path, **options):
        connection = sqlite3.connect(path, factory=factory, **options)
        if setting in off:
            sqlite3.Connection.execute(connection, off[setting])
        return connection

    with broker_file() as path:
        with pytest.raises(TransportError, match=f"cannot give {setting}="):
            SqliteTransport(path, connect=connect).ensure(Topology((TopicSpec("t"),)))

        tables = sqlite3.connect(path)
        assert tables.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
        tables.close()


def test_every_connection_is_full_and_wal(kit):
    """What publishers and subscriptions work with has the settings that are promised."""
    member = kit.join()
    kit.send_many(1)
    take(member)

    for connection in kit.connect.opened[-2:]:
        found = [
            sqlite3.Connection.execute(connection, f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "foreign_keys")
        ]
        assert found == ["wal", 2, 1]


@pytest.mark.parametrize(
    "options",
    [{"lease_timeout": 0}, {"retention": -1.0}, {"max_body": 0}, {"max_body": 2_000_000_000}],
)
def test_impossible_options_are_refused(options):
    """Options that cannot work are refused before anything is opened."""
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        SqliteTransport("broker.sqlite3", **options)


@pytest.mark.parametrize("path", ["", ":memory:", "file::memory:"])
def test_a_broker_without_a_file_is_refused(path):
    """What would be gone with the connection is no durable broker."""
    with pytest.raises(ConfigurationError, match="memory://"):
        SqliteTransport(path)


def test_a_directory_that_does_not_exist(tmp_path):
    """The error names the file and asks the right question."""
    transport = SqliteTransport(tmp_path / "nowhere" / "broker.sqlite3")
    with pytest.raises(ConnectionFailed, match=r"nowhere/broker.sqlite3.*does the directory exist"):
        transport.ensure(Topology((TopicSpec("t"),)))


def test_check_makes_no_file(tmp_path):
    """Mode "check" on a file that is not there says so, and it still is not there."""
    transport = SqliteTransport(tmp_path / "broker.sqlite3")
    with pytest.raises(ConfigurationError, match="does not exist"):
        transport.ensure(Topology((TopicSpec("t"),), mode="check"))
    assert list(tmp_path.iterdir()) == []


def test_the_file_of_a_later_release_is_left_alone(kit):
    """A higher version of the tables is refused, with both numbers."""
    kit.sql("UPDATE mq_meta SET value = 99 WHERE name = 'version'")

    with pytest.raises(ConfigurationError, match=r"version 99 .* version 1"):
        kit.join()


def test_a_file_that_is_no_database(tmp_path):
    """Something else under that name is not touched, and named."""
    path = tmp_path / "broker.sqlite3"
    path.write_bytes(b"not a database, but long enough to be taken for one" * 100)

    with pytest.raises(TransportError, match=r"broker.sqlite3.*not a database"):
        SqliteTransport(path).ensure(Topology((TopicSpec("t"),)))
    assert path.read_bytes().startswith(b"not a database")


@pytest.mark.parametrize(
    "statement", ["CREATE TABLE mq_state", "INSERT INTO mq_topic", "DELETE FROM mq_message"]
)
def test_a_call_that_fails_leaves_nothing_behind(statement):
    """Declaring and discarding are done or not, and can be done again; no lock stays."""
    with broker_file() as path:
        kit = Kit(path)

        def declare_and_discard():
            kit.declare()
            return kit.transport.discard("t", "g", [1])

        kit.connect.fail(statement, FULL)
        with pytest.raises(ConnectionFailed, match="the disk is full"):
            declare_and_discard()

        assert declare_and_discard() == 0
        kit.send_many(1)
        kit.close()


def test_tables_of_an_application_may_live_in_the_same_file(kit):
    """The tables of the broker have a prefix: they leave those of others alone."""
    kit.sql("CREATE TABLE message (id)")
    kit.sql("INSERT INTO message VALUES ('mine')")

    kit.send_many(1)

    assert kit.sql("SELECT id FROM message") == [("mine",)]


def test_a_file_that_was_replaced_is_noticed(kit):
    """Nothing is confirmed into a file that was deleted: nobody could ever read it."""
    member = kit.join()
    kit.send_many(2)
    held = take(member, 1)
    for file in list(kit.path.parent.iterdir()):
        file.unlink()

    lost = kit.submit(kit.message())
    eventually(lost.done)
    with pytest.raises(ConnectionFailed, match="deleted or replaced"):
        member.poll(10, 0.0)
    with pytest.raises(ConfigurationError, match="'t' does not exist"):
        member.poll(10, 0.0)
    kit.declare()
    sent = kit.send_many(1)
    polled = member.poll(10, 0.0)

    assert not isinstance(lost.outcome, Receipt)
    assert [held[0].lease] == list(polled.lost)
    assert ids(polled.deliveries) == sent


# -- crashes and power -------------------------------------------------------------------------


def publish_for_ever(path):
    """The life of a publisher that is killed: it tells each id that was confirmed."""
    publisher = SqliteTransport(path).publisher()
    number = 0
    while True:
        burst = [numbered(number + at) for at in range(20)]
        number += 20
        for confirmation in [publisher.submit(one, Topic()) for one in burst]:
            print(confirmation.result(20).id, flush=True)  # noqa: T201 - the parent reads it


def numbered(number):
    """The message with this number: one of three keys."""
    return Message(f"m{number}", "t", b"k%d" % (number % 3), b"body")


def test_a_publisher_that_is_killed_loses_nothing_that_it_confirmed(kit):
    """SIGKILL in the middle: each id it told is stored once, each key in the order of submit."""
    member = kit.join()
    confirmed, taken = [], []
    with subprocess.Popen(
        [sys.executable, __file__, str(kit.path)], stdout=subprocess.PIPE, text=True
    ) as process:
        while len(confirmed) < 200:
            confirmed.append(process.stdout.readline().strip())
            taken += take(member)  # somebody else writes to the file at the same time
        process.send_signal(signal.SIGKILL)
        confirmed += [line.strip() for line in process.stdout if line.endswith("\n")]
    while more := take(member):
        taken += more

    numbers = [int(one.message.id[1:]) for one in taken]
    assert set(confirmed) <= set(ids(taken))
    assert len(numbers) == len(set(numbers))
    for key in range(3):
        of_key = [number for number in numbers if number % 3 == key]
        assert of_key == list(range(key, 3 * len(of_key), 3))


def test_a_truncated_log_keeps_every_earlier_record(kit):
    """Whatever is cut off the end of the log file, all that was committed before it is there."""
    connect = kit.connect
    connect.options = ["PRAGMA wal_autocheckpoint=0"]
    wal = kit.path.with_name(kit.path.name + "-wal")
    member = kit.join()  # keeps the log from being folded into the file
    sizes = []
    for _ in range(12):
        (one,) = kit.send_many(1, b"k")
        sizes.append((wal.stat().st_size, one))
    whole, log = kit.path.read_bytes(), wal.read_bytes()

    draw = random.Random(5)
    cuts = {0, 31, 32, len(log), *(size for size, _ in sizes), *(size - 1 for size, _ in sizes)}
    cuts |= {draw.randrange(len(log)) for _ in range(20)}
    for cut in sorted(cuts):
        with broker_file() as path:
            path.write_bytes(whole)
            path.with_name(path.name + "-wal").write_bytes(log[:cut])
            left = Kit(path)
            left.declare()
            expected = [one for size, one in sizes if size <= cut]
            found = [one for (one,) in left.sql("SELECT id FROM mq_message ORDER BY position")]
            assert found[: len(expected)] == expected
            assert found == [one for _, one in sizes][: len(found)]
            assert ids(take(left.join())) == found
            left.close()
    assert member.poll(0, 0.0).lost == ()


# -- damage ------------------------------------------------------------------------------------


def test_a_damaged_message_is_set_aside_and_told(kit, caplog):
    """A row that is not what was written is not delivered; the others of its key go on."""
    sent = kit.send_many(4, b"k")
    kit.sql("UPDATE mq_message SET body = 'bodY' WHERE id = 'm2'")
    kit.sql("UPDATE mq_message SET id = 'm9' WHERE id = 'm4'")
    member = kit.join()

    with caplog.at_level(logging.ERROR):
        taken = take(member)
    member.ack(taken)
    member.poll(0, 0.0)
    member.close()

    assert ids(taken) == [sent[0], sent[2]]
    assert kit.transport.damaged("t", "g") == [2, 4]
    assert kit.transport.lag("t", "g") == 2
    assert take(kit.join()) == []
    assert "position 2 of topic 't'" in caplog.text
    assert "bod" not in caplog.text


def test_a_message_damaged_while_it_waits_is_set_aside(kit):
    """The same for one that came back, and its key is free for the rest."""
    sent = kit.send_many(3, b"k")
    member = kit.join()
    take(member, 2)
    member.close()
    kit.sql("UPDATE mq_message SET headers = x'ff' WHERE id = 'm1'")
    kit.sql("UPDATE mq_message SET crc = NULL WHERE id = 'm1'")

    assert ids(take(kit.join())) == sent[1:]
    assert kit.transport.damaged("t", "g") == [1]


def test_a_damaged_dead_letter_is_passed_over(kit, caplog):
    """Browsing goes on behind it, and it is logged."""
    kit.send(*(kit.message(b"k") for _ in range(3)), to=DeadLetter("t", "g"))
    kit.sql("UPDATE mq_message SET key = 'x' WHERE id = 'm2'")

    browsed = [one.message.id for one in kit.transport.browse("t", "g", 10)]

    assert browsed == ["m1", "m3"]
    assert "damaged" in caplog.text


def test_bits_that_flip_are_never_delivered(kit):
    """Any byte of the file changed: what is delivered is what was written, or an error says so."""
    messages = [kit.message(b"k%d" % (at % 3), body=b"body %d" % at * 9) for at in range(60)]
    kit.send(*messages)
    kit.close()
    whole = kit.path.read_bytes()
    sent = {one.id: one for one in messages}

    draw = random.Random(3)
    detected = 0
    for _ in range(80):
        with broker_file() as path:
            damaged = bytearray(whole)
            damaged[draw.randrange(100, len(whole))] ^= 1 << draw.randrange(8)
            path.write_bytes(damaged)
            left = Kit(path)
            try:
                taken, told = take(left.join()), str(path)
                detected += len(taken) < 60
            except (TransportError, ConfigurationError) as error:
                detected += 1
                told, taken = str(error), []
            finally:
                left.abandon()
            assert str(path) in told
            assert "body " not in told
            assert [sent[one.message.id] for one in taken] == [one.message for one in taken]
    assert detected > 0


if __name__ == "__main__":
    publish_for_ever(sys.argv[1])
