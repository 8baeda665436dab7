"""The ladder of delays: rounded up, durable, passed again where it is too short."""

import time
from uuid import uuid4

import pytest

from integration.faults import until
from reliable_mq.adapters.base import GroupSpec, Subscribe, TopicSpec, Topology
from reliable_mq.adapters.rabbitmq import RabbitTransport
from reliable_mq.message import Message, RetryCopy, Topic


class Delayed:
    """A topic with one member."""

    def __init__(self, broker):
        self.topic = f"delays-{uuid4().hex[:8]}"
        self.transport = RabbitTransport(broker.url)
        spec = TopicSpec(self.topic, groups=(GroupSpec("g"),))
        self.transport.ensure(Topology((spec,)))
        self.publisher = self.transport.publisher()
        subscribe = Subscribe(topics=(self.topic,), group="g")
        self.member = self.transport.subscribe(subscribe, lambda *_: None)
        self.came = {}

    def send(self, id, to, *, not_before=None):
        """Publish, and wait until it is stored."""
        message = Message(id, self.topic, b"k", b"body", created_at=time.time())
        self.publisher.submit(message, to, not_before=not_before).result(10)

    def poll(self):
        """Take and ack what comes, and note when."""
        for delivery in self.member.poll(10, 0.05).deliveries:
            self.came.setdefault(delivery.message.id, []).append(time.time())
            self.member.ack([delivery])
        return self.came

    def close(self):
        """Leave."""
        self.member.close()
        self.publisher.close(1.0)
        self.transport.close()


@pytest.fixture
def delayed(rabbitmq):
    """On the broker of the run."""
    delayed = Delayed(rabbitmq)
    yield delayed
    delayed.close()


def test_a_delay_is_never_early_and_holds_nothing_up(delayed):
    """A long one first, a short one behind it: each comes at its time."""
    began = time.time()
    delayed.send("long", RetryCopy(delayed.topic, "g", 4.0))
    delayed.send("short", RetryCopy(delayed.topic, "g", 1.0))
    delayed.send("later", Topic(), not_before=began + 1.5)
    until(lambda: set(delayed.poll()) == {"long", "short", "later"}, "all of them")
    took = {id: times[0] - began for id, times in delayed.came.items()}
    assert took["short"] >= 1.0
    assert took["later"] >= 1.5
    assert took["long"] >= 4.0
    assert took["short"] < took["long"]
    assert {len(times) for times in delayed.came.values()} == {1}


def test_what_is_longer_than_the_ladder_passes_it_again(delayed, monkeypatch):
    """With a ladder of two steps: 5 seconds are three rounds, never early, delivered once."""
    monkeypatch.setattr("reliable_mq.adapters.rabbitmq.names.LADDER", (1, 2))
    monkeypatch.setattr("reliable_mq.adapters.rabbitmq.subscription.HOLD", 0.1)
    began = time.time()
    delayed.send("far", RetryCopy(delayed.topic, "g", 5.0))
    until(lambda: "far" in delayed.poll(), "the message")
    assert delayed.came["far"][0] - began >= 5.0
    delayed.send("behind", Topic())
    until(lambda: "behind" in delayed.poll(), "what is published afterwards")
    assert len(delayed.came["far"]) == 1


def test_a_delayed_message_survives_its_sender_and_the_broker(delayed, rabbitmq):
    """It waits in a durable queue."""
    if not rabbitmq.controlled:
        pytest.skip("NOT TESTED: this broker cannot be restarted")
    delayed.send("patient", RetryCopy(delayed.topic, "g", 2.0))
    delayed.publisher.close(1.0)
    delayed.member.close()
    rabbitmq.stop()
    rabbitmq.start()
    subscribe = Subscribe(topics=(delayed.topic,), group="g")
    delayed.member = delayed.transport.subscribe(subscribe, lambda *_: None)
    until(lambda: "patient" in delayed.poll(), "the message")
