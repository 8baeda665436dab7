"""F30: no more files, threads or memory. A clean error, or it works; no silent death, no hang."""

import pytest

from integration.faults import LONG, brokers, promises, until

#: Endings of a child that are clean: done, stopped with something left undone, an error of ours.
CLEAN = (0, 1, 3, 5)
MB = 1024 * 1024


@brokers("sqlite", "rabbitmq")
def test_64_files_are_enough(run):
    """`ulimit -n 64`: a producer and a consumer live with it."""
    limits = {"RLIMIT_NOFILE": 64}
    run.publish(count=50, limits=limits, how="submit")

    assert run.drain(limits=limits, concurrency=16)
    assert run.drain(limits=limits, handler="async def")
    assert run.verdict().broken == ()


@brokers("sqlite", "rabbitmq")
@pytest.mark.parametrize("program", ["producer", "consumer"])
def test_too_few_files_are_an_error_of_ours(run, program):
    """Whatever the number: it ends in time, says why, and loses nothing."""
    run.publish(keys=["z"], count=5)
    codes = []
    for files in range(4, 24, 1 if LONG else 5):
        child = run.spawn(
            program, limits={"RLIMIT_NOFILE": files}, publish_timeout=0.5, lease_timeout=1.0
        )
        codes.append(child.ends())
        assert codes[-1] in CLEAN, (files, codes[-1], child.said())
        for entry in child.entries("failed", "unknown"):
            assert entry.why.startswith(("Backpressure", "PublishUnknown", "ConnectionFailed"))
    assert codes[-1] == 0

    assert run.verdict(drained=run.drain(lease_timeout=1.0)).broken == ()


@brokers("sqlite", "rabbitmq")
@pytest.mark.parametrize("room", [4, 16, 64, 256] if LONG else [4, 64])
def test_too_few_threads_are_an_error_and_not_a_hang(run, room):
    """Memory for the stacks of a few threads only, where 64 are asked for."""
    run.publish(count=20)

    consumer = run.spawn("consumer", room=room * MB, concurrency=64, within=5.0, drain=2.0)

    assert consumer.ends() in CLEAN, consumer.said()
    assert run.verdict(drained=run.drain(boot="the next")).broken == ()


def without_a_thread(run, **plan):
    """Six publishes, and no memory for the stack of a publisher's thread; who published."""
    run.publish(keys=["z"], count=1)
    producer = run.spawn("producer", room=2 * MB, publish_timeout=0.3, **plan)
    assert producer.ends() in CLEAN, producer.said()
    return producer


@brokers("sqlite", "rabbitmq")
def test_a_publisher_without_a_thread_refuses(run):
    """Backpressure, or no connection; and nothing is stored."""
    producer = without_a_thread(run)

    assert len(producer.entries("failed")) == 6, producer.said()
    assert run.verdict(drained=run.drain()).broken == ()


@brokers("sqlite")  # on the others it does not get as far as the publisher
def test_a_receipt_of_a_publisher_without_a_thread_is_seen(run):
    """Control: the Receipt comes before COMMIT."""
    producer = without_a_thread(run, remove="settle-first")

    assert len(producer.entries("ok")) == 6, producer.said()
    assert promises([run.verdict(drained=run.drain())]) == {"lost"}


@brokers("sqlite", "rabbitmq")
@pytest.mark.parametrize("room", [24, 48, 96, 192] if LONG else [24, 96])
def test_too_little_memory_ends_a_consumer_and_loses_nothing(run, room):
    """Bodies that do not fit: it goes on, or it ends and says so."""
    run.publish(count=20, size=1_500_000, how="submit")
    consumer = run.spawn("consumer", room=room * MB, until="signal", drain=2.0)
    until(
        lambda: consumer.process.poll() is not None or run.verdict().effects == 40,
        f"it ends, or does it all: {consumer.said()}",
    )
    code = consumer.ends_well() if consumer.process.poll() is None else consumer.ends()
    assert code in CLEAN, consumer.said()
    assert run.verdict(drained=run.drain(boot="the next")).broken == ()


@brokers("sqlite", "rabbitmq")
@pytest.mark.parametrize(("removed", "broken"), [("", set()), ("ack-first", {"lost"})])
def test_a_handler_that_gets_no_file_is_run_again(run, removed, broken):
    """Its effect cannot be written down, and the consumer is killed; control: acks before it."""
    run.publish(count=5, orders={"a/2": "no files"})
    consumer = run.spawn("consumer", until="signal", lease_timeout=1.0, remove=removed)
    consumer.comes_to(1, "retry")
    consumer.kill()

    drained = run.drain(cured=True, boot="the next", lease_timeout=1.0)

    assert promises([run.verdict(drained=drained)]) == broken
