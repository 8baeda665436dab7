"""The shared state of one embedded broker: topics, groups, and the one lock over them.

The invariant: whoever changes something that a waiting poll could want calls `notify` before it
lets go of the lock. Callbacks of others (confirmations, revocations) never run under the lock.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final
from uuid import UUID, uuid5
from weakref import ref

from reliable_mq.adapters.base import Capabilities, GroupSpec
from reliable_mq.adapters.memory.faults import Faults
from reliable_mq.adapters.memory.log import Log
from reliable_mq.clock import SYSTEM_CLOCK, SystemClock
from reliable_mq.errors import ConfigurationError, PublishRejected, TooLarge, Unroutable
from reliable_mq.message import DeadLetter, Message, Receipt, RetryCopy, Topic, dead_letter_topic

if TYPE_CHECKING:
    from reliable_mq.adapters.base import Topology
    from reliable_mq.adapters.memory.group import Group
    from reliable_mq.adapters.memory.publisher import MemoryPublisher
    from reliable_mq.adapters.memory.subscription import MemorySubscription
    from reliable_mq.clock import Clock
    from reliable_mq.message import Destination, Header

__all__ = ["CAPABILITIES", "MemoryBroker"]

CAPABILITIES: Final = Capabilities(
    name="memory",
    key_order="key",
    durable=False,
    durable_delay=True,
    durable_attempts=True,
    retains=True,
    revokes=True,
    members=True,
    starts=frozenset({"earliest", "latest", "time", "offset"}),
    lease_timeout=30.0,
    max_hold=None,
    max_body=4 * 1024 * 1024,
    tombstones=True,
)
#: How much larger than `max_body` a dead letter may be, headers included.
DEAD_LETTER_ROOM: Final = 64 * 1024
#: Seconds between two looks at what is pending, and at a clock that is not the machine's.
SLICE: Final = 0.005
_FOREIGN: Final = UUID("6f1b4c52-5d0e-4f0a-9d57-3f1f7f3a2d10")


class Patience:
    """Seconds to wait, by the broker's clock and by the machine's, whichever is over first.

    A clock that nobody moves must not make a wait endless.
    """

    __slots__ = ("_ends",)

    def __init__(self, clock: Clock, seconds: float) -> None:
        clocks = (clock,) if clock is SYSTEM_CLOCK else (clock, SYSTEM_CLOCK)
        self._ends = [(one, one.monotonic() + seconds) for one in clocks]

    @property
    def left(self) -> float:
        """Seconds; not above zero when it is over."""
        return min(end - clock.monotonic() for clock, end in self._ends)


class MemoryBroker:
    """A broker that lives as long as this object, for the transports of one process.

    Args:
        clock: What delays, leases and deadlines are measured with.
        capabilities: CAPABILITIES with, say, another `lease_timeout`, `max_hold` or `max_body`
            (`msgspec.structs.replace`); these three are kept, the others are claims.
        capacity: Messages that a topic, or a group of it, holds; above it a publish ends in
            Backpressure.
        retain: Keep messages that every group has finished, for tests that look at them.

    Thread-safe. `lock` guards everything below; what says so needs it held by the caller.
    """

    def __init__(
        self,
        clock: Clock = SYSTEM_CLOCK,
        *,
        capabilities: Capabilities = CAPABILITIES,
        capacity: int = 10_000_000,
        retain: bool = False,
    ) -> None:
        self.clock = clock
        self.capabilities = capabilities
        self.lock = threading.Lock()
        self.logs: dict[str, Log] = {}
        self.faults = Faults(self)
        self._capacity = capacity
        self._retain = retain
        self._changed = threading.Condition(self.lock)
        self._asleep = False
        self._virtual = not isinstance(clock, SystemClock)
        #: A set that keeps its order, so that a run in virtual time can be repeated.
        self._pending: dict[MemoryPublisher, None] = {}
        self._pumping = False

    # -- what there is -------------------------------------------------------------------------

    def ensure(self, topology: Topology) -> None:
        """Make or compare topics and groups; each group gets a topic for its dead letters."""
        with self.lock:
            if topology.mode == "check":
                self._check(topology)
                return
            for topic in topology.topics:
                log = self._make(topic.name)
                for group in topic.groups:
                    self._declare(log, group)

    def _check(self, topology: Topology) -> None:
        missing = []
        for topic in topology.topics:
            log = self.logs.get(topic.name)
            if log is None:
                missing.append(f"topic {topic.name!r} is missing")
            there = {} if log is None else log.groups
            missing += [
                f"group {group.name!r} of topic {topic.name!r} is missing"
                for group in topic.groups
                if group.name not in there
            ]
        if missing:
            text = f"{'; '.join(missing)}: declare them, or use topology='create'"
            raise ConfigurationError(text)

    def _make(self, name: str) -> Log:
        return self.logs.setdefault(name, Log(name, retain=self._retain))

    def _declare(self, log: Log, group: GroupSpec) -> None:
        if group.name not in log.groups:
            log.declare(group.name, group.start)
            self._make(dead_letter_topic(log.name, group.name))

    def find(self, topic: str) -> Log:
        """The topic, with what is due in its place. Lock held."""
        log = self.logs.get(topic)
        if log is None:
            text = f"topic {topic!r} does not exist: declare it with mq.topic({topic!r}, ...)"
            raise ConfigurationError(text)
        if log.delayed:
            log.ripen(self.clock.now())
        return log

    def find_group(self, topic: str, name: str) -> Group:
        """A group of the topic. Lock held."""
        group = self.find(topic).groups.get(name)
        if group is None:
            text = f"topic {topic!r} has no group {name!r}: declare it with its topic"
            raise ConfigurationError(text)
        return group

    def members(self, topic: str, group: str) -> list[MemorySubscription]:
        """The live members of a group, the one that joined first in front."""
        with self.lock:
            return [place.member for place in self.find_group(topic, group).places]

    def next_due(self) -> float | None:
        """When the next delayed message is due, in monotonic seconds; None: there is none.

        For whoever moves a clock of his own: at that time it can be polled.
        """
        with self.lock:
            wall_to_steady = self.clock.monotonic() - self.clock.now()
            logs = list(self.logs.values())
            due = [log.delayed[0][0] + wall_to_steady for log in logs if log.delayed]
            groups = [group for log in logs for group in log.groups.values()]
            due += [group.delayed[0][0] for group in groups if group.delayed]
        return min(due, default=None)

    # -- storing -------------------------------------------------------------------------------

    def store(
        self, message: Message, to: Destination, not_before: float | None
    ) -> Receipt | PublishRejected | None:
        """Store a message, or say why never; None: there is no room now. Lock held."""
        if not isinstance(to, Topic):
            return self._store_for_group(message, to, not_before)
        name, body, most = message.topic, message.body, self.capabilities.max_body
        if body is not None and len(body) > most:
            return _too_large(message, len(body), most)
        log = self.logs.get(name)
        if log is None:
            return _unroutable(message, f"topic {name!r} does not exist")
        if len(log.messages) + len(log.delayed) >= self._capacity:
            return None
        position: int | str
        if not_before is None:
            position = log.append(message)
        else:
            position = self._append(log, message, not_before)
        if self._asleep:
            self.notify()
        return Receipt(message.id, name, 0, position)

    def _store_for_group(
        self, message: Message, to: RetryCopy | DeadLetter, not_before: float | None
    ) -> Receipt | PublishRejected | None:
        size = len(message.body or b"")
        size += sum(len(name) + len(value) for name, value in message.headers)
        most = self.capabilities.max_body + DEAD_LETTER_ROOM
        if size > most:
            return _too_large(message, size, most)
        log = self.logs.get(to.topic)
        group = None if log is None else log.groups.get(to.group)
        if log is None or group is None:
            return _unroutable(message, f"topic {to.topic!r} has no group {to.group!r}")
        position: int | str
        if isinstance(to, DeadLetter):
            log = self.logs[dead_letter_topic(to.topic, to.group)]
            if len(log.messages) + len(log.delayed) >= self._capacity:
                return None
            position = self._append(log, message, not_before)
        elif group.open >= self._capacity:
            return None
        else:
            position = group.add(message, self._due(to, not_before))
        if "to-all" in self.faults.unsafe:
            self._copy_to_all(message, to, not_before)
        self.notify()
        return Receipt(message.id, log.name, 0, position)

    def _append(self, log: Log, message: Message, not_before: float | None) -> int | str:
        if not_before is not None and not_before > self.clock.now():
            return log.delay(message, not_before)
        return log.append(message)

    def _due(self, to: RetryCopy, not_before: float | None) -> float | None:
        delay = to.delay
        if not_before is not None:
            delay = max(delay, not_before - self.clock.now())
        return self.clock.monotonic() + delay if delay > 0 else None

    def _copy_to_all(
        self, message: Message, to: RetryCopy | DeadLetter, not_before: float | None
    ) -> None:
        """Without the safety "to-all": what is meant for one group goes to the others, too."""
        for name, group in self.logs[to.topic].groups.items():
            if name == to.group:
                continue
            if isinstance(to, RetryCopy):
                group.add(message, self._due(to, not_before))
            else:
                self._append(self.logs[dead_letter_topic(to.topic, name)], message, not_before)

    def store_foreign(
        self,
        topic: str,
        body: bytes | None,
        *,
        key: bytes | None = None,
        headers: tuple[Header, ...] = (),
    ) -> str:
        """A message of a program that does not use us; returns the id derived from its place."""
        with self.lock:
            log = self.find(topic)
            derived = str(uuid5(_FOREIGN, f"{topic}/0/{log.end}"))
            log.append(Message(derived, topic, key, body, headers, self.clock.now()))
            self.notify()
        return derived

    # -- waiting -------------------------------------------------------------------------------

    def notify(self) -> None:
        """Something changed: let the polls that wait look again. Lock held."""
        if self._asleep:
            self._asleep = False
            self._changed.notify_all()

    def patience(self, seconds: float) -> Patience:
        """How long somebody is willing to wait."""
        return Patience(self.clock, seconds)

    def sleep(self, seconds: float) -> None:
        """Wait for `notify`, at most so long; may return early. Lock held, and let go meanwhile."""
        self._asleep = True
        # A clock that does not move by itself cannot end a wait: look at it again and again.
        longest = SLICE if self._virtual else threading.TIMEOUT_MAX
        self._changed.wait(min(seconds, longest))

    # -- publishes that have no answer yet -----------------------------------------------------

    @property
    def pending(self) -> bool:
        """Whether a publish waits for its answer or its deadline."""
        return bool(self._pending)

    def watch(self, publisher: MemoryPublisher) -> None:
        """It has something pending: see to it until it has not. Lock held.

        In virtual time nothing happens by itself: there, polls and `tick` see to it.
        """
        self._pending[publisher] = None
        if not self._pumping and not self._virtual:
            self._pumping = True
            threading.Thread(
                target=_pump, args=(ref(self),), name="reliable-mq-memory", daemon=True
            ).start()

    def tick(self) -> None:
        """Send what may go out now and end what is over its deadline."""
        with self.lock:
            endings = [ending for one in self._pending for ending in one.advance()]
            self._pending = {one: None for one in self._pending if one.pending}
            self.notify()
        for confirmation, outcome in endings:
            confirmation.settle(outcome)

    def _pump_again(self) -> bool:
        self.tick()
        with self.lock:
            self._pumping = bool(self._pending)
            return self._pumping


def _pump(broker: ref[MemoryBroker]) -> None:
    """Look after pending publishes where nobody else touches the broker; ends with the last."""
    pause = threading.Event()
    while (alive := broker()) is not None and alive._pump_again():  # noqa: SLF001 - its own thread
        del alive  # a broker that nobody holds any more ends this thread
        pause.wait(SLICE)


def _too_large(message: Message, size: int, most: int) -> TooLarge:
    text = (
        f"message {message.id} to {message.topic!r} has {size} bytes, the limit is {most}: keep "
        "the content elsewhere and send a reference to it"
    )
    return TooLarge(text, message)


def _unroutable(message: Message, what: str) -> Unroutable:
    text = f"message {message.id} was not stored: {what}; declare it with mq.topic(..., groups=...)"
    return Unroutable(text, message)
