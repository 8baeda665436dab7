"""The transport contract on Kafka: the one that other tests use, a process or a running one."""

from __future__ import annotations

import pytest

from integration.kafka_harness import harness_for
from reliable_mq.testing.contracts import TransportContract


class TestKafka(TransportContract):
    """Its broker is well when a test begins."""

    @pytest.fixture
    def harness(self, kafka, request):
        """Of one test."""
        yield from harness_for(kafka, request)
