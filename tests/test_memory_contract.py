"""The transport contract on the memory adapter, in virtual and in real time."""
# ruff: noqa: D101, D102 - Harness says what its methods do, and the contract what is tested

import inspect
from contextlib import contextmanager

import pytest
from msgspec import structs

from reliable_mq.adapters.memory import CAPABILITIES, UNSAFE, MemoryBroker, MemoryTransport
from reliable_mq.clock import SYSTEM_CLOCK
from reliable_mq.testing.clock import FakeClock
from reliable_mq.testing.contracts import FAULTS, Harness, TransportContract, victim
from reliable_mq.testing.rig import Rig


class MemoryHarness(Harness):
    """Real time. A killed process is a member whose leases end and that never comes back."""

    faults = frozenset(FAULTS) - {"restart", "max-hold"}
    must = faults
    quiet = 0.02
    delay = 0.1

    def __init__(self, *, clock=SYSTEM_CLOCK, **changes):
        self.capabilities = structs.replace(CAPABILITIES, **changes)
        self.broker = MemoryBroker(clock, capabilities=self.capabilities)

    def transport(self):
        return MemoryTransport(self.broker)

    def poll(self, subscription, limit):
        return subscription.poll(limit, 0.005)

    def kill_after(self, subscribe, take, *, ack=(), nack=None):
        member = self.transport().subscribe(subscribe, lambda _leases, _deadline: None)
        taken = victim(lambda limit: self.poll(member, limit), member, take, ack=ack, nack=nack)
        self.broker.faults.drop(member)
        return taken

    def revoke(self, subscription):
        self.broker.faults.revoke(subscription)

    def publish_foreign(self, topic, body):
        self.broker.store_foreign(topic, body)

    def refuse_publishes(self, times):
        self.broker.faults.refuse_publishes(times)

    def reject_publishes(self, times):
        self.broker.faults.reject_publishes(times)

    def lose_answers(self, times):
        self.broker.faults.lose_answers(times)

    @contextmanager
    def _until_healed(self, fault):
        fault()
        yield
        self.broker.faults.heal()

    def blocked(self):
        return self._until_healed(self.broker.faults.block)

    def answers_held(self):
        return self._until_healed(self.broker.faults.hold_answers)

    def disconnected(self):
        return self._until_healed(self.broker.faults.disconnect)


class VirtualHarness(MemoryHarness):
    """Virtual time: it moves when the contract lets it elapse, or finds nothing to do."""

    faults = MemoryHarness.faults | {"max-hold"}
    must = faults
    delay = 5.0

    def __init__(self, **changes):
        self.clock = FakeClock()
        super().__init__(clock=self.clock, max_hold=200.0, **changes)

    def now(self):
        return self.clock.monotonic()

    def epoch(self):
        return self.clock.now()

    def elapse(self, seconds):
        self.clock.advance(seconds)
        self.broker.tick()

    def poll(self, subscription, limit):
        polled = subscription.poll(limit, 0.0)
        if not polled.deliveries:
            self.elapse(0.05)
        return polled


class TestMemoryInVirtualTime(TransportContract):
    @pytest.fixture
    def harness(self):
        return VirtualHarness()


@pytest.mark.slow
class TestMemoryInRealTime(TransportContract):
    @pytest.fixture
    def harness(self, request):
        # Only what waits for a lease to end has a short one: a machine that stalls ends no other.
        return MemoryHarness(lease_timeout=0.4 if "lease" in request.node.name else 30.0)


def test_what_a_harness_lacks_is_named():
    """A test that cannot run says why; lacking what must be there is a failure."""
    harness = VirtualHarness(tombstones=False)
    harness.faults = frozenset({"block"})
    harness.must = frozenset({"refuse"})

    assert harness.need(fault="block", key_order=("key", "partition")) is None
    assert "tombstones=False" in harness.need(tombstones=True)
    assert "'restart'" in harness.need(fault="restart")
    for fault in ("kill", "revoke", "refuse"):
        with pytest.raises(AssertionError, match=fault):
            harness.need(fault=fault)


#: For each safety of the memory broker, the tests of the contract that miss it.
NOTICED = {
    "ack-before": [("test_acks_out_of_order", "close"), ("test_acks_out_of_order", "kill")],
    "confirm-first": [
        ("test_confirmed_only_after_it_is_stored",),
        ("test_a_blocked_broker_is_no_hang",),
    ],
    "ignore-acks": [("test_what_was_acked_stays_acked",), ("test_a_group_keeps_its_position",)],
    "ignore-limit": [("test_never_more_than_the_limit",), ("test_a_limit_of_zero_brings_nothing",)],
    "late-ack": [("test_a_lease_is_lost_when_it_is_not_polled",)],
    "overtake": [("test_a_nack_lets_nothing_of_its_key_overtake",)],
    "share-keys": [("test_a_key_is_never_at_two_members",)],
    "to-all": [
        ("test_a_retry_copy_reaches_its_group_only",),
        ("test_dead_letters_can_be_read_and_discarded",),
    ],
}


@pytest.mark.parametrize(
    ("safety", "test", "ending"),
    [(safety, *(*test, None)[:2]) for safety, tests in NOTICED.items() for test in tests],
)
def test_the_contract_notices_a_missing_safety(safety, test, ending):
    """Each promise that the memory broker can break on demand fails the tests that it is for."""
    harness = VirtualHarness()
    harness.broker.faults.remove_safety(safety)
    rig = Rig(harness)
    run = getattr(TransportContract(), test)
    given = {"rig": rig, "harness": harness, "ending": ending}
    wanted = {name: given[name] for name in inspect.signature(run).parameters}

    with pytest.raises(AssertionError):
        run(**wanted)

    rig.close()


def test_every_safety_has_its_control():
    """No safety can be removed that the contract would not miss."""
    assert NOTICED.keys() == UNSAFE.keys()
