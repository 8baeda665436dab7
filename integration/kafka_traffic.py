"""Numbered messages through Kafka: a producer, members that come and go, and what they wrote down.

Members are apps of this process, whose history is kept in memory, or children of it where one has
to be killed. `finish` heals, lets everything end, and judges.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import confluent_kafka
import msgspec
from confluent_kafka import KafkaException, TopicPartition

from integration import faults
from integration.faults import until
from integration.rabbitmq_traffic import KEYS, Notes
from reliable_mq import Confirmation, Context, Limits, Receipt, ReliableMQ, Retry, pipeline
from reliable_mq.adapters.kafka import KafkaTransport, partition
from reliable_mq.adapters.kafka.config import Config
from reliable_mq.errors import PublishUnknown
from reliable_mq.testing.history import Entry, History, Numbered, Verdict, check, ending

#: Short, so that who is gone is noticed soon; not so short that a busy machine looks dead.
OPTIONS = "session_timeout=3&lease_timeout=10&commit_interval=0.05"
#: Deliveries that a member has in hand at most.
CREDIT = 20
#: A publish may take this much longer than its timeout says, on a machine with much to do.
GRACE = 2.0


class Traffic:
    """One topic with one group.

    Args:
        way: A proxy between the broker and `through`: "publish", "consume", or both.
        options: Of the URL, beside those above.
        to_publish, to_consume: Make the transports from their URLs; a control hands in one without
            a safety.
        timeout: Seconds of a publish. work: Seconds of a handler.
        consumer: Options of the consumer.
    """

    def __init__(
        self,
        broker: Any,
        *,
        way: Any = None,
        through: tuple[str, ...] = ("publish", "consume"),
        options: str = "",
        to_publish: Callable[[str], Any] = KafkaTransport,
        to_consume: Callable[[str], Any] = KafkaTransport,
        timeout: float = 5.0,
        work: float = 0.0,
        credit: int = CREDIT,
        partitions: int = 3,
        **consumer: Any,
    ) -> None:
        self.broker = broker
        mark = secrets.token_hex(4)
        self.topic, self.group = f"traffic-{mark}", f"billing-{mark}"
        self.timeout = timeout
        self.work = work
        self.credit = credit
        self.notes = Notes()
        self.events: list[Any] = []
        self.members: list[ReliableMQ] = []
        self.children: list[Child] = []
        self.way = way
        self._through = through
        self._options = f"{OPTIONS}&partitions={partitions}&{options}".rstrip("&")
        self._to_consume = to_consume
        self._consumer = {"concurrency": 4, **consumer}
        self._sent: list[tuple[Numbered, Confirmation]] = []
        self._seq = 0
        self.operator = KafkaTransport(self.url())
        self.producer = ReliableMQ(to_publish(self.url("publish")), publish_timeout=timeout)
        self.orders = self.producer.topic(self.topic, groups=(self.group,))

    def url(self, purpose: str = "") -> str:
        """Where clients for this connect to."""
        past = self.way is None or purpose not in self._through
        return f"{(self.broker if past else self.way).url}?{self._options}"

    # -- life ----------------------------------------------------------------------------------

    def __enter__(self):
        self.producer.start(consume=False)
        return self

    def __exit__(self, *_):
        self.restore()
        for child in self.children:
            child.kill()
        for member in (*self.members, self.producer):
            member.stop(5.0)
        removed(self.broker, self.topic)

    def restore(self) -> None:
        """A network that is well."""
        if self.way is not None:
            self.way.restore()

    def join(self, *, to_consume: Callable[[str], Any] | None = None) -> ReliableMQ:
        """One more member, in this process."""
        transport = (to_consume or self._to_consume)(self.url("consume"))
        mq = ReliableMQ(transport, limits=Limits(credit=self.credit), publish_timeout=self.timeout)
        mq.topic(self.topic, groups=(self.group,))
        mq.observe(self.events.append)

        @mq.consumer(self.topic, group=self.group, **self._consumer)
        def handle(one: Numbered, ctx: Context) -> None:
            self.notes.note("deliver", ctx.id, one, why=f"attempt {ctx.attempt}")
            if not one.whole() or one.id != ctx.id:
                self.notes.note("damaged", ctx.id, one)
            time.sleep(self.work)
            if self.handling(one, ctx) is not SKIP:
                self.notes.note("effect", ctx.id, one)

        mq.start()
        self.members.append(mq)
        return mq

    def block(self, member: ReliableMQ) -> threading.Event:
        """Its owner thread does not poll until this is set, as if it were stuck."""
        stands, go_on = threading.Event(), threading.Event()
        consumer = member._runtime.consumers[0]  # type: ignore[union-attr]  # it has started
        consumer.call(lambda *_: stands.set() or go_on.wait(90.0))
        assert stands.wait(30.0)
        return go_on

    def leave(self, member: ReliableMQ) -> None:
        """It stops, and has time to finish what it runs."""
        self.members.remove(member)
        member.stop(10.0)

    def spawn(self, folder: Path, **plan: Any) -> Child:
        """One more member, in a process of its own."""
        asks = {"url": self.url("consume"), "topic": self.topic, "group": self.group, **plan}
        child = Child(folder, f"member-{len(self.children)}", asks)
        self.children.append(child)
        return child

    def handling(self, one: Numbered, ctx: Context) -> Any:
        """What a handler does beside; for a test to replace. SKIP: it has no effect."""

    # -- publishing ----------------------------------------------------------------------------

    def burst(self, count: int, keys: Iterable[str | None] = KEYS) -> list[Confirmation]:
        """So many of each key, all on their way at once."""
        first = len(self._sent)
        for _ in range(count):
            for key in keys:
                one = Numbered("run", "p", key, self._seq).sealed()
                self._sent.append((one, self._submit(one)))
            self._seq += 1
        return [confirmation for _, confirmation in self._sent[first:]]

    def stored(self, count: int, keys: Iterable[str | None] = KEYS) -> int:
        """The same, and all have Receipts; how many there are by now."""
        for confirmation in self.burst(count, keys):
            confirmation.result(30.0)
        return len(self._sent)

    def publish_for(
        self, seconds: float, *, pause: float = 0.02, keys: Iterable[str | None] = KEYS
    ) -> None:
        """Publish at a steady rate for so long, whatever becomes of it."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.burst(1, keys)
            threading.Event().wait(pause)

    def endings(self) -> list[Any]:
        """How each publish ended, in order; the first endings, where one was tried again."""
        return [confirmation.outcome for _, confirmation in self._sent]

    def stored_in(self, places: set[tuple[str, int]]) -> set[str]:
        """The messages that have a Receipt of one of these partitions."""
        receipts = [done.outcome for _, done in self._sent if isinstance(done.outcome, Receipt)]
        return {one.id for one in receipts if (self.topic, one.partition) in places}

    def in_doubt(self) -> int:
        """How many may be stored without a Receipt: each may be there twice."""
        return sum(isinstance(outcome, PublishUnknown) for outcome in self.endings())

    def _submit(self, one: Numbered) -> Confirmation:
        self.notes.note("invoke", one.id, one)
        confirmation = self.orders.submit(one, key=one.key, id=one.id)

        confirmation.add_done_callback(
            lambda done: self.notes.note(ending(done.outcome), one.id, one, why=str(done.outcome))
        )
        return confirmation

    # -- what became of it ---------------------------------------------------------------------

    def histories(self) -> list[list[Entry]]:
        """Ours, and those of all children."""
        return [self.notes.entries, *(child.entries() for child in self.children)]

    def ids(self, *kinds: str) -> set[str]:
        """The messages that have an event of one of these kinds, anywhere."""
        return {
            one.id for history in self.histories() for one in tuple(history) if one.kind in kinds
        }

    def comes_to(self, count: int, *kinds: str, seconds: float = 30.0) -> None:
        """Wait until so many messages have an event of these kinds."""
        until(lambda: len(self.ids(*kinds)) >= count, f"{count} of {kinds}", seconds)

    def state(self, member: int = 0) -> str:
        """How a member says that it is."""
        return self.members[member].health().consumers[0].state

    def why(self, member: int = 0) -> str:
        """What it says is wrong."""
        return self.members[member].health().consumers[0].why

    def happened(self, kind: type[Any]) -> list[Any]:
        """The events of this kind that members told."""
        return [one for one in tuple(self.events) if isinstance(one, kind)]

    def lag(self) -> int:
        """What the group has not finished."""
        return self.operator.lag(self.topic, self.group)

    def committed(self) -> dict[int, tuple[int, str]]:
        """Offset and metadata of each partition."""
        return self.operator._admin.committed(self.topic, self.group)

    def note_dead_letters(self) -> None:
        """Write down what the broker has among the dead letters."""
        for letter in self.producer.dead_letters(self.topic, self.group):
            self.notes.note("dead_letter", letter.message.id, why=letter.reason)

    def finish(self, within: float = 40.0, **options: Any) -> Verdict:
        """Heal; publish again what has no Receipt; let all be handled; stop, and judge."""
        self.restore()
        drained = self.settles(within)
        for member in tuple(self.members):
            self.leave(member)
        return check(self.histories(), drained=drained, **options)

    def settles(self, within: float) -> bool:
        """Whether everything gets a Receipt and an effect in time, and the group has no lag."""
        end = time.monotonic() + within
        left = lambda: max(0.0, end - time.monotonic())  # noqa: E731 - a word for what is left
        try:
            for _, confirmation in self._sent:
                until(confirmation.done, "an ending", left())
            while again := self._without_a_receipt():
                for confirmation in [self._submit(one) for one in again]:
                    until(confirmation.done, "an ending", left())
            ends = ("effect", "dead_letter")
            until(lambda: self.ids("ok") <= self.ids(*ends), "all are handled", left())
            until(lambda: not self.lag(), "the group has no lag", left())
        except AssertionError:
            return False
        return True

    def _without_a_receipt(self) -> list[Numbered]:
        stored = self.notes.ids("ok")
        return [one for one, _ in self._sent if one.id not in stored]


