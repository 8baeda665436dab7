"""Costs, counted in instructions of SQLite's machine and in query plans, never in seconds."""
# ruff: noqa: S608 - queries are put together from the constants below

import re
import sqlite3

import pytest

from reliable_mq.message import DeadLetter, RetryCopy
from tests.sqlite_faults import broker_file
from tests.sqlite_kit import Kit, take

#: Rows of each kind that are in nobody's way, however many there are.
MANY = 50_000

#: The key of row i: one of so many, or always the same.
KEY = "CAST(:key || CASE WHEN :keys THEN i % :keys ELSE '' END AS BLOB)"
NUMBERS = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :many)"
MESSAGES = f"""
    {NUMBERS} INSERT INTO mq_message (position, topic, key, body)
    SELECT :from + i, 1, {KEY}, 'x' FROM n"""
STATES = f"""
    {NUMBERS} INSERT INTO mq_state (grp, position, key, due, ready, owner)
    SELECT 1, :from + i, {KEY}, :due, NULL, :owner FROM n"""
LEASES = f"{NUMBERS} INSERT INTO mq_key_lease SELECT 1, CAST('held-' || i AS BLOB), 77 FROM n"


def fill(kit):
    """A group with 200,000 messages that nobody can get now, in front of those that one can."""
    connection = sqlite3.connect(kit.path)
    kinds = [
        {"key": "held-", "keys": MANY, "owner": 77, "due": None},  # in hand of another member
        {"key": "hot", "keys": 0, "owner": None, "due": None},  # behind it, all of one key
        {"key": "late-", "keys": 7, "owner": None, "due": 9e9},  # delayed
        {"key": "done-", "keys": 9, "owner": 0, "due": None},  # finished, and retained
    ]
    with connection:
        for number, kind in enumerate(kinds):
            given = {**kind, "many": MANY, "from": number * MANY}
            connection.execute(MESSAGES, given)
            if not kind["key"].startswith("done"):
                connection.execute(STATES, given)
        connection.execute(LEASES, {"many": MANY})
        connection.execute("INSERT INTO mq_key_lease VALUES (1, CAST('hot' AS BLOB), 77)")
        connection.execute("UPDATE mq_state SET ready = 77 WHERE position = ?", (MANY + 1,))
        connection.execute("INSERT INTO mq_member VALUES (77, ?, 9e9, 9e9)", (kit.boot,))
        connection.execute("UPDATE mq_group SET cursor = ?", (4 * MANY + 1,))
    connection.close()


def joined(path, *, full):
    """A kit with one member, and the number of instructions that its connection carried out."""
    kit = Kit(path, boot_id="this boot")
    kit.boot = "this boot"
    kit.declare()
    if full:
        fill(kit)
    member = kit.join()
    count = [0]

    def step():
        count[0] += 1
        return 0

    kit.connect.opened[-1].set_progress_handler(step, 1)
    return kit, member, count


def cost(*, full):
    """Instructions of: an empty look, a poll that fetches, one that acks, fetches and goes back."""
    with broker_file() as path:
        kit, member, count = joined(path, full=full)
        costs = []

        def note(action):
            before = count[0]
            result = action()
            costs.append(count[0] - before)
            return result

        note(lambda: take(member, 100))
        kit.send_many(300, *(b"k%d" % at for at in range(60)), None)
        first = note(lambda: take(member, 100))
        assert len(first) == 100
        member.ack(first)
        second = note(lambda: take(member, 100))
        assert len(second) == 100
        note(member.close)
        again = kit.join()
        kit.connect.opened[-1].set_progress_handler(lambda: count.__setitem__(0, count[0] + 1), 1)
        assert note(lambda: take(again, 50)) != []
        kit.clock.advance(2.0)
        note(lambda: again.poll(0, 0.0))
        kit.close()
    return costs


def test_what_cannot_be_had_costs_nothing():
    """200,000 messages in hand, behind their key, delayed or done: a poll costs what it cost."""
    small, large = cost(full=False), cost(full=True)

    for one, other in zip(small, large, strict=True):
        assert other <= 1.2 * one + 200, f"{large} with many, {small} without"


def test_a_hundred_thousand_keys_cost_what_one_hundred_do():
    """A fetch of keys that were never seen costs the same as one of few keys."""
    costs = []
    for keys in (100, 100_000):
        with broker_file() as path:
            kit, member, count = joined(path, full=False)
            given = {"key": "k", "keys": keys, "many": 100_000, "from": 0}
            connection = sqlite3.connect(kit.path)
            with connection:
                connection.execute(MESSAGES, given)
            connection.close()
            held = []
            before = count[0]
            for _ in range(10):
                member.ack(held)
                held = take(member, 200)
                assert len(held) == 200
            costs.append(count[0] - before)
            kit.close()

    assert costs[1] <= 1.6 * costs[0], costs


