"""B4: confirmed publishing to a quorum queue, persistent and mandatory."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import pika

from benchmarks import rabbitmq_peers as peers
from benchmarks import rabbitmq_raw as raw
from benchmarks.harness import Bench, Floor, Meter, Result, Sample, scenario
from benchmarks.rabbitmq import KEYS, by_rounds, fresh_queue, stored
from benchmarks.workload import GROUP, TOPIC, messages_of, round_robin
from reliable_mq import ReliableMQ

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from reliable_mq.message import Message

#: Confirmations that `submit` is ahead of the oldest that it waits for.
AHEAD = 2_000
#: How often ours has to be as fast as a client that waits for each confirm.
TIMES_BLOCKING = 20


@scenario("B4", "100B", "1KiB")
def confirmed(bench: Bench, case: str) -> Result:
    """Messages of 100 keys to one quorum queue, each with a confirm, bodies of 100 B or 1 KiB.

    Ours: `submit_all` of all of them, from making the messages to the last Receipt. Limit: pika's
    SelectConnection alone, a window of 500 filled up with each ack, properties made for each
    message. `encoded`: frames that were made before, a burst in one write, acks only counted: what
    the broker takes from one connection. Peers that wait for each confirm get fewer messages.
    """
    size = {"100B": 100, "1KiB": 1_024}[case]
    messages = messages_of(round_robin(bench.size(20_000, 600), KEYS), size=size)
    some, few = messages[: bench.size(5_000, 600)], messages[: bench.size(1_000, 20)]
    others, missing = peers.installed(peers.kombu, peers.aio_pika, peers.faststream)
    runs = {
        "ours": lambda: _sample(messages, all_at_once),
        "limit": lambda: _sample(messages, by_hand),
        "ours, submit": lambda: _sample(messages, one_after_the_other),
        "limit, encoded": lambda: _sample(messages, encoded),
        "BlockingConnection": lambda: _sample(few, peers.blocking),
    }
    for name, peer in others.items():
        part = few if peer is peers.kombu else some
        runs[name] = lambda peer=peer, part=part: _sample(part, peer)
    series = bench.interleave(runs)
    value, limit = series["ours"].value, series["limit"].value
    blocking = series["BlockingConnection"].value
    times = value / blocking
    ceiling = series["limit, encoded"].value
    return Result(
        "msg/s",
        value,
        limit,
        value / limit,
        Floor("ratio", ">=", 0.70),
        series,
        cpu_us=series["ours"].cpu_us,
        detail={
            "times_blocking": round(times, 1),
            "times_blocking_submit": round(series["ours, submit"].value / blocking, 1),
            "times_blocking_by_rounds": by_rounds(series, "ours", "BlockingConnection"),
            "times_blocking_met": None if bench.quick else times >= TIMES_BLOCKING,
            "ratio_by_rounds": by_rounds(series, "ours", "limit"),
            "submit": round(series["ours, submit"].value),
            "encoded": round(ceiling),
            "ratio_encoded": round(value / ceiling, 3),
            "limit_cpu_us": round(series["limit"].cpu_us, 1),
            "not_installed": missing,
        },
    )


def all_at_once(url: str, messages: Sequence[Message]) -> Meter:
    """Ours: one `submit_all`."""
    mq = _app(url)
    mq.publish(TOPIC, messages[0].body, key=messages[0].key)
    with Meter() as meter:
        made = (mq.message(TOPIC, one.body, key=one.key) for one in messages[1:])
        mq.submit_all(made).result()
    assert not mq.stop()
    return meter


def one_after_the_other(url: str, messages: Sequence[Message]) -> Meter:
    """Ours: `submit` each, and wait for the oldest when too many are on their way."""
    mq = _app(url)
    mq.publish(TOPIC, messages[0].body, key=messages[0].key)
    ahead: deque[object] = deque()
    with Meter() as meter:
        for one in messages[1:]:
            ahead.append(mq.submit(TOPIC, one.body, key=one.key))
            if len(ahead) >= AHEAD:
                ahead.popleft().result()
        while ahead:
            ahead.popleft().result()
    assert not mq.stop()
    return meter


def by_hand(url: str, messages: Sequence[Message]) -> Meter:
    """The limit; each message gets its properties here, as it does in ours."""
    made = (
        (
            one.body,
            pika.BasicProperties(message_id=one.id, delivery_mode=2, headers=peers.headers(one)),
        )
        for one in messages
    )
    return raw.publish(url, TOPIC, made).meter


def encoded(url: str, messages: Sequence[Message]) -> Meter:
    """The ceiling."""
    made = [
        (
            one.body,
            pika.BasicProperties(message_id=one.id, delivery_mode=2, headers=peers.headers(one)),
        )
        for one in messages
    ]
    return raw.publish_encoded(url, TOPIC, made).meter


def _app(url: str) -> ReliableMQ:
    mq = ReliableMQ(url)
    mq.topic(TOPIC, groups=(GROUP,))
    mq.start(consume=False)
    return mq


def _sample(messages: Sequence[Message], publish: Callable[..., Meter]) -> Sample:
    with fresh_queue() as url:
        meter = publish(url, messages)
        return meter.rate(len(messages) - 1, stored(len(messages)))
