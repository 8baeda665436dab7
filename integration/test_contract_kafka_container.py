"""The transport contract on Kafka once more, in a container; beside the other one."""

from __future__ import annotations

import pytest

from integration.kafka_harness import harness_for
from reliable_mq.testing.contracts import TransportContract


class TestKafkaInAContainer(TransportContract):
    """Its broker is well when a test begins."""

    @pytest.fixture
    def harness(self, kafka_container, request):
        """Of one test."""
        yield from harness_for(kafka_container, request)
