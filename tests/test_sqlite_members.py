import logging
import threading
import time

import pytest
from msgspec import structs

from reliable_mq.adapters.base import GroupSpec, Subscribe, TopicSpec, Topology
from reliable_mq.errors import ConfigurationError, ConnectionFailed, TransportError
from reliable_mq.message import RetryCopy
from reliable_mq.testing.clock import FakeClock
from tests.sqlite_faults import FULL, IO_ERROR, LOCKED, broker_file, write_lock
from tests.sqlite_kit import TOPIC, Kit, ids, take

LEASE = 30.0


@pytest.fixture
def kit():
    """A file, a topic and a group."""
    with broker_file() as path:
        kit = Kit(path)
        kit.declare()
        yield kit
        kit.close()


# -- leases ------------------------------------------------------------------------------------


def test_nobody_takes_over_before_the_lease_is_over(kit):
    """Within `lease_timeout` after a poll a member keeps all, a fifth later it has nothing."""
    member, other = kit.join(), kit.join()
    sent = kit.send_many(3, b"k")
    held = take(member)
    for _ in range(4):  # at any point between two renewals
        kit.clock.advance(5.0)
        member.poll(0, 0.0)
    kit.clock.advance(LEASE - 0.1)
    assert take(other) == []
    assert not member.poll(0, 0.0).lost

    kit.clock.advance(1.2 * LEASE)
    again = take(other)

    assert ids(again) == sent
    assert {one.redelivered for one in again} == {1}
    lost = member.poll(10, 0.0).lost
    assert {one.lease for one in held} == set(lost)
    assert {one.lease.lost for one in held} == {True}


def test_a_late_ack_changes_nothing_even_if_nobody_took_over(kit):
    """Alone in the group and too late: the ack does not count, the message comes again."""
    member = kit.join()
    sent = kit.send_many(1, b"k")
    (held,) = take(member)
    member.ack([held])
    kit.clock.advance(LEASE + 0.1)

    polled = member.poll(10, 0.0)

    assert (list(polled.settled), list(polled.lost)) == ([], [held.lease])
    assert ids(polled.deliveries) == sent
    assert polled.deliveries[0].lease is not held.lease


def test_a_late_close_acks_nothing(kit):
    """Acks that are flushed by a close that comes too late do not count either."""
    member = kit.join()
    sent = kit.send_many(2, b"k")
    member.ack(take(member))
    kit.clock.advance(LEASE + 0.1)
    member.close()

    again = take(kit.join())

    assert ids(again) == sent
    assert {one.redelivered for one in again} == {1}


def test_a_jump_of_the_wall_clock_ends_no_lease(kit):
    """Hours forth and back: the leases hold, the other member gets nothing."""
    member, other = kit.join(), kit.join()
    kit.send_many(2, b"k")
    held = take(member)

    for jump in (86_400.0, -172_800.0, 86_400.0):
        kit.clock.set_wall(kit.clock.now() + jump)
        assert take(other) == []
        member.poll(0, 0.0)
    member.ack(held)

    assert {one.lease for one in held} == set(member.poll(0, 0.0).settled)


def test_a_delay_follows_the_wall_clock(kit):
    """A delayed message survives a reboot because it knows the time of day, and is never early."""
    member = kit.join()
    kit.send_many(1)
    (held,) = take(member)
    member.nack(structs.replace(held, attempt=4), 100.0)
    for _ in range(9):
        assert take(member) == []
        kit.clock.advance(11.0)
    kit.clock.set_wall(kit.clock.now() - 3600.0)
    kit.clock.advance(20.0)
    assert take(member) == []

    kit.clock.set_wall(kit.clock.now() + 3600.0)

    assert [(one.message.id, one.attempt, one.redelivered) for one in take(member)] == [
        ("m1", 4, 0)
    ]


def test_after_a_reboot_every_lease_is_over(kit):
    """Another boot id: what members of the last boot had comes again at once."""
    sent = kit.send_many(2, b"k")
    take(kit.join())

    rebooted = kit.another(boot_id="another boot")

    assert ids(take(kit.join(transport=rebooted))) == sent


def test_after_a_reboot_that_nobody_told_of(kit):
    """Where the boot has no id, a lease that ends too far ahead is over all the same."""
    kit.options["boot_id"] = ""
    kit.clock._monotonic = 1_000_000.0
    sent = kit.send_many(2, b"k")
    take(kit.join(transport=kit.another()))

    kit.clock._monotonic = 10.0

    assert ids(take(kit.join(transport=kit.another()))) == sent


