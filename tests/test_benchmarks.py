"""The benchmarks work: each scenario once, tiny. How fast it was is nobody's test.

Those that need a broker are in integration/.
"""

from __future__ import annotations

import json

import pytest

from benchmarks import scenarios, sqlite
from benchmarks.harness import SCENARIOS, Bench, Counts, Floor, chosen, run, tell
from benchmarks.workload import HEAD, count

pytestmark = pytest.mark.slow

scenarios.load_some(scenarios.MODULES)

KEYS = {
    *("scenario", "unit", "ours", "limit", "ratio", "peers", "cpu_us", "lost", "duplicated"),
    *("inversions", "floor", "passed", "spread", "noisy", "rounds", "quick", "detail", "versions"),
    "seconds",
}


def bodies(*numbers: int, key: int = 1) -> list[bytes]:
    """Bodies of one key, in the order in which they ran."""
    return [HEAD.pack(key, number, 0.0) for number in numbers]


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(name, tmp_path, monkeypatch):
    """It runs, loses nothing, doubles nothing, reorders nothing, and says all that it should."""
    monkeypatch.setattr(sqlite, "DIRECTORY", tmp_path)
    [line] = run([name], Bench(quick=True))
    assert set(line) == KEYS
    assert (line["lost"], line["duplicated"], line["inversions"]) == (0, 0, 0)
    assert line["scenario"] == name
    assert line["passed"] is None  # a smoke run judges no speed
    assert json.loads(json.dumps(line)) == line


def test_families_are_chosen_by_name():
    """B7 means all of its cases, and neither B70 nor B1 anything else."""
    assert {name.split("-")[0] for name in chosen(["b7"])} == {"B7"}
    assert list(chosen(["B7-20", "KEYS"])) == ["B7-20", "KEYS"]
    with pytest.raises(LookupError, match=r"there are .*LANES-def"):
        chosen(["B1"])


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (bodies(0, 1, 2), Counts()),
        (bodies(0, 2), Counts(lost=1)),
        (bodies(1, 2), Counts(lost=1)),
        (bodies(), Counts(lost=3)),
        (bodies(0, 1, 1, 2, 2), Counts(duplicated=2)),
        (bodies(0, 2, 1), Counts(inversions=1)),
        (bodies(0, 2, 1, 1), Counts(inversions=1, duplicated=1)),
        (bodies(2, 0), Counts(lost=1, inversions=1)),
        (bodies(0, key=7) + bodies(0) + bodies(1, key=7), Counts()),
    ],
)
def test_harm_is_counted(seen, expected):
    """The counters tell a loss, a double and an inversion apart: else their zeros are no proof."""
    assert count(3, seen) == expected


def test_harm_fails_the_run_and_a_missed_floor_does_not(capsys):
    """Exit codes are for correctness."""
    [line] = run(["LANES-def"], Bench(quick=True))
    assert tell([{**line, "passed": False}])
    assert not tell([{**line, "inversions": 1}])
    assert '"inversions": 1' in capsys.readouterr().out


def test_floors():
    """A floor is about ours or about the ratio, and has a direction."""
    assert Floor("ours", ">=", 3.0).met(3.0, None)
    assert not Floor("ours", "<=", 3.0).met(3.1, 1.0)
    assert Floor("ratio", "<=", 1.2).met(9.0, 1.1)
    assert str(Floor("ratio", ">=", 0.9)) == "ratio >= 0.9"
