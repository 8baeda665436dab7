"""The whole library in virtual time: no seed breaks a promise, every removed safety is seen."""

import logging
import os
from contextlib import suppress

import pytest

from reliable_mq.ordering.lanes import Lanes
from reliable_mq.pipeline import Ack, Nack, Pipeline, Wait
from reliable_mq.settle import Settler
from tests.simulation.world import Simulation

LONG = bool(os.environ.get("RELIABLE_MQ_LONG"))
#: Seeds of one test: some for every change, many for a night.
SEEDS = 2_000 if LONG else 30
TESTS = 10


@pytest.fixture(autouse=True)
def _silent():
    """What goes wrong on purpose fills no logs."""
    log = logging.getLogger("reliable_mq")
    before = log.level
    log.setLevel(logging.CRITICAL + 1)
    yield
    log.setLevel(before)


def simulated(seed, **options):
    """A run; fails with what was found and how to see it again."""
    simulation = Simulation(seed, **options).run()
    if simulation.ledger.broken:
        found = "\n".join(simulation.ledger.broken)
        story = "\n".join(simulation.trace[-60:])
        pytest.fail(f"Simulation({seed}).run() broke a promise:\n{found}\n\n{story}", pytrace=False)
    return simulation


@pytest.mark.slow
@pytest.mark.timeout(3_600 if LONG else 60)
@pytest.mark.parametrize("part", range(TESTS))
def test_no_seed_breaks_a_promise(part):
    """Nothing lost, out of order, twice or early without a reason; nothing left in hand."""
    for seed in range(part * SEEDS, (part + 1) * SEEDS):
        simulated(seed)


def test_a_seed_tells_the_same_story_again():
    """Whatever happened happens again, to the last detail; another seed is another story."""
    first = [simulated(seed).digest for seed in range(12)]
    again = [simulated(seed).digest for seed in range(12)]
    assert again == first
    assert len(set(first)) == len(first)


def test_seeds_reach_what_they_are_meant_to():
    """Every kind of trouble occurs: a simulation that nothing happens in proves nothing."""
    seen = sum((simulated(seed).seen for seed in range(30)), start=Simulation(0).seen)
    kinds = "crash leave stall revoke refuse reject lose hold block disconnect halted paused replay"
    assert [kind for kind in kinds.split() if not seen[kind]] == []


# ---- negative controls


class AckBeforeStored(Settler):
    """Acks as soon as it has sent, and not when it is stored."""

    def _send(self, lane, execution, verdict):
        follows = super()._send(lane, execution, verdict)
        self._ack([execution.delivery])
        self._in_hand.take([execution.delivery])
        return follows


class ForgetsKeys(Pipeline):
    """Treats what has a key like what has none."""

    def _retry(self, execution, outcome):
        again = execution.delivery
        verdict = super()._retry(execution, outcome)
        return (
            Nack(verdict.delivery or again, verdict.delay) if isinstance(verdict, Wait) else verdict
        )


class ForgetsAttempts(Pipeline):
    """Nacks without counting."""

    def _retry(self, execution, outcome):
        verdict = super()._retry(execution, outcome)
        if isinstance(verdict, (Nack, Wait)):
            return type(verdict)(delay=verdict.delay, delivery=execution.delivery)
        return verdict


class GivesUpEarly(Pipeline):
    """Acks a retry instead of carrying it out."""

    def _retry(self, execution, outcome):
        super()._retry(execution, outcome)
        return Ack()


class BelievesEveryAnswer(Pipeline):
    """Takes an answer for a Receipt, whatever it says."""

    def sent(self, execution, outcomes):
        """Whatever they are."""
        self.finished((execution.delivery,))
        return Ack()


class TwoWorkers(Lanes):
    """Gives a key to a second worker."""

    def add(self, key, delivery):
        """Hand out in any case."""
        super().add(key, delivery)
        lane = self._lanes[key]
        if len(lane.queue) > 1 and not self._paused:
            self._ready(lane)


class DoesNotWait(Lanes):
    """Lets a lane go on while the ending of its last run is carried out."""

    def handed_back(self, lane, endings):
        """Go on at once."""
        super().handed_back(lane, 0)
        lane.endings = endings

    def ended(self, lane):
        """It went on long ago."""


class Company(Lanes):
    """Hands a suspect out beside others."""

    def run_suspect(self):
        """All of them, at once."""
        while self._suspects:
            lane = self._suspects.popleft()
            lane.alone = True
            self.busy += 1
            self._hand_out(lane)


CONTROLS = {
    "acked before it is stored": {"broken": {"_settler": AckBeforeStored}},
    "a key is nacked": {"broken": {"_pipeline": ForgetsKeys}},
    "attempts are not counted": {"broken": {"_pipeline": ForgetsAttempts}},
    "a retry is acked": {"broken": {"_pipeline": GivesUpEarly}},
    "a failed send is acked": {"broken": {"_pipeline": BelievesEveryAnswer}},
    "a key has two workers": {"broken": {"_lanes": TwoWorkers}},
    "a lane does not wait": {"broken": {"_lanes": DoesNotWait}},
    "a suspect has company": {"broken": {"_lanes": Company}},
    "acked when it comes": {"without": ("ack-last",)},
    "lost leases are ignored": {"without": ("lost",)},
    "the broker acks what came before": {"unsafe": ("ack-before",)},
    "the broker confirms first": {"unsafe": ("confirm-first",)},
    "the broker copies to all groups": {"unsafe": ("to-all",), "groups": ("billing", "audit")},
    "the broker forgets acks": {"unsafe": ("ignore-acks",)},
    "the broker gives more than asked": {"unsafe": ("ignore-limit",)},
    "the broker takes late acks": {"unsafe": ("late-ack",)},
    "the broker lets messages overtake": {
        "unsafe": ("overtake",),
        "events": {"publish": 4, "fault": 2, "heal": 1, "answer": 2, "step": 2, "work": 2},
    },
    "the broker shares keys": {"unsafe": ("share-keys",), "order": "key"},
}


@pytest.mark.parametrize("control", CONTROLS)
def test_a_removed_safety_is_found(control):
    """A few seeds are enough to see each safety that something lacks."""
    for seed in range(60):
        # Without a safety it may also fall apart; that is found as well, but is no proof.
        with suppress(KeyError):
            if Simulation(seed, **CONTROLS[control]).run().ledger.broken:
                return
    pytest.fail(f"{control}, and 60 seeds did not show it")
