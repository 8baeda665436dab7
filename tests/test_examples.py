"""Every example runs by itself, ends by itself, and says what it promises."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
#: Seconds after which an example hangs.
DEADLINE = 40

EXPECTED = {
    "quickstart": ["stored at position 1", "billing order 1: 9.5 EUR"],
    "async_service": ["accepted at position", "20 orders are billed; ready: True", "stopped"],
    "process": [
        "[key customer-7, attempt 2] billed order 1",
        "attempt 1] billed order 3",
        "drained",
    ],
    "own_loop": [
        "billed 1999, retried 24, dead letters 1",
        "in order within each of 32 keys: True",
        "committed offset: 2500",
    ],
    "dead_letters": [
        "retries-exhausted after 2 runs",
        "run 2: OSError: the payment provider cannot be reached",
        "billed order 1",
        "replayed 1",
        "discarded 1, 0 left",
    ],
}


def run(directory: Path, *arguments: str) -> str:
    """Run Python there, and return what it printed; it has to end well, and in time."""
    environment = {
        name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ
    }
    ended = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        cwd=directory,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout
    return ended.stdout


@pytest.mark.parametrize("name", EXPECTED)
def test_runs_by_itself(tmp_path, name):
    """It runs from any directory, without arguments, and its output shows its point."""
    output = run(tmp_path, str(EXAMPLES / f"{name}.py"))

    for line in EXPECTED[name]:
        assert line in output, output
    assert "Traceback" not in output


def test_quickstart_goes_on_where_it_ended(tmp_path):
    """The second run finds the file of the first, and bills its own order only."""
    run(tmp_path, str(EXAMPLES / "quickstart.py"))

    output = run(tmp_path, str(EXAMPLES / "quickstart.py"))

    assert output.count("billing order") == 1, output
    assert "stored at position 2" in output


def test_the_tested_handler_passes_its_tests(tmp_path):
    """`pytest examples` is green, without a broker, and leaves no file."""
    plugins = ("-p", "no:hypothesispytest", "-p", "no:cacheprovider")

    output = run(ROOT, "-m", "pytest", "-q", *plugins, str(EXAMPLES / "testing"))

    assert "2 passed" in output
    assert not (ROOT / "orders.sqlite3").exists()


def test_none_is_forgotten():
    """Every program in examples/ is run here, or in a test of its own."""
    programs = {path.stem for path in EXAMPLES.glob("*.py")} - {"__init__"}

    assert programs == set(EXPECTED)
