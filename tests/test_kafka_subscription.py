"""A member of a group whose coordinator stumbles, moves and goes away.

Numbers with # are bugs that Confluent's Parallel Consumer had.
"""

import pytest
from confluent_kafka import KafkaError

from reliable_mq.adapters.kafka import partition, subscription
from reliable_mq.errors import ConnectionFailed
from tests.kafka_mock import CLOSE, NEVER, OPTIONS, Rig
from tests.waiting import eventually

pytestmark = pytest.mark.slow  # much waiting: half a minute in all


@pytest.fixture
def rig(request):
    """One topic "t", or as a test says."""
    rig = Rig(*getattr(request, "param", ("t",)))
    yield rig
    rig.close()


def offsets(deliveries):
    """Where they were."""
    return [one.position for one in deliveries]


# ---- commits that fail


@pytest.mark.parametrize(
    "code",
    [
        KafkaError.REBALANCE_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.NOT_COORDINATOR,
        KafkaError.REQUEST_TIMED_OUT,
        CLOSE,
    ],
)
def test_a_commit_that_fails_is_tried_again(rig, code):
    """No poll raises, and all are settled in the end; #857."""
    rig.cluster.fill("t", 3)
    member = rig.join()
    deliveries = rig.take(member, 3)
    rig.cluster.fail("OffsetCommit", code, times=2)
    rig.settle(member, deliveries)
    assert rig.committed() == 3
    rig.cluster.fill("t", 1)
    assert offsets(rig.take(member, 1)) == [3]


@pytest.mark.parametrize("code", [KafkaError.ILLEGAL_GENERATION, KafkaError.UNKNOWN_MEMBER_ID])
def test_a_member_that_is_out_joins_again(rig, code):
    """Its commit is refused for good: what was not committed comes again, and no poll raises."""
    rig.cluster.fill("t", 2)
    member = rig.join()
    member.ack(rig.take(member, 2))
    rig.cluster.fail("OffsetCommit", code)
    rig.cluster.fail("Heartbeat", code)

    def done():
        rig.turn(10)
        member.ack(member.got)
        return len([one for one in member.settled if one.slot.offset in (0, 1)]) >= 2

    eventually(done, "the commit")
    assert rig.committed() == 2


def test_the_coordinator_moves():
    """The next commit goes to the other broker."""
    rig = Rig("t", brokers=2)
    try:
        rig.cluster.coordinate("g", 1)
        rig.cluster.fill("t", 2)
        member = rig.join()
        rig.settle(member, rig.take(member, 2)[:1])
        rig.cluster.coordinate("g", 2)
        rig.settle(member, member.got[1:])
        assert rig.committed() == 2
    finally:
        rig.close()


def test_no_broker_and_then_one_again(rig):
    """Poll says so while it lasts, and what was in hand can still be done."""
    rig.cluster.fill("t", 2)
    member = rig.join()
    rig.take(member, 2)
    rig.cluster.down()
    with pytest.raises(ConnectionFailed, match="tried again"):
        eventually(rig.turn, "an error")
    rig.cluster.up()

    def done():
        try:
            rig.turn(10)
        except ConnectionFailed:
            return False
        member.ack(member.got)
        return len(member.settled) >= 2

    eventually(done, "the settlement")
    assert rig.committed() == 2


# ---- where a member begins


def test_what_is_done_behind_a_gap_is_not_run_again(rig):
    """The commit says it, and the next member listens."""
    rig.cluster.fill("t", 5)
    member = rig.join()
    _, one, _, three, four = rig.take(member, 5)
    rig.settle(member, [four, one, three])
    assert rig.committed() == 0
    rig.leave(member)
    member = rig.join()
    assert offsets(rig.take(member, 2)) == [0, 2]
    rig.settle(member, member.got)
    assert rig.committed() == 5
    rig.cluster.fill("t", 1)
    assert offsets(rig.take(member, 1)) == [5]


def test_a_slow_answer_about_positions_costs_nothing_but_time(rig):
    """It is waited for."""
    rig.cluster.fill("t", 2)
    rig.cluster.delay("OffsetFetch", 0.7)
    member = rig.join()
    assert offsets(rig.take(member, 2)) == [0, 1]


def test_no_answer_about_positions_is_asked_for_again(rig, monkeypatch):
    """Poll says so, and the next one goes on."""
    monkeypatch.setattr(subscription, "POSITIONS", 0.2)
    rig.cluster.fill("t", 2)
    rig.cluster.delay("OffsetFetch", 1.0)
    member = rig.another()
    with pytest.raises(ConnectionFailed, match="its offsets cannot be had"):
        eventually(rig.turn, "an error")
    assert offsets(rig.take(member, 2)) == [0, 1]


# ---- work that is taken away


def lose(rig, member):
    """The group throws it out; it notices and joins again."""
    rig.cluster.fail("Heartbeat", KafkaError.UNKNOWN_MEMBER_ID)
    eventually(lambda: rig.turn() or member.lost, "the loss")


def test_what_is_lost_is_not_committed(rig):
    """Neither what was in hand nor what was done; it comes again, and nobody was asked to drain."""
    rig.cluster.fill("t", 4)
    member = rig.join(options=NEVER)
    begun, *first = rig.take(member, 4)
    rig.settle(member, [begun])  # the first commit goes at once, the next never
    member.ack(first[:2])
    lose(rig, member)
    assert {one.lease for one in first} == set(member.lost)
    assert all(one.lease.lost for one in first)
    assert rig.revoked == []
    assert rig.cluster.requests()["OffsetCommit"] == 1
    assert offsets(rig.take(member, 3)) == [1, 2, 3]


