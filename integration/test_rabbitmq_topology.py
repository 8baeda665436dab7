"""F13, F25, F26: an alarm of the broker, queues that are full, and queues that are gone.

What has to come is a typed error or an event in time, or that it goes on by itself; never silence.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager

import pika
import pytest

from integration.faults import LONG, need, promises, until
from integration.rabbitmq_traffic import GRACE, Traffic, pika_is_quiet, plain
from reliable_mq import Backpressure, PublishUnknown, Receipt, Reject
from reliable_mq.adapters.rabbitmq import RabbitTransport
from reliable_mq.confirmation import Confirmation
from reliable_mq.errors import Unroutable
from reliable_mq.events import DeadLettered, SettleFailed
from reliable_mq.message import DeadLetter

#: Seconds within which it goes on, or says why not.
IN_TIME = 30.0


@pytest.fixture(autouse=True)
def _calm():
    """What pika logs about connections that we cut is no news."""
    with pika_is_quiet():
        yield


@pytest.fixture
def broker(rabbitmq):
    """One whose settings may be changed."""
    need(rabbitmq.controlled, "RabbitMQ whose settings may be changed")
    return rabbitmq


class Around:
    """All that `inner` is, but for what a subclass does otherwise."""

    def __init__(self, inner):
        self.inner = inner

    def __getattr__(self, name):
        return getattr(self.inner, name)


# -- F13: a memory alarm -----------------------------------------------------------------------


@contextmanager
def alarm(broker):
    """The broker takes itself to be out of memory."""
    broker.ctl("set_vm_memory_high_watermark", "absolute", "1MB")
    try:
        yield
    finally:
        broker.ctl("set_vm_memory_high_watermark", "absolute", "512MB")


class Patient(RabbitTransport):
    """Its publishers know no deadline."""

    def publisher(self):
        """See Patient."""
        return _Patient(super().publisher())


class _Patient(Around):
    def submit(self, message, to, *, not_before=None, deadline=None):
        return self.inner.submit(message, to, not_before=not_before)


def alarmed(broker, options, **control):
    """Messages wait; then comes the alarm, and others are published; then it is over."""
    with Traffic(broker, options=options, work=0.02, timeout=1.0, **control) as traffic:
        traffic.burst(100)
        until(lambda: len(traffic.notes.ids("ok")) == 300, "they are in the queue")
        with alarm(broker):
            until(lambda: blocked(traffic), "the alarm is on")
            stored = len(traffic.notes.ids("ok"))
            traffic.publish_for(20 if LONG else 2, pause=0.1)
            before = len(traffic.notes.ids("effect"))
            traffic.comes_to(min(300, before + 50), "effect")  # consumers are not blocked
            assert stored == len(traffic.notes.ids("ok"))
        return traffic, traffic.finish(deadline=traffic.timeout + GRACE)


def blocked(traffic) -> bool:
    """Whether what is published now is not confirmed within a moment."""
    (one,) = traffic.burst(1, ["a"])
    return not wait(one.done, 0.5)


def wait(look, seconds) -> bool:
    """Whether it comes to this in so many seconds."""
    try:
        until(look, "this", seconds)
    except AssertionError:
        return False
    return True


@pytest.mark.parametrize("options", ["heartbeat=5", "heartbeat=5&blocked_timeout=1"])
def test_a_memory_alarm_is_typed_backpressure(broker, options):
    """By the deadline, also where the connection is given up; consumers go on; then it resumes."""
    traffic, verdict = alarmed(broker, options)

    assert verdict.broken == (), str(verdict)
    assert verdict.effects == verdict.invoked
    kinds = {type(outcome) for outcome in traffic.endings()}
    assert kinds & {Backpressure, PublishUnknown}
    assert kinds <= {Receipt, Backpressure, PublishUnknown}
    if "blocked_timeout" not in options:  # the connection lives, and knows why nothing comes
        assert any("blocks publishing" in str(outcome) for outcome in traffic.endings())


def test_publishers_without_a_deadline_wait_for_the_end_of_the_alarm(broker):
    """Control: no deadline."""
    _, verdict = alarmed(broker, "heartbeat=5", to_publish=Patient)

    assert promises([verdict]) == {"liveness"}


# -- F26: what was declared is gone -------------------------------------------------------------


@contextmanager
def flowing(broker, **options):
    """Messages flow, and all that were published are done."""
    with Traffic(broker, **options) as traffic:
        traffic.burst(5)
        traffic.comes_to(15, "effect")
        until(lambda: not traffic.worker.health().consumers[0].in_hand, "all are acked")
        yield traffic


def test_a_queue_that_is_deleted_and_made_again(broker, caplog):
    """In between publishes are refused by name; then the member consumes, as nothing had been."""
    with flowing(broker) as traffic:
        with plain(broker) as channel:
            channel.queue_delete(traffic.queue)
        # Made again before that, RabbitMQ 3.10 loses for good what is then in the queue: it moves
        # the consumer over by itself, and gives it deliveries that it cannot send.
        until(lambda: "cancelled a consumer" in caplog.text, "the member is told")
        refused = traffic.burst(1)
        until(lambda: all(one.done() for one in refused), "an ending")
        assert {type(one.outcome) for one in refused} == {Unroutable}
        assert traffic.topic in str(refused[0].outcome)

        traffic.declare()

        verdict = traffic.finish(IN_TIME)
        assert verdict.broken == (), str(verdict)
        assert verdict.effects == 15 + 3


def test_a_queue_that_stays_gone_is_a_typed_error(broker):
    """The consumer has failed and its health says why, with the name; a probe would restart it."""
    with flowing(broker) as traffic:
        with plain(broker) as channel:
            channel.queue_delete(traffic.queue)

        until(lambda: traffic.state() == "failed", "the consumer says so", IN_TIME)

        health = traffic.worker.health()
        assert (health.live, health.ready) == (False, False)
        assert "ConfigurationError" in health.consumers[0].why
        assert traffic.queue in health.consumers[0].why


def test_a_member_that_hears_of_no_cancel_is_silent(broker, monkeypatch):
    """Control: the broker tells that the consumer is gone, and nobody listens."""
    monkeypatch.setattr(pika.channel.Channel, "add_on_cancel_callback", lambda *_: None)
    with flowing(broker, options="heartbeat=600") as traffic:
        before = traffic.consuming.down.passed
        with plain(broker) as channel:
            channel.queue_delete(traffic.queue)
        until(lambda: traffic.consuming.down.passed > before, "the member is told")
        traffic.declare()
        traffic.burst(1)

        verdict = traffic.finish(within=3.0)

        assert {"lost", "liveness"} == promises([verdict])


def test_an_exchange_that_is_deleted(broker):
    """Publishes are refused as unroutable, all of them; made again, the same publisher goes on."""
    with flowing(broker) as traffic:
        with plain(broker) as channel:
            channel.exchange_delete(traffic.topic)
        refused = traffic.burst(10)
        until(lambda: all(one.done() for one in refused), "an ending")
        assert {type(one.outcome) for one in refused} <= {Unroutable, PublishUnknown}
        assert isinstance(refused[0].outcome, Unroutable) or traffic.in_doubt()
        assert not any(isinstance(one.outcome, Receipt) for one in refused)

        traffic.declare()

        verdict = traffic.finish(IN_TIME, deadline=traffic.timeout + GRACE)
        assert verdict.broken == (), str(verdict)
        assert verdict.effects == 15 + 30


def test_without_mandatory_the_checker_sees_the_loss(broker, monkeypatch):
    """Control: the broker confirms what it can route nowhere."""
    original = pika.spec.Basic.Publish.__init__

    def careless(self, *arguments, **options):
        original(self, *arguments, **{**options, "mandatory": False})

    monkeypatch.setattr(pika.spec.Basic.Publish, "__init__", careless)
    with flowing(broker) as traffic:
        with plain(broker) as channel:
            channel.queue_delete(traffic.queue)
        confirmed = traffic.burst(1)
        until(lambda: all(one.done() for one in confirmed), "an ending")
        traffic.declare()

        verdict = traffic.finish(within=1.0)

        assert "lost" in promises([verdict])


@contextmanager
def consumer_timeout(broker, milliseconds):
    """So long may a delivery be unacked, in channels that are opened from now on."""
    _set(broker, consumer_timeout=milliseconds, channel_tick_interval=500)
    try:
        yield
    finally:
        _set(broker, consumer_timeout=1_800_000, channel_tick_interval=60_000)


def _set(broker, **settings):
    calls = [f"application:set_env(rabbit, {name}, {value})" for name, value in settings.items()]
    broker.eval(", ".join(calls) + ".")


def test_a_channel_that_the_broker_closes_over_a_slow_handler(broker, caplog):
    """406 after two seconds: told as a warning; the run goes on, its copy is acked and not run."""
    with consumer_timeout(broker, 2_000), Traffic(broker) as traffic:
        go_on = threading.Event()

        def handling(one, _ctx):
            if (one.key, one.seq) == ("a", 0):
                go_on.wait(IN_TIME)

        traffic.handling = handling
        traffic.burst(2)
        traffic.comes_to(5, "deliver")
        until(lambda: "the broker closed the channel: PRECONDITION_FAILED" in caplog.text, "406")
        go_on.set()

        verdict = traffic.finish(IN_TIME)

        assert verdict.broken == (), str(verdict)
        assert dict(verdict.duplicate_effects) == {}
        assert verdict.effects == 6


# -- F25: dead letters that cannot be stored ---------------------------------------------------


class Missing:
    """The queue of the dead letters is deleted."""

    user = "guest:guest"

    def breaks(self, traffic):
        """Delete it."""
        with plain(traffic.broker) as channel:
            channel.queue_delete(f"{traffic.queue}.dlq")

    def mends(self, traffic):
        """Declare it again."""
        traffic.declare()


class Full(Missing):
    """It takes no more."""

    def breaks(self, traffic):
        """Let it refuse."""
        self._limit(traffic, 1)

    def mends(self, traffic):
        """Not `clear_policy`: quorum queues of 3.10 stay full for ever after that."""
        self._limit(traffic, 1_000_000)

    def _limit(self, traffic, most):
        name = f"^{traffic.queue}.dlq$"
        policy = f'{{"max-length":{most},"overflow":"reject-publish"}}'
        traffic.broker.ctl("set_policy", "full-dlq", name, policy, "--apply-to", "queues")


class Forbidden(Missing):
    """The consumer's user may not write to queues."""

    user = "reader:secret"

    def __init__(self, broker):
        broker.ctl("add_user", *self.user.split(":"))
        self._allow(broker, ".*")

    def breaks(self, traffic):
        """What is sent to a queue goes through the default exchange."""
        self._allow(traffic.broker, r"^traffic")

    def mends(self, traffic):
        """Give it back."""
        self._allow(traffic.broker, ".*")

    def _allow(self, broker, write):
        broker.ctl("set_permissions", "reader", ".*", write, ".*")


