from __future__ import annotations

import asyncio
import gc
import logging
import threading

import pytest

from reliable_mq.confirmation import Confirmation, Confirmations, when_all_done
from reliable_mq.errors import BatchIncomplete, PublishRejected, PublishUnknown
from reliable_mq.message import Message, Receipt

MESSAGE = Message("m1", "orders")
RECEIPT = Receipt("m1", "orders", 0, 1)


def rejected(message: Message = MESSAGE) -> PublishRejected:
    """A definite no."""
    return PublishRejected("no", message)


def test_it_ends_once() -> None:
    """The first ending counts, later ones are ignored."""
    confirmation = Confirmation(MESSAGE)

    confirmation.settle(RECEIPT)
    confirmation.settle(rejected())

    assert confirmation.result(0) == RECEIPT


def test_waiting_ends_with_an_unknown_and_can_be_repeated() -> None:
    """A wait that is over says that the message may be stored; the send goes on."""
    confirmation = Confirmation(MESSAGE)

    with pytest.raises(PublishUnknown, match="m1"):
        confirmation.result(0)

    confirmation.settle(RECEIPT)
    assert confirmation.result() == RECEIPT


def test_many_threads_wait_for_one_ending() -> None:
    """Every waiter gets it, whether it came before or after the ending."""
    confirmation = Confirmation(MESSAGE)
    got: list[Receipt] = []
    threads = [
        threading.Thread(target=lambda: got.append(confirmation.result(10))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()

    confirmation.settle(RECEIPT)

    for thread in threads:
        thread.join(10)
    assert got == [RECEIPT] * 8


def test_each_callback_runs_once_however_it_races_with_the_ending() -> None:
    """Callbacks that are added while the ending happens run once, on one of the two threads."""
    for _ in range(200):
        confirmation = Confirmation(MESSAGE)
        ran: list[int] = []
        go = threading.Barrier(2)

        def settle(confirmation: Confirmation = confirmation, go: threading.Barrier = go) -> None:
            go.wait()
            confirmation.settle(RECEIPT)

        thread = threading.Thread(target=settle)
        thread.start()
        go.wait()
        for number in range(3):
            confirmation.add_done_callback(lambda _, n=number, ran=ran: ran.append(n))  # type: ignore[misc]
        thread.join(10)
        assert sorted(ran) == [0, 1, 2]


def test_a_callback_that_raises_hurts_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, and the others run."""
    confirmation = Confirmation(MESSAGE)
    ran: list[Confirmation] = []
    confirmation.add_done_callback(lambda _: 1 / 0)
    confirmation.add_done_callback(ran.append)

    confirmation.settle(RECEIPT)

    assert ran == [confirmation]
    assert "m1" in caplog.text


def test_it_can_be_awaited_many_times_and_from_many_loops() -> None:
    """Two loops in two threads await the same confirmation, one of them twice."""
    confirmation = Confirmation(MESSAGE)
    waiting = threading.Barrier(3)

    async def both() -> list[Receipt]:
        async def one() -> Receipt:
            return await confirmation

        tasks = [asyncio.create_task(one()), asyncio.create_task(one())]
        await asyncio.sleep(0)
        await asyncio.get_running_loop().run_in_executor(None, waiting.wait)
        return [await task for task in tasks] + [await confirmation]

    got: list[Receipt] = []
    threads = [threading.Thread(target=lambda: got.extend(asyncio.run(both()))) for _ in range(2)]
    for thread in threads:
        thread.start()
    waiting.wait(10)
    confirmation.settle(RECEIPT)
    for thread in threads:
        thread.join(10)
    assert got == [RECEIPT] * 6


def test_cancelling_who_waits_does_not_touch_the_send() -> None:
    """The confirmation is still open, and ends as if nobody had been cancelled."""

    async def story() -> Receipt:
        confirmation = Confirmation(MESSAGE)

        async def wait() -> Receipt:
            return await confirmation

        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not confirmation.done()
        confirmation.settle(RECEIPT)
        return await confirmation

    assert asyncio.run(story()) == RECEIPT


def test_a_burst_of_endings_wakes_a_loop_once() -> None:
    """A thousand endings from another thread cost one call_soon_threadsafe."""

    async def story() -> int:
        loop = asyncio.get_running_loop()
        confirmations = [Confirmation(MESSAGE) for _ in range(1000)]

        async def wait(one: Confirmation) -> Receipt:
            return await one

        tasks = [asyncio.create_task(wait(one)) for one in confirmations]
        await asyncio.sleep(0)
        calls = 0
        original = loop.call_soon_threadsafe

        def counted(*args: object, **kwargs: object) -> object:
            nonlocal calls
            calls += 1
            return original(*args, **kwargs)  # type: ignore[arg-type]

        loop.call_soon_threadsafe = counted  # type: ignore[method-assign, assignment]
        try:
            for one in confirmations:  # without giving the loop a chance in between
                one.settle(RECEIPT)
        finally:
            loop.call_soon_threadsafe = original  # type: ignore[method-assign]
        await asyncio.gather(*tasks)
        return calls

    assert asyncio.run(story()) == 1


def test_a_failure_that_nobody_looked_at_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Dropping it says so; dropping one that was seen does not."""
    caplog.set_level(logging.ERROR)
    unseen, seen = Confirmation(MESSAGE), Confirmation(Message("m2", "orders"))
    unseen.settle(rejected())
    seen.settle(rejected(Message("m2", "orders")))
    assert unseen.unseen
    assert seen.outcome is not None
    assert not seen.unseen

    del unseen, seen
    gc.collect()

    assert caplog.text.count("nobody looked") == 1


def test_a_batch_keeps_the_order_of_its_inputs() -> None:
    """BatchIncomplete has a Receipt or an error per input, in their order."""
    first, second, third = (Confirmation(Message(f"m{n}", "orders")) for n in range(3))
    batch = Confirmations([first, second, third])
    third.settle(RECEIPT)
    first.settle(RECEIPT)
    second.settle(rejected(second.message))

    with pytest.raises(BatchIncomplete) as failure:
        batch.result(1)

    outcomes = failure.value.outcomes
    assert [type(one) for one in outcomes] == [Receipt, PublishRejected, Receipt]


def test_a_batch_that_is_not_answered_in_time_says_unknown() -> None:
    """What has no answer by the timeout counts as PublishUnknown, with its message."""
    batch = Confirmations([Confirmation(MESSAGE)])

    with pytest.raises(BatchIncomplete) as failure:
        batch.result(0)

    (outcome,) = failure.value.outcomes
    assert isinstance(outcome, PublishUnknown)
    assert outcome.message is MESSAGE


def test_all_done_is_told_once_whatever_the_order_of_the_endings() -> None:
    """The callback runs exactly once, after the last ending, also for none at all."""
    confirmations = [Confirmation(MESSAGE) for _ in range(50)]
    told: list[bool] = []
    when_all_done(confirmations, lambda: told.append(all(one.done() for one in confirmations)))
    for one in reversed(confirmations):
        assert told == []
        one.settle(RECEIPT)
    assert told == [True]

    when_all_done([], lambda: told.append(True))
    assert told == [True, True]


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), ValueError("no")])
def test_nothing_that_a_callback_raises_ends_the_publisher_thread(error, caplog):
    """It is logged, and the others are called."""
    confirmation = Confirmation(Message("m", "t"))
    called = []

    def fail(_):
        raise error

    confirmation.add_done_callback(fail)
    confirmation.add_done_callback(called.append)
    confirmation.settle(Receipt("m", "t", 0, 1))
    assert called == [confirmation]
    assert "a callback of message m failed" in caplog.text
