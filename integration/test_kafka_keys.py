"""F24, F25: a hot key that fails, copies that wait until they are due, and dead letters."""

from __future__ import annotations

import time
from collections import Counter

import pytest

from integration.faults import promises, until
from integration.kafka_traffic import Traffic, read, write
from reliable_mq import Reject, Retry, RetryPolicy
from reliable_mq.adapters.kafka import KafkaTransport, intake, partition
from reliable_mq.adapters.kafka import subscription as adapter
from reliable_mq.events import KeyGap, LaneHalted, Retried, StalledByKey
from reliable_mq.message import DeadLetter, Message

#: The key that nine of ten messages have, and the others.
HOT, COLD = "hot", [f"cold{number}" for number in range(5)]
QUICK = RetryPolicy(3, backoff=0.05, jitter=False)


# -- F24: a hot key that fails -----------------------------------------------------------------


def failing(traffic):
    """The first of the hot key fails as long as the list has something."""
    broken = [True]

    def handling(one, _ctx):
        if one.key == HOT and broken:
            raise OSError("as told")

    traffic.handling = handling
    return broken


def mixed(traffic, rounds):
    """Nine of ten are of the hot key."""
    confirmations = []
    for _ in range(rounds):
        confirmations += traffic.burst(9, [HOT])
        confirmations += traffic.burst(1, [COLD[len(confirmations) % len(COLD)]])
    for one in confirmations:
        one.result(30.0)
    return len(confirmations)


def cold(traffic, *kinds):
    """The messages of other keys that have such an event."""
    return {one.id for one in traffic.notes.of(*kinds) if one.key != HOT}


def test_a_hot_key_that_is_halted_lets_others_go_on(kafka):
    """All others are done while it stands, with its messages in hand; released, it is in order."""
    with Traffic(kafka, credit=400, retry=QUICK, on_failure="block") as traffic:
        broken = failing(traffic)
        traffic.join()
        mixed(traffic, 30)

        until(lambda: traffic.happened(LaneHalted), "it is halted")
        until(lambda: cold(traffic, "ok") <= cold(traffic, "effect"), "others are done")
        member = traffic.members[0]
        until(lambda: member.health().consumers[0].halted_keys == 1, "its health says so")
        assert not traffic.happened(StalledByKey)
        assert [one.key for one in member.halted(traffic.topic, traffic.group)] == [HOT.encode()]

        broken.clear()
        assert member.halted(traffic.topic, traffic.group).retry(HOT)
        verdict = traffic.finish()
        assert verdict.broken == (), str(verdict)
        assert verdict.effects == verdict.invoked
        assert dict(verdict.duplicate_effects) == {}


def test_a_hot_key_that_fills_the_window_is_told(kafka):
    """An event says that waiting keys have all the credit, and health which consumer; then on."""
    with Traffic(kafka, credit=50, retry=QUICK, on_failure="block") as traffic:
        broken = failing(traffic)
        traffic.join()
        mixed(traffic, 30)

        until(lambda: traffic.happened(StalledByKey), "an event tells of it")
        member = traffic.members[0]
        until(lambda: member.health().consumers[0].halted_keys == 1, "its health says so")
        health = member.health().consumers[0]
        assert health.in_hand == 50
        assert health.oldest_unfinished is not None
        assert health.live  # restarting it would not help

        broken.clear()
        assert traffic.members[0].halted(traffic.topic, traffic.group).retry(HOT)
        verdict = traffic.finish()
        assert verdict.broken == (), str(verdict)
        assert verdict.effects == verdict.invoked


def test_the_health_of_a_stalled_consumer_says_why(kafka):
    """Whoever only looks at health sees which key it is that stalls it."""
    with Traffic(kafka, credit=50, retry=QUICK, on_failure="block") as traffic:
        failing(traffic)
        traffic.join()
        mixed(traffic, 30)
        until(lambda: traffic.happened(StalledByKey), "an event tells of it")

        assert "key" in traffic.why()


