"""pika without the private parts that make it fast: slower, and otherwise the same."""

from uuid import uuid4

import pytest

from integration.faults import until
from reliable_mq import ReliableMQ, Unroutable
from reliable_mq.adapters.rabbitmq.channel import PublishChannel
from reliable_mq.adapters.rabbitmq.reader import Reader


@pytest.fixture
def plain_pika(monkeypatch):
    """A release of pika that is made otherwise."""
    made = PublishChannel.__init__

    def without_emit(self, *given):
        made(self, *given)
        assert self._emit is not None, "this pika has no such part: nothing is tested"
        self._emit = None

    monkeypatch.setattr(PublishChannel, "__init__", without_emit)
    monkeypatch.setattr(Reader, "install", lambda *_: None)


@pytest.mark.usefixtures("plain_pika")
def test_it_publishes_and_consumes_all_the_same(rabbitmq):
    """In order, once, large bodies and returns included."""
    topic = f"plain-{uuid4().hex[:8]}"
    mq = ReliableMQ(rabbitmq.url)
    got = []

    @mq.consumer(topic, group="billing", concurrency=4)
    def bill(body: bytes) -> None:
        got.append(body)

    bodies = [b"%d" % number + bytes(number * 700) for number in range(300)]
    with mq:
        mq.submit_all(mq.message(topic, body, key="k") for body in bodies).result(30)
        with pytest.raises(Unroutable):
            mq.publish(f"{topic}-nowhere", b"x")
        until(lambda: len(got) == 300, "all of them")
    assert got == bodies
