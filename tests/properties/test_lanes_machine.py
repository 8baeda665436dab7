"""Lanes under everything that can happen to them, against a model of what they promise.

Workers are coroutines driven by hand: the real turns of `turns.py`, stopped in the middle of a
handler for as long as hypothesis likes, so that the owner changes lanes under running workers.
"""

import os
import random
import sys
from types import SimpleNamespace

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from msgspec.structs import replace

from reliable_mq.execution import Execution
from reliable_mq.message import Delivery, Lease, Message
from reliable_mq.ordering.lanes import HALTED, SUSPECT, Lanes
from reliable_mq.policy import Batch
from reliable_mq.testing.clock import FakeClock
from reliable_mq.turns import Progress, Turns

EXAMPLES = 3_000 if os.environ.get("RELIABLE_MQ_LONG") else 150
ACTS = ["ack", "again", "again", "later", "halt"]
SEEDS = st.integers(0, 9_999)
PICK = st.integers(0, 5)


@pytest.fixture(scope="module", autouse=True)
def short_turns():
    """A turn tells, and may be over, after two deliveries."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reliable_mq.turns.TURN", 2)
        yield


class Suspended:
    """What a handler waits for until the machine lets it go on."""

    def __await__(self):
        return (yield self)


class Worker:
    """One worker in the middle of a turn: the coroutine, and what it runs now."""

    def __init__(self, lanes):
        self.lanes = lanes
        self.turn = None
        self.running = ()


class LanesMachine(RuleBasedStateMachine):
    """The owner thread, its workers and an operator around one Lanes."""

    made = Lanes

    def __init__(self):
        super().__init__()
        self.clock = FakeClock()
        self.lanes = self.made(self.hand_out)
        self.handed = []
        self.workers = []
        self.starting = None
        self.reports = []
        self.pending = []
        self.paused = self.closed = False
        self.serial = 0
        #: What has not ended: id -> the latest Delivery of it; and the order of each key.
        self.open = {}
        self.arrived = {}
        self.started = []
        self.ended = []
        self.ran = set()
        self.returned = set()
        self.due = {}

    @initialize(batch=st.booleans())
    def workers_are_made(self, batch):
        """Handlers take one delivery, or a bundle."""
        self.batch = Batch(3) if batch else None
        runner = SimpleNamespace(
            handler=SimpleNamespace(is_async=True),
            run_async=self.run_one,
            run_batch_async=self.run_bundle,
        )
        turns = Turns(
            self,
            self.handed,
            self.reports.append,
            runner,
            batch=self.batch,
            timed=False,
            clock=self.clock,
        )
        self.turn = turns.turn

    # ---- what the lanes call

    def hand_out(self, lane):
        """Only while it goes on, and never beside a suspect."""
        assert not self.paused
        assert not self.closed
        assert lane not in self.handed
        assert all(lane not in worker.lanes for worker in self.workers)
        assert not [one for one in self.running() if one.redelivered >= SUSPECT]
        self.handed.append(lane)

    async def run_one(self, delivery):
        """A handler: it begins, and ends when the machine says so."""
        worker = self.starting
        self.begin(worker, (delivery,))
        (outcome,) = await Suspended()
        return outcome

    async def run_bundle(self, deliveries):
        """A batch handler."""
        worker = self.starting
        self.begin(worker, tuple(deliveries))
        return await Suspended()

    def begin(self, worker, deliveries):
        """The promises that are kept when a run begins."""
        others = [one for one in self.running() if one not in worker.running]
        suspects = [one for one in (*others, *deliveries) if one.redelivered >= SUSPECT]
        if suspects:
            assert others == [], "a suspect has company"
            assert self.reports == [], "a suspect runs before the acks of what ended before it"
            assert len(deliveries) == 1, "a suspect has company in its bundle"
            assert self.lanes.busy == 1, "a suspect has company that may begin at any time"
        keys = [self.key_of(one) for one in others]
        mine = {one.message.id for one in deliveries}
        for delivery in deliveries:
            assert not delivery.lease.lost
            key, id = self.key_of(delivery), delivery.message.id
            assert key not in keys, "two workers run one key"
            assert id in self.open, "it runs although it has ended"
            assert self.clock.monotonic() >= self.due.pop(id, 0.0), "it runs again too early"
            if id not in self.ran:
                # First runs follow the order of the key, and nothing earlier is unresolved.
                for other in self.arrived[key][: self.arrived[key].index(id)]:
                    if other in self.open and not self.open[other].lease.lost:
                        assert other in mine | self.returned, f"{id} overtakes {other}"
                self.ran.add(id)
        worker.running = deliveries

    def running(self):
        """What handlers run at this moment."""
        return [one for worker in self.workers for one in worker.running]

    def key_of(self, delivery):
        """Of its lane."""
        return delivery.lease if delivery.message.key is None else delivery.message.key

    # ---- arrivals

    @precondition(lambda self: not self.closed)
    @rule(
        keys=st.lists(st.sampled_from([b"a", b"a", b"b", None]), min_size=1, max_size=4),
        redelivered=st.sampled_from([0] * 8 + [1, 2, 3]),
        seed=SEEDS,
    )
    def arrive(self, keys, redelivered, seed):
        """A poll brings some, and meanwhile there was work."""
        self.work(seed)
        for key in keys:
            self.serial += 1
            id = str(self.serial)
            delivery = Delivery(
                Message(id, "t", key), Lease(), redelivered=redelivered, arrived=float(self.serial)
            )
            self.open[id] = delivery
            self.arrived.setdefault(self.key_of(delivery), []).append(id)
            self.lanes.add(self.key_of(delivery), delivery)

    @precondition(lambda self: not self.closed)
    @rule()
    def stand(self):
        """A poll brings one whose order_by raises: it cannot run, and waits for an ending."""
        self.serial += 1
        delivery = Delivery(Message(str(self.serial), "t"), Lease())
        self.open[str(self.serial)] = delivery
        self.arrived[delivery.lease] = [str(self.serial)]
        lane = self.lanes.stand(delivery.lease)
        self.pending.append((lane, Execution(delivery, 1)))

    # ---- workers

    @rule(seed=SEEDS)
    def work(self, seed):
        """Workers, the owner and an operator do what there is to do, in an order of chance."""
        dice = random.Random(seed)
        for _ in range(dice.randrange(20)):
            which, act = dice.randrange(6), dice.choice(ACTS)
            outcomes = dice.choices([True, False], k=3)
            there_is = [
                (do, given)
                for some, do, given in (
                    (self.handed, self.begin_turn, (which, outcomes[0])),
                    (self.workers, self.end_run, (which, outcomes)),
                    (self.reports, self.collect, ()),
                    (self.pending, self.settle, (which, act)),
                    (self.lanes.halted(), self.operate, (which,)),
                )
                if some
            ]
            if there_is:
                do, given = dice.choice(there_is)
                do(*given)

    def begin_turn(self, which, several):
        """A worker takes what it was handed."""
        lane = self.handed.pop(which % len(self.handed))
        worker = Worker([lane])
        if self.batch is not None and several and self.handed:
            worker.lanes.append(self.handed.pop())
        self.workers.append(worker)
        worker.turn = self.turn(lane if self.batch is None else worker.lanes)
        self.go_on(worker, None)

    def end_run(self, which, outcomes):
        """A handler returns, or something has to follow its run."""
        worker = self.workers[which % len(self.workers)]
        endings = []
        for delivery, returns in zip(worker.running, outcomes, strict=False):
            endings.append(None if returns else Execution(delivery, 1))
            if returns:
                self.returned.add(delivery.message.id)
        self.go_on(worker, endings)

    def go_on(self, worker, outcomes):
        """Let the coroutine run to the next handler, or to its report."""
        self.starting = worker
        worker.running = ()
        try:
            worker.turn.send(outcomes)
        except StopIteration as stop:
            self.workers.remove(worker)
            self.reports.append(stop.value)

    def collect(self):
        """The owner hears what became of turns."""
        reports = self.reports.copy()
        self.reports.clear()
        for item in reports:
            for report in item if isinstance(item, list) else [item]:
                for delivery in report.done:
                    self.end(delivery)
                if isinstance(report, Progress):
                    continue
                for delivery in report.dropped:
                    self.end(delivery)
                self.lanes.handed_back(report.lane, len(report.ended))
                self.pending += [(report.lane, execution) for execution in report.ended]

    def end(self, delivery):
        """It is settled, dropped, or somebody else's."""
        assert delivery.message.id in self.open, "it ends a second time"
        del self.open[delivery.message.id]
        self.ended.append(delivery.message.id)

    # ---- endings

    def settle(self, which, act):
        """The owner carries an ending out."""
        lane, execution = self.pending.pop(which % len(self.pending))
        delivery = execution.delivery
        due = self.clock.monotonic() + which
        if act == "ack" or delivery.lease.lost:
            self.end(delivery)
            self.lanes.ended(lane)
        elif act == "again":
            again = replace(delivery, attempt=delivery.attempt + 1)
            if self.closed:
                self.end(delivery)  # it goes back to the broker
            else:
                self.open[delivery.message.id] = again
                self.due[delivery.message.id] = due
            self.lanes.run_again(lane, again, due)
        elif act == "later":
            self.lanes.call_later(lane, due, lambda lane: self.pending.append((lane, execution)))
        else:
            self.lanes.halt(lane, execution)

    def operate(self, which):
        """An operator sets a halted lane going: what halted it gets another ending."""
        halted = self.lanes.halted()
        lane = halted[which % len(halted)]
        execution = lane.why
        self.lanes.resume(lane)
        self.pending.append((lane, execution))

    @rule(seconds=st.sampled_from([0, 0.5, 1, 3]))
    def time_passes(self, seconds):
        """The owner goes round."""
        self.clock.advance(seconds)
        self.lanes.wake(self.clock.monotonic())

    @rule()
    def run_suspect(self):
        """The owner tries one suspect, behind each poll."""
        head = self.lanes.run_suspect()
        if head is not None:
            assert 1 == self.lanes.busy == len(self.handed)

    @precondition(lambda self: not self.closed)
    @rule(pause=st.sampled_from([True, False, False]))
    def pause_or_go_on(self, pause):
        """The consumer is paused, or resumed."""
        self.paused = pause
        (self.lanes.pause if pause else self.lanes.unpause)()

    # ---- what the broker takes back

    @precondition(lambda self: self.open)
    @rule(which=PICK)
    def lose(self, which):
        """A lease ends under whatever is going on."""
        list(self.open.values())[which % len(self.open)].lease.lost = True

    @precondition(lambda self: self.open)
    @rule(key=st.sampled_from([b"a", b"b", None]))
    def revoke(self, key):
        """The broker takes a key back: what has not started is forgotten at once."""
        mine = {one.lease for one in self.open.values() if one.message.key == key}
        for delivery in self.lanes.drop(mine):
            assert delivery.lease in mine
            self.end(delivery)
        for lease in mine:
            lease.lost = True

    @precondition(lambda self: not self.closed and self.serial > 20)
    @rule()
    def close(self):
        """The consumer stops: from here on nothing begins."""
        self.closed = True
        for delivery in self.lanes.close():
            self.end(delivery)

    # ---- what always holds

    @invariant()
    def busy_is_what_workers_have(self):
        """Lanes count what they handed out and did not get back."""
        given_back = [one for one in self.reports if not isinstance(one, Progress)]
        reported = sum(len(one) if isinstance(one, list) else 1 for one in given_back)
        held = sum(len(worker.lanes) for worker in self.workers)
        assert len(self.handed) + held + reported == self.lanes.busy

    @invariant()
    def what_runs_is_found(self):
        """A revocation finds each run that the owner has not heard the end of."""
        found = [one for lane in self.lanes for one in lane.in_run()]
        told = [one for report in self.reports for one in getattr(report, "done", ())]
        found_ids = {one.message.id for one in (*found, *told)}
        runs = {one.message.id for one in self.running()}
        pending = {execution.delivery.message.id for _, execution in self.pending}
        assert runs <= found_ids
        assert (self.returned & set(self.open)) - pending <= found_ids

    @invariant()
    def nothing_ends_twice(self):
        """Each delivery has one ending."""
        assert len(set(self.ended)) == len(self.ended)

    @invariant()
    def queues_hold_what_has_not_ended(self):
        """A lane forgets what has ended, and memory follows what is in hand."""
        queued = [one.message.id for lane in self.lanes for one in lane.queue]
        again = [one.message.id for lane in self.lanes for one in lane.again]
        if self.closed:
            assert queued == []
        else:
            assert len({*queued, *again}) == len(queued) + len(again)
            assert {*queued, *again} <= set(self.open)

    def teardown(self):
        """When everything is resolved, nothing is left."""
        if sys.exc_info()[0] is not None:
            return  # it has failed already; what follows would hide why
        if self.paused and not self.closed:
            self.pause_or_go_on(pause=False)
        for _ in range(200):
            if not (self.lanes.busy or self.lanes.suspects or self.open):
                break
            self.run_suspect()
            while self.handed:
                self.begin_turn(0, False)
            while self.workers:
                self.end_run(0, [True] * 3)
            self.collect()
            while self.pending:
                self.settle(0, "ack")
            while self.lanes.halted():
                self.operate(0)
            self.time_passes(3)
        self.time_passes(1_000)
        assert self.open == {}, "forgotten"
        assert 0 == self.lanes.busy == self.lanes.suspects
        assert [lane.key for lane in self.lanes] == []
        assert None is self.lanes.next_due()
        assert [lane for lane in self.lanes if lane.state is HALTED] == []


