"""F12: a connection is reset after N bytes, for each N of a burst, publishing and consuming.

A sweep has many lanes at once, each with a proxy and a publisher of its own, as most of a run is
the wait for the next connection.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from integration.faults import LONG, promises, until
from integration.rabbitmq_traffic import BelievesTheSocket, Notes, Traffic, pika_is_quiet, plain
from reliable_mq import Message
from reliable_mq.adapters.base import GroupSpec, TopicSpec, Topology
from reliable_mq.adapters.rabbitmq import RabbitTransport
from reliable_mq.adapters.rabbitmq.publisher import RabbitPublisher
from reliable_mq.message import Receipt, Topic
from reliable_mq.testing.brokers import Proxy
from reliable_mq.testing.history import Numbered, check

LANES = 6
#: Without heartbeats in between: each byte that is counted belongs to the burst.
OPTIONS = "heartbeat=600&connect_timeout=5"
SMALL = (b"0", b"1", b"2")
#: Over several frames of 128 KiB, and what follows it.
LARGE = (b"x" * 300_000, b"1")
FRAME = 131_072


@pytest.fixture(autouse=True)
def _calm():
    """What pika logs about connections that we cut is no news."""
    with pika_is_quiet():
        yield


class Lane:
    """One publisher through one proxy, to a queue that nobody reads before the end."""

    def __init__(self, broker, name, kind, bodies):
        self.broker = broker
        self.name = name
        self.bodies = bodies
        self.notes = Notes()
        self.proxy = Proxy(broker.url)
        transport = kind(f"{self.proxy.url}?{OPTIONS}")
        transport.ensure(Topology((TopicSpec(name, ordered=False, groups=(GroupSpec("g"),)),)))
        self.publisher = transport.publisher()

    def burst(self, key, bodies=()):
        """Publish all bodies under this key, and wait for their endings; returns their bytes."""
        before = self.proxy.up.passed
        waiting = []
        for seq, body in enumerate(bodies or self.bodies):
            one = Numbered("run", self.name, key, seq)
            self.notes.note("invoke", one.id, one)
            message = Message(one.id, self.name, key=key.encode(), body=body, created_at=1.5)
            waiting.append((one, self.publisher.submit(message, Topic())))
        for one, confirmation in waiting:
            until(confirmation.done, f"{one.id} has an ending")
            stored = isinstance(confirmation.outcome, Receipt)
            self.notes.note("ok" if stored else "unknown", one.id, one)
        return self.proxy.up.passed - before

    def cut(self, flow, after):
        """A burst whose connection is reset behind so many bytes of one direction, if it has so."""
        direction = getattr(self.proxy, flow)
        direction.reset_after = after
        self.burst(f"{after:06}")
        until(lambda: direction.reset_after != 0, "the reset that is due")
        made, direction.reset_after = direction.reset_after is None, None
        return made

    def end(self):
        """What the queue has, as the first runs of a consumer; then nothing is left of the lane."""
        self.publisher.close(5.0)
        self.proxy.close()
        with plain(self.broker) as channel:
            while (got := channel.basic_get(f"{self.name}.g", auto_ack=True))[0]:
                _, properties, body = got
                run, producer, key, rest = properties.message_id.split("/")
                one = Numbered(run, producer, key, int(rest.partition("-")[0]))
                whole = one.id == properties.message_id and self.bodies[one.seq] == body
                self.notes.note("effect" if whole else "damaged", properties.message_id, one)
            channel.queue_delete(f"{self.name}.g")
            channel.queue_delete(f"{self.name}.g.dlq")
            channel.exchange_delete(self.name)
        return self.notes.entries


def sweep(broker, name, cuts, *, kind=RabbitTransport, bodies=SMALL, flow="up"):
    """A burst for each cut: what its history says, and at which cuts there was one to make."""
    lanes = [Lane(broker, f"{name}{number}", kind, bodies) for number in range(LANES)]
    for lane in lanes:
        lane.burst("first")
    with ThreadPoolExecutor(LANES) as pool:
        shares = [cuts[number::LANES] for number in range(LANES)]
        work = [
            pool.submit(cut_all, *one) for one in zip(lanes, shares, [flow] * LANES, strict=True)
        ]
        made = [at for one in work for at in one.result()]
        histories = list(pool.map(Lane.end, lanes))
    return check(histories, drained=True), sorted(made)


def cut_all(lane, cuts, flow):
    """The cuts that could be made: nothing was to be cut behind the last byte."""
    return [at for at in cuts if lane.cut(flow, at)]


def sizes(broker, name, bodies):
    """Bytes of a burst, and of its first message."""
    lane = Lane(broker, f"{name}s", RabbitTransport, bodies)  # as long a name as others have
    lane.burst("first")
    size, first = lane.burst("000001"), lane.burst("000002", bodies[:1])
    lane.end()
    return size, first


def test_a_burst_that_is_cut_at_each_byte(rabbitmq):
    """Three small messages of a key: all are stored, in order, with their ids; nothing hangs."""
    size, _ = sizes(rabbitmq, "c", SMALL)

    verdict, made = sweep(rabbitmq, "c", range(1, size + 1))

    assert list(range(1, size + 1)) == made
    assert verdict.broken == (), str(verdict)
    assert verdict.effects == verdict.invoked == 3 * (size + LANES)
    assert verdict.duplicate_effects  # cut behind the last byte: stored, and nobody knew
    assert set(verdict.duplicate_effects.values()) == {1}


def test_a_burst_that_is_cut_at_the_edges_of_its_frames(rabbitmq):
    """A body over three frames and a message behind it: one byte before, at, and behind each."""
    size, first = sizes(rabbitmq, "e", LARGE)
    body = len(LARGE[0])
    frames = [FRAME, FRAME, body - 2 * (FRAME - 8) + 8]
    edges = [first - sum(frames), first - sum(frames[1:]), first - frames[2], first, size]

    verdict, made = sweep(
        rabbitmq, "e", [edge + by for edge in edges for by in (-1, 0, 1)], bodies=LARGE
    )

    assert len(made) == 3 * len(edges) - 1  # there is no byte behind the last one
    assert verdict.broken == (), str(verdict)
    assert verdict.effects == verdict.invoked


def test_confirms_that_are_cut_at_each_byte(rabbitmq):
    """What is stored and not confirmed is published again, behind nothing that is newer."""
    verdict, made = sweep(rabbitmq, "d", range(1, 22), flow="down")

    assert list(range(1, 22)) == made  # one frame of 21 bytes confirms one or several
    assert verdict.broken == (), str(verdict)
    assert verdict.effects == verdict.invoked
    assert verdict.duplicate_effects
    assert set(verdict.duplicate_effects.values()) == {1}


class Backwards(RabbitPublisher):
    """Publishes again from the last one on."""

    def closed(self, error):
        """As if the order did not matter."""
        super().closed(error)
        self._window._redo.reverse()


class PublishesBackwards(RabbitTransport):
    """A transport whose publishers do."""

    def publisher(self):
        """See Backwards."""
        return Backwards(self._parameters, self._clock, self._declared)


@pytest.mark.parametrize(
    ("kind", "broken"),
    [(BelievesTheSocket, "lost"), (PublishesBackwards, "inversion")],
    ids=["no republish", "republished in another order"],
)
def test_without_a_safety_the_checker_sees_it(rabbitmq, kind, broken):
    """Controls: what was on its way counts as stored; it is sent again from the last one on."""
    verdict, _ = sweep(rabbitmq, f"x{broken[0]}", range(50, 400, 50), kind=kind)

    assert promises([verdict]) == {broken}, str(verdict)


@pytest.mark.parametrize(("flow", "until_byte"), [("down", 1_000), ("up", 60)])
def test_deliveries_and_acks_that_are_cut(rabbitmq, flow, until_byte):
    """A member that is cut off in the middle of a frame: each message once, in order."""
    with Traffic(rabbitmq, options=OPTIONS) as traffic:
        traffic.burst(1)
        traffic.comes_to(3, "effect")
        direction = getattr(traffic.consuming, flow)
        for at in range(1, until_byte, 1 if LONG else until_byte // 20):
            direction.reset_after = at
            traffic.burst(1)
            traffic.comes_to(len(traffic.endings()), "effect")
            direction.reset_after = None

        verdict = traffic.finish()

        assert traffic.consuming.accepted > 10
        assert verdict.broken == (), str(verdict)
        assert verdict.effects == verdict.invoked