def test_a_member_that_renewed_a_moment_later_is_alive(kit):
    """Whoever read the time before another member renewed its lease does not take it for dead."""
    behind = FakeClock()
    behind._monotonic -= 0.5
    kit.send_many(1, b"k")
    held = take(kit.join())
    other = kit.join(transport=kit.another(clock=behind))

    assert take(other) == []
    assert not held[0].lease.lost


def test_a_poll_with_nothing_to_do_hardly_writes(kit):
    """Heartbeats write once in a fifth of the lease time, and read one number otherwise."""
    member = kit.join()
    take(member)
    kit.connect.statements.clear()

    for _ in range(600):
        kit.clock.advance(0.1)
        assert take(member, 10) == []

    assert kit.connect.count("COMMIT") <= 60 / (LEASE / 5) + 1
    assert kit.connect.count("SELECT") < 900


# -- orders ------------------------------------------------------------------------------------


def test_members_of_another_order_are_refused(kit):
    """Two orders in one group would break the stricter one; a dead member is in nobody's way."""
    kit.join(order="key")
    with pytest.raises(ConfigurationError, match="order='key'"):
        kit.join(order="none")

    kit.clock.advance(1.3 * LEASE)

    kit.join(order="none")


def test_a_standby_takes_over_from_a_dead_member(kit):
    """Under order "partition" the next member goes on where the active one stopped polling."""
    active, standby = kit.join(order="partition"), kit.join(order="partition")
    sent = kit.send_many(6, b"a", None, b"b")
    done, *_ = take(active, 4)
    active.ack([done])
    assert active.poll(0, 0.0).settled
    for _ in range(4):
        kit.clock.advance(5.0)
        active.poll(0, 0.0)
        assert take(standby) == []

    kit.clock.advance(1.3 * LEASE)

    assert ids(take(standby)) == sent[1:]


def test_order_partition_is_the_order_of_the_log_after_a_return(kit):
    """What came back goes in front of what is new, in its place between the other keys."""
    first = kit.join(order="partition")
    sent = kit.send_many(8, b"a", b"b", None)
    take(first, 5)
    first.close()

    second = kit.join(order="partition")

    assert [ids(take(second, 3)) for _ in range(3)] == [sent[:3], sent[3:6], sent[6:]]


def test_a_key_goes_to_whoever_asks_once_nothing_of_it_is_in_hand(kit):
    """After the last ack of a key the rest of it is anybody's."""
    member, other = kit.join(), kit.join()
    sent = kit.send_many(6, b"k")
    held = take(member, 2)
    assert take(other) == []
    member.ack(held[:1])
    member.poll(0, 0.0)
    assert take(other) == []

    member.ack(held[1:])
    member.poll(0, 0.0)

    assert ids(take(other)) == sent[2:]


def test_what_is_new_lines_up_in_front_of_a_retry_copy(kit):
    """A copy that waits already and a message before it, met later: each comes once, in order."""
    member, other = kit.join(), kit.join()
    kit.send_many(1, b"k")
    held = take(member)
    (second,) = kit.send_many(1, b"k")
    copy = kit.message(b"k")
    kit.send(copy, to=RetryCopy("t", "g"))
    assert take(other) == []  # it meets both, and leaves them to the owner of their key

    member.ack(held)

    assert ids(take(member)) == [second, copy.id]


def test_delayed_messages_hold_up_nobody(kit):
    """A delayed message takes its place among those of its key when it is due, and not before."""
    member = kit.join()
    late = kit.message(b"k")
    kit.publisher.submit(late, TOPIC, not_before=kit.clock.now() + 10.0).result(20)
    (prompt,) = kit.send_many(1, b"k")
    first = take(member)
    kit.clock.advance(11.0)

    assert ids(first) == [prompt]
    assert ids(take(member)) == [late.id]


# -- trouble -----------------------------------------------------------------------------------


def test_a_locked_file_is_no_news_and_then_an_error(kit):
    """While another process holds the lock a poll brings nothing, after 5 s it says why."""
    member = kit.join()
    kit.send_many(1)
    with write_lock(kit.path):
        assert take(member) == []
        kit.clock.advance(6.0)
        with pytest.raises(ConnectionFailed, match="for 6 s"):
            member.poll(1, 0.0)

    assert len(take(member)) == 1


