"""F26: topics that go, come back, shrink and grow; compacted ones; where a group begins.

What has to come is a typed error or a warning in time, or that it goes on by itself; never silence,
and never a message that is passed over.
"""

from __future__ import annotations

import secrets
import threading
import time
from contextlib import contextmanager
from typing import ClassVar

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AlterConfigOpType as Alter
from confluent_kafka.admin import ConfigEntry, ConfigResource, NewPartitions, ResourceType

from integration.faults import promises, until
from integration.kafka_traffic import (
    OPTIONS,
    Traffic,
    configure_consumers,
    forget,
    read,
    removed,
    write,
)
from reliable_mq import ConfigurationError, ReliableMQ, TransportError
from reliable_mq.adapters.base import GroupSpec, Subscribe, TopicSpec, Topology
from reliable_mq.adapters.kafka import KafkaTransport
from reliable_mq.adapters.kafka.topic_watch import TopicWatch
from reliable_mq.operate import ask

#: Seconds within which it goes on, or says why not.
IN_TIME = 30.0


@contextmanager
def flowing(broker, **options):
    """Messages flow, and all that were published are done and committed."""
    with Traffic(broker, **options) as traffic:
        traffic.join()
        traffic.stored(5)
        traffic.comes_to(15, "effect")
        until(lambda: not traffic.lag(), "all are committed")
        yield traffic


class Place:
    """A topic, its group, and a member of it at the port."""

    made: ClassVar = []

    def __init__(self, broker, options="", start=None):
        self.broker = broker
        mark = secrets.token_hex(4)
        self.topic, self.group = f"topics-{mark}", f"readers-{mark}"
        self.transport = KafkaTransport(f"{broker.url}?{OPTIONS}&partitions=1&{options}")
        self.start = start
        self.made.append(self.topic)

    def ensure(self, **options):
        """Declare the topic and its group."""
        spec = TopicSpec(self.topic, groups=(GroupSpec(self.group, self.start),))
        self.transport.ensure(Topology((spec,), **options))

    @contextmanager
    def member(self):
        """One that has joined."""
        asks = Subscribe(topics=(self.topic,), group=self.group, start=self.start)
        member = self.transport.subscribe(asks, lambda *_: None)
        try:
            yield member
        finally:
            member.close()

    def bodies(self, count, *, seconds=IN_TIME):
        """What a member gets, all of it acked and committed; a moment longer than for the count."""
        with self.member() as member:
            found = take(member, count, seconds)
            found += member.poll(100, 0.3).deliveries
            member.ack(found)
        return [one.message.body for one in found]


def take(member, count, seconds=IN_TIME):
    """So many deliveries, at least."""
    found = []
    until(
        lambda: found.extend(member.poll(1_000, 0.1).deliveries) or len(found) >= count,
        f"{count} deliveries",
        seconds,
    )
    return found


@pytest.fixture
def place(kafka):
    """A topic."""
    return Place(kafka)


@pytest.fixture(autouse=True)
def _leaves_nothing(kafka):
    """Topics of these tests are removed."""
    yield
    removed(kafka, *Place.made)


# -- deleted -----------------------------------------------------------------------------------


def test_a_topic_that_is_deleted_is_a_typed_error(kafka):
    """The consumer has failed, and its health says why, with the name."""
    with flowing(kafka) as traffic:
        kafka.delete_topic(traffic.topic)

        until(lambda: traffic.state() == "failed", "the consumer says so", IN_TIME)

        assert "ConfigurationError" in traffic.why()
        assert traffic.topic in traffic.why()
        assert not traffic.members[0].health().live


def recreated(traffic, count):
    """The topic is deleted and made again at once, and then has so many of each key."""
    traffic.broker.delete_topic(traffic.topic)
    traffic.broker.create_topic(traffic.topic, partitions=3)
    return traffic.burst(count)


@pytest.mark.parametrize("count", [2, 20], ids=["fewer messages", "more messages"])
def test_a_topic_that_is_made_again_is_a_typed_error(kafka, count):
    """Never a silent skip; whoever says so at the next start gets all of the new topic."""
    with flowing(kafka) as traffic:
        recreated(traffic, count)

        until(lambda: traffic.state() == "failed", "the consumer says so", IN_TIME)

        assert "Error: " in traffic.why()
        assert traffic.topic in traffic.why()
        traffic.leave(traffic.members[0])
        traffic.join(to_consume=lambda url: KafkaTransport(f"{url}&on_out_of_range=earliest"))
        verdict = traffic.finish(IN_TIME)
        assert promises([verdict]) <= {"inversion"}, str(verdict)  # it took a moment to notice


def test_a_topic_that_is_made_again_is_noticed_by_who_is_never_idle(kafka, place):
    """There is always more than it asks for, so that each poll has some."""
    place.ensure()
    write(kafka, place.topic, *[b"old"] * 20)
    stop = threading.Event()

    def flood():
        while not stop.is_set():
            write(kafka, place.topic, *[b"new"] * 5_000)

    thread = threading.Thread(target=flood)
    with place.member() as member:
        member.ack(take(member, 20))
        kafka.delete_topic(place.topic)
        kafka.create_topic(place.topic)
        thread.start()
        try:
            with pytest.raises(ConfigurationError, match=place.topic):
                until(lambda: member.ack(member.poll(1, 0.1).deliveries), "an error", 10.0)
        finally:
            stop.set()
            thread.join()


