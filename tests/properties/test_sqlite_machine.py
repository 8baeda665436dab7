"""The SQLite broker against a model: members that come, go, stall and die, and clocks that jump."""
# ruff: noqa: D102 - the names of the rules say what happens

from __future__ import annotations

import sqlite3
from contextlib import ExitStack

import pytest
from hypothesis import HealthCheck, assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from msgspec import structs

from reliable_mq.adapters.base import GroupSpec, Order, Subscribe, TopicSpec, Topology
from reliable_mq.adapters.sqlite import SqlitePublisher, SqliteTransport
from reliable_mq.errors import ConnectionFailed
from reliable_mq.message import (
    Delivery,
    Destination,
    Lease,
    Message,
    Receipt,
    RetryCopy,
    Topic,
)
from reliable_mq.testing.clock import FakeClock
from tests.sqlite_faults import IO_ERROR, Faults, broker_file

LEASE = 30.0
#: Seconds without a poll after which others take what a member has; before LEASE they never do.
OVER = 1.2 * LEASE

KEYS = st.sampled_from([None, b"a", b"b", b"c"])
INDEX = st.integers(0, 1000)


class Letter:
    """What the model knows of one message."""

    def __init__(self, number: int, key: bytes | None, due: float, *, plain: bool) -> None:
        self.number = number
        self.key = key
        self.due = due
        #: In the log from the beginning: its first arrival has a place in the order of its key.
        self.plain = plain
        self.arrived = False
        self.settled = False
        #: What its next arrival may say.
        self.attempts = {1}
        self.redelivered = {0}

    def was_nacked(self, attempt: int, due: float, *, sure: bool) -> None:
        self.attempts = {attempt} if sure else self.attempts | {attempt}
        self.due = max(self.due, due) if sure else self.due

    def came_in_vain(self) -> None:
        self.redelivered = {count + 1 for count in self.redelivered}


class Member:
    """A member, and what it has in hand."""

    def __init__(self, machine: SqliteMachine) -> None:
        self.connect = Faults()
        self.clock = machine.clock
        self.subscription = machine.transport(self.connect).subscribe(
            Subscribe(topics=("t",), group="g", order=machine.order), lambda *_: None
        )
        self.seen = self.clock.monotonic()
        self.held: dict[Lease, Delivery] = {}
        self.acked: set[Lease] = set()
        self.nacked: dict[Lease, tuple[int, float]] = {}
        #: Ids of what others got already because this member was silent for too long.
        self.taken_over: set[str] = set()

    @property
    def silence(self) -> float:
        return self.clock.monotonic() - self.seen