@pytest.mark.parametrize("kept", [intake.KEPT, 0.0], ids=["kept", "fetched again"])
def test_a_window_that_is_full_of_a_hot_key_holds_up_its_partition_alone(kafka, monkeypatch, kept):
    """The adapter's own window: what is done behind the head is bounded; others' go on."""
    monkeypatch.setattr(partition, "WINDOW", 40)
    monkeypatch.setattr(intake, "KEPT", kept)
    with Traffic(kafka, credit=400, retry=QUICK, on_failure="block") as traffic:
        broken = failing(traffic)
        traffic.join()
        hot = traffic.burst(1, [HOT])[0].result(10.0).partition
        until(lambda: traffic.happened(LaneHalted), "it is halted")
        for _ in range(5):  # each time the windows of others are full for a moment, too
            burst = traffic.burst(6, [f"k{number}" for number in range(60)])
            apart = {one.outcome.id for one in burst if one.result(10.0).partition != hot}
            until(lambda apart=apart: apart <= traffic.ids("effect"), "others are done", 15.0)
        behind = {one.id for one in traffic.notes.of("ok")} - traffic.ids("effect")
        assert behind  # its own partition waits: nothing is remembered without bound

        broken.clear()
        assert traffic.members[0].halted(traffic.topic, traffic.group).retry(HOT)
        verdict = traffic.finish()
        assert verdict.broken == (), str(verdict)


@pytest.mark.parametrize(("order_by", "broken"), [("key", set()), ("none", {"inversion"})])
def test_a_hot_key_that_is_tried_again_keeps_its_order(kafka, order_by, broken):
    """Some of its messages fail once. Control: without an order they overtake each other."""
    with Traffic(kafka, credit=400, retry=QUICK, order_by=order_by) as traffic:

        def handling(one, ctx):
            if one.key == HOT and one.seq % 3 == 0 and ctx.attempt == 1:
                raise Retry("told to")

        traffic.handling = handling
        traffic.join()
        mixed(traffic, 10)
        verdict = traffic.finish()

        assert traffic.happened(Retried)
        assert promises([verdict]) == broken, str(verdict)
        assert verdict.effects == verdict.invoked


# -- what is done behind a key that is stuck ---------------------------------------------------


def above_a_gap(kafka, tmp_path, **plan):
    """A key that is stuck at the head, many others behind it are done; then comes a kill -9."""
    with Traffic(kafka, partitions=1) as traffic:
        child = traffic.spawn(tmp_path, hold=["stuck/0"], credit=400, **plan)
        traffic.burst(1, ["stuck"])
        child.comes_to(1, "deliver")
        others = traffic.burst(80, COLD)
        child.comes_to(len(others), "effect")
        until(lambda: traffic.committed()[0][0] == 0, "a commit")
        if not plan:
            until(lambda: traffic.lag() == 1, "all others are committed")

        child.kill()

        traffic.join()
        return traffic.finish(duplicates=0)


def test_what_is_done_above_a_gap_is_not_run_again(kafka, tmp_path):
    """The next member runs what was stuck, and nothing else; it stands in the commit."""
    verdict = above_a_gap(kafka, tmp_path)

    assert verdict.broken == (), str(verdict)
    assert verdict.effects == 401


def test_a_commit_that_is_only_an_offset_runs_all_of_it_again(kafka, tmp_path):
    """Control: without what else the commit says."""
    verdict = above_a_gap(kafka, tmp_path, forgets=True)

    assert promises([verdict]) == {"duplicated"}
    assert len(verdict.duplicate_effects) == 400


# -- copies that wait --------------------------------------------------------------------------

#: Seconds after which a message asks to come again.
AFTER = 3.0


