"""What the memory broker promises beyond the contract: its log, its faults, its waits."""

import gc
import random
import threading
import time
from weakref import ref

import pytest
from msgspec import structs

from reliable_mq.adapters.base import GroupSpec, Subscribe, TopicSpec, Topology
from reliable_mq.adapters.memory import CAPABILITIES, MemoryBroker, MemoryTransport
from reliable_mq.clock import SYSTEM_CLOCK
from reliable_mq.errors import (
    Backpressure,
    ConfigurationError,
    ConnectionFailed,
    PublishRejected,
    PublishUnknown,
    TransportError,
)
from reliable_mq.message import DeadLetter, Message, Receipt, RetryCopy, Topic
from reliable_mq.testing.clock import FakeClock

GRACE = 5.0


class World:
    """A broker with topic "t" and its groups, in virtual time unless told otherwise."""

    def __init__(self, *groups, clock=None, options=None, **claims):
        self.clock = FakeClock() if clock is None else clock
        capabilities = structs.replace(CAPABILITIES, **claims)
        self.broker = MemoryBroker(self.clock, capabilities=capabilities, **(options or {}))
        self.transport = MemoryTransport(self.broker)
        self.declare("t", *(groups or ("g",)))
        self.publisher = self.transport.publisher()
        self.sent = 0

    def declare(self, topic, *groups):
        """Make them."""
        specs = tuple(GroupSpec(name) for name in groups)
        self.transport.ensure(Topology((TopicSpec(topic, groups=specs),)))

    def join(self, group="g", *, topics=("t",), order="key"):
        """A new member."""
        asks = Subscribe(topics=topics, group=group, order=order)
        return self.transport.subscribe(asks, lambda _leases, _deadline: None)

    def submit(self, key=b"k", to=None, **options):
        """Publish the next message: m1, m2, ..."""
        self.sent += 1
        message = Message(f"m{self.sent}", "t", key, b"body", created_at=self.clock.now())
        return self.publisher.submit(message, to or Topic(), **options)

    def send(self, amount=1, key=b"k", to=None):
        """Publish so many, and wait for their Receipts."""
        confirmations = [self.submit(key, to) for _ in range(amount)]
        return [confirmation.result(GRACE) for confirmation in confirmations]

    @property
    def log(self):
        """Topic "t"."""
        return self.broker.logs["t"]


def take(member, limit=100):
    """What one poll brings."""
    return list(member.poll(limit, 0.0).deliveries)


def ids(deliveries):
    """The ids of these, in their order."""
    return [one.message.id for one in deliveries]


@pytest.fixture
def world():
    """Topic "t" with group "g", in virtual time."""
    return World()


# -- the log -----------------------------------------------------------------------------------


def test_the_log_drops_what_every_group_has_finished():
    """A message leaves the log when the last group has acked it, and not before."""
    world = World("g", "h")
    world.send(3)
    first, second = world.join("g"), world.join("h")

    first.ack(take(first))
    take(first)
    assert len(world.log.messages) == 3
    second.ack(take(second)[1:])
    take(second)

    assert list(world.log.messages) == [0]


def test_an_unfinished_message_holds_no_others(world):
    """One message that is never acked does not keep those behind it in the log."""
    world.send()
    member = world.join()
    take(member)
    for _ in range(50):
        world.send(10, key=b"other")
        member.ack(take(member))
    take(member)

    assert list(world.log.messages) == [0]


def test_a_topic_without_groups_keeps_everything(world):
    """What nobody consumes yet waits for the group to come."""
    world.declare("alone")
    for number in range(3):
        world.publisher.submit(Message(f"a{number}", "alone"), Topic())

    world.declare("alone", "late")

    assert ids(take(world.join("late", topics=("alone",)))) == ["a0", "a1", "a2"]


def test_retain_keeps_everything():
    """With `retain=True` a finished message can still be looked at, and by a new group."""
    world = World(options={"retain": True})
    world.send(3)
    member = world.join()
    member.ack(take(member))
    assert take(member) == []

    world.declare("t", "late")

    assert ids(take(world.join("late"))) == ["m1", "m2", "m3"]


