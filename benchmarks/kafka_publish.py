"""B1, B2 and B3: confirmed publishing to one topic, acks=all and idempotent."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

import confluent_kafka

from benchmarks import kafka_peers as peers
from benchmarks import kafka_raw as raw
from benchmarks.harness import Bench, Floor, Meter, Result, Sample, scenario
from benchmarks.kafka import KEYS, Place, as_ours_writes, by_rounds, fresh_topic, stored
from benchmarks.workload import messages_of, round_robin
from reliable_mq import ReliableMQ

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from reliable_mq.confirmation import Confirmation
    from reliable_mq.message import Message

    #: Publishes these; the Meter of all but the first.
    Publish = Callable[[Place, Sequence[Message]], Meter]

#: Confirmations that `submit` is ahead of the oldest that it waits for.
AHEAD = 5_000
#: Milliseconds that a batch waits for more: what librdkafka has by default.
LINGER = 5
#: How often ours has to be as fast as AIOProducer, pipelined and awaited.
TIMES_PIPELINED, TIMES_AWAITED = 1.2, 20


@scenario("B1")
def confirmed(bench: Bench) -> Result:
    """100-byte messages of 100 keys with 2 headers, a confirm each; messages/s.

    Ours: `submit` each, 5,000 ahead of the oldest waited for; from making the messages to the last
    Receipt. Limit: confluent-kafka's `produce` with a shared callback and the 2 headers, `poll(0)`
    after each, `flush`. `same record`: the limit with the headers that ours writes beside the 2,
    made before. Peers: AIOProducer, which refuses headers; aiokafka. linger.ms=5 for everybody.
    """
    messages = messages_of(round_robin(bench.size(100_000, 600), KEYS))
    some = messages[: bench.size(30_000, 600)]
    runs = {
        "ours": lambda: _sample(messages, one_after_the_other),
        "limit": lambda: _sample(messages, by_hand),
        "ours, submit_all": lambda: _sample(messages, all_at_once),
        "limit, same record": lambda: _sample(messages, by_hand_as_ours),
        "AIOProducer": lambda: _sample(some, peers.aioproducer),
    }
    missing = peers.not_installed("aiokafka")
    if not missing:
        runs["aiokafka"] = lambda: _sample(some, peers.aiokafka)
    series = bench.interleave(runs)
    value, limit = series["ours"].value, series["limit"].value
    times = value / series["AIOProducer"].value
    return Result(
        "msg/s",
        value,
        limit,
        value / limit,
        Floor("ratio", ">=", 0.45),
        series,
        cpu_us=series["ours"].cpu_us,
        detail={
            "submit_all": round(series["ours, submit_all"].value),
            "submit_all_cpu_us": round(series["ours, submit_all"].cpu_us, 1),
            "ratio_by_rounds": by_rounds(series, "ours", "limit"),
            "same_record": round(series["limit, same record"].value),
            "ratio_same_record": round(value / series["limit, same record"].value, 3),
            "times_aioproducer": round(times, 2),
            "times_aioproducer_met": None if bench.quick else times >= TIMES_PIPELINED,
            "limit_cpu_us": round(series["limit"].cpu_us, 1),
            "aioproducer_cpu_us": round(series["AIOProducer"].cpu_us, 1),
            "not_installed": missing,
        },
    )


@scenario("B2")
def one_by_one(bench: Bench) -> Result:
    """`mq.publish`, one at a time, 100 bytes, 2 headers, linger.ms=0 for everybody; messages/s.

    Limit: `produce` and `flush` of confluent-kafka for each message. `linger_5`: the same two with
    linger.ms=5, by which ours waits; `flush` does not.
    """
    messages = messages_of(round_robin(bench.size(3_000, 60), KEYS))
    few = messages[: bench.size(300, 20)]
    series = bench.interleave(
        {
            "ours": lambda: _sample(messages, _each(0)),
            "limit": lambda: _sample(messages, _each_by_hand(0)),
            "ours, linger 5": lambda: _sample(few, _each(5)),
            "limit, linger 5": lambda: _sample(few, _each_by_hand(5)),
        }
    )
    value, limit = series["ours"].value, series["limit"].value
    lingering, lingering_limit = series["ours, linger 5"].value, series["limit, linger 5"].value
    return Result(
        "msg/s",
        value,
        limit,
        value / limit,
        Floor("ratio", ">=", 0.85),
        series,
        cpu_us=series["ours"].cpu_us,
        detail={
            "ratio_by_rounds": by_rounds(series, "ours", "limit"),
            "linger_5": round(lingering, 1),
            "linger_5_limit": round(lingering_limit, 1),
            "linger_5_ratio": round(lingering / lingering_limit, 3),
            "limit_cpu_us": round(series["limit"].cpu_us, 1),
        },
    )


@scenario("B3")
def awaited(bench: Bench) -> Result:
    """100 coroutines that `await mq.submit(...)`, one message after the other each; messages/s.

    Peer: AIOProducer at its defaults (it buffers for up to a second), awaited in the same way.
    Limit: a Producer, a thread that polls it, one wake-up of the loop for a burst of reports; it
    and ours with linger.ms=0. Ratio: ours / AIOProducer.
    """
    messages = messages_of(round_robin(bench.size(20_000, 300), KEYS))
    few = messages[: bench.size(301, 101)]
    series = bench.interleave(
        {
            "ours": lambda: _sample(messages, awaiting),
            "limit": lambda: _sample(messages, peers.bridge),
            "AIOProducer": lambda: _sample(few, peers.aioproducer_awaited),
        }
    )
    value, limit = series["ours"].value, series["limit"].value
    return Result(
        "msg/s",
        value,
        limit,
        value / series["AIOProducer"].value,
        Floor("ratio", ">=", TIMES_AWAITED),
        series,
        cpu_us=series["ours"].cpu_us,
        detail={
            "of_limit": round(value / limit, 3),
            "limit_cpu_us": round(series["limit"].cpu_us, 1),
        },
    )


def one_after_the_other(place: Place, messages: Sequence[Message]) -> Meter:
    """Ours: `submit` each, and wait for the oldest when too many are on their way."""
    mq = _app(place, LINGER)
    _first(mq, place, messages)
    ahead: deque[Confirmation] = deque()
    with Meter() as meter:
        for one in messages[1:]:
            ahead.append(mq.submit(place.topic, one.body, key=one.key, headers=peers.headers(one)))
            if len(ahead) >= AHEAD:
                ahead.popleft().result()
        while ahead:
            ahead.popleft().result()
    assert not mq.stop()
    return meter


def all_at_once(place: Place, messages: Sequence[Message]) -> Meter:
    """Ours: one `submit_all`."""
    mq = _app(place, LINGER)
    _first(mq, place, messages)
    with Meter() as meter:
        made = (
            mq.message(place.topic, one.body, key=one.key, headers=peers.headers(one))
            for one in messages[1:]
        )
        mq.submit_all(made).result()
    assert not mq.stop()
    return meter


def awaiting(place: Place, messages: Sequence[Message]) -> Meter:
    """Ours: an await each."""

    async def main() -> Meter:
        mq = ReliableMQ(place.with_options("linger.ms=0"))
        async with mq.publishing():

            async def send(one: Message) -> None:
                await mq.submit(place.topic, one.body, key=one.key, headers=peers.headers(one))

            return await peers.many_await(send, messages)

    return asyncio.run(main())


def by_hand(place: Place, messages: Sequence[Message]) -> Meter:
    """The limit; each message gets its headers here, as it does in ours."""
    records = ((one.key, one.body or b"", peers.headers(one)) for one in messages)
    return raw.publish(place.hosts, place.topic, records, LINGER)


def by_hand_as_ours(place: Place, messages: Sequence[Message]) -> Meter:
    """As many bytes as ours, and as many headers, made before."""
    records = [
        (one.key, one.body or b"", [*as_ours_writes(one), *peers.headers(one)]) for one in messages
    ]
    return raw.publish(place.hosts, place.topic, records, LINGER)


def _each(linger: int) -> Publish:
    def publish(place: Place, messages: Sequence[Message]) -> Meter:
        mq = _app(place, linger)
        _first(mq, place, messages)
        with Meter() as meter:
            for one in messages[1:]:
                mq.publish(place.topic, one.body, key=one.key, headers=peers.headers(one))
        assert not mq.stop()
        return meter

    return publish


def _each_by_hand(linger: int) -> Publish:
    def publish(place: Place, messages: Sequence[Message]) -> Meter:
        producer = confluent_kafka.Producer(raw.producer_settings(place.hosts, linger))
        errors: list[object] = []

        def reported(error: object, _record: object) -> None:
            errors.append(error)

        def send(one: Message) -> None:
            producer.produce(
                place.topic, one.body, one.key, on_delivery=reported, headers=peers.headers(one)
            )
            producer.flush()

        send(messages[0])
        with Meter() as meter:
            for one in messages[1:]:
                send(one)
        assert errors == [None] * len(messages)
        return meter

    return publish


def _app(place: Place, linger: int) -> ReliableMQ:
    mq = ReliableMQ(place.with_options(f"linger.ms={linger}"))
    mq.start(consume=False)
    return mq


def _first(mq: ReliableMQ, place: Place, messages: Sequence[Message]) -> None:
    one = messages[0]
    mq.publish(place.topic, one.body, key=one.key, headers=peers.headers(one))


def _sample(messages: Sequence[Message], publish: Publish) -> Sample:
    with fresh_topic() as place:
        meter = publish(place, messages)
        return meter.rate(len(messages) - 1, stored(place, len(messages)))