SKIP = object()  # what `handling` returns when there is to be no effect


# -- a member in a process of its own ----------------------------------------------------------


class ChildPlan(msgspec.Struct, kw_only=True):
    """What a child is told.

    hold: "key/seq" of messages whose handlers never end. later: of those whose first run asks for
        another one `after` seconds later, by a copy. forgets: commits say nothing but the offset.
    """

    url: str
    topic: str
    group: str
    history: str
    concurrency: int = 4
    credit: int | None = None
    work: float = 0.0
    hold: tuple[str, ...] = ()
    later: tuple[str, ...] = ()
    after: float = 3.0
    forgets: bool = False


class Child(faults.Child):
    """A member that can be killed. What it did, and said, lies in the folder."""

    def __init__(self, folder: Path, name: str, asks: dict[str, Any]) -> None:
        self.name = name
        self.history, self.log = folder / f"{name}.jsonl", folder / f"{name}.log"
        plan = json.dumps({"history": str(self.history), **asks})
        command = [sys.executable, "-m", "integration.kafka_traffic", plan]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=faults.ROOT, stdout=log, stderr=log)


def be_member(plan: ChildPlan) -> None:
    """The life of a member that is killed, or told to stop."""
    history = History(plan.history)
    pipeline.SHORT_SECONDS = 0.5  # what waits longer is a copy
    if plan.forgets:
        partition.encode = lambda *_: ""
    mq = ReliableMQ(plan.url, limits=Limits(credit=plan.credit))
    mq.topic(plan.topic, groups=(plan.group,))

    @mq.consumer(plan.topic, group=plan.group, concurrency=plan.concurrency)
    def handle(one: Numbered, ctx: Context) -> None:
        history.note("deliver", ctx.id, one, why=f"attempt {ctx.attempt}")
        time.sleep(plan.work)
        name = f"{one.key}/{one.seq}"
        if name in plan.hold:
            threading.Event().wait()
        if name in plan.later and ctx.attempt == 1:
            history.note("retry", ctx.id, one)
            raise Retry("told to", after=plan.after)
        history.note("effect", ctx.id, one)

    mq.run()