@pytest.fixture
def trouble(request, broker):
    """A way in which dead letters cannot be stored."""
    yield request.param(broker) if request.param is Forbidden else request.param()
    if request.param is Forbidden:
        broker.ctl("delete_user", "reader")


def rejected(traffic, poison):
    """The handler rejects these seqs of key a."""

    def handling(one, _ctx):
        if one.key == "a" and one.seq in poison:
            raise Reject("told to")

    traffic.handling = handling


@pytest.mark.parametrize("trouble", [Missing, Full, Forbidden], indirect=True)
def test_a_dead_letter_that_cannot_be_stored_holds_its_message(broker, trouble):
    """It is told, nothing is acked, only its key waits; mended, the dead letters come, in time."""
    with Traffic(broker, user=trouble.user) as traffic:
        rejected(traffic, range(1, 5))
        traffic.burst(1)
        traffic.comes_to(3, "effect")
        trouble.breaks(traffic)

        traffic.burst(5)

        until(lambda: traffic.happened(SettleFailed), "an event tells of it", IN_TIME)
        traffic.comes_to(1 + 2 * 6, "effect")  # all other keys
        assert traffic.lag() == 0
        traffic.consuming.cut()
        until(traffic.lag, "what was not acked is in the queue again", IN_TIME)
        traffic.consuming.restore()
        trouble.mends(traffic)
        until(lambda: len(traffic.happened(DeadLettered)) >= 4, "dead letters", IN_TIME)
        traffic.note_dead_letters()
        poison = {letter.message.id: "rejected" for letter in traffic.happened(DeadLettered)}
        verdict = traffic.finish(poison=poison)
        assert len(poison) == 4
        assert verdict.broken == (), str(verdict)
        assert verdict.effects == 1 * 3 + 2 * 5 + 1


class ThrowsAway(RabbitTransport):
    """Confirms dead letters and stores none."""

    def publisher(self):
        """See ThrowsAway."""
        return _ThrowsAway(super().publisher())


class _ThrowsAway(Around):
    def submit(self, message, to, **options):
        if not isinstance(to, DeadLetter):
            return self.inner.submit(message, to, **options)
        early = Confirmation(message)
        early.settle(Receipt(message.id, message.topic, 0, 0))
        return early


def test_dead_letters_that_are_not_confirmed_are_lost(broker):
    """Control: acked before the dead letter is stored, whose queue is missing."""
    with Traffic(broker, to_consume=ThrowsAway) as traffic:
        rejected(traffic, [0])
        Missing().breaks(traffic)
        traffic.burst(2)
        until(lambda: traffic.happened(DeadLettered), "a dead letter is told of")
        Missing().mends(traffic)
        traffic.note_dead_letters()

        verdict = traffic.finish(within=1.0)

        assert "lost" in promises([verdict])