LanesMachine.TestCase.settings = settings(
    max_examples=EXAMPLES, stateful_step_count=20, deadline=None, report_multiple_bugs=False
)
TestLanes = LanesMachine.TestCase


# ---- negative controls: lanes without one of their safeties


class TwoWorkers(Lanes):
    """A new arrival gets its key a worker, although one may have it."""

    def add(self, key, delivery):
        """Hand out in any case."""
        super().add(key, delivery)
        if len(self._lanes[key].queue) > 1:
            self._ready(self._lanes[key])


class Overtaken(Lanes):
    """What runs again goes behind its successors."""

    def run_again(self, lane, delivery, due):
        """Line up at the end."""
        lane.queue.append(delivery)
        self.ended(lane)


class NoWait(Lanes):
    """A lane goes on while an ending is carried out."""

    def handed_back(self, lane, endings):
        """Do not wait."""
        super().handed_back(lane, endings)
        if endings:
            self._ready(lane)


class Company(Lanes):
    """A suspect is handed out beside others."""

    def run_suspect(self):
        """At once."""
        while self._suspects:
            lane = self._suspects.popleft()
            lane.alone = True
            self.busy += 1
            self._hand_out(lane)


class Leaking(Lanes):
    """Empty lanes are kept."""

    def _forget(self, lane):
        if not self._open:
            super()._forget(lane)


@pytest.mark.parametrize("broken", [TwoWorkers, Overtaken, NoWait, Company, Leaking])
def test_lanes_without_a_safety_are_caught(broken):
    """The machine notices each safety that is removed."""
    machine = type("Broken", (LanesMachine,), {"made": broken})
    find = settings(
        max_examples=500,
        stateful_step_count=20,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        report_multiple_bugs=False,
    )
    with pytest.raises((AssertionError, KeyError)):
        run_state_machine_as_test(machine, settings=find)