def test_a_later_group_gets_what_is_left():
    """A group that comes late has what some other group has not finished, and all that follows."""
    world = World("g")
    world.send(3)
    member = world.join()
    member.ack(take(member)[:2])
    take(member)
    world.declare("t", "late")
    world.send(1)

    late = world.join("late")
    taken = take(late)
    late.ack(taken)
    take(late)

    assert ids(taken) == ["m3", "m4"]
    assert world.transport.lag("t", "late") == 0
    assert len(world.log.messages) == 2


@pytest.mark.parametrize("to", [Topic(), RetryCopy("t", "g"), DeadLetter("t", "g")])
def test_what_is_full_is_backpressure(to):
    """Above its capacity nothing is taken, not for later either."""
    world = World(options={"capacity": 2})
    world.submit(to=to, not_before=world.clock.now() + 60)
    world.submit(to=to)

    assert isinstance(world.submit(to=to).outcome, Backpressure)
    assert isinstance(world.submit(to=to, not_before=world.clock.now()).outcome, Backpressure)


def test_what_is_finished_makes_room():
    """A full topic takes messages again when others are settled."""
    world = World(options={"capacity": 2})
    world.send(2)
    assert isinstance(world.submit().outcome, Backpressure)

    member = world.join()
    member.ack(take(member))
    take(member)

    assert isinstance(world.submit().outcome, Receipt)


def test_lag_knows_gaps_and_delays(world):
    """The lag counts delayed messages, and no longer what was discarded."""
    world.send(3, to=DeadLetter("t", "g"))
    world.declare("t.g.dlq", "readers")
    world.transport.discard("t", "g", [1])
    world.submit(not_before=world.clock.now() + 10)
    world.submit(to=RetryCopy("t", "g", 10.0))

    assert world.transport.lag("t.g.dlq", "readers") == 2
    assert world.transport.lag("t", "g") == 2
    reader = world.join("readers", topics=("t.g.dlq",))
    assert ids(take(reader)) == ["m1", "m3"]
    assert world.transport.lag("t.g.dlq", "readers") == 2


def test_a_discarded_dead_letter_is_not_delivered(world):
    """What was discarded while it waited for a reader of the dead-letter topic does not come."""
    world.send(3, key=None, to=DeadLetter("t", "g"))
    world.declare("t.g.dlq", "readers")
    reader = world.join("readers", topics=("t.g.dlq",))
    take(reader)
    reader.close()

    world.transport.discard("t", "g", [0, 2])
    taken = take(world.join("readers", topics=("t.g.dlq",)))

    assert ids(taken) == ["m2"]
    assert [one.message.topic for one in taken] == ["t"]


# -- groups ------------------------------------------------------------------------------------


def test_nothing_is_kept_for_a_key_at_rest(world):
    """Keys whose messages are all settled leave nothing behind, however many there were."""
    members = [world.join(), world.join()]
    for number in range(500):
        world.send(2, key=b"%d" % number)
    for _ in range(20):
        for member in members:
            member.ack(take(member, 90))

    (group,) = world.log.groups.values()
    assert take(members[0]) == take(members[1]) == []
    assert len(group._turns) == len(world.log.messages) == group.lag == 0
    assert max(len(place.parked_keys) for place in group.places) == 0


def test_members_of_a_group_ask_for_one_order(world):
    """Two orders in one group are refused; when all have left, another order is welcome."""
    world.send(4)
    world.send(4, key=b"j")
    members = [world.join(), world.join()]
    take(members[0], 1)
    assert take(members[1], 3)
    with pytest.raises(ConfigurationError, match="order='key'"):
        world.join(order="partition")
    for member in members:
        member.close()

    assert ids(take(world.join(order="partition"))) == [f"m{number}" for number in range(1, 9)]


def test_a_group_must_be_declared(world):
    """Subscribing for a group that nobody declared is a ConfigurationError that names it."""
    with pytest.raises(ConfigurationError, match="nobody"):
        world.join("nobody")


def test_a_keyed_copy_waits_for_its_key(world):
    """A retry copy with a key, as a replay sends it, waits for the member that has the key."""
    world.send()
    holder, other = world.join(), world.join()
    held = take(holder)
    world.send(2, to=RetryCopy("t", "g"))

    assert take(other) == []
    assert ids(take(holder, 1)) == ["m2"]
    world.send(to=RetryCopy("t", "g"))
    assert ids(take(holder, 1)) == ["m3"]
    holder.ack(held)
    holder.close()
    world.send(1, key=b"j", to=RetryCopy("t", "g"))

    assert ids(take(other)) == ["m2", "m3", "m4", "m5"]


