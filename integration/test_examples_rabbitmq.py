"""The examples on RabbitMQ run, end by themselves, and say what they promise."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXPECTED = {
    "attach": ["billed order-0", "billed order-5", "dead letter order-3: rejected", "discarded 1"],
    "own_callback": ["billed 40, failed once 4, in order: True"],
}


@pytest.mark.parametrize("name", EXPECTED)
def test_runs_by_itself(rabbitmq, name):
    """With the URL of a broker and nothing else."""
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-m", f"examples.rabbitmq.{name}", rabbitmq.url],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for line in EXPECTED[name]:
        assert line in ended.stdout, ended.stdout + ended.stderr


def test_none_is_forgotten():
    """Every program there is run here."""
    programs = {path.stem for path in (ROOT / "examples" / "rabbitmq").glob("*.py")}
    assert programs - {"__init__"} == set(EXPECTED)
