"""The transport contract on SQLite: in virtual time, and with processes that are killed."""
# ruff: noqa: D101, D102 - Harness says what its methods do, and the contract what is tested

import json
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import contextmanager

import msgspec
import pytest

from reliable_mq.adapters.base import Subscribe
from reliable_mq.adapters.sqlite import SqliteTransport
from reliable_mq.clock import SYSTEM_CLOCK
from reliable_mq.testing.clock import FakeClock
from reliable_mq.testing.contracts import FAULTS, Harness, TransportContract, victim
from reliable_mq.testing.rig import Rig
from tests.sqlite_faults import IO_ERROR, LOCKED, Faults, Gate, broker_file, write_lock

FOREIGN = (
    "INSERT INTO mq_message (topic, body) VALUES ((SELECT id FROM mq_topic WHERE name = ?), ?)"
)
MAX_BODY = 256 * 1024


class SqliteHarness(Harness):
    """Virtual time; a killed process is a member that never says goodbye."""

    faults = frozenset(FAULTS) - {"revoke", "reject", "max-hold"}
    must = faults
    quiet = 0.02
    delay = 5.0
    patience = 100.0  # virtual: a machine that stalls for a second must not end it

    def __init__(self, path, clock, lease_timeout=5.0):
        self.path = path
        self.clock = clock
        self.connect = Faults()
        self.lease_timeout = lease_timeout
        self.pause = threading.Event()
        self.capabilities = self.transport().capabilities

    def transport(self):
        return SqliteTransport(
            self.path,
            clock=self.clock,
            connect=self.connect,
            lease_timeout=self.lease_timeout,
            max_body=MAX_BODY,
        )

    def now(self):
        return self.clock.monotonic()

    def epoch(self):
        return self.clock.now()

    def elapse(self, seconds):
        self.pause.wait(0.0005)  # the publisher's thread lives in real time
        self.clock.advance(seconds)
        if self.connect.down and self.now() >= self.down_until:
            self.connect.down = False

    def poll(self, subscription, limit):
        polled = subscription.poll(limit, 0.0)
        if not polled.deliveries:
            self.elapse(0.05)
        return polled

    def kill_after(self, subscribe, take, *, ack=(), nack=None):
        member = self.transport().subscribe(subscribe, lambda _leases, _deadline: None)
        taken = victim(lambda limit: self.poll(member, limit), member, take, ack=ack, nack=nack)
        member._session.drop()
        return taken

    def publish_foreign(self, topic, body):
        connection = sqlite3.connect(self.path)
        with connection:
            connection.execute(FOREIGN, (topic, body))
        connection.close()

    def blocked(self):
        return write_lock(self.path)

    def refuse_publishes(self, times):
        self.connect.fail("COMMIT", LOCKED, times)

    @contextmanager
    def answers_held(self):
        gate = Gate()
        self._after_the_next_message(gate)
        yield
        gate.open()

    def lose_answers(self, times):
        def lose():
            self.down_until = self.now() + 2 * self.delay
            self.connect.down = True
            raise sqlite3.OperationalError(IO_ERROR)

        self._after_the_next_message(lose)

    def _after_the_next_message(self, action):
        """When a message is committed: not when a member happens to commit something first."""
        self.connect.after("INSERT INTO mq_message", lambda: self.connect.after("COMMIT", action))

    @contextmanager
    def disconnected(self):
        self.down_until = float("inf")
        self.connect.down = True
        yield
        self.connect.down = False

    def restart(self):
        """Everybody is gone; what comes next finds the bytes that were in the files."""
        after = self.path.with_name("after.sqlite3")
        for suffix in ("", "-wal"):
            source = self.path.with_name(self.path.name + suffix)
            if source.exists():
                after.with_name(after.name + suffix).write_bytes(source.read_bytes())
        self.path = after


class AheadClock:
    """The machine's clocks, which `advance` puts forward: other processes live in the past."""

    ahead = 0.0

    def now(self):
        return SYSTEM_CLOCK.now() + self.ahead

    def monotonic(self):
        return SYSTEM_CLOCK.monotonic() + self.ahead

    def advance(self, seconds):
        self.ahead += seconds


class KillingHarness(SqliteHarness):
    """The member that is killed is a process of its own."""

    def __init__(self, path):
        super().__init__(path, AheadClock(), lease_timeout=30.0)

    def kill_after(self, subscribe, take, *, ack=(), nack=None):
        asks = msgspec.to_builtins(subscribe)
        order = json.dumps([str(self.path), asks, take, ack, list((nack or {}).items())])
        command = [sys.executable, __file__, order]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            taken = json.loads(process.stdout.readline())
            process.send_signal(signal.SIGKILL)
        return taken


def be_killed(path, asks, take, ack, nack):
    """The life of a member that is killed."""
    subscribe = msgspec.convert(asks, Subscribe)
    member = SqliteTransport(path).subscribe(subscribe, lambda _leases, _deadline: None)
    taken = victim(lambda limit: member.poll(limit, 0.01), member, take, ack=ack, nack=dict(nack))
    print(json.dumps(taken), flush=True)  # noqa: T201 - the parent reads it
    signal.pause()


class TestSqlite(TransportContract):
    @pytest.fixture
    def harness(self):
        with broker_file() as path:
            yield SqliteHarness(path, FakeClock())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("test", "given"),
    [
        ("test_redelivery_after_kill", {}),
        ("test_acks_out_of_order", {"ending": "kill"}),
        ("test_nack_then_crash", {}),
        ("test_first_runs_keep_order_when_a_member_is_killed", {}),
    ],
)
def test_the_contract_with_a_process_that_is_killed(test, given):
    """What needs a process that dies holds with one that dies by SIGKILL."""
    with broker_file() as path:
        harness = KillingHarness(path)
        rig = Rig(harness)
        getattr(TransportContract(), test)(rig=rig, harness=harness, **given)
        rig.close()


if __name__ == "__main__":
    be_killed(*json.loads(sys.argv[1]))
