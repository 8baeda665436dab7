"""Publishing to a proxy that says what the test tells it to."""

import os
import threading
from itertools import chain

import pytest

from reliable_mq.adapters.rocketmq import RocketTransport
from reliable_mq.adapters.rocketmq.wire import Kind, types
from reliable_mq.clock import SYSTEM_CLOCK
from reliable_mq.errors import (
    Backpressure,
    ConnectionFailed,
    PublishRejected,
    PublishUnknown,
    TooLarge,
    TransportError,
    Unroutable,
)
from reliable_mq.message import DeadLetter, Message, Receipt, RetryCopy, Topic
from tests.rocketmq_proxy import DELAY, FIFO, NORMAL, ScriptedProxy, status
from tests.waiting import eventually


@pytest.fixture
def proxy():
    """With a topic of each kind."""
    with ScriptedProxy(fifo=FIFO, normal=NORMAL, **{"normal%g%retry": DELAY}) as proxy:
        yield proxy


@pytest.fixture
def publisher(proxy):
    """To it; closed at the end."""
    publisher = RocketTransport(proxy.url).publisher()
    yield publisher
    publisher.close(0.0)


def deadline(seconds):
    """From now."""
    return SYSTEM_CLOCK.monotonic() + seconds


def ending(confirmation):
    """How it ended, in time."""
    eventually(confirmation.done)
    return confirmation.outcome


def message(number, topic="fifo", key=b"k", **fields):
    """One of a key."""
    return Message(f"m{number}", topic, key, b"body", **fields)


def ids(request):
    """Of the messages of a send."""
    return [one.system_properties.message_id for one in request]


def entry(code, text=""):
    """The answer to a send of one."""
    answer = types().SendMessageResponse(status=status())
    answer.entries.add(status=status(code, text))
    return answer


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (40002, PublishRejected),
        (40014, PublishRejected),
        (40402, Unroutable),
        (41301, TooLarge),
        (43101, TooLarge),
        (40300, PublishRejected),
        (42900, Backpressure),
        (50001, PublishUnknown),
        (50002, PublishUnknown),
        (50401, PublishUnknown),
        (50402, PublishUnknown),
        (50400, PublishUnknown),
        (12345, PublishUnknown),
    ],
)
def test_what_the_broker_says(proxy, publisher, code, kind):
    """Refused for good, not now, or nobody knows; none of them is taken for another."""
    proxy.on_send = lambda _: entry(code, "words of the broker")

    outcome = ending(publisher.submit(message(1), Topic(), deadline=deadline(0.4)))

    assert type(outcome) is kind
    assert "m1" in str(outcome)


def test_a_retry_has_the_same_id(proxy, publisher):
    """Nobody knows whether the first was stored: consumers tell by the id."""
    codes = iter([50401, 50001, 42900, 20000])
    proxy.on_send = lambda _: entry(next(codes))

    outcome = ending(publisher.submit(message(1), Topic()))

    assert isinstance(outcome, Receipt)
    assert [ids(one) for one in proxy.sent()] == [["m1"]] * 4


def test_one_of_a_group_is_under_way(proxy, publisher):
    """The next one is sent when the first has its answer; other groups do not wait."""
    release = threading.Event()
    under_way = []

    def hold(request):
        under_way.append(ids(request.messages))
        release.wait(5.0)
        return entry(20000)

    proxy.on_send = hold
    sent = [message(1), message(2), message(3, key=b"other")]
    confirmations = [publisher.submit(one, Topic()) for one in sent]

    eventually(lambda: len(under_way) == 2)
    release.set()

    assert all(isinstance(ending(one), Receipt) for one in confirmations)
    assert sorted(under_way[:2]) == [["m1"], ["m3"]]
    assert under_way[2] == ["m2"]
    groups = {one.system_properties.message_group for one in chain.from_iterable(proxy.sent())}
    assert groups == {"k", "other"}


def test_fifo_topics_have_no_batches(proxy, publisher):
    """They would break the order: each would go to a queue of its own."""
    confirmations = [publisher.submit(message(at, key=None), Topic()) for at in range(50)]

    assert all(isinstance(ending(one), Receipt) for one in confirmations)
    assert {len(one) for one in proxy.sent()} == {1}
    assert {one[0].system_properties.message_type for one in proxy.sent()} == {Kind.FIFO}


def test_normal_topics_have_batches(proxy, publisher):
    """What gathers while requests are under way goes in one."""
    sent = [message(at, "normal", None) for at in range(300)]
    confirmations = [publisher.submit(one, Topic()) for one in sent]

    receipts = [ending(one) for one in confirmations]

    assert [one.id for one in receipts] == [one.id for one in sent]
    assert len({one.position for one in receipts}) == 300
    assert len(proxy.sent()) < 100
    assert sorted(chain.from_iterable(map(ids, proxy.sent()))) == sorted(one.id for one in sent)


