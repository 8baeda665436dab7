from itertools import pairwise

import pytest

from reliable_mq.message import DeadLetter, RetryCopy
from tests.sqlite_faults import broker_file
from tests.sqlite_kit import Kit, ids, take

DAY = 86_400.0


@pytest.fixture
def kit():
    """A file, a topic with two groups, and messages that stay for a day."""
    with broker_file() as path:
        kit = Kit(path, retention=DAY)
        kit.declare("t", "g", "h")
        yield kit
        kit.close()


def stored(kit):
    """The ids in the file."""
    return [one for (one,) in kit.sql("SELECT id FROM mq_message ORDER BY position")]


def finish(member):
    """Take and ack all that there is; several polls, so that what may go goes."""
    while held := take(member):
        member.ack(held)


def rest(kit, member):
    """Polls with nothing to do, over some seconds."""
    for _ in range(5):
        kit.clock.advance(1.1)
        assert take(member) == []


def test_a_message_goes_when_all_groups_are_done_and_it_is_old(kit):
    """Not while a group needs it, not before `retention`, and then with nobody asking for it."""
    first, second = kit.join(), kit.join(group="h")
    sent = kit.send_many(3, b"k", None)
    finish(first)
    kit.clock.advance(DAY + 1)
    rest(kit, first)
    assert stored(kit) == sent
    finish(second)
    rest(kit, second)
    assert stored(kit) == []

    young = kit.send_many(2)
    finish(first)
    finish(second)
    rest(kit, first)

    assert stored(kit) == young


def test_what_is_in_hand_or_delayed_stays(kit):
    """However old it is."""
    first, second = kit.join(), kit.join(group="h")
    sent = kit.send_many(3)
    held, *others = take(first)
    first.ack(others[:1])
    first.nack(others[1], 3 * DAY)
    first.poll(0, 0.0)
    finish(second)
    for _ in range(30):
        kit.clock.advance(DAY / 24)
        first.poll(1, 0.0)
        first.close()
        first = kit.join()
        assert len(take(first)) == 1
    assert stored(kit) == [sent[0], sent[2]]
    assert held.lease.lost


def test_a_topic_without_a_group_keeps_everything(kit):
    """For the groups to come."""
    kit.declare("lonely", "later")
    kit.sql("DELETE FROM mq_group WHERE name = 'later'")
    kit.send(kit.message(topic="lonely"), kit.message())
    finish(kit.join())
    finish(kit.join(group="h"))
    kit.clock.advance(2 * DAY)

    rest(kit, kit.join())

    assert stored(kit) == ["m1"]


def test_dead_letters_stay_until_they_are_discarded(kit):
    """However old, and whoever else has read them."""
    kit.declare("t.g.dlq", "readers")
    kit.send(kit.message(), kit.message(), to=DeadLetter("t", "g"))
    reader = kit.join("t.g.dlq", group="readers")
    finish(reader)
    kit.clock.advance(10 * DAY)
    rest(kit, reader)

    letters = list(kit.transport.browse("t", "g", 10))

    assert [one.message.id for one in letters] == ["m1", "m2"]
    assert kit.transport.discard("t", "g", [letters[0].position, "no position", 10**12]) == 1
    assert stored(kit) == ["m2"]


def test_a_dead_letter_that_was_discarded_while_it_waited(kit):
    """A group that reads dead letters passes over what is gone."""
    kit.declare("t.g.dlq", "readers")
    kit.send(*(kit.message(b"k") for _ in range(3)), to=DeadLetter("t", "g"))
    first = kit.join("t.g.dlq", group="readers")
    held = take(first, 2)
    first.close()
    kit.transport.discard("t", "g", [held[0].position])

    second = kit.join("t.g.dlq", group="readers")

    assert ids(take(second)) == ["m2", "m3"]


def test_a_retry_copy_goes_with_its_ack(kit):
    """It exists for one group: nobody else will ever want it."""
    kit.send(kit.message(b"k"), to=RetryCopy("t", "g"))

    finish(kit.join())

    assert stored(kit) == []


def test_the_file_stops_growing(kit):
    """Publish and finish for days: the file is as large as what a day needs, not more."""
    first, second = kit.join(), kit.join(group="h")
    sizes = []
    for _ in range(12):
        kit.send(*(kit.message(b"k", body=bytes(500)) for _ in range(400)))
        finish(first)
        finish(second)
        kit.clock.advance(DAY / 4 + 1)
        rest(kit, first)
        second.poll(0, 0.0)
        sizes.append(kit.sql("PRAGMA page_count")[0][0])

    assert sizes[11] <= 1.1 * sizes[5]
    assert len(stored(kit)) <= 5 * 400


def test_deleting_keeps_pace_and_is_bounded(kit):
    """A poll that finishes messages deletes at most 1,000; in the end all are gone."""
    kit.options["retention"] = 0.0
    first = kit.another()
    members = [kit.join(transport=first), kit.join(group="h", transport=first)]
    kit.sql(
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000) "
        "INSERT INTO mq_message (topic, body, stored_at) SELECT 1, 'x', 0 FROM n"
    )
    left = [5000]
    for _ in range(6):
        for member in members:
            member.ack(take(member, 1000))
            left.append(len(stored(kit)))
    for member in members:
        rest(kit, member)

    assert max(one - other for one, other in pairwise(left)) <= 1000
    assert stored(kit) == []
