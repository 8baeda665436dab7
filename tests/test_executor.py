import multiprocessing
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reliable_mq.errors import ConfigurationError
from reliable_mq.ordering.executor import (
    ExecutorFull,
    ExecutorIncomplete,
    KeyedExecutor,
    Unfinished,
)

WAIT = 20  # seconds until a test that waits for a state gives up


class Gate:
    """A function that says when it runs and ends when it is let."""

    def __init__(self):
        self.running = threading.Event()
        self.open = threading.Event()

    def __call__(self, *_):
        """Run until it is let go."""
        self.running.set()
        assert self.open.wait(WAIT)


def boom(*_):
    """Fail."""
    raise ValueError


def test_items_of_a_key_run_in_their_order():
    """Whatever the number of workers, a key's items run one at a time and in order."""
    seen: dict[int, list[int]] = {key: [] for key in range(7)}
    inside = dict.fromkeys(seen, 0)

    def work(key, number):
        inside[key] += 1
        assert inside[key] == 1
        seen[key].append(number)
        inside[key] -= 1

    with KeyedExecutor(concurrency=4, limit=50) as executor:
        for number in range(2_000):
            executor.submit(number % 7, work, number % 7, number)
    assert seen == {key: list(range(key, 2_000, 7)) for key in range(7)}


def test_keys_run_side_by_side():
    """A key that takes its time holds up nobody else, not even with more items than a turn has."""
    gate, done = Gate(), threading.Event()
    with KeyedExecutor(concurrency=2) as executor:
        for _ in range(40):
            executor.submit("slow", gate)
        assert gate.running.wait(WAIT)
        executor.submit("quick", done.set)
        assert done.wait(WAIT)
        gate.open.set()


def test_items_without_a_key_have_no_order():
    """Without a key, a later item need not wait for an earlier one."""
    gate, done = Gate(), threading.Event()
    with KeyedExecutor(concurrency=2) as executor:
        executor.submit(None, gate)
        executor.submit(None, done.set)
        assert done.wait(WAIT)
        gate.open.set()
    with KeyedExecutor(concurrency=2) as executor:  # an empty key is a key
        executor.submit(b"", done.clear)
        executor.submit(b"", done.set)
    assert done.is_set()


def test_a_hot_key_gives_way():
    """One worker serves other keys although one of them always has more."""
    order = []
    gate = Gate()
    with KeyedExecutor(concurrency=1) as executor:
        executor.submit("hot", gate)
        assert gate.running.wait(WAIT)
        for _ in range(100):
            executor.submit("hot", order.append, "hot")
        executor.submit("cold", order.append, "cold")
        gate.open.set()
    assert order.index("cold") <= 16


def test_the_limit():
    """At the limit submit waits, then raises with the numbers; an item that ends makes room."""
    gate = Gate()
    with KeyedExecutor(concurrency=1, limit=2) as executor:
        executor.submit("a", gate)
        executor.submit("b", gate)
        assert executor.pending == 2
        with pytest.raises(ExecutorFull, match=r"0\.01 s: 2 items .* limit is 2"):
            executor.submit("c", gate, timeout=0.01)
        waiter = threading.Thread(target=executor.submit, args=("c", gate))
        waiter.start()
        gate.open.set()
        waiter.join(WAIT)
        assert not waiter.is_alive()
    assert executor.pending == 0


def test_on_done_hears_of_every_item_in_order():
    """on_done gets the arguments and the exception, on the item's thread, in the key's order."""
    heard = []

    def on_done(args, error):
        heard.append((*args, type(error).__name__, threading.current_thread().name[:4]))

    with KeyedExecutor(on_done=on_done, name="mine") as executor:
        executor.submit("k", int, "1")
        executor.submit("k", int, "x")
        executor.submit("k", sys.exit, 3)
        executor.submit("k", int, "2")
    assert heard == [
        ("1", "NoneType", "mine"),
        ("x", "ValueError", "mine"),
        (3, "SystemExit", "mine"),
        ("2", "NoneType", "mine"),
    ]