def test_a_nack_frees_the_key(world):
    """What is nacked though it has a key no longer holds it."""
    world.send(3)
    first, second = world.join(), world.join()
    held = take(first, 2)
    assert take(second) == []

    first.nack(held[0], 5.0)
    assert take(second) == []
    first.nack(held[1], 0.0)

    assert ids(take(second)) == ["m3", "m2"]
    world.clock.advance(5.0)
    assert ids(take(second)) == ["m1"]


@pytest.mark.parametrize(("order", "ended"), [("none", 1), ("key", 2), ("partition", 3)])
def test_max_hold_ends_what_must_not_overtake(order, ended):
    """A lease that ends for its age ends those that would overtake it otherwise."""
    world = World(max_hold=60.0)
    member = world.join(order=order)
    world.send()
    take(member)
    world.clock.advance(20.0)
    world.send()
    world.send(key=b"j")
    take(member)
    for _ in range(4):
        world.clock.advance(10.0)
        polled = member.poll(0, 0.0)

    assert len(polled.lost) == ended
    assert ids(take(member)) == ["m1", "m2", "m3"][:ended]


def test_a_group_declared_with_a_start(world):
    """A group may be declared to begin later: what was there before is not kept for it."""
    world.declare("old")
    for number in range(3):
        world.publisher.submit(Message(f"a{number}", "old"), Topic())
    spec = TopicSpec("old", groups=(GroupSpec("late", start=2),))
    world.transport.ensure(Topology((spec,)))

    assert ids(take(world.join("late", topics=("old",)))) == ["a2"]


@pytest.mark.parametrize(
    ("ending", "redelivered"), [("close", 0), ("nack", 0), ("drop", 1), ("lapse", 1), ("revoke", 1)]
)
def test_what_counts_as_redelivered(world, ending, redelivered):
    """Arrivals that ended without ack, nack or a proper farewell count, all others do not."""
    world.send(key=None)
    member = world.join()
    (held,) = take(member)
    if ending == "close":
        member.close()
    elif ending == "nack":
        member.nack(held, 0.0)
        member.close()
    elif ending == "drop":
        world.broker.faults.drop(member)
    elif ending == "revoke":
        world.broker.faults.revoke(member)
        member.poll(0, 0.0)
        member.close()
    else:
        world.clock.advance(CAPABILITIES.lease_timeout)

    (again,) = take(world.join())

    assert again.redelivered == redelivered


def test_not_before_holds_when_the_wall_clock_jumps_back(world):
    """A message with `not_before` waits for that time of day, also when it comes later."""
    member = world.join()
    world.submit(not_before=world.clock.now() + 10)

    world.clock.set_wall(world.clock.now() - 3600)
    world.clock.advance(20)
    assert take(member) == []
    world.clock.advance(3600)

    assert ids(take(member)) == ["m1"]


def test_next_due_is_when_something_comes(world):
    """`next_due` tells whoever moves the clock how far to move it."""
    assert world.broker.next_due() is None
    member = world.join()
    world.submit(key=None, to=RetryCopy("t", "g", 30.0))
    world.submit(key=None, not_before=world.clock.now() + 20)

    came = []
    while (due := world.broker.next_due()) is not None:
        world.clock.advance(due - world.clock.monotonic())
        came.append((due - 1_000.0, ids(take(member))))

    assert came == [(20.0, ["m2"]), (30.0, ["m1"])]


