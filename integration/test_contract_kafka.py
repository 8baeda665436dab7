"""The transport contract on Kafka: on a local process, and once more in a container."""

from __future__ import annotations

import pytest

from integration.kafka_harness import KafkaHarness
from reliable_mq.testing.contracts import TransportContract


class TestKafka(TransportContract):
    """The one that other tests use: a process, or the one that the environment names."""

    @pytest.fixture
    def harness(self, kafka, request):
        """Its broker is well when a test begins."""
        yield from harness_on(kafka, request)


class TestKafkaInAContainer(TransportContract):
    """The same in a container."""

    @pytest.fixture
    def harness(self, kafka_container, request):
        """As above."""
        yield from harness_on(kafka_container, request)


def harness_on(broker, request):
    """Members share as they do by default, but where all of one is to be taken away."""
    revoked = request.node.originalname == "test_revocation"
    harness = KafkaHarness(broker, assignment="range" if revoked else "cooperative-sticky")
    yield harness
    harness.close()
