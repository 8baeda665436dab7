"""F29: wrong passwords, certificates that cannot be trusted, permissions that come and go.

Each is a typed error or a state that says so, and ends when it is mended. No text that we make has
a secret in it: every test ends with a look for the canaries in all log records and errors.
"""

from __future__ import annotations

import logging
import traceback

import pytest

from integration.faults import need, until
from integration.rabbitmq_traffic import GRACE, Traffic
from reliable_mq import Backpressure, ConnectionFailed, PublishUnknown, Receipt, ReliableMQ
from reliable_mq.adapters.base import Topology
from reliable_mq.adapters.rabbitmq import RabbitTransport
from reliable_mq.errors import PublishRejected, TransportError
from reliable_mq.testing.brokers import Certificates, Missing, RabbitMQProcess, unavailable

#: Passwords that must be seen nowhere.
CANARY, NEXT = "canary-s3cret", "canary-r0tated"
USER = "worker"
IN_TIME = 30.0


@pytest.fixture
def broker(rabbitmq):
    """One with a user that tests may lock out."""
    need(rabbitmq.controlled, "RabbitMQ whose users may be changed")
    rabbitmq.ctl("add_user", USER, CANARY)
    allow(rabbitmq)
    yield rabbitmq
    rabbitmq.ctl("delete_user", USER)


def allow(broker, *, all_of_it: bool = True) -> None:
    """Give the user everything, or nothing."""
    what = ".*" if all_of_it else "^$"
    broker.ctl("set_permissions", USER, what, what, what)


@pytest.fixture(autouse=True)
def texts(caplog):
    """All texts that could have a secret; at the end none has one."""
    caplog.set_level(logging.DEBUG)
    found: list[str] = []
    yield found
    records = [*caplog.get_records("setup"), *caplog.get_records("call")]
    assert records
    for record in records:  # pika's own, too
        trace = traceback.format_exception(*record.exc_info) if record.exc_info else []
        found += [record.getMessage(), repr(record.args), *trace]
    no_secret(found)


def no_secret(texts) -> None:
    """None of these has a canary in it."""
    for text in texts:
        assert "canary" not in text, text


def told(texts, error) -> str:
    """An error, as a user would log it; noted for the search at the end."""
    texts += [repr(error), *traceback.format_exception(error)]
    return str(error)


def refused(texts, url, kind=ConnectionFailed) -> str:
    """Connecting fails, typed; what the error says."""
    transport = RabbitTransport(url)
    texts += [repr(transport), repr(transport._parameters), str(vars(transport))]
    with pytest.raises(kind) as raised:
        transport.ensure(Topology())
    return told(texts, raised.value)


def test_a_secret_that_is_told_is_found(caplog):
    """Control: what pika connects with, told with all that it is."""
    transport = RabbitTransport(f"amqp://{USER}:{CANARY}@localhost/")
    logging.getLogger("reliable_mq").debug("connecting")
    credentials = transport._parameters.nodes[0].credentials

    with pytest.raises(AssertionError, match="canary"):
        no_secret([str(vars(credentials))])


# -- passwords ---------------------------------------------------------------------------------


def test_a_wrong_password_is_refused_at_start(broker, texts):
    """ConnectionFailed, of the app and of a publisher; the text names the broker and no secret."""
    url = broker.url.replace("guest:guest", f"{USER}:canary-wr0ng")

    said = refused(texts, url)

    assert "127.0.0.1" in said
    assert "ACCESS_REFUSED" in said
    mq = ReliableMQ(url)
    texts.append(repr(mq))
    with pytest.raises(ConnectionFailed) as raised:
        mq.publish("orders", 1)
    told(texts, raised.value)
    publisher = RabbitTransport(url).publisher()
    texts.append(repr(vars(publisher)))
    mq.stop()


@pytest.mark.parametrize(
    "url",
    [
        f"amqp://u:{CANARY}@host:port/",
        f"amqp://u:{CANARY}@host/?heartbeat={{}}",
        f"amqp://u:{CANARY}@host/?cafile=missing.pem&no=1",
        f"amqps://u:{CANARY}@host/?cafile=missing.pem",
    ],
)
def test_a_url_that_cannot_be_has_an_error_without_its_password(url, texts):
    """Each mistake in it: a ConfigurationError."""
    with pytest.raises(ValueError, match=r"amqps?://\*\*\*@host") as raised:
        ReliableMQ(url).start()
    told(texts, raised.value)
    logging.getLogger("reliable_mq").warning("looked for")


def test_a_password_that_is_rotated_under_a_running_app(broker, texts):
    """Cut off, it cannot come back and says why; with the old one again it goes on, losing nothing.

    Until then publishes end as they do while the broker is down.
    """
    with Traffic(broker, user=f"{USER}:{CANARY}", to_publish=as_user) as traffic:
        traffic.burst(3)
        traffic.comes_to(9, "effect")
        broker.ctl("change_password", USER, NEXT)
        for proxy in traffic.proxies:
            proxy.cut(refuse=False)

        until(lambda: "ACCESS_REFUSED" in traffic.why(), "the consumer says so", IN_TIME)
        assert not traffic.worker.health().ready
        texts.append(traffic.why())
        late = traffic.burst(1)
        until(lambda: all(one.done() for one in late), "an ending", traffic.timeout + GRACE)
        assert {type(one.outcome) for one in late} == {Backpressure}
        for one in late:
            assert "ACCESS_REFUSED" in told(texts, one.outcome)

        broker.ctl("change_password", USER, CANARY)

        verdict = traffic.finish(IN_TIME, deadline=traffic.timeout + GRACE)
        assert verdict.broken == (), str(verdict)
        assert verdict.effects == 12