def test_a_late_end_does_not_count_for_the_next_assignment(rig):
    """The same offset is in hand again, and only its own end counts; #875, #909."""
    rig.cluster.fill("t", 2)
    member = rig.join()
    before = rig.take(member, 2)
    lose(rig, member)
    after = rig.take(member, 2)
    assert offsets(before) == offsets(after)
    member.ack(before)
    rig.settle(member, after[1:])
    assert rig.committed() == 0
    assert not {one.lease for one in before} & set(member.settled)
    rig.settle(member, after[:1])
    assert rig.committed() == 2


def test_close_commits_what_is_done_and_only_that(rig):
    """#826: what was done just before is not run again; #827: what was not is not passed over."""
    rig.cluster.fill("t", 4)
    member = rig.join(options=NEVER)
    zero, one, _, three = rig.take(member, 4)
    member.ack([zero, one, three])
    rig.leave(member)
    assert rig.committed() == 2
    member = rig.join()
    assert offsets(rig.take(member, 1)) == [2]


@pytest.mark.parametrize("codes", [[], [KafkaError.REBALANCE_IN_PROGRESS] * 3])
def test_what_is_drained_is_committed_and_the_rest_goes_on(codes, caplog):
    """Another member joins; if the last commit fails, what was done comes again there; #857."""
    rig = Rig("t", partitions=2)
    try:
        for number in (0, 1):
            rig.cluster.fill("t", 2, number)
        drained = []

        def drain(leases):
            mine = [one for one in old.got if one.lease in leases and one.position == 0]
            drained.extend(mine)
            old.ack(mine)
            rig.cluster.fail("OffsetCommit", *codes)

        patient = NEVER.replace("1.5", "2.5")
        old = rig.join(options=patient, on_revoke=drain)
        rig.take(old, 4)
        new = rig.join(options=OPTIONS.replace("1.5", "2.5"))
        (moved,) = {one.partition for one in drained}
        failed = "the last commit failed" in caplog.text  # the cluster is stricter than a broker
        assert failed or not codes
        expected = [0, 1] if failed else [1]
        assert offsets(rig.take(new, len(expected))) == expected
        assert {one.partition for one in new.got} == {moved}
        assert {one.partition for one in old.got if one.lease.lost} == {moved}
        rig.settle(new, new.got)
        assert rig.committed(number=moved) == 2
        kept = [one for one in old.got if not one.lease.lost and one.partition != moved]
        old.ack(kept)
        rig.leave(old)
        assert rig.committed(number=1 - moved) == 2
    finally:
        rig.close()


# ---- what is together, and what is not


def test_one_that_is_stuck_stops_its_partition_only(monkeypatch):
    """Its window fills; the others go on; when it ends, so does its partition."""
    monkeypatch.setattr(partition, "WINDOW", 4)
    rig = Rig("t", partitions=2)
    try:
        for number in (0, 1):
            rig.cluster.fill("t", 20, number)
        member = rig.join()
        stuck = []

        def got(number):
            rig.turn(3)
            fresh = [one for one in member.got if not one.lease.slot.done]
            stuck[:] = [one for one in fresh if (one.partition, one.position) == (0, 0)]
            member.ack([one for one in fresh if one not in stuck])
            return [one.position for one in member.got if one.partition == number]

        eventually(lambda: len(got(1)) == 20, "the other partition")
        eventually(lambda: len(got(0)) == 4, "the window")
        for _ in range(20):
            assert got(0) == [0, 1, 2, 3]
        member.ack(stuck)
        stuck_one, stuck = stuck, []
        eventually(lambda: len(got(0)) == 20, "the rest")
        assert got(0) == got(1) == list(range(20))
        assert stuck_one[0].position == 0
    finally:
        rig.close()


@pytest.mark.parametrize("rig", [("t", "u")], indirect=True)
def test_the_same_key_and_offset_in_two_topics(rig):
    """They have nothing in common; #184."""
    for topic in "tu":
        rig.cluster.fill(topic, 1)
    member = rig.join("t", "u")
    ours, other = sorted(rig.take(member, 2), key=lambda one: one.message.topic)
    assert ours.message.id != other.message.id
    rig.settle(member, [ours])
    assert (rig.committed("t"), rig.committed("u")) == (1, -1001)
    assert other.lease not in member.settled
    rig.settle(member, [other])
    assert rig.committed("u") == 1


def test_a_record_without_a_key(rig):
    """It is one like others; #318."""
    rig.cluster.fill("t", 2, key=None)
    member = rig.join()
    rig.settle(member, rig.take(member, 2))
    assert [one.message.key for one in member.got] == [None, None]
    assert rig.committed() == 2


def test_what_is_acked_twice_or_late_is_no_error(rig):
    """Once settled, an end has no effect; nack neither."""
    rig.cluster.fill("t", 1)
    member = rig.join()
    deliveries = rig.take(member, 1)
    rig.settle(member, deliveries)
    member.ack(deliveries)
    member.nack(deliveries[0], 0.0)
    rig.turn(10)
    assert member.settled == [deliveries[0].lease]
    assert rig.committed() == 1
    assert member.got == deliveries