def copied(kafka, tmp_path):
    """Two of four unkeyed messages ask for later; their copies are stored; then comes a kill -9."""
    with Traffic(kafka, partitions=1) as traffic:
        later = ["None/0", "None/2"]
        child = traffic.spawn(tmp_path, later=later, after=AFTER)
        traffic.stored(4, [None])
        asked = {one.id: one.at for one in child.comes_to(2, "retry")}
        child.comes_to(2, "effect")
        name = f"{traffic.topic}.{traffic.group}.retry.4"
        copies = read(kafka, name, 2) if until(lambda: has(kafka, name), "copies") else []
        assert {dict(one.headers())["rmq-id"].decode() for one in copies} == set(asked)
        originals = lambda: traffic.operator.lags(traffic.topic, traffic.group)  # noqa: E731
        until(lambda: not any(originals().values()), "the originals are committed")
        child.kill()

        other = traffic.spawn(tmp_path, later=later, after=AFTER)
        done = {one.id: one.at for one in other.comes_to(2, "effect")}
        until(lambda: traffic.operator.lag(name, traffic.group) == 0, "the copies are committed")
        verdict = traffic.finish()
    return asked, done, verdict


def has(kafka, topic):
    """Whether it is there."""
    return topic in kafka.metadata().topics


def test_copies_survive_a_kill_and_are_never_early(kafka, tmp_path):
    """They wait in a topic of their own, for this group alone; each runs once more, when due."""
    asked, done, verdict = copied(kafka, tmp_path)

    assert verdict.broken == (), str(verdict)
    assert verdict.effects == 4
    assert dict(verdict.duplicate_effects) == {}
    assert done.keys() == asked.keys()
    assert all(done[id] - asked[id] >= AFTER - 0.01 for id in asked)


def test_copies_that_are_not_waited_for_are_early(kafka, monkeypatch):
    """Control: nobody looks at what the copy says."""
    monkeypatch.setattr(adapter, "seconds_early", lambda *_: 0.0)
    monkeypatch.setattr("reliable_mq.pipeline.SHORT_SECONDS", 0.5)
    with Traffic(kafka, partitions=1) as traffic:

        def handling(_one, ctx):
            if ctx.attempt == 1:
                raise Retry("told to", after=5 * AFTER)  # their topic is found after five seconds

        traffic.handling = handling
        traffic.join()
        traffic.stored(1, [None])
        traffic.comes_to(1, "effect")
        first, second = [one.at for one in traffic.notes.of("deliver")]
        assert second - first < 5 * AFTER


# -- dead letters ------------------------------------------------------------------------------


@pytest.fixture
def rejecting(kafka):
    """A group that has rejected what it was told to, of many keys, and done the rest."""
    with Traffic(kafka) as traffic:
        refuses = [True]

        def handling(one, _ctx):
            if refuses and one.seq % 2:
                raise Reject("told to")

        traffic.handling = handling
        traffic.refuses = refuses
        traffic.join()
        traffic.stored(4, [*(f"k{number}" for number in range(10)), None])
        yield traffic


def poison(traffic):
    """What has to be among the dead letters."""
    odd = {one.id for one in traffic.notes.of("invoke") if one.seq % 2}
    return dict.fromkeys(odd, "rejected")


def test_dead_letters_keep_the_partition_of_their_key(kafka, rejecting):
    """As many partitions, and each letter in that of its message; with its id and whole story."""
    letters = f"{rejecting.topic}.{rejecting.group}.dlq"
    until(lambda: len(read(kafka, letters, 22)) == 22, "all dead letters")

    rejecting.note_dead_letters()
    verdict = rejecting.finish(poison=poison(rejecting))
    assert verdict.broken == (), str(verdict)
    assert len(kafka.metadata(letters).topics[letters].partitions) == 3
    for one in read(kafka, letters, 22):
        headers = {name: value.decode() for name, value in one.headers()}
        assert headers["rmq-orig-topic"] == rejecting.topic
        assert headers["rmq-dl-reason"] == "rejected"
        if one.key() is not None:
            assert headers["rmq-orig-partition"] == str(one.partition())
    gaps = Counter(one.key for one in rejecting.happened(KeyGap))
    assert gaps == {b"k%d" % number: 2 for number in range(10)}


