"""Numbered messages, what ran of them, and the ways to run them.

Every message carries its key, its number within the key and how long its handler sleeps, so that
each run can be counted: nothing lost, nothing twice, no key out of order.
"""

from __future__ import annotations

import random
import struct
import time
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from benchmarks.harness import Counts, Meter, Sample
from reliable_mq import Limits, ReliableMQ
from reliable_mq.adapters.base import GroupSpec, TopicSpec, Topology
from reliable_mq.adapters.memory import MemoryTransport
from reliable_mq.message import Message, Topic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    #: Makes a handler that records what it ran.
    Work = Callable[[Callable[[bytes], object]], Callable[[bytes], Any]]
    #: Consumes from a transport with a handler while it is entered.
    Running = Callable[[MemoryTransport, Callable[[bytes], Any]], AbstractContextManager[object]]

TOPIC, GROUP = "bench", "bench"
HEADERS = (("content-type", "application/octet-stream"),)
#: Key, number within the key, seconds that its handler sleeps.
HEAD = struct.Struct("<IId")
#: A run that makes no progress for so long has lost something.
STUCK_SECONDS = 10.0


def round_robin(count: int, keys: int) -> list[int]:
    """Keys one after the other."""
    return [number % keys for number in range(count)]


def drawn(count: int, keys: int, seed: int = 7) -> list[int]:
    """Keys drawn evenly, the same in each run."""
    draw = random.Random(seed)
    return [draw.randrange(keys) for _ in range(count)]


def messages_of(
    keys: Sequence[int], *, sleeps: Sequence[float] | float = 0.0, size: int = 100
) -> list[Message]:
    """Numbered messages with these keys, `size` bytes each."""
    numbers: Counter[int] = Counter()
    padding = b"." * max(0, size - HEAD.size)
    names = {key: b"key-%d" % key for key in set(keys)}
    messages = []
    for at, key in enumerate(keys):
        seconds = sleeps if isinstance(sleeps, float) else sleeps[at]
        body = HEAD.pack(key, numbers[key], seconds) + padding
        numbers[key] += 1
        messages.append(Message(f"{at:032x}", TOPIC, names[key], body, HEADERS, 0.0))
    return messages


def count(sent: int, seen: Sequence[bytes]) -> Counts:
    """What went wrong: `seen` are bodies in the order in which they ran, of `sent` messages.

    An inversion is a first run of a message after a later one of its key.
    """
    highest: dict[int, int] = {}
    passed_over: set[tuple[int, int]] = set()
    duplicated = inversions = 0
    for body in seen:
        key, number, _ = HEAD.unpack_from(body)
        last = highest.get(key, -1)
        if number > last:
            if number > last + 1:
                passed_over.update((key, one) for one in range(last + 1, number))
            highest[key] = number
        elif (key, number) in passed_over:
            passed_over.remove((key, number))
            inversions += 1
        else:
            duplicated += 1
    return Counts(sent - (len(seen) - duplicated), duplicated, inversions)


# ---- handlers


def note(append: Callable[[bytes], object]) -> Callable[[bytes], None]:
    """A `def` that does nothing but leave a trace."""

    def handle(body: bytes) -> None:
        append(body)

    return handle


def note_async(append: Callable[[bytes], object]) -> Callable[[bytes], Any]:
    """The same as an `async def` that never suspends."""

    async def handle(body: bytes) -> None:
        append(body)

    return handle


def sleep(append: Callable[[bytes], object]) -> Callable[[bytes], None]:
    """A `def` that sleeps as its message says: a call to a database or a service."""

    def handle(body: bytes) -> None:
        time.sleep(HEAD.unpack_from(body)[2])
        append(body)

    return handle


# ---- running


def broker(messages: Sequence[Message] = ()) -> MemoryTransport:
    """A memory broker that holds these."""
    transport = MemoryTransport()
    transport.ensure(Topology((TopicSpec(TOPIC, groups=(GroupSpec(GROUP),)),)))
    publisher, everybody = transport.publisher(), Topic()
    for message in messages:
        publisher.submit(message, everybody)
    return transport


def ours(concurrency: int, *, credit: int | None = None) -> Running:
    """The whole SDK: poll, lane, handler, ack, in key order."""

    @contextmanager
    def running(transport: MemoryTransport, handler: Callable[[bytes], Any]) -> Iterator[object]:
        mq = ReliableMQ(transport, limits=Limits(credit=credit))
        mq.consumer(TOPIC, group=GROUP, concurrency=concurrency)(handler)
        with mq:
            yield mq

    return running


def measure(messages: Sequence[Message], work: Work, running: Running) -> tuple[Meter, Counts]:
    """Consume all of them from a full broker, from the start of the consumer to the last ack."""
    transport = broker(messages)
    seen: list[bytes] = []
    handler = work(seen.append)
    with Meter() as meter:
        context = running(transport, handler)
        context.__enter__()
        until_settled(transport)
    context.__exit__(None, None, None)
    return meter, count(len(messages), seen)


def rate(messages: Sequence[Message], work: Work, running: Running) -> Callable[[], Sample]:
    """A run whose figure is messages a second."""

    def sample() -> Sample:
        meter, counts = measure(messages, work, running)
        return meter.rate(len(messages), counts)

    return sample


def duration(messages: Sequence[Message], work: Work, running: Running) -> Callable[[], Sample]:
    """A run whose figure is seconds."""

    def sample() -> Sample:
        meter, counts = measure(messages, work, running)
        return meter.took(len(messages), counts)

    return sample


def until_settled(transport: Any) -> None:
    """Wait until the group has nothing open, or makes no progress any more."""
    before, since = -1, time.monotonic()
    while left := transport.lag(TOPIC, GROUP):
        now = time.monotonic()
        if left != before:
            before, since = left, now
        elif now - since > STUCK_SECONDS:
            return  # the counters tell what is missing
        time.sleep(0.002)