def test_failures_that_nobody_observes(caplog):
    """Without on_done a failure is logged, returned by close, and raised at the end of `with`."""
    executor = KeyedExecutor()
    executor.submit("k", boom, 1)
    executor.submit("k", int, "2")
    (failure,) = executor.close()
    assert (failure.key, failure.function, failure.args) == ("k", boom, (1,))
    assert failure.state == "failed"
    assert isinstance(failure.error, ValueError)
    assert "boom failed" in caplog.text
    executor = KeyedExecutor()
    executor.submit("k", boom)
    executor.submit(None, boom)
    with pytest.raises(ExecutorIncomplete, match="failed: 2") as caught:
        executor.__exit__(None, None, None)
    assert isinstance(caught.value.__cause__, ValueError)
    assert len(caught.value.unfinished) == 2


def test_failures_are_kept_up_to_a_limit(caplog):
    """Every failure is in the log; close returns the first hundred."""
    executor = KeyedExecutor(1)
    for number in range(150):
        executor.submit("k", boom, number)
    failures = executor.close()
    assert [failure.args for failure in failures] == [(number,) for number in range(100)]
    assert len(caplog.records) == 150


def test_a_failing_on_done(caplog):
    """A failure of on_done is a failure that nobody observed; the key goes on."""
    executor = KeyedExecutor(on_done=boom)
    executor.submit("k", int, "1")
    executor.submit("k", int, "2")
    assert [one.args for one in executor.close()] == [("1",), ("2",)]
    assert len(caplog.records) == 2


def test_an_exception_of_the_block_goes_first(caplog):
    """An exception on its way is not replaced by what did not end well, which is logged."""
    executor = KeyedExecutor(name="mine")
    executor.submit("k", boom)
    with pytest.raises(KeyError), executor:
        raise KeyError
    assert "'mine' ended with items failed: 1" in caplog.text


def test_what_close_abandons(caplog):
    """What has not ended in time is returned, never begun, and never told when it ends late."""
    gate, told = Gate(), []
    executor = KeyedExecutor(concurrency=1, on_done=lambda args, error: told.append(args))
    executor.submit("k", gate, 1)
    executor.submit("k", gate, 2)
    executor.submit(None, gate, 3)
    assert gate.running.wait(WAIT)
    (worker,) = [one for one in threading.enumerate() if one.name == "keyed-0"]
    unfinished = executor.close(timeout=0.01)
    assert unfinished == [
        Unfinished("k", gate, (1,), "running"),
        Unfinished("k", gate, (2,), "queued"),
        Unfinished(None, gate, (3,), "queued"),
    ]
    assert executor.pending == 0
    gate.running.clear()
    gate.open.set()
    worker.join(WAIT)
    assert not worker.is_alive()
    assert not gate.running.is_set()
    assert told == []
    assert "ended after it was given up" in caplog.text
    assert executor.close() == unfinished


def test_a_late_end_that_nobody_observes(caplog):
    """Without on_done, what was given up may still end well, which changes nothing."""
    gate = Gate()
    executor = KeyedExecutor(concurrency=1)
    executor.submit("k", gate)
    assert gate.running.wait(WAIT)
    (worker,) = [one for one in threading.enumerate() if one.name == "keyed-0"]
    unfinished = executor.close(timeout=0.0)
    gate.open.set()
    worker.join(WAIT)
    assert not worker.is_alive()
    assert executor.close() == unfinished == [Unfinished("k", gate, (), "running")]
    assert not caplog.records


