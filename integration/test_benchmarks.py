"""The benchmarks on brokers work: each scenario once, tiny. How fast it was is nobody's test."""

import json

import pytest

from benchmarks import kafka, rabbitmq, scenarios
from benchmarks.harness import SCENARIOS, Bench, run

pytestmark = pytest.mark.slow

scenarios.load_some(scenarios.MODULES)  # those on brokers take parts of them


def names_of(modules):
    """The scenarios of these modules."""
    before = set(SCENARIOS)
    scenarios.load_some(modules)
    return [name for name in SCENARIOS if name not in before]


@pytest.mark.parametrize("name", names_of(scenarios.RABBITMQ))
def test_scenario_on_rabbitmq(name, rabbitmq_url, monkeypatch):
    """It runs, loses nothing, doubles nothing, reorders nothing, and judges no speed."""
    monkeypatch.setattr(rabbitmq, "url", lambda: rabbitmq_url)
    works(name)


@pytest.mark.parametrize("name", names_of(scenarios.KAFKA))
def test_scenario_on_kafka(name, kafka_url, monkeypatch):
    """The same on Kafka."""
    monkeypatch.setattr(kafka, "url", lambda: kafka_url)
    works(name)


def works(name):
    """Run it, tiny."""
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


@pytest.fixture
def kafka_url(reliable_mq_kafka):
    """Where the broker is."""
    reliable_mq_kafka.ensure_up()
    return reliable_mq_kafka.url
