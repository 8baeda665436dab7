"""F22: poison. It ends among the dead letters for the right reason, and harms no innocent."""

import signal

import msgspec
import pytest

from integration.faults import LONG, brokers, promises, until
from reliable_mq import ReliableMQ, TooLarge
from reliable_mq.testing.history import Numbered

ATTEMPTS = 3
#: Bodies that are not what the handler takes.
UNREADABLE = {
    "bad JSON": b'{"run": ',
    "wrong schema": b'{"run": 1, "seq": "many"}',
    "not UTF-8": b'{"run": "\xff", "producer": "p", "key": null, "seq": 1}',
    "deep": b"[" * 100_000,
    "empty": b"",
    "null": None,
}
#: Headers that this library did not write.
FORGED = {
    "no number": {"rmq-attempt": "many"},
    "made up": {"rmq-made-up": "1"},
    "huge": {"rmq-history": "[" + " " * 20_000 + "]"},
    "deep history": {"rmq-history": "[" * 10_000},
    "NUL": {"rmq-group": "a\0b"},
}


def id_of(key, seq):
    """The id of a message of the workload."""
    return Numbered("run", "p", key, seq).id


@pytest.fixture
def by_hand(run):
    """Publishes bodies as they are, and messages as other programs write them."""
    history = run.own_history("by-hand")
    mq = ReliableMQ(run.place.url)
    orders = mq.topic(run.place.topic, groups=("billing",))

    class ByHand:
        def publish(self, name, body):
            history.note("invoke", name)
            options = {} if body is None else {"content_type": "application/json"}
            orders.publish(body, id=name, key="by hand", **options)
            history.note("ok", name)

        def write(self, name, body, headers):
            history.note("invoke", name)
            run.place.write(name, body, headers)
            history.note("ok", name)

    yield ByHand()
    mq.stop()
    history.close()


@brokers()
def test_poison_ends_as_a_dead_letter_for_its_reason(run, by_hand):
    """Each within its attempts; the process survives; the innocents of the same key are handled."""
    orders = {"a/1": "raise", "b/2": "reject", "None/0": "raise", "None/3": "reject"}
    run.publish(keys=["a", "b", None], count=5, orders=orders)
    poison = {
        id_of("a", 1): "retries-exhausted",
        id_of("b", 2): "rejected",
        id_of(None, 0): "retries-exhausted",
        id_of(None, 3): "rejected",
    }
    for name, body in UNREADABLE.items():
        by_hand.publish(name, body)
        poison[name] = "undecodable"
    whole = Numbered("run", "foreign", "f", 1).sealed()
    for name, headers in FORGED.items():
        by_hand.write(name, msgspec.json.encode(whole), headers)
        poison[name] = "forged-header"
    # A number out of range is no forgery, it is cut to what there can be.
    by_hand.write(whole.id, msgspec.json.encode(whole), {"rmq-attempt": "-7"})

    verdict = run.verdict(drained=run.drain(attempts=ATTEMPTS), poison=poison, duplicates=0)

    assert verdict.broken == ()
    assert verdict.effects == 15 - 4 + 1
    assert set(verdict.dead_letters.values()) == {1}
    assert verdict.duplicate_deliveries == {
        id_of("a", 1): ATTEMPTS - 1,
        id_of(None, 0): ATTEMPTS - 1,
    }


@brokers()
def test_a_body_that_is_too_large_is_refused_where_it_is_published(run, by_hand):
    """20 MB: definite, and nothing of it is stored."""
    with pytest.raises(TooLarge):
        by_hand.publish("20 MB", bytes(20_000_000))

    assert run.lag() == 0


@brokers()
@pytest.mark.parametrize("removed", ["dead-letters", "ack-first"])
def test_without_a_safety_the_checker_sees_it(run, by_hand, removed):
    """Controls: dead letters not stored; acks before the handler, which then dies."""
    run.publish(keys=["a"], count=5, orders={"a/1": "reject", "a/2": "abort"})
    code = run.spawn("consumer", until="signal", remove=removed).ends()
    assert code == -signal.SIGABRT

    drained = run.drain(cured=True, boot="the next")

    broken = promises([run.verdict(drained=drained, poison={id_of("a", 1): "rejected"})])
    assert "lost" in broken or "dead letters" in broken


