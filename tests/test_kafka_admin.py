"""What an operator asks of a cluster that is not quite itself."""

import pytest
from confluent_kafka import KafkaError

from reliable_mq.adapters.kafka import KafkaTransport
from reliable_mq.errors import ConfigurationError
from tests.kafka_mock import MockCluster

NOT_YET = [
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
]


@pytest.mark.parametrize("code", NOT_YET)
def test_a_coordinator_that_does_not_know_its_groups_yet_is_asked_again(code):
    """As a broker that came back; any other refusal is told."""
    with MockCluster("t") as cluster:
        cluster.fill("t", 3)
        transport = KafkaTransport(cluster.url)
        cluster.fail("OffsetFetch", code)
        assert transport.lag("t", "g") == 3
        cluster.fail("OffsetFetch", KafkaError.GROUP_AUTHORIZATION_FAILED)
        with pytest.raises(ConfigurationError, match="committed"):
            transport.lag("t", "g")
