"""The brokers that tests are given do what the fault interface says, wherever they run."""

from __future__ import annotations

import logging
import ssl
import threading
import time
from contextlib import contextmanager, suppress
from itertools import count

import pika
import pika.exceptions
import pytest
from pika.adapters.utils.connection_workflow import AMQPConnectorException

from integration.faults import until
from reliable_mq.testing.brokers import Certificates, Missing, Proxy, RabbitMQProcess, unavailable
from reliable_mq.testing.brokers.rabbitmq import connect

pytestmark = pytest.mark.timeout(300)  # three nodes on a busy machine take their time to start

QUORUM = {"x-queue-type": "quorum"}
numbers = count(1)


@pytest.fixture(autouse=True)
def _calm():
    """What pika logs about connections that we cut is no news."""
    logger = logging.getLogger("pika")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(before)


@pytest.fixture(params=["rabbitmq", "rabbitmq_container", "rabbitmq_cluster"])
def broker(request):
    """Each way to have one that can be hurt."""
    broker = request.getfixturevalue(request.param)
    if not broker.controlled:
        unavailable(Missing("the broker of RELIABLE_MQ_RABBITMQ_URL is not ours to hurt: unset it"))
    return broker


@pytest.fixture
def proxy(rabbitmq):
    """A proxy in front of the process."""
    with Proxy(rabbitmq.url) as made:
        yield made


@contextmanager
def a_channel(url, within=10.0):
    """A channel with publisher confirms; a connection that has died is not mourned."""
    connection = connect(url.split(",")[0].rstrip("/"), within=within)
    try:
        channel = connection.channel()
        channel.confirm_delivery()
        yield channel
    finally:
        with suppress(pika.exceptions.AMQPError):
            connection.close()


def declare(broker) -> str:
    """A new quorum queue that a kill leaves alone."""
    name = f"brokers-{next(numbers)}"
    with a_channel(broker.url) as channel:
        channel.queue_declare(name, durable=True, arguments=QUORUM)
    broker.flush()
    return name


def publish(url, queue, body) -> None:
    """Publish one message; returns when it is confirmed."""
    with a_channel(url) as channel:
        channel.basic_publish("", queue, body, pika.BasicProperties(delivery_mode=2))


def drain(url, queue) -> list[bytes]:
    """What is in the queue, as soon as its leader serves, and take it."""

    def look() -> list[bytes] | None:
        bodies = []
        with a_channel(url) as channel:
            while (got := channel.basic_get(queue, auto_ack=True))[0]:
                bodies.append(got[2])
        return bodies

    return until(lambda: look() or None, f"{queue} has something") or []


def fails(url, within=1.0) -> float:
    """Seconds after which connecting has failed."""
    began = time.monotonic()
    with pytest.raises((AMQPConnectorException, pika.exceptions.AMQPError, OSError)):
        connect(url, within=within)
    return time.monotonic() - began


# -- the fault interface -----------------------------------------------------------------------


def test_what_was_confirmed_survives_a_kill(broker) -> None:
    """Kill -9, also of what stands still: nobody is served; healed it has address and message."""
    queue = declare(broker)
    publish(broker.url, queue, b"kept")

    broker.pause()
    broker.kill()

    assert not broker.is_up()
    broker.ensure_up()
    assert drain(broker.url, queue) == [b"kept"]


def test_what_was_confirmed_survives_a_stop(broker) -> None:
    """A graceful end and a new start; both may be asked twice."""
    queue = declare(broker)
    publish(broker.url, queue, b"kept")

    broker.stop()
    broker.stop()

    assert not broker.is_up()
    broker.start()
    broker.start()
    assert drain(broker.url, queue) == [b"kept"]


def test_a_pause_is_silence(broker) -> None:
    """Connections stay open, calls time out; resumed it goes on where it was."""
    queue = declare(broker)
    with a_channel(broker.url) as channel:
        broker.pause()
        first = broker.nodes[0].url if hasattr(broker, "nodes") else broker.url
        assert fails(first) >= 0.9

        broker.resume()

        channel.basic_publish("", queue, b"through the same connection")
    assert drain(broker.url, queue) == [b"through the same connection"]


def test_its_command_line(broker) -> None:
    """Rabbitmqctl, and Erlang inside of the node."""
    broker.ctl("add_user", f"user-{next(numbers)}", "password")

    assert "guest" in broker.ctl("list_users")
    assert broker.eval("1 + 1.") == "2"


# -- a cluster ---------------------------------------------------------------------------------


def test_the_leader_of_three_is_killed(rabbitmq_cluster) -> None:
    """Another leads, with every message; the killed one comes back to the same cluster."""
    queue = declare(rabbitmq_cluster)
    publish(rabbitmq_cluster.url, queue, b"kept")

    killed = rabbitmq_cluster.kill_leader(queue)
    leader = rabbitmq_cluster.leader_node(queue, other_than=killed.name)

    assert drain(leader.url, queue) == [b"kept"]
    assert sum(node.is_up() for node in rabbitmq_cluster.nodes) == 2
    killed.start()
    until(lambda: len(rabbitmq_cluster.running()) == 3, "all three run")


