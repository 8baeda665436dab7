"""What a simulated run was asked to do, what happened, and whether the promises were kept.

Some promises are looked at while it happens: that a key is run by one member at a time and in its
order, that a suspect has no company, that nothing runs early or with a lost lease, and that a
second effect has a reason. What was confirmed and never seen again is found at the end, by the
checker of `reliable_mq.testing.history`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from contextlib import contextmanager
from itertools import count
from math import inf
from typing import Any

import msgspec

from reliable_mq import message as wire
from reliable_mq.deadletter import StoredDeadLetter
from reliable_mq.message import DeadLetter, Topic
from reliable_mq.ordering.lanes import SUSPECT
from reliable_mq.outcome import Reject, Retry
from reliable_mq.testing.history import Entry, check

#: Runs that a message has before it is given up.
ATTEMPTS = 4
#: Seconds of a retry that goes through the broker.
LONG = 45.0
#: What may happen to a message, and the reason that its dead letter gives; "" where it has none.
KINDS = {
    "fine": "",
    "flaky": "",  # fails some times
    "soon": "",  # asks for a retry, some times
    "later": "",  # the same, for so long that it goes through the broker
    "puzzling": "",  # makes the policy raise, some times
    "odd": "retries-exhausted",  # makes order_by raise, where there is one
    "poison": "retries-exhausted",
    "rejected": "rejected",
    "fatal": "fatal-exception",
    "undecodable": "undecodable",
    "big": "rejected",  # its dead letter fits without the stack only
    "huge": "rejected",  # its dead letter does not fit, until the broker is mended
    "mended": "retries-exhausted",  # fails until it was replayed
}


#: Where plans are carried out: (topic, group).
BILLING = ("orders", "billing")


class Puzzle(Exception):
    """A policy that meets it has a bug."""


class Plan(msgspec.Struct):
    """What is done with one message, and how often that was so already."""

    kind: str
    times: int = 0
    outputs: int = 0
    runs: int = 0
    puzzled: int = 0
    replays: int = 0

    def fail(self) -> None:
        """Raise what the plan says, if it is not over."""
        self.runs += 1
        early = self.runs <= self.times
        if self.kind == "soon" and early:
            raise Retry("soon", after=0.2)
        if self.kind == "later" and early:
            raise Retry("later", after=LONG)
        error: Exception | None = {
            "poison": OSError("never"),
            "flaky": OSError("now and then") if early else None,
            "puzzling": Puzzle(self) if early else None,
            "rejected": Reject("never"),
            "big": Reject("never"),
            "huge": Reject("never"),
            "fatal": LookupError("a bug"),
            "mended": OSError("not yet") if not self.replays else None,
        }.get(self.kind)
        if error is not None:
            raise error


FINE = Plan("fine")


def worth_it(error: BaseException) -> bool:
    """What the policies of all members say of an error."""
    if isinstance(error, Puzzle):
        (plan,) = error.args
        plan.puzzled += 1
        if plan.puzzled <= plan.times:
            raise ZeroDivisionError
    return not isinstance(error, LookupError)


class Run(msgspec.Struct):
    """A delivery that a handler has, or had."""

    member: Any
    delivery: Any
    place: tuple[str, str]
    lane: Any
    bundle: object

    @property
    def live(self) -> bool:
        """Whether it still counts: its lease is not lost."""
        return not self.delivery.lease.lost


class Ledger:
    """The facts of one simulation. `place` is (topic, group)."""

    def __init__(self, world: Any) -> None:
        self.world = world
        #: What was found. Not raised: much of this runs inside of what survives every error.
        self.broken: list[str] = []
        self.plans: dict[str, Plan] = {}
        self.entries: list[Entry] = []
        #: Ids whose ending could not be carried out; labels that were given up because the broker
        #: took none of their outputs.
        self.set_back: set[str] = set()
        self.refused: set[str] = set()
        self.faulty = False
        self.running_now: list[Run] = []
        self.first_run: set[tuple[tuple[str, str], str]] = set()
        self.effects: dict[tuple[tuple[str, str], str], list[Any]] = defaultdict(list)
        self.leases: dict[tuple[tuple[str, str], str], list[Any]] = defaultdict(list)
        self.outputs: dict[str, set[str]] = {}
        self.letters: Counter[tuple[tuple[str, str], str]] = Counter()
        self.replayed: Counter[tuple[tuple[str, str], str]] = Counter()
        self._stored: Counter[tuple[str, str]] = Counter()
        self._lanes: dict[tuple[str, Any], list[str]] = defaultdict(list)
        self._ids: dict[str, str] = {}
        self._ordinal = count()
        self._sent_at: dict[str, int] = {}
        self._stored_at: dict[str, int] = {}

    def breaks(self, what: str) -> None:
        """A promise was not kept."""
        self.broken.append(what)
        self.world.say(f"BROKEN {what}")

    # ---- what is published and stored

    def sent(self, label: str) -> None:
        """It is published, for the first time or again."""
        self.note("invoke", label)
        self._sent_at[label] = next(self._ordinal)
        self._stored_at.pop(label, None)

    def answered(self, label: str, kind: Any) -> None:
        """Its publish has ended. If well: nothing that was published later came before it."""
        self.note(kind, label)
        if kind != "ok" or self.world.keys[label] is None:
            return
        key, keys = self.world.keys[label], self.world.keys
        later = [
            other
            for other, sent in self._sent_at.items()
            if keys[other] == key and sent > self._sent_at[label]
        ]
        for other in later:
            if self._stored_at.get(other, inf) < self._stored_at.get(label, -1):
                self.breaks(f"{other} is stored before {label}, which was published earlier")

    def stored(self, message: Any, to: Any) -> None:
        """The broker has stored a message, whether or not anybody hears of it."""
        label = self.label(message)
        if self._ids.setdefault(label, message.id) != message.id:
            self.breaks(f"{label} was published with two ids")
        if isinstance(to, Topic):
            self._stored[message.topic, label] += 1
            self._stored_at[label] = next(self._ordinal)
            if self._stored[message.topic, label] == 1:
                lane = self.world.lane_of(message)
                if lane is not None:
                    self._lanes[message.topic, lane].append(label)
        elif isinstance(to, DeadLetter):
            self._dead_letter(label, message, (to.topic, to.group))
        elif wire.header(message, wire.ATTEMPT) is None:
            self.plans[label].replays += 1
            self.replayed[(to.topic, to.group), label] += 1
        self.world.say(f"stored {label} {type(to).__name__}")

    def refuses(self, message: Any, to: Any) -> bool:
        """Whether the broker has no room for so large a letter."""
        kind = self.plans.get(self.label(message), FINE).kind
        if not isinstance(to, DeadLetter) or self.world.draining:
            return False
        headers = dict(message.headers)
        return kind == "huge" or (kind == "big" and "rmq-dl-exception-stack" in headers)

    def _dead_letter(self, label: str, message: Any, place: tuple[str, str]) -> None:
        letter = StoredDeadLetter(message, 0)
        self.letters[place, label] += 1
        if self.letters[place, label] > 1 and not self._excused(place, label):
            self.breaks(f"{label} has two dead letters without a reason")
        if "PublishRejected" in letter.error:
            self.refused.add(label)
        if letter.reason == "retries-exhausted" and letter.attempts != ATTEMPTS:
            self.breaks(f"{label} was given up after {letter.attempts} runs")
        told = letter.attempts in [failure.attempt for failure in letter.history]
        twice = self._stored[place[0], label] + self.replayed[place, label] > 1
        if letter.history and not told and not twice:
            self.breaks(f"the dead letter of {label} does not tell its story")

    def label(self, message: Any) -> str:
        """What a message is called here: outputs by what they come from."""
        if message.topic == "orders":
            return message.id
        return msgspec.json.decode(message.body)["label"]

    # ---- what runs

    @contextmanager
    def running(self, member: Any, group: str, deliveries: Any) -> Any:
        """For as long as these are handled, at once."""
        bundle = object()
        runs = [self._begin(member, group, one, bundle) for one in deliveries]
        try:
            yield
        finally:
            for run in runs:
                self.running_now.remove(run)

    def _begin(self, member: Any, group: str, delivery: Any, bundle: object) -> Run:
        message = delivery.message
        place, label = (message.topic, group), self.label(message)
        run = Run(member, delivery, place, self.world.lane_of(message), bundle)
        if not run.live:
            self.breaks(f"{label} runs although its lease is lost")
        not_before = wire.header(message, wire.NOT_BEFORE)
        if not_before is not None and self.world.clock.now() < float(not_before) - 0.001:
            self.breaks(f"{label} runs too early")
        for other in self.running_now:
            if other.place == place and other.bundle is not bundle and other.live:
                self._together(run, other, label)
        self._in_order(run, label)
        self.leases[place, label].append(delivery.lease)
        self.running_now.append(run)
        self.note("deliver", label, place)
        self.world.say(f"{member.name} {group} runs {label} {delivery.attempt}")
        return run

    def _together(self, run: Run, other: Run, label: str) -> None:
        if run.lane is not None and run.lane == other.lane:
            self.breaks(f"{label} runs while {self.label(other.delivery.message)} of its key does")
        suspects = run.delivery.redelivered >= SUSPECT or other.delivery.redelivered >= SUSPECT
        if suspects and run.member is other.member:
            self.breaks(f"{label} and a suspect run at once")

    def _in_order(self, run: Run, label: str) -> None:
        place = run.place
        if run.lane is None or (place, label) in self.first_run:
            return
        self.first_run.add((place, label))
        bundle = [
            self.label(one.delivery.message) for one in self.running_now if one.bundle is run.bundle
        ]
        for earlier in self._lanes[place[0], run.lane]:
            if earlier == label:
                break
            ended = self.effects[place, earlier] or self.letters[place, earlier]
            if not ended and earlier not in bundle:
                self.breaks(f"{label} runs first, and {earlier} before it has not ended")

    def conclude(self, member: Any, place: tuple[str, str], label: str) -> Plan:
        """A handler comes to its end: it fails as planned, or it has its effect."""
        plan = self.plans.get(label, FINE)
        if place == BILLING:
            plan.fail()
        earlier = self.effects[place, label]
        if earlier and not self._excused(place, label):
            self.breaks(f"{label} took effect twice without a reason")
        earlier.append(member.name)
        self.note("effect", label, place)
        self.world.say(f"{member.name} {place[1]} effect {label}")
        return plan

    def _excused(self, place: tuple[str, str], label: str) -> bool:
        """Whether there is a reason for its coming again: a lease, an answer, a second copy."""
        leases = self.leases[place, label]
        lost = not leases or any(lease.lost for lease in leases)
        twice = self._stored[place[0], label] + self.replayed[place, label] > 1
        set_back = self._ids[label] in self.set_back or (self.faulty and not self.world.observed)
        return lost or twice or set_back

    def note(self, kind: Any, label: str, place: tuple[str, str] | None = None) -> None:
        """For the checker: what concerns orders and billing."""
        if place not in (None, BILLING):
            return
        # Of a bundle, the later may succeed and the earlier fail: then only the lane waits for it.
        ordered = self.world.order != "none" and not self.world.size
        key = self.world.keys[label] if ordered else None
        self.entries.append(
            Entry(
                kind,
                label,
                float(len(self.entries)),
                0,
                "run",
                "p",
                None if key is None else key.decode(),
                int(label[1:]),
            )
        )

    # ---- the end

    def verdict(self) -> None:
        """What is found when everything is over."""
        for place in [
            (topic, group) for topic in ("orders", "invoices") for group in self.world.groups
        ]:
            self._letters_are_exact(place)
            self._nothing_is_lost(place)
        letters = [label for (place, label) in self.letters if place == BILLING]
        for label in letters:
            self.note("dead_letter", label)
        # What was mended by a replay was a dead letter, and may be one no longer.
        poison = {label: "" for label, plan in self.plans.items() if KINDS[plan.kind]}
        poison.update(dict.fromkeys(self.refused, ""))
        verdict = check([self.entries], drained=True, poison=poison)
        if verdict.broken:
            self.breaks(str(verdict))

    def _letters_are_exact(self, place: tuple[str, str]) -> None:
        stored = self.world.producer.dead_letters(*place)
        found = Counter(self.label(letter.message) for letter in stored)
        expected = Counter({one: n for (there, one), n in self.letters.items() if there == place})
        expected -= Counter({one: n for (there, one), n in self.replayed.items() if there == place})
        if found != expected:
            self.breaks(f"dead letters of {place}: {found}, expected {expected}")
        for letter in stored:
            label = self.label(letter.message)
            plan = self.plans.get(label, FINE)
            everywhere = plan.kind in ("undecodable", "odd") and place[0] == "orders"
            reason = "retries-exhausted" if label in self.refused else KINDS[plan.kind]
            if letter.reason != reason or not (everywhere or place == BILLING):
                self.breaks(f"{plan} was dead-lettered in {place}: {letter.reason}")

    def _nothing_is_lost(self, place: tuple[str, str]) -> None:
        for topic, label in self._stored:
            if topic == place[0] and not (self.effects[place, label] or self.letters[place, label]):
                self.breaks(f"{label} is stored, and neither handled nor dead in {place}")
        if place[0] == "invoices":
            for label, plan in self.plans.items():
                made = {f"{label}/{number}" for number in range(plan.outputs)}
                ended = self.effects[BILLING, label] and label not in self.refused
                missing = [one for one in made if not self.effects[place, one]]
                if ended and missing:
                    self.breaks(f"{missing} of {label} were never sent")
