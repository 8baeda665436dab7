"""The whole library over the broker in memory, in virtual time, driven by one seed.

Several apps on one broker and one clock. Everything that threads would do is a step here, and the
seed says which one is next: a round of a consumer's owner, a worker that begins or goes on with its
turn, a publish, time, a crash, a member that stalls, a broker that refuses. So a run that breaks a
promise is replayed by its seed: `Simulation(seed).run()` tells the same story again.
"""

import hashlib
import random
from collections import Counter
from typing import Any

from reliable_mq import Batch, RetryPolicy
from reliable_mq.message import Receipt
from reliable_mq.testing.clock import FakeClock
from reliable_mq.testing.history import ending
from tests.simulation.handlers import handler_for
from tests.simulation.ledger import ATTEMPTS, BILLING, KINDS, Ledger, Plan, worth_it
from tests.simulation.members import Broker, Member
from tests.simulation.shape import Shape

KEYS = (b"a1", b"a1", b"a2", b"b1", None)
#: Seconds between two polls of a member that is awake, at most.
LONGEST_SILENCE = 8.0


class Simulation(Shape):
    """One run.

    Args:
        seed: Decides everything.
        broken: Negative control: attribute of a Consumer (or "_pipeline") -> class in its place.
        unsafe: Negative control: safeties that the broker lacks.
        without: Negative control: "ack-last", acks when it polls; "lost", lost leases are ignored.
        options: In place of what the seed decides; see Shape.
    """

    def __init__(
        self,
        seed: int,
        *,
        broken: dict[str, type] | None = None,
        unsafe: tuple[str, ...] = (),
        without: tuple[str, ...] = (),
        **options: Any,
    ) -> None:
        self.seed = seed
        self.broken, self.unsafe, self.without = broken or {}, unsafe, without
        self.dice = random.Random(seed)
        super().__init__(self.dice, options)
        self.clock = FakeClock()
        self.ledger = Ledger(self)
        self.broker = Broker(self.clock, self.ledger, self.max_hold)
        self.broker.faults.remove_safety(*unsafe)
        self.members: list[Member] = []
        self.graveyard: list[Member] = []
        self.trace: list[str] = []
        self.seen: Counter[str] = Counter()
        self.keys: dict[str, bytes | None] = {}
        self._waiting: list[Any] = []
        self._joined = 0
        self._nested = False
        self.draining = False
        self._publisher = Member(self, "producer")
        self.producer = self._publisher.app
        for topic in ("orders", "invoices"):
            self.producer.topic(topic, ordered=self.order != "none", groups=self.groups)
        self.producer._connected()

    def say(self, what: str) -> None:
        """Something happened."""
        self.trace.append(f"{self.clock.monotonic():.3f} {what}")

    @property
    def digest(self) -> str:
        """Of everything that happened."""
        return hashlib.sha256("\n".join(self.trace).encode()).hexdigest()

    # ---- what members run

    def declare(self, member: Member) -> None:
        """The consumers of a member: of orders and of the invoices that orders lead to."""
        if member.name == "producer":
            return
        for topic in ("orders", "invoices"):
            for group in self.groups:
                member.app.consumer(
                    topic,
                    group=group,
                    concurrency=self.concurrency,
                    order_by=self.order_by,
                    retry=RetryPolicy(ATTEMPTS, retry_on=worth_it),
                    on_failure=self.on_failure,
                    dead_letter_limit=self.limit,
                    batch=Batch(self.size, wait=0.3) if self.size else None,
                )(handler_for(self, member, (topic, group)))

    # ---- what happens

    def run(self) -> "Simulation":
        """Everything; what is found is in `ledger.broken`."""
        try:
            self._run()
        finally:
            for member in (*self.members, *self.graveyard, self._publisher):
                member.forget()
        return self

    def _run(self) -> None:
        self.join()
        self.join()
        for event in self.dice.choices([*self.events], [*self.events.values()], k=self.steps):
            getattr(self, event)()
            if self.ledger.broken:
                break
        else:
            self.drain()
            self.ledger.verdict()

    def publish(self) -> None:
        """Some orders."""
        for _ in range(self.dice.randint(1, 4)):
            label = f"m{len(self.ledger.plans)}"
            key = self.dice.choice(KEYS)
            kind = self.dice.choice([*["fine"] * 10, *KINDS])
            if kind == "odd" and self.order != "function":
                kind = "fine"
            silent = self.size or self.plain or self.dice.random() < 0.7
            outputs = 0 if silent else self.dice.randint(1, 2)
            self.ledger.plans[label] = Plan(kind, self.dice.randint(1, ATTEMPTS - 1), outputs)
            self.keys[label] = key
            body = b"{" if kind == "undecodable" else b'{"label":"%s"}' % label.encode()
            self._send(
                self.producer.message(
                    "orders", body, key=key, id=label, content_type="application/json"
                )
            )

    def _send(self, message: Any) -> None:
        self.ledger.sent(message.id)
        self._waiting.append(self.producer.resend(message))
        self.say(f"publish {message.id}")

    def answer(self) -> None:
        """The publisher looks at what became of its messages, and may try again."""
        self.broker.tick()
        waiting, self._waiting = self._waiting, []
        for confirmation in waiting:
            outcome = confirmation.outcome
            if outcome is None:
                self._waiting.append(confirmation)
                continue
            label = confirmation.message.id
            self.ledger.answered(label, ending(outcome))
            self.say(f"{label} {ending(outcome)}")
            if not isinstance(outcome, Receipt) and self.dice.random() < 0.6:
                self._send(confirmation.message)

    def step(self) -> None:
        """An owner goes round."""
        member = self._one(self._awake())
        if member is not None:
            member.step()

    def work(self) -> None:
        """A worker does something; also one whose process has lost everything else."""
        self._work(self.members)

    def _work(self, members: list[Member]) -> bool:
        choices = [
            (workers, which)
            for member in members
            for workers in member.all
            for which in range(workers.steps())
        ]
        if not choices:
            return False
        workers, which = self.dice.choice(choices)
        workers.step(which)
        return True

    def pass_time(self, seconds: float | None = None) -> None:
        """Time goes by, and whoever is awake polls often enough."""
        left = self.dice.choice([0.1, 0.5, 1.0, 3.0]) if seconds is None else seconds
        while left > 0:
            self.clock.advance(min(left, LONGEST_SILENCE))
            left -= LONGEST_SILENCE
            self.broker.tick()
            if left > 0:
                for member in self._awake():
                    member.step()

    def meanwhile(self, waiting: Member, seconds: float) -> None:
        """A member waits inside of a call: the others, and its own workers, go on."""
        self.clock.advance(min(seconds, 0.5))
        self.broker.tick()
        self._work([waiting])
        if not self._nested:
            self._nested = True
            for member in self._awake():
                if member is not waiting:
                    member.step()
            self._nested = False

    def join(self) -> None:
        """A member comes."""
        if len(self.members) < 4:
            self._joined += 1
            self.members.append(Member(self, f"member-{self._joined}").start())
            self.say(f"join {self._joined}")

    def crash(self) -> None:
        """A member is killed."""
        member = self._one(self.members)
        if member is not None:
            self.say(f"crash {member.name}")
            self.members.remove(member)
            member.crash()
            self.seen["crash"] += 1

    def leave(self) -> None:
        """A member stops, and has some time for that."""
        member = self._one(self._awake())
        if member is not None:
            self._leave(member, self.dice.choice([0.0, 1.0, 25.0]))

    def _leave(self, member: Member, timeout: float) -> None:
        self.say(f"leave {member.name}")
        self.members.remove(member)
        member.app.stop(timeout)
        self.graveyard.append(member)
        self.seen["leave"] += 1

    def replay(self) -> None:
        """Somebody replays a dead letter."""
        if self.broker.faults.armed or self.broker.pending:
            return  # it waits for the answer, and nobody would move the clock
        replayed = self.producer.dead_letters(*BILLING).replay(limit=1)
        self.seen["replay"] += replayed
        self.say(f"replayed {replayed}")

    def stall(self) -> None:
        """A member does not come to poll for longer than its leases last; its workers go on."""
        member = self._one(self._awake())
        if member is not None:
            self.say(f"stall {member.name}")
            member.stalled = True
            self.pass_time(self.dice.choice([20.0, 35.0]))
            for _ in range(self.dice.randrange(30)):
                self._work(self.members)
            member.stalled = False
            self.seen["stall"] += 1

    def revoke(self) -> None:
        """The broker takes back what a member has."""
        member = self._one(self._awake())
        if member is not None:
            self.say(f"revoke {member.name}")
            consumer = self.dice.choice(member.consumers)
            self.broker.faults.revoke(consumer._subscription.inner)
            member.step()
            self.seen["revoke"] += 1

    def fault(self) -> None:
        """The broker has a bad moment."""
        faults, times = self.broker.faults, self.dice.randint(1, 4)
        name, order = self.dice.choice(
            [
                ("refuse", lambda: faults.refuse_publishes(times)),
                ("reject", lambda: faults.reject_publishes(times)),
                ("lose", lambda: faults.lose_answers(times)),
                ("hold", faults.hold_answers),
                ("block", faults.block),
                ("disconnect", faults.disconnect),
            ]
        )
        self.say(f"fault {name}")
        self.ledger.faulty = True
        self.seen[name] += 1
        order()
        if self.dice.random() < 0.5:
            self.publish()

    def heal(self) -> None:
        """It is well again."""
        self.broker.faults.heal()
        self.broker.faults.remove_safety(*self.unsafe)

    def operate(self) -> None:
        """Somebody looks at what is paused and halted."""
        for member in self._awake():
            for consumer in member.consumers:
                if consumer._settler.paused:
                    self.seen["paused"] += 1
                    consumer.call(lambda settler, _: settler.unpause())
                if consumer._lanes.halted():
                    self._decide(member, consumer.subscribe)

    def _decide(self, member: Member, subscribe: Any) -> None:
        halted = member.app.halted(subscribe.topics[0], subscribe.group)
        for one in list(halted):
            self.seen["halted"] += 1
            self.dice.choice([halted.skip, halted.skip, halted.retry])(one.key)

    # ---- the end

    def drain(self) -> None:
        """Everything is healed, and what there is has to come to its end."""
        self.say("drain")
        self.draining = True
        self.heal()
        for member in self.members[1:]:
            self._leave(member, self.dice.choice([0.0, 1.0]))
        self.join()
        for _ in range(3_000):
            self.answer()
            for member in self.members:
                member.step()
            worked = [workers.run_dry() for member in self.members for workers in member.all]
            if self.ledger.broken:
                return
            if any(worked) or self.broker.pending:
                self.pass_time(0.05)
                continue
            if self._over():
                self._leave_all()
                return
            self.operate()
            for member in list(self.members):
                if any(consumer._settler._held for consumer in member.consumers):
                    self._leave(member, 0.0)  # what it holds, it holds for as long as it lives
                    self.join()
            self._pass_until_due()
        self.ledger.breaks(f"not drained: {self._left()}")

    def _pass_until_due(self) -> None:
        dues = [consumer.next_due() for member in self.members for consumer in member.consumers]
        dues.append(self.broker.next_due())
        # What is overdue waits for something else, such as credit.
        now = self.clock.monotonic()
        due = min((one for one in dues if one is not None and one > now), default=now)
        self.pass_time(min(60.0, max(0.05, due - now)))

    def _left(self) -> dict[str, Any]:
        logs = self.broker.logs
        lags = {
            f"{topic} {name}": group.lag
            for topic in ("orders", "invoices")
            for name, group in logs[topic].groups.items()
        }
        return {
            "lags": {name: lag for name, lag in lags.items() if lag},
            "busy": [member.name for member in self.members if not member.idle()],
            "unanswered": len(self._waiting),
        }

    def _over(self) -> bool:
        return not any(self._left().values()) and not any(
            consumer.mailbox for member in self.members for consumer in member.consumers
        )

    def _leave_all(self) -> None:
        for member in (*self.members, self._publisher):
            left = member.app.stop(0.0)
            if left:
                self.ledger.breaks(f"{member.name} left {left}")

    def _awake(self) -> list[Member]:
        return [member for member in self.members if not member.stalled]

    def _one(self, members: list[Member]) -> Member | None:
        return self.dice.choice(members) if members else None