class Crowd:
    """Three members that poll, ack, leave, die and sleep as a seed has it."""

    def __init__(self, seed):
        self.draw = random.Random(seed)
        self.world = World(max_hold=50.0)
        self.members = [self.world.join() for _ in range(3)]
        self.in_hand = [[], [], []]
        self.published = {b"%d" % number: [] for number in range(6)}
        self.runs = {key: [] for key in self.published}

    def publish(self):
        """One message of any key."""
        key = self.draw.choice(list(self.published))
        self.published[key].append(self.world.send(key=key)[0].id)

    def happen(self, at):
        """Something befalls one member, mostly nothing."""
        member, faults, chance = self.members[at], self.world.broker.faults, self.draw.random()
        if chance < 0.04:
            (member.close if chance < 0.02 else lambda: faults.drop(member))()
            self.members[at], self.in_hand[at] = self.world.join(), []
        elif chance < 0.05:
            faults.revoke(member)
        elif chance < 0.06:
            self.world.clock.advance(self.draw.uniform(0.0, 40.0))

    def work(self, at):
        """One member polls and acks some of what it has, in any order."""
        polled = self.members[at].poll(self.draw.randrange(4), 0.0)
        self.note(polled.deliveries)
        held = [one for one in (*self.in_hand[at], *polled.deliveries) if not one.lease.lost]
        acked = [one for one in held if self.draw.random() < 0.5]
        self.members[at].ack(acked)
        self.in_hand[at] = [one for one in held if one not in acked]

    def note(self, deliveries):
        """These ran."""
        for one in deliveries:
            self.runs[one.message.key].append(one.message.id)

    def holders(self):
        """Each key in hand with each member that has it."""
        return {
            (one.message.key, at)
            for at, held in enumerate(self.in_hand)
            for one in held
            if not one.lease.lost
        }


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_a_key_has_one_holder_and_keeps_its_order(seed):
    """Members come, go, die and sleep at random: no key is shared, none passed over or lost."""
    crowd = Crowd(seed)
    for step in range(2_000):
        if step < 300:
            crowd.publish()
        at = crowd.draw.randrange(3)
        crowd.happen(at)
        crowd.work(at)
        holders = crowd.holders()
        assert len({key for key, _ in holders}) == len(holders)
    for member in crowd.members:
        member.close()
    crowd.note(take(crowd.world.join(), 10_000))

    first_runs = {key: list(dict.fromkeys(runs)) for key, runs in crowd.runs.items()}
    assert crowd.published == first_runs


# -- faults ------------------------------------------------------------------------------------


def test_a_refused_message_holds_its_key_only(world):
    """While the head of a key waits, others of that key wait behind it; other keys pass."""
    member = world.join()
    world.broker.faults.block()
    waiting = [world.submit(b"a"), world.submit(b"a")]
    world.broker.faults._set(blocked=False, refusals=1)
    passing = world.submit(b"b")
    behind = world.submit(b"a")
    assert not passing.done()
    world.broker.tick()
    world.broker.tick()

    assert [one.done() for one in (*waiting, behind, passing)] == [True] * 4
    assert ids(one for one in take(member) if one.message.key == b"a") == ["m1", "m2", "m4"]


def test_deadlines_end_what_waits_behind(world):
    """A message ends at its own deadline, though the one in front of it may wait longer."""
    world.broker.faults.block()
    head = world.submit(deadline=world.clock.monotonic() + 20)
    behind = world.submit(deadline=world.clock.monotonic() + 10)

    world.clock.advance(10)
    world.broker.tick()
    assert isinstance(behind.outcome, Backpressure)
    assert not head.done()
    world.clock.advance(10)
    world.join().poll(0, 0.0)

    assert isinstance(head.outcome, Backpressure)


def test_held_answers_go_out_with_heal(world):
    """Held messages are stored at once and confirmed at the end; a deadline makes them unknown."""
    world.broker.faults.hold_answers()
    late = world.submit(deadline=world.clock.monotonic() + 5)
    held = world.submit()
    world.clock.advance(5)
    world.broker.tick()
    assert isinstance(late.outcome, PublishUnknown)
    assert not held.done()

    world.broker.faults.heal()

    assert isinstance(held.outcome, Receipt)
    assert len(take(world.join())) == 2


def test_counted_faults_pass_by_themselves(world):
    """Each of the counted faults concerns as many publishes as was said."""
    world.broker.faults.reject_publishes(2)
    outcomes = [world.submit().outcome for _ in range(3)]

    assert [type(one) for one in outcomes] == [PublishRejected, PublishRejected, Receipt]


