"""The demo keeps its promises, notices when one is broken, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
#: Seconds that a small demo may take on a busy machine.
DEADLINE = 55


def start(temporary: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Start the demo with few orders; everything it makes goes into `temporary`."""
    temporary.mkdir(exist_ok=True)
    inherited = {name: value for name, value in os.environ.items() if name != "BROKER"}
    return subprocess.Popen(
        [sys.executable, "-m", "examples.demo", "--orders", "200", *arguments],
        cwd=ROOT,
        env={**inherited, "TMPDIR": str(temporary), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # Whoever runs the tests in the background of a shell lets them ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )


def finished(demo: subprocess.Popen[str]) -> str:
    """What it printed, once it has ended."""
    try:
        return demo.communicate(timeout=DEADLINE)[0]
    finally:
        demo.kill()


def processes_of(temporary: Path) -> list[int]:
    """The processes that were started with a file in this directory."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            command = (directory / "cmdline").read_bytes()
        except OSError:
            continue  # it has just ended
        if str(temporary).encode() in command:
            found.append(int(directory.name))
    return found


def wait_until(condition, seconds: float = 20.0) -> None:
    """Wait for a state."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(params=["embedded", "by URL", "rabbitmq"])
def broker(request, tmp_path):
    """What the demo is told of its broker."""
    if request.param == "embedded":
        return []
    if request.param == "by URL":
        return ["--broker", f"sqlite:///{tmp_path}/b.db?lease_timeout=3"]
    return ["--broker", request.getfixturevalue("rabbitmq").url]


def test_keeps_every_promise(tmp_path, broker):
    """Two kills, retries and poison: nothing lost, nothing out of order, every poison told."""
    files = tmp_path / "files"

    demo = start(files, *broker)
    output = finished(demo)

    assert demo.returncode == 0, output
    for line in (
        "lost             │       0",
        "order inversions │       0",
        "killed           │ 2",
    ):
        assert line in output, output
    for reason in ("undecodable", "rejected", "retries-exhausted", "fatal-exception"):
        assert reason in output, output
    assert "every promise was kept" in output
    assert not list(files.iterdir()), "it leaves files behind"


def test_notices_what_is_lost(tmp_path):
    """Negative control: consumers that ack before they handle lose orders, and it says so."""
    demo = start(tmp_path / "files", "--patience", "4", DEMO_BREAK="ack_first")
    output = finished(demo)

    assert demo.returncode == 1, output
    assert "BROKEN  lost: " in output


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_takes_its_consumers_along(tmp_path, number, code):
    """However it is ended, its consumers end, too."""
    files = tmp_path / "files"
    demo = start(files)
    try:
        wait_until(lambda: len(processes_of(files)) == 2)
        demo.send_signal(number)
        assert code == demo.wait(20)
        wait_until(lambda: not processes_of(files))
        if number != signal.SIGKILL:
            assert not list(files.iterdir())
    finally:
        finished(demo)