def as_user(url):
    """The transport of a publisher that is no guest."""
    return RabbitTransport(url.replace("guest:guest", f"{USER}:{CANARY}"))


# -- permissions -------------------------------------------------------------------------------


def test_permissions_that_are_taken_away_and_given_back(broker, texts):
    """Publishes are refused by name, the consumer says that it is; then both go on."""
    with Traffic(broker, user=f"{USER}:{CANARY}", to_publish=as_user) as traffic:
        traffic.burst(3)
        traffic.comes_to(9, "effect")
        allow(broker, all_of_it=False)
        for proxy in traffic.proxies:
            proxy.cut(refuse=False)

        late = traffic.burst(1)
        until(lambda: all(one.done() for one in late), "an ending", IN_TIME)
        for one in late:
            assert isinstance(one.outcome, (PublishRejected, PublishUnknown, Backpressure))
            assert "ACCESS_REFUSED" in told(texts, one.outcome)
        until(lambda: "ACCESS_REFUSED" in traffic.why(), "the consumer says so", IN_TIME)
        assert not traffic.worker.health().ready
        texts.append(traffic.why())

        allow(broker)

        verdict = traffic.finish(IN_TIME)
        assert verdict.broken == (), str(verdict)
        assert verdict.effects == 12


# -- TLS ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def secure(tmp_path_factory):
    """A node with TLS, and certificates: its own, and those that it should not have."""
    folder = tmp_path_factory.mktemp("certificates")
    try:
        made = {
            "good": Certificates.make(folder / "good"),
            "other": Certificates.make(folder / "other"),
            "expired": Certificates.make(folder / "expired", expired=True),
            "elsewhere": Certificates.make(folder / "elsewhere", host="elsewhere.invalid"),
        }
        with RabbitMQProcess(certificates=made["good"]) as node:
            yield node, made
    except Missing as error:
        unavailable(error)


def tls(node, certificates) -> str:
    """The URL of a client that trusts this authority."""
    return f"{node.tls_url}?cafile={certificates.authority}&connect_timeout=4"


def test_tls_works_and_says_nothing_of_secrets(secure, texts, caplog):
    """A certificate of the right authority for this host: no warning, and messages pass."""
    node, made = secure
    node.trust(made["good"])
    mq = ReliableMQ(tls(node, made["good"]))
    mq.topic("secure", groups=("g",))

    assert isinstance(mq.publish("secure", 1), Receipt)

    assert "anybody on the way" not in caplog.text
    assert not mq.stop()


@pytest.mark.parametrize(
    ("shown", "trusted", "said"),
    [
        ("good", "other", "CERTIFICATE_VERIFY_FAILED"),
        ("expired", "expired", "expired"),
        ("elsewhere", "elsewhere", "Hostname mismatch"),
    ],
    ids=["wrong authority", "expired", "another host"],
)
def test_a_certificate_that_cannot_be_trusted_is_refused(secure, texts, shown, trusted, said):
    """ConnectionFailed, which says what is wrong with it. Control: verify=no takes it."""
    node, made = secure
    node.trust(made[shown])

    assert said in refused(texts, tls(node, made[trusted]))

    RabbitTransport(f"{tls(node, made[trusted])}&verify=no").ensure(Topology())


def test_verify_no_is_a_warning(secure, caplog, texts):
    """It is told, each time, what it means."""
    node, made = secure
    RabbitTransport(f"{tls(node, made['good'])}&verify=no")

    assert "anybody on the way can read and change everything" in caplog.text


def test_a_certificate_that_expires_under_a_running_app(secure, texts, tmp_path):
    """It cannot come back after a cut and says why; after the rotation it goes on."""
    node, made = secure
    node.trust(made["good"])
    both = tmp_path / "both.pem"
    both.write_bytes(made["good"].authority.read_bytes() + made["expired"].authority.read_bytes())
    mq = ReliableMQ(f"{node.tls_url}?cafile={both}", publish_timeout=2.0)
    mq.topic("secure", groups=("g",))
    mq.publish("secure", 1)
    node.trust(made["expired"])
    node.ctl("close_all_connections", "rotation")

    def fails() -> str:
        try:
            mq.publish("secure", 2)
        except (Backpressure, PublishUnknown) as error:
            return told(texts, error)
        return ""

    assert "expired" in until(fails, "publishing fails", IN_TIME)

    node.trust(made["good"])

    assert isinstance(mq.publish("secure", 3, timeout=IN_TIME), Receipt)
    assert not mq.stop()


def test_tls_to_a_port_without_it_is_refused(secure, texts):
    """As is the other way round; none hangs."""
    node, made = secure
    with_tls = tls(node, made["good"])

    refused(texts, with_tls.replace(str(node.tls_port), str(node.port)), TransportError)
    refused(
        texts, f"amqp://u:{CANARY}@localhost:{node.tls_port}/?connect_timeout=2", TransportError
    )
