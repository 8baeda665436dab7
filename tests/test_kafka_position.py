"""Where a member begins: what is committed, what is there, and what the group asks for."""

from types import SimpleNamespace

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from reliable_mq.adapters.base import Subscribe
from reliable_mq.adapters.kafka.metadata import encode
from reliable_mq.adapters.kafka.position import MOVING, Positions
from reliable_mq.errors import ConnectionFailed, TransportError


class Brokers:
    """What Positions asks: partitions with offsets 10 to 20, and a commit of the first."""

    def __init__(self, offset, text="", others=()):
        self.places = [TopicPartition("t", 0, offset, text)]
        self.places += [TopicPartition("t", at, one) for at, one in enumerate(others, 1)]

    def committed(self, partitions, timeout):
        """Of the group."""
        return [self.places[one.partition] for one in partitions]

    def list_topics(self, topic, timeout):
        """Its partitions."""
        partitions = {one.partition: one for one in self.places}
        return SimpleNamespace(topics={topic: SimpleNamespace(partitions=partitions)})

    def get_watermark_offsets(self, place, timeout, cached):
        """Low, and the next."""
        return 10, 20


def begin(brokers, on_out_of_range="error", start=None):
    """Where a member begins."""
    asks = Subscribe(topics=("t",), group="g", start=start)
    positions = Positions(brokers, asks, on_out_of_range, lambda topic, within: "now", 1.0)
    return positions.of([TopicPartition("t", 0)])[0]


@pytest.mark.parametrize(
    ("brokers", "why"),
    [
        (Brokers(9), "the broker has 10 to 20"),
        (Brokers(21), "it lost its data"),
        (Brokers(15, encode(15, [17], "before")), "deleted and made again"),
    ],
)
def test_offsets_that_mean_nothing_any_more(brokers, why):
    """It is an error that says what to do, or begins where the URL says, without what was done."""
    with pytest.raises(TransportError, match=f"{why}.*on_out_of_range=earliest"):
        begin(brokers)
    for choice, offset in (("earliest", 10), ("latest", 20)):
        found = begin(brokers, choice)
        assert (found.offset, found.done, found.is_new) == (offset, frozenset(), True)


@pytest.mark.parametrize("offset", [10, 15, 20])
def test_offsets_that_are_there(offset):
    """First, last and between; with what is done behind."""
    found = begin(Brokers(offset, encode(offset, [offset + 2], "now")))
    assert (found.offset, found.done, found.is_new) == (offset, {offset + 2}, False)
    assert begin(Brokers(offset, "others' text")).done == set()


class Moving(Brokers):
    """The next leader has not heard yet that it leads: the first two questions are refused."""

    def __init__(self, code):
        super().__init__(15)
        self.refusals = [KafkaException(KafkaError(code))] * 2

    def get_watermark_offsets(self, place, timeout, cached):
        """Low, and the next."""
        if self.refusals:
            raise self.refusals.pop()
        return super().get_watermark_offsets(place, timeout, cached)


@pytest.mark.parametrize("code", sorted(MOVING))
def test_a_leader_that_moves_is_asked_again(code):
    """Until it knows; any other refusal is told."""
    assert begin(Moving(code)).offset == 15
    with pytest.raises(ConnectionFailed, match="its offsets cannot be had"):
        begin(Moving(KafkaError.TOPIC_AUTHORIZATION_FAILED))


@pytest.mark.parametrize(("start", "offset"), [(None, 10), ("latest", 20), (15, 15), (99, 20)])
def test_a_group_without_a_position(start, offset):
    """Begins where it was told, within what is there."""
    assert begin(Brokers(-1001), start=start).offset == offset


def test_a_partition_that_was_added_is_read_from_its_beginning():
    """Also where the group began at the latest: it has a position in others, so this one is new."""
    assert begin(Brokers(-1001, others=[15]), start="latest").offset == 10
