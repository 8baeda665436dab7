import asyncio
import threading

import pytest

from reliable_mq.context import Context, current, current_message, enter
from reliable_mq.errors import ConfigurationError, PublishRejected, TooLarge
from reliable_mq.ids import derived_id
from reliable_mq.message import Delivery, Lease, Message

INCOMING = Message("id-1", "orders", b"k", b"body", (("a", "b"),))


def made(**options):
    """A context of one run."""
    return Context(Delivery(INCOMING, Lease()), group="billing", attempt=2, **options)


@pytest.fixture(autouse=True)
def _nothing_in_hand():
    enter(None)
    yield
    enter(None)


def test_what_a_context_tells():
    """The context shows the message, the run and no fence."""
    context = made(deadline=99.5)
    assert (context.id, context.topic, context.key) == ("id-1", "orders", b"k")
    assert (context.headers, context.message) == ((("a", "b"),), INCOMING)
    assert (context.group, context.attempt, context.deadline) == ("billing", 2, 99.5)
    assert context.fence is None


def test_lost():
    """The context tells when the broker takes the delivery back."""
    delivery = Delivery(INCOMING, Lease())
    context = Context(delivery, group="g", attempt=1)
    assert context.lost() is False
    delivery.lease.lost = True
    assert context.lost() is True


def test_outputs_have_the_same_ids_in_each_run():
    """What a handler publishes gets ids that a rerun gives again, in the order of the calls."""
    runs = []
    for _ in range(2):
        context = made(now=lambda: 7.0)
        ids = [context.publish("invoices", {"n": n}, key=n) for n in range(3)]
        assert [message.id for message in context.outputs] == ids
        runs.append(context.outputs)
    assert runs[0] == runs[1]
    expected = [derived_id("id-1", "billing", n, topic="orders") for n in range(3)]
    assert [message.id for message in runs[0]] == expected
    assert runs[0][1] == Message(
        expected[1], "invoices", b"1", b'{"n":1}', (("content-type", "application/json"),), 7.0
    )


def test_an_own_id_does_not_shift_the_others():
    """An output with an id of its own counts, so the ids behind it stay what they are."""
    context = made()
    assert context.publish("a", b"", id="mine") == "mine"
    assert context.publish("a", b"") == derived_id("id-1", "billing", 1, topic="orders")


def test_a_refused_output_does_not_shift_the_others():
    """A handler may catch a refusal; the ids behind it are those of a run without it."""
    context = made()
    with pytest.raises(PublishRejected):
        context.publish("a", b"", headers={"rmq-attempt": "9"})
    context.publish("a", b"")
    assert [one.id for one in context.outputs] == [derived_id("id-1", "billing", 1, topic="orders")]


def test_a_topic_handle():
    """Whatever has a name stands for a topic."""

    class Handle:
        name = "invoices"

    context = made()
    context.publish(Handle(), b"")
    assert context.outputs[0].topic == "invoices"


def test_an_output_over_the_limit():
    """An output that the broker would refuse fails in the handler, not after it."""
    with pytest.raises(TooLarge):
        made(max_body=2).publish("a", b"123")


@pytest.mark.parametrize("option", ["delay", "deliver_at", "expires"])
def test_options_that_are_not_built_yet(option):
    """They are refused by name, never ignored."""
    context = made()
    with pytest.raises(ConfigurationError, match=rf"{option}=\) is not built yet"):
        context.publish("a", b"", **{option: 1})
    assert context.outputs == []


def test_publish_after_the_end():
    """When the handler has ended, nothing can be added to its outputs."""
    context = made()
    context.publish("a", b"")
    context.end()
    with pytest.raises(ConfigurationError, match="the handler has ended"):
        context.publish("a", b"")
    assert len(context.outputs) == 1


def test_the_end_in_the_middle_of_a_publish():
    """A publish that another thread began before the end is in the outputs, or raises."""
    context = made(now=lambda: context.end() or 0.0)
    with pytest.raises(ConfigurationError, match="the handler has ended"):
        context.publish("a", b"")
    assert context.outputs == []


def test_concurrent_publishes_have_different_ids():
    """Threads of a handler never share an ordinal."""
    context = made()
    threads = [
        threading.Thread(target=lambda: [context.publish("a", b"") for _ in range(100)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({message.id for message in context.outputs}) == 400


def test_the_message_in_hand():
    """It is known in the thread that handles it, and in no other."""
    assert current_message() is None
    enter((INCOMING, "billing", 3))
    assert current_message() is INCOMING
    assert current() == (INCOMING, "billing", 3)
    elsewhere = []
    thread = threading.Thread(target=lambda: elsewhere.append(current_message()))
    thread.start()
    thread.join()
    assert elsewhere == [None]
    enter(None)
    assert current() is None


def test_the_message_in_hand_of_a_task():
    """Each task has its own, and passes it on to the tasks it starts."""

    async def handle(message):
        enter((message, "g", 1))
        await asyncio.sleep(0)
        return await asyncio.create_task(ask()) is message

    async def ask():
        return current_message()

    async def both():
        return await asyncio.gather(handle(INCOMING), handle(Message("id-2", "t")))

    assert asyncio.run(both()) == [True, True]