def test_one_of_three_stands_still(rabbitmq_cluster) -> None:
    """The others serve, and a queue that it does not lead takes messages."""
    queue = declare(rabbitmq_cluster)
    leader = rabbitmq_cluster.leader_node(queue)
    other = next(node for node in rabbitmq_cluster.nodes if node is not leader)

    other.pause()
    publish(leader.url, queue, b"by two of three")
    other.resume()

    assert drain(leader.url, queue) == [b"by two of three"]


# -- a proxy before the real thing -------------------------------------------------------------


def test_a_cut_ends_connections_and_refuses_new_ones(rabbitmq, proxy) -> None:
    """At once; restored, the same address serves, and the broker was well all the time."""
    queue = declare(rabbitmq)
    with a_channel(proxy.url) as channel:
        proxy.cut()
        with pytest.raises(pika.exceptions.AMQPError):
            channel.basic_publish("", queue, b"x")
    assert fails(proxy.url) < 0.9
    assert rabbitmq.is_up()

    proxy.restore()

    publish(proxy.url, queue, b"y")
    assert drain(rabbitmq.url, queue) == [b"y"]


def test_latency_shows_in_every_round_trip(rabbitmq, proxy) -> None:
    """Half a second each way is a second for a confirm."""
    queue = declare(rabbitmq)
    with a_channel(proxy.url) as channel:
        proxy.up.latency = proxy.down.latency = 0.5
        began = time.monotonic()
        channel.basic_publish("", queue, b"slow")
        assert 1.0 <= time.monotonic() - began < 10.0
        proxy.restore()


def test_a_black_hole_swallows_a_publish(rabbitmq, proxy) -> None:
    """The client waits until its own patience ends, and the broker has got nothing."""
    queue = declare(rabbitmq)
    with a_channel(proxy.url, within=1.0):
        proxy.swallow()
        assert fails(proxy.url) >= 0.9
        before = proxy.up.passed
        assert rabbitmq.is_up()
        proxy.cut(refuse=False)
    proxy.restore()
    publish(proxy.url, queue, b"the only one")
    assert proxy.up.passed > before
    assert drain(rabbitmq.url, queue) == [b"the only one"]


def test_a_reset_within_a_publish_leaves_no_message(rabbitmq, proxy) -> None:
    """Up to the last byte but one the broker has no message; with the last one it has it."""
    queue = declare(rabbitmq)
    with a_channel(proxy.url) as channel:
        before = proxy.up.passed
        channel.basic_publish("", queue, b"measured")
        size = proxy.up.passed - before
    assert drain(rabbitmq.url, queue) == [b"measured"]

    for bytes_through in (1, size // 2, size - 1):
        with a_channel(proxy.url) as channel:
            proxy.up.reset_after = bytes_through
            with pytest.raises(pika.exceptions.AMQPError):
                channel.basic_publish("", queue, b"measured")
    with a_channel(proxy.url) as channel:
        proxy.up.reset_after = size
        with pytest.raises(pika.exceptions.AMQPError):
            channel.basic_publish("", queue, b"measured")

    assert drain(rabbitmq.url, queue) == [b"measured"]


def test_a_confirm_that_is_held_comes_when_it_is_let_go(rabbitmq, proxy) -> None:
    """The message is in the queue, and its publisher cannot know it."""
    queue = declare(rabbitmq)
    with a_channel(proxy.url) as channel:
        proxy.down.held = True
        later = threading.Timer(1.0, proxy.restore)
        later.start()
        began = time.monotonic()
        channel.basic_publish("", queue, b"kept")
        later.join()
        assert time.monotonic() - began >= 0.9
    assert drain(rabbitmq.url, queue) == [b"kept"]


# -- TLS ---------------------------------------------------------------------------------------


def test_certificates_are_exchanged_under_a_running_node(tmp_path) -> None:
    """Trusted; expired it is refused by the client, and after a rotation trusted again."""
    good = Certificates.make(tmp_path / "good")
    with RabbitMQProcess(certificates=good) as broker:
        assert tls(broker, good) == "served"
        assert "CERTIFICATE_VERIFY_FAILED" in tls(broker, Certificates.make(tmp_path / "other"))

        expired = Certificates.make(tmp_path / "expired", expired=True)
        broker.trust(expired)
        assert "expired" in tls(broker, expired)

        elsewhere = Certificates.make(tmp_path / "elsewhere", host="elsewhere.invalid")
        broker.trust(elsewhere)
        assert "Hostname mismatch" in tls(broker, elsewhere)

        broker.trust(good)
        assert tls(broker, good) == "served"


def tls(broker, certificates) -> str:
    """What a client that trusts this authority gets."""
    context = ssl.create_default_context(cafile=certificates.authority)
    parameters = pika.URLParameters(broker.tls_url)
    parameters.ssl_options = pika.SSLOptions(context, "localhost")
    try:
        pika.BlockingConnection(parameters).close()
    except (pika.exceptions.AMQPError, ssl.SSLError) as error:
        return repr(error) + repr(error.args)
    return "served"
