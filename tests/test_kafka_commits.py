"""What a commit says, and what becomes of one that fails or is overtaken."""

from types import SimpleNamespace

import pytest
from confluent_kafka import KafkaError

from reliable_mq.adapters.kafka import partition, position
from reliable_mq.adapters.kafka.commits import Commits
from reliable_mq.adapters.kafka.metadata import SPAN
from reliable_mq.errors import ConnectionFailed

PATIENCE = 2.0
TIMED_OUT = KafkaError(KafkaError.REQUEST_TIMED_OUT)


class Member:
    """Three offsets in hand, and commits that nobody answers."""

    def __init__(self, offsets=(0, 1, 2)):
        self.commits = Commits("g", 0.0, PATIENCE)
        self.commits.consumer = self
        self.asked = []
        self.mine = partition.Partition(position.Position("t", 0, 0), "t")
        self.leases = [partition.KafkaLease(self.mine, self.mine.receive(one)) for one in offsets]
        self.mine.in_hand.update(self.leases)

    def commit(self, offsets, asynchronous=True):
        """Asked for; a synchronous one succeeds."""
        self.asked.append(offsets)
        return offsets

    def look(self, now):
        """A turn of the owner."""
        self.commits.look(now, [self.mine])

    def finish(self, *numbers):
        """These end."""
        for number in numbers:
            self.mine.finish(self.leases[number])


def test_what_a_commit_cannot_say_is_not_settled():
    """Metadata has an end, and offsets have gaps: what is beyond it would come again."""
    member = Member((0, 1, SPAN + 1))
    member.finish(1, 2)
    member.look(0.0)
    member.commits.answered(None, member.asked[-1])
    assert member.commits.settled == member.leases[1:2]
    member.finish(0)
    member.look(1.0)
    member.commits.answered(None, member.asked[-1])
    assert set(member.commits.settled) == set(member.leases)


def test_the_answer_to_one_that_was_overtaken_settles_nothing():
    """A commit that was waited for said more; the old one's answer comes late."""
    member = Member()
    member.finish(0)
    member.look(0.0)
    old = member.asked[-1]
    member.commits.finish([member.mine])
    assert member.commits.settled == member.leases[:1]
    member.finish(1)
    member.look(1.0)
    member.commits.answered(None, old)
    assert member.commits.waits
    assert member.commits.settled == member.leases[:1]
    member.commits.answered(None, member.asked[-1])
    assert member.commits.settled == member.leases[:2]


def refused(offsets):
    """As the broker tells it of each partition."""
    (one,) = offsets
    return [
        SimpleNamespace(
            topic=one.topic, partition=one.partition, offset=one.offset, error=TIMED_OUT
        )
    ]


@pytest.mark.parametrize(
    "answer",
    [lambda asked: (TIMED_OUT, asked), lambda asked: (None, refused(asked)), None],
    ids=["all refused", "one refused", "no answer"],
)
def test_commits_that_fail_for_long_are_told(answer):
    """Others may have the work by then; one that succeeds ends it."""
    member = Member()
    member.finish(0)
    for now in range(int(PATIENCE) + 1):
        member.look(now)
        if answer is not None:
            member.commits.answered(*answer(member.asked[-1]))
    late = PATIENCE + 0.1
    with pytest.raises(ConnectionFailed, match=r"'g': nothing can be committed: .*tried again"):
        member.look(late)
    assert not member.commits.settled
    member.commits.finish([member.mine])
    assert member.commits.settled == member.leases[:1]
    member.look(late)


@pytest.mark.parametrize("end", ["forget", "finish"])
def test_commits_that_failed_of_partitions_that_are_gone_stop_nothing(end, monkeypatch):
    """Nothing would ever be committed of them that could end it, and the next ones would wait."""
    member = Member()
    member.finish(0)
    member.look(0.0)
    with pytest.raises(ConnectionFailed):
        member.look(PATIENCE + 0.1)

    monkeypatch.setattr(member, "commit", lambda **_: refused(member.asked[-1]))
    getattr(member.commits, end)([member.mine])
    member.commits.look(PATIENCE + 0.2, [])

    assert not member.commits.waits


def test_a_group_that_deals_anew_is_no_failure():
    """What is lost is told by the rebalance."""
    member = Member()
    member.finish(0)
    for now in range(int(5 * PATIENCE)):
        member.look(now)
        member.commits.answered(KafkaError(KafkaError.UNKNOWN_MEMBER_ID), member.asked[-1])
    assert len(member.asked) > PATIENCE
