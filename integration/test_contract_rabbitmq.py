"""The transport contract on RabbitMQ: the one that other tests use, a process or a running one."""

from __future__ import annotations

import pytest

from integration.rabbitmq_harness import RabbitHarness
from reliable_mq.testing.contracts import TransportContract


class TestRabbitMQ(TransportContract):
    """Its broker is well when a test begins."""

    @pytest.fixture
    def harness(self, rabbitmq):
        """Of one test."""
        harness = RabbitHarness(rabbitmq)
        yield harness
        harness.close()
