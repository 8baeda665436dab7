"""What the tests of faults share.

Brokers are made once, and healed before each test: one that left its broker killed, paused or cut
off does not fail the next. Names are for the tests to keep apart.
"""

import pytest

from integration.faults import LONG, Run
from reliable_mq.testing.brokers import (
    Missing,
    RabbitMQCluster,
    provide_rabbitmq,
    unavailable,
)


def pytest_collection_modifyitems(items):
    """The long forms take longer than any other test may; a broker may take its time to start."""
    for item in items:
        if LONG:
            item.add_marker(pytest.mark.timeout(1_800))
        elif any(name.startswith("rabbitmq") for name in item.fixturenames):
            item.add_marker(pytest.mark.timeout(300), append=False)


@pytest.fixture
def run(tmp_path):
    """A folder for the processes of one test; none of them outlives it."""
    run = Run(tmp_path)
    yield run
    run.end()


def given(make):
    """The broker that `make` gives, started, and closed at the end; or what its want comes to."""
    try:
        with make() as broker:
            yield broker
    except Missing as error:
        unavailable(error)


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
    reliable_mq_rabbitmq.ensure_up()
    return reliable_mq_rabbitmq


@pytest.fixture
def rabbitmq_container(container_of_the_run):
    """The same in a container."""
    container_of_the_run.ensure_up()
    return container_of_the_run


@pytest.fixture
def rabbitmq_cluster(cluster_of_the_module):
    """A cluster of three, whole and in order."""
    cluster_of_the_module.ensure_up()
    return cluster_of_the_module