def test_one_hot_key_of_another_member_is_walked_over_once():
    """Messages of a key that another member has are looked at once, then found by that one only."""
    with broker_file() as path:
        kit, member, count = joined(path, full=False)
        other = kit.join()
        kit.send_many(1, b"hot")
        (held,) = take(other)
        connection = sqlite3.connect(kit.path)
        with connection:
            given = {"key": "hot", "keys": 0, "many": 5_000, "from": 10}
            connection.execute(MESSAGES, given)
        connection.close()
        (free,) = kit.send_many(1, b"free")

        polls = [take(member, 10) for _ in range(7)]
        before = count[0]
        assert take(member, 10) == []
        idle = count[0] - before
        other.ack([held])

        assert [[one.message.id for one in poll] for poll in polls if poll] == [[free]]
        assert idle < 300
        assert [one.position for one in take(other, 3)] == [11, 12, 13]
        kit.close()


def test_no_statement_walks_through_messages():
    """Each statement that publishing, polling, acking and the rest carry out uses an index."""
    with broker_file() as path:
        kit = Kit(path, retention=0.0)
        kit.declare()
        member, other = kit.join(), kit.join()
        for _ in range(3):
            kit.send(*(kit.message(key) for key in (b"a", b"b", None)))
            kit.send(kit.message(b"a"), to=RetryCopy("t", "g", 1.0))
            kit.send(kit.message(b"a"), to=DeadLetter("t", "g"))
            held = take(member, 2)
            take(other, 1)
            member.ack(held[:1])
            for one in held[1:]:
                member.nack(one, 1.0)
            kit.clock.advance(2.0)
            take(member, 10)
        list(kit.transport.browse("t", "g", 10))
        kit.transport.discard("t", "g", [1])
        kit.transport.damaged("t", "g")
        kit.clock.advance(100.0)
        take(kit.join())
        kit.close()
        statements = {
            one
            for one in kit.connect.statements
            if re.match("SELECT|WITH|UPDATE|DELETE|INSERT", one)
        }

        plans = Kit(path)
        walks = [(one, step) for one in statements for step in walks_in(plans, one)]

    assert len(statements) > 40
    assert walks == []


def walks_in(kit, statement):
    """Steps of the plan that go through all of a table that grows with the messages."""
    parameters = {
        name: "[]" if name == "positions" else 1 for name in re.findall(r":(\w+)", statement)
    } or ["[]" if "json_each" in statement else 1] * statement.count("?")
    if statement.startswith("DELETE FROM mq_message WHERE topic"):
        parameters = [1, "[]"]
    for row in kit.sql(f"EXPLAIN QUERY PLAN {statement}", parameters):
        whole = r"SCAN (m|mq_message|mq_state|s|w|n|mq_key_lease|l)\b"
        walk = whole + r"|(mq_state|s|w|n) USING PRIMARY KEY \(grp=\?\)"
        if re.search(walk, row[3]):
            yield row[3]


def test_a_fetch_brings_a_bounded_number_of_bytes():
    """However large the limit: some 16 MiB of bodies, new or given back, and then the next poll."""
    with broker_file() as path:
        kit = Kit(path)
        kit.declare()
        kit.send(*(kit.message(b"k", body=bytes(4 * 1024 * 1024)) for _ in range(6)))
        first = kit.join()
        assert [len(take(first)), len(take(first))] == [4, 2]
        first.close()
        second = kit.join()

        assert [len(take(second)), len(take(second))] == [4, 2]
        kit.close()


@pytest.mark.parametrize("order", ["key", "partition", "none"])
def test_a_fetch_is_a_handful_of_statements(order):
    """Statements do not grow with the messages: each gives up the interpreter lock."""
    with broker_file() as path:
        kit = Kit(path)
        kit.declare()
        member = kit.join(order=order)
        kit.send_many(1200, *(b"k%d" % at for at in range(40)))
        held = take(member, 500)
        counts = []
        for limit in (5, 500):
            kit.connect.statements.clear()
            member.ack(held)
            held = take(member, limit)
            assert len(held) == limit
            counts.append(len(kit.connect.statements))
        kit.close()

    assert max(counts) <= min(counts) + 3, counts
    assert max(counts) <= 20, counts
