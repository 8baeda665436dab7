"""One connection that comes back, where attempts fail in ways that pika tells nobody."""

import threading

from pika.adapters.utils import selector_ioloop_adapter

from reliable_mq.adapters.rabbitmq.link import Link
from reliable_mq.adapters.rabbitmq.parameters import parse
from reliable_mq.testing.brokers.ports import free_port


class Refused:
    """Hears of attempts that failed."""

    def __init__(self):
        self.came = threading.Event()

    def opened(self, connection):
        """Never: nobody listens."""

    def closed(self, error):
        """Another attempt has failed."""
        if "refused" in str(error).lower() or "Connector" in repr(error):
            self.came.set()


def test_an_attempt_that_finds_no_thread_is_followed_by_another(monkeypatch):
    """Pika needs one to look up a name; where there is none, its callback fails: nothing else."""
    resolver = selector_ioloop_adapter._AddressResolver
    starts = []

    def start(self):
        starts.append(self)
        if len(starts) == 1:
            raise RuntimeError("can't start new thread")
        return real(self)

    real = resolver.start
    monkeypatch.setattr(resolver, "start", start)
    peer = Refused()
    link = Link(parse(f"amqp://127.0.0.1:{free_port()}"), peer, "test")

    link.start()

    assert peer.came.wait(10.0)
    link.stop(1.0)
    assert len(starts) >= 2
