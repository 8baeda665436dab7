"""What the tests of faults share.

Brokers are made once, and healed before each test: one that left its broker killed, paused or cut
off does not fail the next. Names are for the tests to keep apart.
"""

import re

import pytest

from integration.faults import LONG, Run
from integration.places import OnKafka, OnRabbit
from reliable_mq.testing.brokers import (
    KafkaCluster,
    Missing,
    RabbitMQCluster,
    provide_kafka,
    provide_rabbitmq,
    unavailable,
)


def pytest_collection_modifyitems(items):
    """The long forms take longer than any other test may; a broker may take its time to start."""
    for item in items:
        if LONG:
            item.add_marker(pytest.mark.timeout(1_800))
        elif any(name.startswith(("rabbitmq", "kafka")) for name in wanted(item)):
            item.add_marker(pytest.mark.timeout(300), append=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """A test that fails shows what its processes said and did."""
    report = yield
    run = getattr(item, "funcargs", {}).get("run")
    if report.failed and isinstance(run, Run):
        report.sections += [(child.name, child.tells()) for child in run.children]
    return report


def wanted(item):
    """The fixtures of a test, and the broker that its `run` is on."""
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    return [*item.fixturenames, str(parameters.get("run", ""))]


@pytest.fixture
def run(request, tmp_path):
    """A folder for the processes of one test; none of them outlives it.

    On SQLite, or on the brokers that `brokers` of faults.py names.
    """
    name = getattr(request, "param", "sqlite")
    place = None
    if name != "sqlite":
        test = re.sub(r"\W+", "-", request.node.originalname.removeprefix("test_"))
        on = OnKafka if name.startswith("kafka") else OnRabbit
        place = on(request.getfixturevalue(name), test[:40])
    run = Run(tmp_path, place)
    yield run
    run.end()
    run.place.close()


def given(make):
    """The broker that `make` gives, started, and closed at the end; or what its want comes to."""
    try:
        with make() as broker:
            yield broker
    except Missing as error:
        unavailable(error)


def healed(broker):
    """The broker of the run, whole and in order, whatever the test before left behind."""
    broker.ensure_up()
    return broker


@pytest.fixture(scope="session")
def container_of_the_run():
    """One RabbitMQ in a container."""
    yield from given(lambda: provide_rabbitmq("containers"))


@pytest.fixture(scope="module")
def cluster_of_the_module():
    """Three nodes as local processes. They take much memory, so they end with the module."""
    yield from given(RabbitMQCluster)


@pytest.fixture
def rabbitmq(reliable_mq_rabbitmq):
    """A RabbitMQ of the test run: a local process, unless the environment names another."""
    return healed(reliable_mq_rabbitmq)


@pytest.fixture
def rabbitmq_container(container_of_the_run):
    """The same in a container."""
    return healed(container_of_the_run)


@pytest.fixture
def rabbitmq_cluster(cluster_of_the_module):
    """A cluster of three."""
    return healed(cluster_of_the_module)


@pytest.fixture(scope="session")
def kafka_container_of_the_run():
    """One Kafka in a container."""
    yield from given(lambda: provide_kafka("containers"))


@pytest.fixture(scope="module")
def kafka_cluster_of_the_module():
    """Three nodes as local processes, until the module ends."""
    yield from given(KafkaCluster)


@pytest.fixture
def kafka(reliable_mq_kafka):
    """A Kafka of the test run, as `rabbitmq` is."""
    return healed(reliable_mq_kafka)


@pytest.fixture
def kafka_container(kafka_container_of_the_run):
    """The same in a container."""
    return healed(kafka_container_of_the_run)


@pytest.fixture
def kafka_cluster(kafka_cluster_of_the_module):
    """A cluster of three."""
    return healed(kafka_cluster_of_the_module)