def test_a_batch_that_is_refused_goes_one_by_one(proxy, publisher):
    """Only the one that is at fault is refused."""

    def refuse(request):
        bad = "m7" in ids(request.messages)
        return entry(43101 if bad else 20000)

    proxy.on_send = refuse
    confirmations = [publisher.submit(message(at, "normal"), Topic()) for at in range(100)]

    endings = [type(ending(one)) for one in confirmations]

    assert [at for at, kind in enumerate(endings) if kind is not Receipt] == [7]
    assert endings[7] is TooLarge


def test_a_delayed_copy(proxy, publisher):
    """Goes to a DELAY topic, with the time when it is due."""
    now = SYSTEM_CLOCK.now()
    to = RetryCopy("normal", "g", 5.0)

    assert isinstance(ending(publisher.submit(message(1, "normal"), to)), Receipt)

    ((wire,),) = proxy.sent()
    system = wire.system_properties
    assert (wire.topic.name, system.message_type) == ("normal%g%retry", Kind.DELAY)
    assert 4.9 < system.delivery_timestamp.seconds + system.delivery_timestamp.nanos / 1e9 - now < 9


def test_a_missing_topic_and_a_missing_group(proxy, publisher):
    """Definite, and nothing is sent."""
    for to in (Topic(), DeadLetter("none", "g")):
        assert isinstance(ending(publisher.submit(message(1, "none"), to)), Unroutable)
    assert proxy.sent() == []


def test_without_a_proxy_it_is_backpressure():
    """It was certainly not sent."""
    proxy = ScriptedProxy()
    proxy.start()
    proxy.stop()
    publisher = RocketTransport(proxy.url).publisher()

    outcome = ending(publisher.submit(message(1), Topic(), deadline=deadline(0.3)))

    assert isinstance(outcome, Backpressure)
    assert publisher.close(0.0) == []


def test_a_proxy_that_does_not_answer(proxy, publisher):
    """It may be stored; `close` does not wait for it, and says so."""
    release = threading.Event()
    proxy.on_send = lambda _: (release.wait(5.0), entry(20000))[1]
    late = publisher.submit(message(1), Topic(), deadline=deadline(0.3))
    behind = publisher.submit(message(2), Topic())

    assert isinstance(ending(late), PublishUnknown)
    assert [one.id for one in publisher.close(0.0)] == ["m2"]
    assert isinstance(ending(behind), Backpressure)
    release.set()


def test_a_proxy_that_comes_back(proxy, publisher):
    """The same publisher goes on; nothing that waited is lost."""
    assert isinstance(ending(publisher.submit(message(1), Topic())), Receipt)
    proxy.stop()
    confirmation = publisher.submit(message(2), Topic())

    proxy.start()

    assert isinstance(ending(confirmation), Receipt)


def test_a_topic_that_is_made_anew_with_another_type(proxy, publisher):
    """The route is asked for again, and the messages go as it says."""
    assert isinstance(ending(publisher.submit(message(1, "normal"), Topic())), Receipt)
    proxy.topics["normal"] = FIFO
    good = proxy.on_send

    def check(request):
        kind = request.messages[0].system_properties.message_type
        return good(request) if kind == Kind.FIFO else entry(40014)

    proxy.on_send = check

    assert isinstance(ending(publisher.submit(message(2, "normal"), Topic())), Receipt)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_after_a_fork(proxy, publisher):
    """The child is told at once, in place of hanging."""
    assert isinstance(ending(publisher.submit(message(1), Topic())), Receipt)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        said = b""
        for use in (
            lambda: publisher.submit(message(2), Topic()),
            lambda: RocketTransport(proxy.url).publisher().submit(message(3), Topic()),
        ):
            try:
                use()
            except TransportError as error:
                said += b"1" if b"fork" in str(error).encode() else b"0"
        os.write(writing, said)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read()
    os.waitpid(child, 0)

    assert said == b"11"
    assert isinstance(ending(publisher.submit(message(4), Topic())), Receipt)


def test_every_request_says_who_we_are(proxy, publisher):
    """The proxy answers nobody else."""
    ending(publisher.submit(message(1), Topic()))

    for metadata in (*proxy.metadata["SendMessage"], *proxy.metadata["QueryRoute"]):
        assert metadata["x-mq-client-id"]
        assert metadata["x-mq-language"] == "PYTHON"


def test_connection_failed_is_a_transport_error():
    """What connections raise inside is one of ours."""
    assert issubclass(ConnectionFailed, TransportError)
