"""F08, F11, F12, F13: the network between us and Kafka is cut, silent, slow, or has no room.

A proxy that clients do not get around does it, so the broker is well all the time, and whoever goes
past it sees what it has really got.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from pathlib import Path

import confluent_kafka
import pytest

from integration.children.removed import Around
from integration.faults import LONG, need, promises, until
from integration.kafka_proxy import Answers
from integration.kafka_traffic import CREDIT, GRACE, KEYS, Traffic
from reliable_mq import Backpressure, PublishUnknown, Receipt
from reliable_mq.adapters.kafka import KafkaTransport, subscription
from reliable_mq.adapters.kafka.commits import Commits
from reliable_mq.adapters.kafka.publisher import KafkaPublisher
from reliable_mq.events import LeasesLost

MB = 1024 * 1024
ENDINGS = {Receipt, PublishUnknown, Backpressure}


@pytest.fixture
def way(kafka):
    """The only way to the broker for whoever goes by its URL."""
    need(hasattr(kafka, "proxy"), "a Kafka with a listener for a proxy")
    with Answers(kafka) as proxy:
        yield proxy


# -- F08: a partition --------------------------------------------------------------------------

WAYS = {
    "silence": lambda way: way.hold(),
    "nothing gets there": lambda way: setattr(way.up, "held", True),
    "nothing comes back": lambda way: setattr(way.down, "held", True),
    "half-open": lambda way: way.swallow(),
    "cut": lambda way: way.cut(),
    "reset": lambda way: way.cut(refuse=False),
}


def partitioned(traffic, how, seconds, pause=0.05):
    """Messages flow; then nothing does, and yet they are published; then all is well again."""
    traffic.join()
    traffic.stored(10)
    traffic.comes_to(10 * len(KEYS), "effect")
    until(lambda: not traffic.lag(), "all are committed")
    WAYS[how](traffic.way)
    traffic.publish_for(seconds, pause=pause)
    if traffic.way.down.swallowed:
        traffic.way.cut()  # what was swallowed is gone: the connections are of no use any more
    return traffic.finish(deadline=traffic.timeout + GRACE)


@pytest.mark.parametrize("seconds", [5, 60] if LONG else [5])
@pytest.mark.parametrize("how", WAYS)
def test_a_partition_loses_nothing_and_keeps_the_order(kafka, way, how, seconds):
    """Every publish ends by its deadline; behind it all goes on, from the first in doubt on."""
    with Traffic(kafka, way=way, timeout=2.0) as traffic:
        verdict = partitioned(traffic, how, seconds)

        assert verdict.broken == (), str(verdict)
        assert verdict.effects == verdict.invoked
        endings = {type(outcome) for outcome in traffic.endings()}
        assert endings <= ENDINGS
        if how != "reset":
            assert endings & {PublishUnknown, Backpressure}
        # What was in doubt may be there twice, and what was in hand may run twice.
        assert sum(verdict.duplicate_effects.values()) <= traffic.in_doubt() + CREDIT
        # Connections that are cut have not made a message twice: the producer is idempotent.
        if how == "reset":
            assert dict(verdict.duplicate_effects) == {}


def test_a_member_that_is_cut_off_says_so_and_comes_back(kafka, way):
    """Its health: disconnected, not ready; afterwards running. What runs meanwhile runs once."""
    with Traffic(kafka, way=way, through=("consume",), work=0.3) as traffic:
        traffic.join()
        traffic.stored(1, ["a", "b", "c", "d"])
        traffic.comes_to(4, "deliver")

        way.cut()

        until(lambda: traffic.state() == "disconnected", "the consumer says so")
        assert not traffic.members[0].health().ready
        traffic.comes_to(4, "effect")
        way.restore()
        until(lambda: traffic.state() == "running", "the consumer is back")
        verdict = traffic.finish()
        assert verdict.broken == (), str(verdict)
        assert dict(verdict.duplicate_effects) == {}


class Believes(KafkaPublisher):
    """What was handed to librdkafka counts as stored."""

    def _produce(self, token):
        error = super()._produce(token)
        if error is None:
            message = token.message
            token.settle(Receipt(message.id, message.topic, 0, 0))
        return error


class BelievesTheQueue(KafkaTransport):
    """A transport whose publishers do."""

    def publisher(self):
        """See Believes."""
        return Believes(self._config, self._clock, self._topics.make_retry_topic)


def test_without_reports_messages_are_lost(kafka, way):
    """Control: as a program that produces and never looks at the reports, and then ends."""
    with Traffic(kafka, way=way, through=("publish",), to_publish=BelievesTheQueue) as traffic:
        traffic.join()
        traffic.stored(1)
        traffic.comes_to(3, "effect")
        way.hold()
        traffic.burst(10)
        way.cut()
        traffic.producer.stop(0.5)

        verdict = traffic.finish(within=3.0)

        assert "lost" in promises([verdict]), str(verdict)


# -- F11: slow ---------------------------------------------------------------------------------


def late(flow):
    """Half a second each way."""
    flow.latency = 0.5


def narrow(flow):
    """64 kbit/s."""
    flow.rate = 8_000.0


def sliced(flow):
    """Three bytes at a time: no request comes in one piece."""
    flow.slice = 3


@pytest.mark.parametrize("toxic", [late, narrow, sliced])
def test_a_slow_network_is_slow_and_nothing_else(kafka, way, toxic):
    """Publishes end typed and by their deadline, nothing is lost, and nobody leaves the group."""
    with Traffic(kafka, way=way, timeout=4.0) as traffic:
        traffic.join()
        traffic.stored(1)
        traffic.comes_to(3, "effect")
        toxic(way.up)
        toxic(way.down)
        traffic.publish_for(30 if LONG else 3, pause=0.1)
        until(lambda: all(traffic.endings()), "all publishes have ended", traffic.timeout + GRACE)

        verdict = traffic.finish(deadline=traffic.timeout + GRACE)

        assert verdict.broken == (), str(verdict)
        assert verdict.effects == verdict.invoked
        assert {type(outcome) for outcome in traffic.endings()} <= ENDINGS
        assert traffic.happened(LeasesLost) == []


# -- F12: a reset after so many bytes ----------------------------------------------------------

#: Where in the requests of a burst, and in the answers to it, the connection is reset.
STEPS = range(0, 4_000, 40) if LONG else (0, 1, 7, 60, 150, 300, 700, 1_500, 3_000)


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_reset_within_a_burst_loses_and_doubles_nothing(kafka, way, direction):
    """Wherever it comes: each has a Receipt, and each key its order."""
    with Traffic(kafka, way=way, through=("publish",), timeout=10.0) as traffic:
        traffic.join()
        traffic.stored(1)
        for after in STEPS:
            flow = getattr(way, direction)
            flow.reset_after = after
            burst = traffic.burst(10)
            until(lambda burst=burst: all(one.done() for one in burst), "all endings")
            assert {type(one.outcome) for one in burst} == {Receipt}, after
            flow.reset_after = None

        verdict = traffic.finish()

        assert verdict.broken == (), str(verdict)
        assert dict(verdict.duplicate_deliveries) == {}


def test_without_idempotence_a_reset_doubles_or_inverts(kafka, way, monkeypatch):
    """Control: whose retries are new messages to the broker."""
    careless = confluent_kafka.Producer

    def producer(config):
        without = {"enable.idempotence": False, "enable.gapless.guarantee": False}
        return careless({**config, **without, "retry.backoff.ms": 10})

    monkeypatch.setattr(confluent_kafka, "Producer", producer)
    with Traffic(kafka, way=way, through=("publish",), timeout=10.0) as traffic:
        traffic.join()
        traffic.stored(1)
        for _ in range(5):
            before = traffic.ids("effect")
            way.lose_from_next_message()
            burst = traffic.burst(10)
            until(lambda before=before: traffic.ids("effect") > before, "some are stored")
            way.cut(refuse=False)
            way.restore()
            until(lambda burst=burst: all(one.done() for one in burst), "all endings")

        verdict = traffic.finish(duplicates=0)

        assert "duplicated" in promises([verdict]), str(verdict)


# -- F13: no room ------------------------------------------------------------------------------


@contextmanager
def standing_still(broker):
    """The broker answers nobody."""
    broker.pause()
    try:
        yield
    finally:
        broker.resume()


@pytest.fixture
def broker(kafka):
    """One that may be paused."""
    need(kafka.controlled, "a Kafka that may be paused")
    return kafka


def test_a_full_queue_of_librdkafka_is_typed_backpressure(broker):
    """Ten are in doubt, all others were certainly not sent; by the deadline; then all goes on."""
    with Traffic(broker, options="queue.buffering.max.messages=10", timeout=2.0) as traffic:
        traffic.join()
        traffic.stored(1)
        with standing_still(broker):
            before = len(traffic.endings())
            burst = traffic.burst(50)
            until(lambda: all(one.done() for one in burst), "by the deadline", 2.0 + GRACE)
            endings = traffic.endings()[before:]
            assert {type(one) for one in endings} <= {Backpressure, PublishUnknown}
            assert sum(isinstance(one, PublishUnknown) for one in endings) <= 10

        verdict = traffic.finish(deadline=traffic.timeout + GRACE)

        assert verdict.broken == (), str(verdict)
        assert verdict.effects == verdict.invoked


class Patient(Around):
    """Its publishers know no deadline."""

    def publisher(self):
        """See Patient."""
        return _Patient(self.inner.publisher())


class _Patient(Around):
    def submit(self, message, to, *, deadline=None, **options):
        return self.inner.submit(message, to, **options)


def test_publishers_without_a_deadline_wait_for_the_broker(broker):
    """Control: no deadline."""
    with Traffic(
        broker, to_publish=lambda url: Patient(KafkaTransport(url)), timeout=1.0
    ) as traffic:
        traffic.join()
        traffic.stored(1)
        with standing_still(broker):
            traffic.publish_for(1.0 + 2 * GRACE, pause=0.5)

        verdict = traffic.finish(deadline=traffic.timeout + GRACE)

        assert promises([verdict]) == {"liveness"}, str(verdict)


def test_a_commit_that_nobody_answers_does_not_stop_the_member_for_good(broker, monkeypatch):
    """It says so and begins nothing new; once the broker answers, it takes what it is given."""
    # For certain before its session ends, which else comes about as soon.
    patient = lambda group, interval, _: Commits(group, interval, 0.5)  # noqa: E731
    monkeypatch.setattr(subscription, "Commits", patient)
    with Traffic(broker) as traffic:
        go_on = threading.Event()
        traffic.handling = lambda *_: go_on.wait(60.0)
        traffic.join()
        traffic.stored(1)
        traffic.comes_to(3, "deliver")
        with standing_still(broker):
            go_on.set()
            until(lambda: "nothing can be committed" in traffic.why(), "the member says so")
            assert traffic.state() == "disconnected"
            until(lambda: traffic.happened(LeasesLost), "its session ends")

        verdict = traffic.finish()

        assert verdict.broken == (), str(verdict)
        assert verdict.effects == verdict.invoked


@pytest.mark.parametrize("rounds", [1, 5])
def test_a_broker_that_stands_still_costs_no_memory(broker, rounds):
    """64 MiB are taken, the rest is refused at once; also again, when the first are given up."""
    with Traffic(broker, timeout=2.0) as traffic:
        traffic.stored(1)
        before, body = resident(), bytes(MB // 2)
        with standing_still(broker):
            for _ in range(rounds):
                endings = [traffic.producer.submit(traffic.topic, body) for _ in range(200)]
                assert sum(isinstance(one.outcome, Backpressure) for one in endings) >= 200 - 128
                until(lambda: all(one.done() for one in endings), "by the deadline", 2.0 + GRACE)  # noqa: B023
                assert {type(one.outcome) for one in endings} <= {PublishUnknown, Backpressure}
            grown = resident() - before
        assert grown < 150 * MB

        def goes_on():
            one = traffic.producer.submit(traffic.topic, b"")
            until(one.done, "an ending")
            return isinstance(one.outcome, Receipt)

        until(goes_on, "it goes on")


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