def test_dead_letters_are_shown_replayed_and_discarded(kafka, rejecting):
    """Each once; replayed ones are run again by this group, and what is discarded stays away."""
    letters = rejecting.producer.dead_letters(rejecting.topic, rejecting.group)
    until(lambda: len(list(letters)) == 22, "all dead letters")
    found = list(letters)
    assert {one.message.id for one in found} == set(poison(rejecting))
    rejecting.note_dead_letters()
    rejecting.refuses.clear()
    gone = [one.message.id for one in found if one.message.key == b"k3"]

    assert letters.discard(gone) == 2
    assert letters.discard(gone) == 0
    assert letters.replay(limit=5) == 5
    assert letters.replay() == 15

    assert list(letters) == []
    again = set(poison(rejecting)) - set(gone)
    until(lambda: again <= rejecting.ids("effect"), "what was replayed is run again")
    assert not set(gone) & rejecting.ids("effect")
    began = time.monotonic()
    assert list(letters) == []
    assert time.monotonic() - began < 5.0  # a topic whose letters are all dealt with is not read


def test_dead_letters_of_a_key_are_shown_in_their_order(kafka):
    """Also where the clocks of those who published them differ: replay sends them in this order."""
    with Traffic(kafka) as traffic:
        publisher = traffic.operator.publisher()
        for number in range(10):
            letter = Message(f"m{number}", traffic.topic, b"k", created_at=2_000.0 - number)
            publisher.submit(letter, DeadLetter(traffic.topic, traffic.group)).result(10.0)
        publisher.close(5.0)

        letters = traffic.producer.dead_letters(traffic.topic, traffic.group)

        assert [one.message.id for one in letters] == [f"m{number}" for number in range(10)]


def test_a_dead_letter_too_far_behind_the_first_is_not_said_to_be_discarded(kafka, caplog):
    """What no commit can mark stays, and is not counted, until those before it are gone."""
    with Traffic(kafka, partitions=1) as traffic:
        name = f"{traffic.topic}.{traffic.group}.dlq"
        write(
            kafka,
            name,
            *[{"value": b"", "headers": {"rmq-id": f"m{one}"}} for one in range(25_000)],
        )
        letters = traffic.producer.dead_letters(traffic.topic, traffic.group)

        assert letters.discard("m24999") == 0
        assert "too far behind" in caplog.text
        assert [one.message.id for one in letters][-1] == "m24999"

        assert letters.discard([f"m{one}" for one in range(2_000)]) == 2_000
        assert letters.discard("m24999") == 1
        ids = [one.message.id for one in letters]
        assert (ids[0], ids[-1]) == ("m2000", "m24998")


class ThrowsAway(KafkaTransport):
    """Confirms dead letters and stores none."""

    def publisher(self):
        """See ThrowsAway."""
        publisher = super().publisher()
        submit = publisher.submit

        def careless(message, to, **options):
            if isinstance(to, DeadLetter):
                to = DeadLetter(to.topic, "nobody")
            return submit(message, to, **options)

        publisher.submit = careless
        return publisher


def test_dead_letters_that_go_elsewhere_are_lost(kafka):
    """Control: acked, and its dead letter is not where it belongs."""
    with Traffic(kafka, to_consume=ThrowsAway) as traffic:
        kafka.create_topic(f"{traffic.topic}.nobody.dlq")

        def handling(one, _ctx):
            if one.seq % 2:
                raise Reject("told to")

        traffic.handling = handling
        traffic.join()
        traffic.stored(2)
        until(lambda: not traffic.lag(), "all are settled")
        traffic.note_dead_letters()

        verdict = traffic.finish(within=1.0)

        assert "lost" in promises([verdict]), str(verdict)
