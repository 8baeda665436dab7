"""F08, F11: the network between us and RabbitMQ is cut or slow, for publishers and consumers.

A proxy does it, so the broker is well all the time, and whoever goes past the proxy sees what it
has really got.
"""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from pathlib import Path

import pytest

from integration.faults import LONG, promises, until
from integration.rabbitmq_traffic import (
    CREDIT,
    GRACE,
    BelievesTheSocket,
    Traffic,
    pika_is_quiet,
    plain,
)
from reliable_mq import Backpressure, Message, PublishUnknown, Receipt
from reliable_mq.adapters.base import GroupSpec, TopicSpec, Topology
from reliable_mq.adapters.rabbitmq import RabbitTransport
from reliable_mq.adapters.rabbitmq.publisher import RabbitPublisher
from reliable_mq.message import Topic
from reliable_mq.testing.brokers import Proxy

MB = 1024 * 1024


@pytest.fixture(autouse=True)
def _calm():
    """What pika logs about connections that we cut is no news."""
    with pika_is_quiet():
        yield


# -- F08: a partition --------------------------------------------------------------------------

WAYS = {
    "silence": Proxy.hold,
    "nothing gets there": lambda proxy: setattr(proxy.up, "held", True),
    "nothing comes back": lambda proxy: setattr(proxy.down, "held", True),
    "reset": Proxy.cut,
}


def partitioned(traffic, way, seconds):
    """Messages flow; then nothing does, and yet they are published; then all is well again."""
    traffic.burst(10)
    traffic.comes_to(10, "effect")
    for proxy in traffic.proxies:
        WAYS[way](proxy)
    traffic.publish_for(seconds)
    return traffic.finish(deadline=traffic.timeout + GRACE)


@pytest.mark.parametrize("seconds", [5, 60] if LONG else [5])
@pytest.mark.parametrize("way", WAYS)
def test_a_partition_loses_nothing_and_keeps_the_order(rabbitmq, way, seconds):
    """Every publish ends by its deadline; behind it all goes on, from the first in doubt on."""
    with Traffic(rabbitmq) as traffic:
        verdict = partitioned(traffic, way, seconds)

        assert verdict.broken == (), str(verdict)
        assert verdict.effects == verdict.invoked
        endings = {type(outcome) for outcome in traffic.endings()}
        assert endings & {PublishUnknown, Backpressure}
        assert endings <= {Receipt, PublishUnknown, Backpressure}
        # What was in doubt may be there twice, and what was in hand may run twice.
        assert sum(verdict.duplicate_effects.values()) <= traffic.in_doubt() + CREDIT
        assert max(verdict.duplicate_effects.values(), default=1) <= 2


def test_a_member_that_is_cut_off_says_so_and_comes_back(rabbitmq):
    """Its health: disconnected, not ready; afterwards running. What runs meanwhile runs once."""
    with Traffic(rabbitmq, work=0.3) as traffic:
        traffic.burst(4, ["a", "b", "c", "d"])
        traffic.comes_to(4, "deliver")

        traffic.consuming.cut()

        until(lambda: traffic.state() == "disconnected", "the consumer says so")
        assert not traffic.worker.health().ready
        traffic.comes_to(4, "effect")
        traffic.consuming.restore()
        until(lambda: traffic.state() == "running", "the consumer is back")
        verdict = traffic.finish()
        assert verdict.broken == (), str(verdict)
        assert dict(verdict.duplicate_effects) == {}


def test_without_a_republish_after_a_reconnect_messages_are_lost(rabbitmq):
    """Control: what was on its way when the connection ended counts as stored."""
    with Traffic(rabbitmq, to_publish=BelievesTheSocket) as traffic:
        traffic.burst(1)
        traffic.comes_to(3, "effect")
        before = traffic.publishing.up.read
        traffic.publishing.up.held = True
        traffic.burst(10)
        until(lambda: traffic.publishing.up.read > before + 3_000, "the burst is on its way")
        traffic.publishing.cut()

        verdict = traffic.finish(within=2.0)

        assert "lost" in promises([verdict]), str(verdict)


def test_a_dead_connection_is_found_out_by_its_heartbeat(rabbitmq):
    """A black hole, no reset: the member goes another way. Control: without a heartbeat never."""
    ways = [Proxy(rabbitmq.url) for _ in range(4)]

    def url(*two):
        return f"{two[0].url.rstrip('/')},127.0.0.1:{two[1].port}/"

    with (
        Traffic(rabbitmq, consume_url=url(*ways[:2])) as traffic,
        Traffic(rabbitmq, consume_url=url(*ways[2:]), options="heartbeat=600") as control,
    ):
        for way in ways:
            if way.connections:
                way.swallow()
        traffic.burst(10)
        control.burst(10)

        verdict = traffic.finish()

        assert verdict.broken == (), str(verdict)
        verdict = control.finish(within=0.5)
        assert "liveness" in promises([verdict])
        assert not control.notes.ids("effect")
        for way in ways:
            way.close()