def test_without_a_look_at_its_id_a_new_topic_is_skipped(kafka, monkeypatch):
    """Control: librdkafka goes on in the new topic where it was in the old one."""
    monkeypatch.setattr(TopicWatch, "look", lambda *_: None)
    with flowing(kafka) as traffic:
        recreated(traffic, 20)

        verdict = traffic.finish(within=8.0)

        assert promises([verdict]) & {"lost", "liveness"}, str(verdict)


def test_a_topic_that_is_missing_is_a_typed_error_at_start(place):
    """It says which; and so does the check."""
    with pytest.raises(ConfigurationError, match=place.topic), place.member():
        pass
    with pytest.raises(ConfigurationError, match=place.topic):
        place.ensure(mode="check")


# -- retention ---------------------------------------------------------------------------------


def fallen_behind(broker, options):
    """The group has done 2 of 10, and retention has taken 6."""
    place = Place(broker, options)
    place.ensure()
    write(broker, place.topic, b"0", b"1")
    assert place.bodies(2) == [b"0", b"1"]
    write(broker, place.topic, *[b"%d" % number for number in range(2, 10)])
    forget(broker, place.topic, 6)
    return place


def test_a_group_that_retention_has_overtaken_is_a_typed_error(kafka):
    """By default; it names the offsets and the ways out."""
    place = fallen_behind(kafka, "")
    with place.member() as member, pytest.raises(TransportError, match=r"offset 2 .* 6 to 10"):
        take(member, 1)


@pytest.mark.parametrize(("where", "bodies"), [("earliest", b"6789"), ("latest", b"X")])
def test_a_group_that_was_overtaken_goes_on_where_it_was_told(kafka, where, bodies):
    """With what is left, or with what comes."""
    place = fallen_behind(kafka, f"on_out_of_range={where}")
    with place.member() as member:
        until(lambda: not member.poll(0, 0.1).deliveries and not member.standby, "it has joined")
        if where == "latest":
            write(kafka, place.topic, b"X")
        found = take(member, len(bodies))
    assert b"".join(one.message.body for one in found) == bodies


@pytest.mark.parametrize("where", ["error", "earliest"])
def test_retention_overtakes_a_member_that_runs(kafka, where):
    """The same, for what it has not fetched: an error, or it goes on with what is left."""
    place = Place(kafka, f"on_out_of_range={where}&fetch.message.max.bytes=1000")
    place.ensure()
    body = b"." * 10_000  # so that little is fetched ahead
    with place.member() as member:
        write(kafka, place.topic, b"first")
        take(member, 1)
        member._consumer.pause([TopicPartition(place.topic, 0)])
        write(kafka, place.topic, *[body] * 9)
        forget(kafka, place.topic, 6)
        member._consumer.resume([TopicPartition(place.topic, 0)])

        if where == "error":
            with pytest.raises(TransportError, match=place.topic):
                take(member, 100)
        else:
            assert [one.position for one in take(member, 4)] == [6, 7, 8, 9]


def test_a_silent_reset_is_a_loss(kafka, monkeypatch):
    """Control: auto.offset.reset=latest, as is librdkafka's default."""
    configure_consumers(monkeypatch, auto_offset_reset="latest")
    with Traffic(kafka, partitions=1) as traffic:
        traffic.join()
        traffic.stored(5)
        traffic.comes_to(15, "effect")
        member = traffic.members[0]._runtime.consumers[0]
        place, client = [TopicPartition(traffic.topic, 0)], member._subscription._consumer
        ask(member, lambda *_: client.pause(place))
        traffic.stored(5)
        forget(kafka, traffic.topic, 25)
        ask(member, lambda *_: client.resume(place))
        until(lambda: traffic.stored(1) and len(traffic.ids("effect")) > 15, "it goes on")
        assert traffic.state() == "running"

        verdict = traffic.finish(within=1.0)

        assert "lost" in promises([verdict]), str(verdict)


# -- partitions --------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [None, "latest"])
def test_partitions_that_are_added_are_read_from_their_beginning(kafka, caplog, start):
    """A warning says that keys move; what comes to the new ones comes within half a minute."""
    with flowing(kafka, start_from=start) as traffic:
        admin, asks = kafka.admin(), [NewPartitions(traffic.topic, 6)]
        admin.create_partitions(asks)[traffic.topic].result(10.0)
        until(lambda: len(kafka.metadata(traffic.topic).topics[traffic.topic].partitions) == 6, "6")
        keys = [f"k{number}" for number in range(30)]
        other = ReliableMQ(traffic.url())  # the first one hears of them later
        traffic.orders = other.topic(traffic.topic, groups=(traffic.group,))
        partitions = lambda: {one.result(10.0).partition for one in traffic.burst(1, keys)}  # noqa: E731
        until(lambda: {3, 4, 5} <= partitions(), "the new ones have some")

        until(lambda: "6 partitions instead of 3" in caplog.text, "a warning", IN_TIME)
        verdict = traffic.finish(IN_TIME)
        other.stop()
        assert promises([verdict]) <= {"inversion"}, str(verdict)  # keys have moved