def test_nothing_is_taken_after_close():
    """A closed executor refuses, also those who waited for room."""
    gate = Gate()
    executor = KeyedExecutor(concurrency=1, limit=1)
    executor.submit("k", gate)
    refused = []

    def submit():
        try:
            executor.submit("k", gate)
        except ConfigurationError as error:
            refused.append(str(error))

    waiter = threading.Thread(target=submit)
    waiter.start()
    closer = threading.Thread(target=executor.close)
    closer.start()
    waiter.join(WAIT)
    gate.open.set()
    closer.join(WAIT)
    assert refused == ["KeyedExecutor 'keyed' is closed: nothing more can be submitted"]


def test_close_without_items():
    """An executor that was never used has no threads and closes at once."""
    before = threading.active_count()
    assert KeyedExecutor(concurrency=50).close() == []
    assert threading.active_count() == before


def test_close_from_inside_an_item():
    """An item cannot wait for its own end."""
    errors = []
    executor = KeyedExecutor(on_done=lambda args, error: errors.append(error))
    executor.submit("k", executor.close)
    assert executor.close() == []
    assert isinstance(errors[0], ConfigurationError)


def test_an_item_may_submit_items():
    """Items can submit further ones."""
    done = threading.Event()
    with KeyedExecutor() as executor:
        executor.submit("k", lambda: executor.submit("k", done.set))
        assert done.wait(WAIT)


@pytest.mark.parametrize("options", [{"concurrency": 0}, {"limit": 0}])
def test_options_out_of_range(options):
    """No workers or no room is a mistake in the program."""
    with pytest.raises(ConfigurationError, match="from 1 up"):
        KeyedExecutor(**options)


def test_keys_have_to_be_hashable():
    """A key that has no hash is refused, and nothing is taken."""
    executor = KeyedExecutor()
    with pytest.raises(TypeError):
        executor.submit([], boom)
    assert executor.close() == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_use_after_fork():
    """A forked child has no threads: it is told so, also while a thread holds the lock."""
    context = multiprocessing.get_context("fork")
    parent, child = context.Pipe()
    executor = KeyedExecutor()
    executor.submit("k", int)

    def use():
        for call in (lambda: executor.submit("k", int), executor.close):
            try:
                call()
            except ConfigurationError as error:
                child.send(str(error))

    with executor._lock:
        process = context.Process(target=use)
        process.start()
    texts = [parent.recv() if parent.poll(WAIT) else None for _ in range(2)]
    process.join()
    assert all("before a fork" in text for text in texts)
    assert executor.close() == []


def test_a_program_that_ends_without_close():
    """What is left at the end of a program is logged, and cannot keep it from ending."""
    code = (
        "import logging, threading; logging.basicConfig()\n"
        "from reliable_mq.ordering.executor import KeyedExecutor\n"
        "executor = KeyedExecutor(); running = threading.Event()\n"
        "executor.submit(1, lambda: running.set() or threading.Event().wait())\n"
        "executor.submit(1, print); running.wait()\n"
    )
    root = Path(__file__).parents[1]
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
        timeout=WAIT,
    )
    assert "was never closed: 2 items have not ended" in ended.stderr


@given(
    st.lists(st.tuples(st.sampled_from([None, "a", "b", b""]), st.booleans()), max_size=60),
    st.integers(1, 4),
    st.integers(1, 9),
)
@settings(max_examples=30, deadline=None)
def test_every_item_ends_once(items, concurrency, limit):
    """Whatever is submitted, each item is told once, in the order of its key, failed or not."""
    told = []

    def on_done(args, error):
        told.append((*args, error is not None))

    def work(key, number, fails):
        if fails:
            raise ValueError

    with KeyedExecutor(concurrency, limit, on_done=on_done) as executor:
        for number, (key, fails) in enumerate(items):
            executor.submit(key, work, key, number, fails)
    expected = [(key, number, fails, fails) for number, (key, fails) in enumerate(items)]
    assert sorted(told, key=lambda one: one[1]) == expected
    for key in ("a", "b", b""):
        numbers = [one[1] for one in told if one[0] == key]
        assert numbers == sorted(numbers)