@pytest.mark.parametrize("way", ["refused", "silence", "silence, when it was open"])
def test_a_publisher_that_is_closed_leaves_no_socket(rabbitmq, way):
    """In whatever state its connection is: being tried, or open and without an answer."""
    # In a process of its own: clients of other tests open and close sockets when they like.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as elsewhere:
        before, after = elsewhere.submit(of_a_publisher, rabbitmq.url, way).result(60.0)

    assert before == after


def of_a_publisher(url: str, way: str) -> tuple[Counter[str], Counter[str]]:
    """What is open before there is one, and after it was closed."""
    before = descriptors()
    with pika_is_quiet(), Proxy(url) as proxy:
        publisher = RabbitTransport(proxy.url).publisher()
        if way == "silence, when it was open":
            one = publisher.submit(Message("m", "no-such-topic"), Topic())
            until(one.done, "a rejection")
        proxy.cut() if way == "refused" else proxy.hold()
        deadline = time.monotonic() + 0.3
        one = publisher.submit(Message("m", "no-such-topic"), Topic(), deadline=deadline)
        until(one.done, "an ending")

        publisher.close(0.1)
    return before, descriptors()


def descriptors() -> Counter[str]:
    """How many sockets this process has open, and how many things that loops wait with."""
    kinds: Counter[str] = Counter()
    for path in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # that of the folder itself
            kinds[str(path.readlink()).partition(":")[0]] += 1
    return Counter({kind: kinds[kind] for kind in ("socket", "anon_inode", "pipe")})


# -- F11: slow ---------------------------------------------------------------------------------


def late(flow):
    """Half a second each way."""
    flow.latency = 0.5


def narrow(flow):
    """64 kbit/s."""
    flow.rate = 8_000.0


def sliced(flow):
    """Three bytes at a time: no frame comes in one piece."""
    flow.slice = 3


@pytest.mark.parametrize("toxic", [late, narrow, sliced])
def test_a_slow_network_is_slow_and_nothing_else(rabbitmq, toxic):
    """Publishes end typed and by their deadline, nothing is lost, and nothing connects anew."""
    with Traffic(rabbitmq, options="heartbeat=5") as traffic:
        traffic.burst(1)
        traffic.comes_to(3, "effect")
        connections = [proxy.accepted for proxy in traffic.proxies]
        for proxy in traffic.proxies:
            toxic(proxy.up)
            toxic(proxy.down)
        traffic.publish_for(30 if LONG else 3)
        until(lambda: all(traffic.endings()), "all publishes have ended", traffic.timeout + GRACE)
        assert connections == [proxy.accepted for proxy in traffic.proxies]

        verdict = traffic.finish(deadline=traffic.timeout + GRACE)

        assert verdict.broken == (), str(verdict)
        assert verdict.effects == verdict.invoked
        assert {type(outcome) for outcome in traffic.endings()} <= {
            Receipt,
            PublishUnknown,
            Backpressure,
        }


class Boundless(RabbitPublisher):
    """Counts no bytes."""

    def _take_in(self, entry):
        entry.size = 0
        return super()._take_in(entry)


class CountsNoBytes(RabbitTransport):
    """A transport whose publishers do not."""

    def publisher(self):
        """See Boundless."""
        return Boundless(self._parameters, self._clock, self._declared)


@pytest.mark.parametrize(
    ("kind", "megabytes", "bounded"), [(RabbitTransport, 400, True), (CountsNoBytes, 100, False)]
)
def test_withheld_confirms_are_backpressure_and_no_growth(rabbitmq, kind, megabytes, bounded):
    """64 MiB are taken, the rest is refused at once; and the control, which takes them all."""
    name = f"withheld-{bounded}"
    with Proxy(rabbitmq.url) as proxy, own_topic(rabbitmq, name):
        transport = kind(f"{proxy.url}?heartbeat=600")
        publisher = transport.publisher()
        publisher.submit(Message("first", name, body=b""), Topic()).result(10.0)
        proxy.down.held = True
        before, deadline = resident(), time.monotonic() + 3.0
        taken, refused = [], 0
        for number in range(megabytes):
            message = Message(f"m{number}", name, body=bytes([number % 256]) * MB)
            one = publisher.submit(message, Topic(), deadline=deadline)
            if isinstance(one.outcome, Backpressure):
                refused += 1
            else:
                taken.append(one)

        until(lambda: all(one.done() for one in taken), "by the deadline", 3.0 + GRACE)

        grown = resident() - before
        assert bounded is (refused > 0)
        assert bounded is (len(taken) <= 64)
        assert {type(one.outcome) for one in taken} <= {PublishUnknown, Backpressure}
        if bounded:  # the bodies, and as frames on their way
            assert grown < 200 * MB
        proxy.restore()
        last = publisher.submit(Message("last", name, body=b""), Topic())
        assert isinstance(last.result(20.0), Receipt)
        publisher.close(5.0)


@contextmanager
def own_topic(broker, name):
    """A topic with one group, gone afterwards."""
    transport = RabbitTransport(broker.url)
    transport.ensure(Topology((TopicSpec(name, groups=(GroupSpec("g"),)),)))
    try:
        yield
    finally:
        with plain(broker) as channel:
            channel.queue_delete(f"{name}.g")
            channel.queue_delete(f"{name}.g.dlq")
            channel.exchange_delete(name)


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
