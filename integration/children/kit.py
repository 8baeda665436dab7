"""What the child programs share: the plan they are given, an app on the broker, kill points.

A safety that a plan names in `remove` is taken away in `removed`; nothing else differs, so a test
that passes with all safeties and fails without this one has seen what it is for. What one broker
does otherwise than another stands in `on_sqlite`, `on_rabbitmq` and `on_kafka`.
"""

from __future__ import annotations

import ctypes
import faulthandler
import logging
import os
import resource
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

import msgspec

from integration.children.removed import without
from reliable_mq import Limits, ReliableMQ, ReliableMQError
from reliable_mq.testing.history import History

#: Seconds after which a child that does not end says where it stands, and ends.
TOO_LONG = 50.0


class Plan(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What every child is told. Seconds throughout.

    url: the broker, as an app is given it. ordered: what it declares its topic as.
    lease_timeout: how long a member may say nothing before others get what it has in hand.
    kill_at: die at this boundary; 0: live. stop_at: text of a boundary behind which this process
        stops itself, once. limits: as `resource` names them. room: bytes of memory that it may take
        beyond what it has.
    boot: of a broker in a file: which boot of the machine it takes this for; the leases of another
        one are over. fast_since: the time from which on the wall clock is too fast, where that of
        the client counts. partitions: of a topic that it makes.
    """

    url: str
    history: str
    topic: str = "orders"
    group: str = "billing"
    ordered: bool = True
    lease_timeout: float = 30.0
    publish_timeout: float = 5.0
    remove: str = ""
    kill_at: int = 0
    stop_at: str = ""
    fast_since: float = 0.0
    boot: str | None = None
    partitions: int = 3
    credit: int | None = None
    room: int = 0
    limits: dict[str, int] = msgspec.field(default_factory=dict)
    too_long: float = TOO_LONG


class Boundaries:
    """The moments just before and just behind each call to the broker, and in handlers; counted."""

    def __init__(self, plan: Plan) -> None:
        self.count = 0
        self._kill_at = plan.kill_at
        self._stop_at = plan.stop_at
        self._lock = threading.Lock()

    def cross(self, where: str) -> None:
        """Die here, if this is the one."""
        with self._lock:
            self.count += 1
            if self.count == self._kill_at:
                print(f"kill -9 at boundary {self.count}: {where}", file=sys.stderr, flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
            if self._stop_at and f"behind {self._stop_at}" in where:
                self._stop_at = ""
                os.kill(os.getpid(), signal.SIGSTOP)


def broker_of(url: str) -> Any:
    """What is a child's own of this kind of broker. Imports its client, and opens nothing."""
    if url.startswith("sqlite:"):
        from integration.children.on_sqlite import OnSqlite

        return OnSqlite
    if url.startswith("kafka:"):
        from integration.children.on_kafka import OnKafka

        return OnKafka
    from integration.children.on_rabbitmq import OnRabbitmq

    return OnRabbitmq


class World:
    """One child's: its app, its transport, its history, its boundaries."""

    def __init__(self, plan: Plan) -> None:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(threadName)s %(message)s")
        faulthandler.enable()
        faulthandler.dump_traceback_later(plan.too_long, exit=True)
        self.plan = plan
        self.boundaries = Boundaries(plan)
        self.history = History(plan.history)
        broker = broker_of(plan.url)
        # A thread that ends loads it, and glibc aborts where it cannot.
        ctypes.CDLL("libgcc_s.so.1")
        for name, value in plan.limits.items():
            _, hard = resource.getrlimit(getattr(resource, name))
            resource.setrlimit(getattr(resource, name), (value, hard))
        if plan.room:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            most = pages * resource.getpagesize() + plan.room
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
        self.broker = broker(plan, self.boundaries)
        self.begin()

    def begin(self) -> None:
        """A new app, whose handlers have to be declared yet."""
        plan = self.plan
        self.mq = ReliableMQ(
            without(plan.remove, self.broker),
            publish_timeout=plan.publish_timeout,
            limits=Limits(credit=plan.credit),
        )
        self.orders = self.mq.topic(plan.topic, groups=(plan.group,), ordered=plan.ordered)


def tell(path: str, state: Any) -> None:
    """Let the test read a state; whole or not at all."""
    beside = Path(f"{path}.new")
    beside.write_bytes(msgspec.json.encode(state))
    beside.rename(path)


def start(kind: type[Any], main: Any) -> None:
    """Run `main` on the plan in the arguments; 5: it ended with an error of the library's own."""
    # As in a terminal: what a shell starts in the background inherits that it is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code = main(msgspec.json.decode(sys.argv[1], type=kind))
    except ReliableMQError as error:
        traceback.print_exc()
        print(f"ended by {type(error).__name__}: {error}", file=sys.stderr)
        code = 5
    sys.exit(code)
