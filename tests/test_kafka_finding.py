"""Which topics are there: asked before anything is sent, and never for long."""

import threading
from types import SimpleNamespace

import pytest
from confluent_kafka import KafkaError, KafkaException

from reliable_mq.adapters.kafka.finding import Finding
from reliable_mq.errors import ConnectionFailed
from tests.waiting import eventually


class Brokers:
    """Who tells of topics: those that are there, and what is said of the others."""

    def __init__(self, there=(), code=KafkaError.UNKNOWN_TOPIC_OR_PART):
        self.there, self.code = there, code

    def list_topics(self, name, timeout):
        """One topic."""
        if self.code == KafkaError._TRANSPORT:
            raise KafkaException(KafkaError(self.code))
        error = None if name in self.there else KafkaError(self.code, retriable=True)
        return SimpleNamespace(topics={name: SimpleNamespace(error=error)})


def test_a_topic_that_is_made_holds_up_no_other():
    """It may take half a minute; whoever asks is told of the others meanwhile."""
    go_on = threading.Event()
    finding = Finding(lambda name: go_on.wait(10.0))
    brokers = Brokers(["there"])
    names = ["t.g.retry.8", "there"]
    assert finding.find(brokers, names) == (["there"], [])
    assert finding.find(brokers, names) == (["there"], [])
    go_on.set()
    eventually(lambda: finding.find(brokers, names) == (["t.g.retry.8", "there"], []), "it")


def test_a_topic_that_cannot_be_made_yet_is_tried_again():
    """Nobody could be reached; the reason is told."""
    answers = [ConnectionFailed("no controller"), True]

    def make(name):
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    finding = Finding(make)
    eventually(lambda: finding.find(Brokers(), ["t"]) or "no controller" in finding.reason, "it")
    eventually(lambda: finding.find(Brokers(), ["t"]) == (["t"], []), "the topic")


@pytest.mark.parametrize(
    ("code", "missing"),
    [
        (KafkaError.UNKNOWN_TOPIC_OR_PART, ["t"]),
        (KafkaError.LEADER_NOT_AVAILABLE, []),
        (KafkaError._TRANSPORT, []),
    ],
)
def test_only_what_is_certainly_missing_is(code, missing):
    """What nobody knows is asked again, and waits."""
    finding = Finding(lambda name: False)
    found = []

    def done():
        found[:] = finding.find(Brokers(code=code), ["t"])
        return found[1] == missing

    eventually(done, "the answer")
    assert found[0] == []