def test_topics_are_there_when_they_were_made(kafka_cluster):
    """Whichever node is asked next: a member joins, and a check finds nothing missing."""
    for _ in range(3):
        (place := Place(kafka_cluster)).ensure()
        for node in kafka_cluster.nodes:
            place.transport = KafkaTransport(node.url)
            place.ensure(mode="check")
            with place.member():
                pass


def test_topics_are_made_as_durable_as_the_cluster_allows(kafka_cluster):
    """Three copies, of which two have to have a message; and the check finds what is otherwise."""
    admin, in_sync = kafka_cluster.admin(), "min.insync.replicas"
    (place := Place(kafka_cluster)).ensure()
    for name in (place.topic, f"{place.topic}.{place.group}.dlq"):
        found = kafka_cluster.metadata(name).topics[name].partitions
        assert {len(one.replicas) for one in found.values()} == {3}
        resource = ConfigResource(ResourceType.TOPIC, name)
        assert admin.describe_configs([resource])[resource].result(10.0)[in_sync].value == "2"

    other = Place(kafka_cluster)
    letters = f"{other.topic}.{other.group}.dlq"
    kafka_cluster.create_topic(other.topic, settings={in_sync: "1"})
    small = {"max.message.bytes": "1000", "unclean.leader.election.enable": "true"}
    kafka_cluster.create_topic(letters, replicas=1, settings=small)
    with pytest.raises(ConfigurationError) as caught:
        other.ensure(mode="check")
    for text in ("min.insync.replicas=1", "1 replicas", "bytes=1000", "unclean", other.topic):
        assert text in str(caught.value)


# -- gaps --------------------------------------------------------------------------------------


def test_a_compacted_topic_is_read_to_its_end(kafka, place):
    """With gaps between the offsets, and tombstones; and committed to its end."""
    entry = ConfigEntry("log.cleaner.backoff.ms", "200", incremental_operation=Alter.SET)
    resource = ConfigResource(ResourceType.BROKER, "1", incremental_configs=[entry])
    admin = kafka.admin()
    admin.incremental_alter_configs([resource])[resource].result(10.0)
    compact = {
        "cleanup.policy": "compact",
        "segment.ms": "100",
        "min.cleanable.dirty.ratio": "0.01",
    }
    kafka.create_topic(place.topic, settings=compact)
    for number in range(5):
        records = [{"key": b"k%d" % key, "value": b"v%d" % number} for key in range(10)]
        write(kafka, place.topic, *records, {"key": b"gone", "value": b"v%d" % number})
    write(kafka, place.topic, {"key": b"gone", "value": None}, {"key": b"last", "value": b"v"})

    def compacted():
        write(kafka, place.topic, {"key": b"last", "value": b"v"})  # closes a segment
        return len(read(kafka, place.topic, 1)) < 30

    until(compacted, "the broker has compacted", 60.0)
    place.ensure()
    found = []

    with place.member() as member:

        def finished():
            some = member.poll(100, 0.1).deliveries
            member.ack(some)
            found.extend(some)
            return not place.transport.lag(place.topic, place.group)

        until(finished, "no lag")

    assert found[-1].position >= 2 * len(found)
    last = {b"k%d" % key: b"v4" for key in range(10)} | {b"gone": None, b"last": b"v"}
    assert {one.message.key: one.message.body for one in found} == last


# -- where a group begins ----------------------------------------------------------------------


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "asked by the member"])
@pytest.mark.parametrize(
    ("start", "bodies"),
    [("earliest", b"01234567"), ("latest", b"67"), (3, b"34567"), (2.0, b"234567"), (99.0, b"67")],
)
def test_a_new_group_begins_where_it_was_told(kafka, start, bodies, declared):
    """At either end, at an offset, at a time (a second each); and nowhere else when it is known."""
    began = int(time.time()) - 1_000
    place = Place(kafka)
    place.ensure() if not declared else kafka.create_topic(place.topic)
    write(
        kafka,
        place.topic,
        *[{"value": b"%d" % one, "timestamp": (began + one) * 1_000} for one in range(6)],
    )
    place.start = began + start if isinstance(start, float) else start
    if declared:
        place.ensure()
        write(kafka, place.topic, b"6", b"7")
        assert b"".join(place.bodies(len(bodies))) == bodies
    else:
        with place.member() as member:
            until(lambda: member.poll(0, 0.1) and not member.standby, "it has joined")
            write(kafka, place.topic, b"6", b"7")
            found = take(member, len(bodies))
            member.ack(found)
        assert b"".join(one.message.body for one in found) == bodies

    place.start = "earliest"  # it has a position by now
    place.ensure()
    write(kafka, place.topic, b"8")
    assert place.bodies(1) == [b"8"]
