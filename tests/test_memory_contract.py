"""The transport contract on the memory adapter, in virtual and in real time."""
# ruff: noqa: D101, D102 - Harness says what its methods do, and the contract what is tested

from contextlib import contextmanager

import pytest
from msgspec import structs

from reliable_mq.adapters.memory import CAPABILITIES, MemoryBroker, MemoryTransport
from reliable_mq.clock import SYSTEM_CLOCK
from reliable_mq.testing.clock import FakeClock
from reliable_mq.testing.contracts import FAULTS, Harness, TransportContract, victim


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
        return subscription.poll(limit, 0.01)

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


class TestMemoryInRealTime(TransportContract):
    @pytest.fixture
    def harness(self, request):
        # Only what waits for a lease to end has a short one: a machine that stalls ends no other.
        return MemoryHarness(lease_timeout=0.5 if "lease" in request.node.name else 30.0)