@brokers("sqlite", "rabbitmq")
def test_a_handler_that_kills_its_process_takes_nobody_with_it(run):
    """Each restart goes on; from its third run on the suspect runs alone; innocents are handled."""
    count = 60 if LONG else 4
    orders = {"None/3": "abort", "c/1": "segfault"}
    run.publish(keys=["a", "b", "c", None], count=count, orders=orders)
    killers = {id_of(None, 3), id_of("c", 1)}
    innocents = 4 * count - 1 - (count - 1)  # behind c/1 its key waits
    lives = 0
    while run.verdict().effects < innocents:
        lives += 1
        assert lives <= (400 if LONG else 40), str(run.verdict())
        consumer = run.spawn("consumer", lease_timeout=0.5, concurrency=2)
        assert consumer.ends() in (-signal.SIGABRT, -signal.SIGSEGV), consumer.said()
        effects = {entry.id for entry in consumer.entries("effect")}
        unfinished = [one.id for one in consumer.entries("deliver") if one.id not in effects]
        assert killers & set(unfinished)
        if "came again" in consumer.said():
            assert len(unfinished) == 1, unfinished  # it was alone when it killed

    # No store counts these deaths: somebody has to repair the handler, or take them out.
    verdict = run.verdict(drained=run.drain(cured=True, lease_timeout=0.5))
    assert verdict.broken == ()
    assert verdict.effects == 4 * count


@brokers("kafka")
def test_where_nobody_counts_a_handler_that_kills_its_process_loses_nothing(run):
    """Kafka does not say how often a message came: nobody tells the suspect, each life ends there.

    Only who repairs the handler, or a store that counts, gets past it.
    """
    run.publish(keys=["a", "b", "c", None], count=4, orders={"c/1": "segfault"})
    for _ in range(3):
        consumer = run.spawn("consumer", lease_timeout=1.0, concurrency=2)
        assert consumer.ends() == -signal.SIGSEGV, consumer.said()

    verdict = run.verdict(drained=run.drain(cured=True, lease_timeout=1.0))

    assert verdict.broken == ()
    assert verdict.effects == 16


@brokers()
def test_an_async_handler_that_hangs_is_cancelled_and_dead_lettered(run):
    """At its deadline, each time; its key goes on."""
    run.publish(keys=["a", "b"], count=4, orders={"a/1": "hang"})

    drained = run.drain(handler="async def", timeout=0.2, attempts=2)

    verdict = run.verdict(drained=drained, poison={id_of("a", 1): "retries-exhausted"})
    assert verdict.broken == ()
    assert verdict.effects == 7
    assert verdict.duplicate_deliveries == {id_of("a", 1): 1}


@brokers()
def test_without_a_timeout_a_handler_that_hangs_is_seen(run):
    """Control: its key never ends."""
    run.publish(keys=["a", "b"], count=4, orders={"a/1": "hang"})

    drained = run.drain(handler="async def", within=2.0, drain=0.5)

    assert "liveness" in promises([run.verdict(drained=drained)])


@brokers()
def test_a_def_handler_that_hangs_is_told_and_only_its_key_waits(run):
    """It cannot be stopped: it is overdue, no dead letter, and at the end abandoned."""
    run.publish(keys=["a", "b"], count=4, orders={"a/1": "hang"})
    consumer = run.spawn("consumer", until="signal", timeout=0.2, drain=0.5)
    consumer.comes_to(1 + 4, "effect")
    consumer.comes_to_say(f"message {id_of('a', 1)}: its handler is overdue")
    until(lambda: sum(one["overdue"] for one in consumer.state()["consumers"]) == 1, "health")
    assert consumer.state()["live"]

    assert consumer.ends_well() == 1

    verdict = run.verdict(drained=run.drain(cured=True))
    assert verdict.broken == ()
    assert verdict.effects == 8


@brokers()
def test_too_many_handlers_that_hang_end_the_process(run):
    """It takes no more work, turns red, and ends with 1, so that somebody starts a new one."""
    orders = {f"k{number}/0": "hang" for number in range(3)}
    run.publish(keys=[f"k{number}" for number in range(6)], count=2, orders=orders)

    consumer = run.spawn("consumer", until="signal", timeout=0.2, max_stuck=2, drain=0.5)

    assert consumer.ends() == 1, consumer.said()
    assert "stuck beyond their timeout" in consumer.said()
    assert run.verdict(drained=run.drain(cured=True)).broken == ()