# -- the broker, past everything of ours -------------------------------------------------------


def write(broker: Any, topic: str, *records: Any, **config: Any) -> None:
    """Produce these by plain confluent-kafka: keyword arguments of `produce`, or bodies."""
    producer = confluent_kafka.Producer({"bootstrap.servers": broker.bootstrap, **config})
    for record in records:
        producer.produce(topic, **(record if isinstance(record, dict) else {"value": record}))
    assert producer.flush(20.0) == 0


def read(broker: Any, topic: str, count: int, **config: Any) -> list[Any]:
    """The first records of a topic, by plain confluent-kafka."""
    asks = {"group.id": f"plain-{secrets.token_hex(4)}", "enable.auto.commit": False, **config}
    consumer = confluent_kafka.Consumer({"bootstrap.servers": broker.bootstrap, **asks})
    found: list[Any] = []
    try:
        numbers = consumer.list_topics(topic, timeout=10.0).topics[topic].partitions
        consumer.assign([TopicPartition(topic, number, 0) for number in numbers])

        def look() -> bool:
            found.extend(one for one in consumer.consume(100, 0.1) if one.error() is None)
            return len(found) >= count

        until(look, f"{count} records of {topic}")
    finally:
        consumer.close()
    return found


def end_of(broker: Any, topic: str) -> int:
    """The offset behind the last record of the first partition."""
    consumer = confluent_kafka.Consumer({"bootstrap.servers": broker.bootstrap, "group.id": "ends"})
    try:
        return int(consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=10.0)[1])
    finally:
        consumer.close()


def forget(broker: Any, topic: str, offset: int) -> None:
    """Retention takes everything of the first partition below this offset."""
    admin = broker.admin()
    asked = admin.delete_records([TopicPartition(topic, 0, offset)])
    for one in asked.values():
        one.result(10.0)


def removed(broker: Any, *names: str) -> None:
    """Delete all topics whose names begin so."""
    admin = broker.admin()
    with suppress(KafkaException):
        there = admin.list_topics(timeout=5.0).topics
        mine = [name for name in there if name.startswith(names)]
        if mine:
            for one in admin.delete_topics(mine).values():
                one.result(10.0)


def configure_consumers(monkeypatch: Any, **config: Any) -> None:
    """Controls: consumers are configured otherwise; names have _ for dots."""
    original = Config.consumer
    changes = {name.replace("_", "."): value for name, value in config.items()}
    monkeypatch.setattr(Config, "consumer", lambda self, group: original(self, group) | changes)


if __name__ == "__main__":
    be_member(msgspec.json.decode(sys.argv[1], type=ChildPlan))