def test_pending_publishes_end_without_help():
    """In real time a deadline is kept though nobody touches the broker, and no thread stays."""
    world = real_world()
    world.broker.faults.block()
    confirmation = world.submit(deadline=world.clock.monotonic() + 0.05)
    with pytest.raises(Backpressure):
        confirmation.result(GRACE)

    wait_until(lambda: not any(one.name == "reliable-mq-memory" for one in threading.enumerate()))


def test_a_forgotten_broker_ends_its_thread():
    """A broker that nobody holds any more is freed, whatever was pending in it."""
    world = real_world()
    world.broker.faults.block()
    broker = ref(world.broker)
    confirmation = world.submit()

    del world
    wait_until(lambda: gc.collect() is not None and broker() is None)

    assert not confirmation.done()


def test_a_dropped_member_stays_dead(world):
    """After `drop` nothing that the member does reaches the broker."""
    world.send(2)
    member = world.join()
    held = take(member)
    member.ack(held)
    world.broker.faults.drop(member)

    with pytest.raises(ConnectionFailed):
        member.poll(1, 0.0)
    member.close()

    assert [one.redelivered for one in take(world.join())] == [1, 1]


def test_a_closed_subscription_cannot_be_polled(world):
    """A poll after `close` says so."""
    member = world.join()
    member.close()
    with pytest.raises(TransportError, match="closed"):
        member.poll(1, 0.0)


def test_only_known_safeties_can_be_removed(world):
    """A name that is no safety is refused: a negative control must not control nothing."""
    with pytest.raises(ConfigurationError, match="share-keys"):
        world.broker.faults.remove_safety("gravity")


def test_members_are_listed_in_the_order_they_joined(world):
    """`members` gives a test the live members of a group."""
    first, second = world.join(), world.join()
    assert world.broker.members("t", "g") == [first, second]
    first.close()
    assert world.broker.members("t", "g") == [second]


# -- waiting, in real time ---------------------------------------------------------------------


def wait_until(state):
    """Look until `state()`; fails after some seconds."""
    pause = threading.Event()
    for _ in range(1_000):
        if state():
            return
        pause.wait(GRACE / 1_000)
    raise AssertionError


def real_world(**claims):
    """A World in real time."""
    return World(clock=SYSTEM_CLOCK, **claims)


def waiting_poll(member, limit=10):
    """A poll that would wait for a minute, on a thread; returns a function that joins it."""
    polled = []
    thread = threading.Thread(target=lambda: polled.append(member.poll(limit, 60.0)))
    thread.start()
    wait_until(lambda: member._waiting)

    def result():
        thread.join(GRACE)
        assert polled, "the poll still waits"
        return ids(polled[0].deliveries)

    return result


def test_a_publish_ends_a_waiting_poll():
    """Who waits gets a new message at once."""
    world = real_world()
    result = waiting_poll(world.join())
    world.send()
    assert result() == ["m1"]


def test_a_freed_key_ends_a_waiting_poll():
    """Who waits for a key gets it when the member that has it acks or leaves."""
    world = real_world()
    world.send(3)
    holder, other = world.join(), world.join()
    held = take(holder, 1)
    result = waiting_poll(other, limit=1)
    holder.ack(held)
    holder.poll(0, 0.0)
    assert result() == ["m2"]

    result = waiting_poll(holder, limit=1)
    other.close()
    assert result() == ["m2"]


def test_a_lease_that_ends_ends_a_waiting_poll():
    """Who waits gets what a member that no longer polls had in hand."""
    world = real_world(lease_timeout=0.1)
    world.send()
    take(world.join())
    assert waiting_poll(world.join())() == ["m1"]


def test_a_delay_that_is_over_ends_a_waiting_poll():
    """Who waits gets a delayed message when it is due, though nobody touches the broker."""
    world = real_world()
    member = world.join()
    world.submit(to=RetryCopy("t", "g", 0.05))
    assert waiting_poll(member)() == ["m1"]
    world.submit(not_before=world.clock.now() + 0.05)
    assert waiting_poll(member)() == ["m2"]


def test_a_wait_costs_no_time_of_the_processor():
    """A poll that may take nothing waits quietly, though something has been due for long."""
    world = real_world()
    world.submit(to=RetryCopy("t", "g", 0.001))
    member = world.join()
    began = time.process_time()
    member.poll(0, 0.2)
    assert time.process_time() - began < 0.1
