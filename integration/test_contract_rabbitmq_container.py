"""The transport contract on RabbitMQ once more, in a container.

The release of the broker and the way to it are others there, so this run is whole, too. A file of
its own lets it run beside the other one.
"""

from __future__ import annotations

import pytest

from integration.rabbitmq_harness import RabbitHarness
from reliable_mq.testing.contracts import TransportContract


class TestRabbitMQInAContainer(TransportContract):
    """Its broker is well when a test begins."""

    @pytest.fixture
    def harness(self, rabbitmq_container):
        """Of one test."""
        harness = RabbitHarness(rabbitmq_container)
        yield harness
        harness.close()