@pytest.mark.parametrize("text", [LOCKED, FULL])
def test_a_commit_that_failed_for_sure_changes_nothing(kit, text):
    """Acks are kept and flushed later; what was fetched comes with the next poll."""
    member = kit.join()
    kit.send_many(2, b"a", b"b")
    (held,) = take(member, 1)
    member.ack([held])
    kit.connect.fail("COMMIT", text)
    if text == LOCKED:
        assert member.poll(1, 0.0).deliveries == ()
    else:
        with pytest.raises(ConnectionFailed, match="the disk is full"):
            member.poll(1, 0.0)

    polled = member.poll(1, 0.0)

    assert list(polled.settled) == [held.lease]
    assert ids(polled.deliveries) == ["m2"]
    assert kit.sql("SELECT count(*) FROM mq_state") == [(1,)]


def test_acks_of_a_commit_without_an_answer_are_settled_if_they_are_stored(kit):
    """What turns out to be stored is settled; what else was in hand is lost and comes again."""
    member = kit.join()
    kit.send_many(3, b"a", b"b", b"c")
    acked, held = take(member, 2)
    member.ack([acked])
    kit.connect.lose("COMMIT", IO_ERROR)
    with pytest.raises(ConnectionFailed):
        member.poll(1, 0.0)

    polled = member.poll(10, 0.0)

    assert list(polled.settled) == [acked.lease]
    assert list(polled.lost) == [held.lease]
    assert ids(polled.deliveries) == ["m2", "m3"]
    assert {one.redelivered for one in polled.deliveries} == {0}


def test_a_member_that_cannot_leave_says_so(kit, caplog):
    """A close while the file cannot be written ends, and leaves the rest to the lease."""
    member = kit.join()
    sent = kit.send_many(1)
    take(member)
    kit.connect.fail("BEGIN", IO_ERROR)

    with caplog.at_level(logging.WARNING):
        member.close()

    assert "could not leave" in caplog.text
    kit.clock.advance(1.3 * LEASE)
    assert ids(take(kit.join())) == sent
    with pytest.raises(TransportError, match="closed"):
        member.poll(1, 0.0)


# -- waiting -----------------------------------------------------------------------------------


def test_a_publisher_of_this_process_wakes_a_poll(kit):
    """A message comes at once to a poll that waits, with no look in between."""
    member = kit.join()
    take(member)
    kit.send_many(1)  # the thread and its connection are there
    take(member)
    timer = threading.Timer(0.03, kit.send_many, (1,))
    timer.start()

    began = time.monotonic()
    polled = member.poll(1, 10.0)

    timer.join()
    assert ids(polled.deliveries) == ["m2"]
    assert time.monotonic() - began < 5.0


def test_another_process_is_noticed(kit):
    """What somebody else commits is seen by a poll that waits, some milliseconds later."""
    member = kit.join()
    insert = "INSERT INTO mq_message (topic, body) VALUES (1, 'theirs')"
    timer = threading.Timer(0.03, kit.sql, (insert,))
    timer.start()

    polled = member.poll(1, 10.0)

    timer.join()
    assert [one.message.body for one in polled.deliveries] == [b"theirs"]


def test_a_poll_ends_though_the_clock_stands_still(kit):
    """The wait is bounded in real time, too."""
    member = kit.join()

    assert take(member) == []
    assert member.poll(1, 0.03).deliveries == ()
    assert member.poll(0, 0.03).deliveries == ()


# -- beginnings --------------------------------------------------------------------------------


def test_a_group_begins_where_it_was_declared_to(kit):
    """A start in the declaration holds over the one that a member asks for."""
    kit.send_many(2)
    spec = TopicSpec("t", groups=(GroupSpec("new", start="latest"),))
    kit.transport.ensure(Topology((spec,)))

    member = kit.join(group="new", start="earliest")
    later = kit.send_many(1)

    assert ids(take(member)) == later


def test_a_missing_group_names_all_that_is_missing(kit):
    """Subscribing lists every topic and group that is not there, and how to declare it."""
    asks = Subscribe(topics=("t", "nowhere"), group="nobody")
    with pytest.raises(ConfigurationError) as raised:
        kit.transport.subscribe(asks, lambda *_: None)

    for text in ("'nowhere' does not exist", "'t' has no group 'nobody'", "mq.topic("):
        assert text in str(raised.value)
