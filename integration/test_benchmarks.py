"""The benchmarks on brokers work: each scenario once, tiny. How fast it was is nobody's test."""

import json

import pytest

from benchmarks import rabbitmq, scenarios
from benchmarks.harness import SCENARIOS, Bench, run

pytestmark = pytest.mark.slow

before = set(SCENARIOS)
scenarios.load_some(scenarios.RABBITMQ)


@pytest.mark.parametrize("name", [name for name in SCENARIOS if name not in before])
def test_scenario_on_rabbitmq(name, rabbitmq_url, monkeypatch):
    """It runs, loses nothing, doubles nothing, reorders nothing, and judges no speed."""
    monkeypatch.setattr(rabbitmq, "url", lambda: rabbitmq_url)
    [line] = run([name], Bench(quick=True))
    assert (line["lost"], line["duplicated"], line["inversions"]) == (0, 0, 0)
    assert line["scenario"] == name
    assert line["passed"] is None
    assert json.loads(json.dumps(line)) == line


@pytest.fixture
def rabbitmq_url(reliable_mq_rabbitmq):
    """Where the broker is."""
    reliable_mq_rabbitmq.ensure_up()
    return reliable_mq_rabbitmq.url
