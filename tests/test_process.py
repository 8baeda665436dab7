from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from reliable_mq import ConfigurationError, ReliableMQ, run

pytestmark = pytest.mark.slow

PROGRAM = """
import sys, threading, time
from reliable_mq import ReliableMQ, run

mq = ReliableMQ(sys.argv[1])
other = ReliableMQ("memory://")

@mq.consumer("orders", group="g", timeout={timeout}, max_stuck=0)
def handle(number: int) -> None:
    print("started", number, flush=True)
    if {forever}:
        threading.Event().wait()
    time.sleep(0.3)
    print("done", number, flush=True)

mq.publish("orders", 1, key="a")
mq.publish("orders", 2, key="a")
run(mq, other, drain={drain})
print("clean", flush=True)
"""


def start(
    tmp_path: Path, *, forever: bool, drain: float, timeout: float | None = None
) -> subprocess.Popen[str]:
    """A process that runs two apps, one of which has work."""
    program = PROGRAM.format(forever=forever, drain=drain, timeout=timeout)
    return subprocess.Popen(
        [sys.executable, "-c", program, f"sqlite:///{tmp_path / 'p.db'}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_what_runs_and_exits_clean(tmp_path: Path, number: signal.Signals) -> None:
    """The handler in hand ends, nothing further starts, the exit code is 0."""
    process = start(tmp_path, forever=False, drain=10)
    assert process.stdout is not None
    assert process.stdout.readline() == "started 1\n"

    process.send_signal(number)
    out, err = process.communicate(timeout=30)

    assert process.returncode == 0, err
    assert out.splitlines()[0] == "done 1"
    assert out.splitlines()[-1] == "clean"


def test_an_abandoned_handler_is_told_by_the_exit_code(tmp_path: Path) -> None:
    """The drain ends with its budget, and the process exits with 1."""
    process = start(tmp_path, forever=True, drain=0.3)
    assert process.stdout is not None
    process.stdout.readline()
    began = time.monotonic()

    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=30)

    assert process.returncode == 1
    assert "clean" not in out
    assert time.monotonic() - began < 10


def test_a_consumer_that_is_stuck_ends_the_process(tmp_path: Path) -> None:
    """Without any signal: more overdue threads than max_stuck, and run() exits with 1."""
    process = start(tmp_path, forever=True, drain=0.2, timeout=0.1)
    _, err = process.communicate(timeout=30)

    assert process.returncode == 1, err


def test_run_needs_the_main_thread_and_an_app() -> None:
    """Signals cannot be had elsewhere: the text names start()."""
    raised: list[BaseException] = []

    def elsewhere() -> None:
        try:
            run(ReliableMQ("memory://"))
        except ConfigurationError as error:
            raised.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join(10)

    assert "app.start()" in str(raised[0])
    with pytest.raises(ConfigurationError, match="needs an app"):
        run()


def test_run_gives_the_signal_handlers_back() -> None:
    """After run() they are what they were."""
    before = signal.getsignal(signal.SIGTERM)
    mq = ReliableMQ("memory://")
    timer = threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGTERM))
    timer.start()

    mq.run(drain=1)

    assert signal.getsignal(signal.SIGTERM) is before


def test_what_nobody_stopped_is_flushed_at_the_end_of_the_process(tmp_path: Path) -> None:
    """A forgotten stop() does not lose what was submitted."""
    url = f"sqlite:///{tmp_path / 'p.db'}"
    program = (
        "import sys\n"
        "from reliable_mq import ReliableMQ\n"
        "mq = ReliableMQ(sys.argv[1])\n"
        "mq.topic('orders', groups=('g',))\n"
        "for n in range(500): mq.submit('orders', n)\n"
    )
    subprocess.run(
        [sys.executable, "-c", program, url],
        check=True,
        timeout=60,
        cwd=Path(__file__).parents[1],
    )
    from reliable_mq.adapters.sqlite import SqliteTransport

    assert SqliteTransport(str(tmp_path / "p.db")).lag("orders", "g") == 500
