"""The transport contract on RabbitMQ: on a local process, and once more in a container.

What the two differ in is the release of the broker and the way to it, so the second run is whole,
too.
"""

from __future__ import annotations

import pytest

from integration.rabbitmq_harness import RabbitHarness
from reliable_mq.testing.contracts import TransportContract


class TestRabbitMQ(TransportContract):
    """The one that other tests use: a process, or the one that the environment names."""

    @pytest.fixture
    def harness(self, rabbitmq):
        """Its broker is well when a test begins."""
        harness = RabbitHarness(rabbitmq)
        yield harness
        harness.close()


class TestRabbitMQInAContainer(TransportContract):
    """The same in a container."""

    @pytest.fixture
    def harness(self, rabbitmq_container):
        """As above."""
        harness = RabbitHarness(rabbitmq_container)
        yield harness
        harness.close()