class SqliteMachine(RuleBasedStateMachine):
    """One topic, one group; most rules are something that happens to one of its members."""

    order: Order = "key"

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.path = self.stack.enter_context(broker_file())
        self.clock = FakeClock()
        self.members: list[Member] = []
        self.dead: list[Member] = []
        self.letters: dict[str, Letter] = {}
        self.publisher: SqlitePublisher | None = None

    def transport(self, connect: Faults) -> SqliteTransport:
        return SqliteTransport(self.path, clock=self.clock, connect=connect, lease_timeout=LEASE)

    @initialize()
    def begin(self) -> None:
        transport = self.transport(Faults())
        transport.ensure(Topology((TopicSpec("t", groups=(GroupSpec("g"),)),)))
        self.publisher = transport.publisher()
        self.members.append(Member(self))

    def teardown(self) -> None:
        try:
            if self.publisher is not None:
                self.drain()
        finally:
            if self.publisher is not None:
                self.publisher.close(10)
            self.stack.close()

    # -- publishing ----------------------------------------------------------------------------

    @rule(keys=st.lists(KEYS, min_size=1, max_size=12))
    def publish(self, keys: list[bytes | None]) -> None:
        self.send(keys, Topic(), 0.0, plain=True)

    @rule(key=KEYS, delay=st.sampled_from([0.1, 8.0, 50.0]))
    def publish_for_later(self, key: bytes | None, delay: float) -> None:
        self.send([key], Topic(), delay, plain=False)

    @rule(key=KEYS, delay=st.sampled_from([0.0, 3.0, 50.0]))
    def retry_copy(self, key: bytes | None, delay: float) -> None:
        self.send([key], RetryCopy("t", "g", delay), delay, plain=False)

    def send(self, keys: list[bytes | None], to: Destination, delay: float, *, plain: bool) -> None:
        assert self.publisher is not None
        due = self.clock.now() + delay if delay else 0.0
        not_before = due if isinstance(to, Topic) and delay else None
        confirmations = []
        for key in keys:
            letter = Letter(len(self.letters), key, due, plain=plain)
            message = Message(f"m{letter.number}", "t", key, b"body")
            self.letters[message.id] = letter
            confirmations.append(self.publisher.submit(message, to, not_before=not_before))
        assert all(isinstance(one.result(20), Receipt) for one in confirmations)

    # -- consuming -----------------------------------------------------------------------------

    @precondition(lambda self: self.members)
    @rule(at=INDEX, limit=st.integers(0, 8))
    def poll(self, at: int, limit: int) -> None:
        self.poll_member(self.members[at % len(self.members)], limit)

    @precondition(lambda self: self.members)
    @rule(at=INDEX, which=st.lists(INDEX, min_size=1, max_size=6))
    def ack(self, at: int, which: list[int]) -> None:
        member = self.members[at % len(self.members)]
        for index in which:
            free = [one for one in member.held.values() if one.lease not in member.nacked]
            if free:
                delivery = free[index % len(free)]
                member.subscription.ack([delivery])
                member.acked.add(delivery.lease)

    @precondition(lambda self: self.members)
    @rule(at=INDEX, index=INDEX, delay=st.sampled_from([0.0, 2.0, 40.0]))
    def nack(self, at: int, index: int, delay: float) -> None:
        member = self.members[at % len(self.members)]
        free = [
            one
            for one in member.held.values()
            if one.lease not in member.acked | set(member.nacked)
            and (self.order == "none" or one.message.key is None)
        ]
        assume(free)
        delivery = free[index % len(free)]
        failed = structs.replace(delivery, attempt=delivery.attempt + 1)
        member.subscription.nack(failed, delay)
        due = self.clock.now() + delay if delay else 0.0
        member.nacked[delivery.lease] = (failed.attempt, due)

    # -- what happens to members ---------------------------------------------------------------

    @precondition(lambda self: len(self.members) < 3)
    @rule()
    def join(self) -> None:
        self.members.append(Member(self))

    @precondition(lambda self: self.members)
    @rule(at=INDEX)
    def close(self, at: int) -> None:
        """Acks are flushed, the rest is given back; whoever comes too late has nothing to give."""
        member = self.members.pop(at % len(self.members))
        late = member.silence > LEASE
        member.subscription.close()
        for lease, delivery in member.held.items():
            letter = self.letters[delivery.message.id]
            if late:
                self.came_in_vain(member, delivery)
            elif lease in member.acked:
                letter.settled = True
            elif lease in member.nacked:
                letter.was_nacked(*member.nacked[lease], sure=True)
            assert late <= lease.lost
            assert lease.lost or lease in member.acked | set(member.nacked)

    @precondition(lambda self: self.members)
    @rule(at=INDEX)
    def crash(self, at: int) -> None:
        """Nothing is flushed, and its lease has to end by itself."""
        member = self.members.pop(at % len(self.members))
        member.subscription._session.drop()
        self.dead.append(member)
        for delivery in member.held.values():
            self.came_in_vain(member, delivery)

    @precondition(lambda self: self.members)
    @rule(at=INDEX, stored=st.booleans(), limit=st.integers(0, 8))
    def commit_without_answer(self, at: int, limit: int, *, stored: bool) -> None:
        """COMMIT fails, carried out or not; the next poll finds out what is true."""
        member = self.members[at % len(self.members)]
        order = member.connect.lose if stored else member.connect.fail
        order("COMMIT", IO_ERROR)
        try:
            self.poll_member(member, limit)
        except ConnectionFailed:
            for lease, nacked in member.nacked.items():
                letter = self.letters[member.held[lease].message.id]
                letter.was_nacked(*nacked, sure=False)
            self.poll_member(member, limit)
        member.connect.forget()

    # -- time ----------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.5, 3.0, 7.0, 29.0, 37.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(seconds=st.sampled_from([-3600.0, 3600.0]))
    def wall_clock_jumps(self, seconds: float) -> None:
        for letter in self.letters.values():
            if letter.due <= self.clock.now():  # what was due once may have been noted as due
                letter.due = 0.0
        self.clock.set_wall(self.clock.now() + seconds)

    # -- the model -----------------------------------------------------------------------------

    def poll_member(self, member: Member, limit: int) -> None:
        late = member.silence > LEASE
        polled = member.subscription.poll(limit, 0.0)
        member.seen = self.clock.monotonic()
        assert len(polled.deliveries) <= limit
        for lease in polled.settled:
            assert lease in member.acked
            assert not late
            assert not lease.lost
            self.letters[member.held.pop(lease).message.id].settled = True
        for lease in polled.lost:
            assert lease.lost
            delivery = member.held.pop(lease)
            if late:
                self.came_in_vain(member, delivery)
        for lease, nacked in member.nacked.items():
            if lease in member.held:
                self.letters[member.held.pop(lease).message.id].was_nacked(*nacked, sure=True)
        assert not (late and member.held)
        assert not member.acked & set(member.held)
        member.acked.clear()
        member.nacked.clear()
        member.taken_over.clear()
        for delivery in polled.deliveries:
            self.arrive(member, delivery)

    def arrive(self, member: Member, delivery: Delivery) -> None:
        message = delivery.message
        letter = self.letters[message.id]
        assert not letter.settled, f"{message.id} was settled and comes again"
        assert self.clock.now() >= letter.due, f"{message.id} is early"
        for other in (*self.members, *self.dead):
            if other is not member and other.silence < LEASE:
                self.check_apart(message, [one.message for one in other.held.values()])
        if letter.plain and not letter.arrived:
            overtaken = [
                one.number
                for one in self.letters.values()
                if one.plain
                and not one.arrived
                and one.number < letter.number
                and self.are_ordered(one.key, letter.key)
            ]
            assert overtaken == [], f"{message.id} overtook {overtaken}"
        self.take_over(member, delivery)
        assert delivery.attempt in letter.attempts
        assert delivery.redelivered in letter.redelivered
        assert delivery.lease not in member.held
        letter.arrived, letter.due = True, 0.0
        letter.attempts = {delivery.attempt}
        letter.redelivered = {delivery.redelivered}
        member.held[delivery.lease] = delivery

    def came_in_vain(self, member: Member, delivery: Delivery) -> None:
        if delivery.message.id not in member.taken_over:
            self.letters[delivery.message.id].came_in_vain()

    def take_over(self, member: Member, delivery: Delivery) -> None:
        name = delivery.message.id
        for other in self.members:
            if other is not member and name in {one.message.id for one in other.held.values()}:
                self.came_in_vain(other, delivery)
                other.taken_over.add(name)

    def check_apart(self, message: Message, held: list[Message]) -> None:
        assert message.id not in {one.id for one in held}, f"{message.id} is at two members"
        together = [one.id for one in held if self.are_ordered(one.key, message.key)]
        assert together == [], f"{message.id} and {together} of {message.key!r} are at two members"

    def are_ordered(self, key: bytes | None, other: bytes | None) -> bool:
        if self.order == "partition":
            return True
        return self.order == "key" and key is not None and key == other

    def drain(self) -> None:
        """Nothing that was confirmed is lost: whoever comes last gets all that is not settled."""
        while self.members:
            self.close(0)
        self.clock.advance(OVER + 1.0)
        self.clock.set_wall(self.clock.now() + 1_000_000.0)
        last = Member(self)
        for _ in range(len(self.letters) + 2):
            self.poll_member(last, 50)
            last.subscription.ack(list(last.held.values()))
            last.acked = set(last.held)
        assert [name for name, letter in self.letters.items() if not letter.settled] == []
        assert self.transport(Faults()).lag("t", "g") == 0
        last.subscription.close()

    @invariant()
    def tables_agree(self) -> None:
        """Of the messages of a key that wait the first is ready; keys in hand are leased."""
        if self.publisher is None:
            return
        connection = sqlite3.connect(self.path)
        rows = connection.execute(
            "SELECT position, key, due, ready, owner FROM mq_state"
        ).fetchall()
        leases = dict(connection.execute("SELECT key, owner FROM mq_key_lease").fetchall())
        connection.close()
        first: dict[bytes, int] = {}
        for position, key, due, _, owner in rows:
            if owner is None and due is None and key is not None:
                first[key] = min(position, first.get(key, position))
        for position, key, due, ready, owner in rows:
            waits = owner is None and due is None
            is_first = waits and (key is None or first[key] == position)
            assert ready == (leases.get(key, 0) if is_first else None)
        in_hand = {key: owner for _, key, _, _, owner in rows if None not in (owner, key)}
        assert leases == (in_hand if self.order == "key" else {})


@pytest.mark.slow
@pytest.mark.parametrize(("order", "examples"), [("key", 50), ("partition", 20), ("none", 20)])
def test_the_broker_keeps_its_promises(order, examples):
    """Whatever happens to its members, nothing is lost, early, shared or out of order."""
    machine = type("Machine", (SqliteMachine,), {"order": order})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
