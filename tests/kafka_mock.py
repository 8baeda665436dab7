"""A Kafka cluster in memory that fails when it is told to: librdkafka's own, from its wheel.

    with MockCluster() as cluster:
        cluster.create("orders", partitions=1)
        cluster.fail("Produce", KafkaError.NOT_ENOUGH_REPLICAS, times=3)
        transport = KafkaTransport(cluster.url)

It stores, and it has groups. It has no sequences, no retention, no rights, no transactions.
"""

from __future__ import annotations

import ctypes
import time
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any, Final

import confluent_kafka
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition

from reliable_mq.adapters.base import Subscribe
from reliable_mq.adapters.kafka import KafkaTransport
from reliable_mq.message import Message, Receipt, Topic
from tests.waiting import eventually

__all__ = ["APIS", "CLOSE", "NEVER", "OPTIONS", "WITHIN", "Desk", "MockCluster", "Rig", "ending"]

#: Requests by name, as the protocol numbers them.
APIS: Final = {
    "Produce": 0,
    "Fetch": 1,
    "ListOffsets": 2,
    "Metadata": 3,
    "OffsetCommit": 8,
    "OffsetFetch": 9,
    "FindCoordinator": 10,
    "JoinGroup": 11,
    "Heartbeat": 12,
    "LeaveGroup": 13,
    "SyncGroup": 14,
    "InitProducerId": 22,
}
#: As an error of `fail`: the connection is closed instead of an answer.
CLOSE: Final = KafkaError._TRANSPORT
PRODUCER: Final = 0
#: Seconds in which a publish ends in any case.
WITHIN: Final = 8.0
QUIET: Final = {"enable.auto.commit": False, "log_level": 2}
POINTER, TEXT = ctypes.c_void_p, ctypes.c_char_p
INT, SHORT, LONG, SIZE = ctypes.c_int, ctypes.c_int16, ctypes.c_int64, ctypes.c_size_t

#: Functions of librdkafka: what each returns, and takes.
FUNCTIONS: Final[dict[str, tuple[Any, ...]]] = {
    "new": (POINTER, INT, POINTER, TEXT, SIZE),
    "destroy": (None, POINTER),
    "conf_new": (POINTER,),
    "conf_set": (INT, POINTER, TEXT, TEXT, TEXT, SIZE),
    "mock_cluster_new": (POINTER, POINTER, INT),
    "mock_cluster_destroy": (None, POINTER),
    "mock_cluster_bootstraps": (TEXT, POINTER),
    "mock_group_initial_rebalance_delay_ms": (None, POINTER, ctypes.c_int32),
    "mock_topic_create": (INT, POINTER, TEXT, INT, INT),
    "mock_topic_delete": (INT, POINTER, TEXT),
    "mock_topic_set_error": (None, POINTER, TEXT, INT),
    "mock_partition_delete_records": (INT, POINTER, TEXT, ctypes.c_int32, LONG),
    "mock_partition_set_leader": (INT, POINTER, TEXT, ctypes.c_int32, ctypes.c_int32),
    "mock_push_request_errors_array": (None, POINTER, SHORT, SIZE, POINTER),
    "mock_broker_push_request_error_rtts": (INT, POINTER, ctypes.c_int32, SHORT, SIZE, INT, INT),
    "mock_clear_request_errors": (None, POINTER, SHORT),
    "mock_broker_set_down": (INT, POINTER, ctypes.c_int32),
    "mock_broker_set_up": (INT, POINTER, ctypes.c_int32),
    "mock_broker_set_rtt": (INT, POINTER, ctypes.c_int32, INT),
    "mock_set_controller_id": (None, POINTER, ctypes.c_int32),
    "mock_coordinator_set": (INT, POINTER, TEXT, TEXT, ctypes.c_int32),
    "mock_start_request_tracking": (None, POINTER),
    "mock_get_requests": (POINTER, POINTER, POINTER),
    "mock_request_api_key": (SHORT, POINTER),
    "mock_request_destroy_array": (None, POINTER, SIZE),
}


@cache
def library() -> Any:
    """The librdkafka that confluent_kafka has loaded, with the types of its functions."""
    beside = Path(confluent_kafka.__file__).resolve().parent.parent / "confluent_kafka.libs"
    (path,) = beside.glob("librdkafka-*.so*")
    found = ctypes.CDLL(str(path))
    for name, (returns, *takes) in FUNCTIONS.items():
        function = getattr(found, f"rd_kafka_{name}")
        function.restype, function.argtypes = returns, takes
    return found


class MockCluster:
    """Brokers 1 to `brokers` in this process, until `close`. Any thread.

    Args:
        topics: Made at once, with one partition each.
    """

    def __init__(self, *topics: str, brokers: int = 1) -> None:
        said = ctypes.create_string_buffer(512)
        conf = self._call("conf_new")
        self._call("conf_set", conf, b"log_level", b"2", said, len(said))
        self._client = self._call("new", PRODUCER, conf, said, len(said))
        assert self._client, said.value
        self._cluster = self._call("mock_cluster_new", self._client, brokers)
        self._brokers = range(1, brokers + 1)
        self._call("mock_group_initial_rebalance_delay_ms", self._cluster, 0)
        self._call("mock_set_controller_id", self._cluster, 1)  # what describes topics looks for it
        self._call("mock_start_request_tracking", self._cluster)
        self.servers: str = self._call("mock_cluster_bootstraps", self._cluster).decode()
        for topic in topics:
            self.create(topic)

    @property
    def url(self) -> str:
        """To connect to all of its brokers."""
        return f"kafka://{self.servers}"

    def create(self, topic: str, partitions: int = 1) -> None:
        """Make a topic."""
        self._tell("topic_create", topic.encode(), partitions, len(self._brokers))

    def delete(self, topic: str) -> None:
        """Delete a topic, with what groups have committed of it."""
        self._tell("topic_delete", topic.encode())

    def fail_topic(self, topic: str, code: int) -> None:
        """Whoever asks about this topic is told this error, from now on; 0 for none."""
        self._call("mock_topic_set_error", self._cluster, topic.encode(), code)

    def trim(self, topic: str, before: int, partition: int = 0) -> None:
        """Delete what lies before an offset, as retention does."""
        self._tell("partition_delete_records", topic.encode(), partition, before)

    def lead(self, topic: str, broker: int, partition: int = 0) -> None:
        """Another broker leads a partition; -1 for none."""
        self._tell("partition_set_leader", topic.encode(), partition, broker)

    def fail(self, api: str, *codes: int, times: int = 1) -> None:
        """The next requests of this kind end with these errors, 0 for none, so many times over."""
        errors = (INT * (len(codes) * times))(*codes * times)
        self._call("mock_push_request_errors_array", self._cluster, APIS[api], len(errors), errors)

    def delay(self, api: str, seconds: float) -> None:
        """The next request of this kind, at each broker, is answered so late."""
        for broker in self._brokers:
            milliseconds = int(seconds * 1000)
            self._tell("broker_push_request_error_rtts", broker, APIS[api], 1, 0, milliseconds)

    def heal(self, api: str) -> None:
        """Forget the errors that are left."""
        self._call("mock_clear_request_errors", self._cluster, APIS[api])

    def down(self, *brokers: int) -> None:
        """These, or all, close their connections and take none."""
        for broker in brokers or self._brokers:
            self._tell("broker_set_down", broker)

    def up(self, *brokers: int) -> None:
        """They take connections again."""
        for broker in brokers or self._brokers:
            self._tell("broker_set_up", broker)

    def slow(self, seconds: float) -> None:
        """So long for each answer, from now on."""
        for broker in self._brokers:
            self._tell("broker_set_rtt", broker, int(seconds * 1000))

    def coordinate(self, group: str, broker: int) -> None:
        """Another broker is the coordinator of a group."""
        self._tell("coordinator_set", b"group", group.encode(), broker)

    def requests(self) -> Counter[str]:
        """How many requests of each kind came."""
        count = SIZE()
        found = self._call("mock_get_requests", self._cluster, ctypes.byref(count))
        array = ctypes.cast(found, ctypes.POINTER(POINTER))
        keys = [self._call("mock_request_api_key", array[at]) for at in range(count.value)]
        self._call("mock_request_destroy_array", found, count.value)
        names = {number: name for name, number in APIS.items()}
        return Counter(names.get(key, str(key)) for key in keys)

    def fill(self, topic: str, count: int, partition: int = 0, key: str | None = "k") -> None:
        """Store so many records, as another program would."""
        producer = Producer({"bootstrap.servers": self.servers, "log_level": 2})
        for number in range(count):
            producer.produce(topic, str(number), key, partition)
        assert producer.flush(10.0) == 0

    def records(self, topic: str, partitions: int = 1) -> list[Any]:
        """All that lies in a topic, partition by partition."""
        # No member of any group.
        consumer = Consumer({"bootstrap.servers": self.servers, "group.id": "-"} | QUIET)
        try:
            places = [TopicPartition(topic, number, 0) for number in range(partitions)]
            ends = {}
            for place in places:
                low, high = consumer.get_watermark_offsets(place, timeout=10.0, cached=False)
                place.offset, ends[place.partition] = low, high - low
            consumer.assign(places)
            found: list[Any] = []
            while len(found) < sum(ends.values()):
                record = consumer.poll(10.0)
                assert record is not None
                assert record.error() is None, record.error()
                found.append(record)
            return sorted(found, key=lambda one: (one.partition(), one.offset()))
        finally:
            consumer.close()

    def committed(self, group: str, topic: str, partition: int = 0) -> TopicPartition:
        """What a group has committed."""
        consumer = Consumer({"bootstrap.servers": self.servers, "group.id": group} | QUIET)
        try:
            return consumer.committed([TopicPartition(topic, partition)], timeout=10.0)[0]
        finally:
            consumer.close()

    def close(self) -> None:
        """Everything is gone. Idempotent; clients are closed before."""
        if self._cluster:
            self._call("mock_cluster_destroy", self._cluster)
            self._call("destroy", self._client)
            self._cluster = None

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _tell(self, name: str, *arguments: Any) -> None:
        code = self._call(f"mock_{name}", self._cluster, *arguments)
        assert code == 0, f"{name}: {KafkaError(code)}"

    @staticmethod
    def _call(name: str, *arguments: Any) -> Any:
        return getattr(library(), f"rd_kafka_{name}")(*arguments)


def ending(confirmation):
    """How it ended."""
    eventually(confirmation.done, "an ending")
    return confirmation.outcome


class Desk:
    """Publishers to a cluster with the topic "t"."""

    def __init__(self):
        self.cluster = MockCluster("t")
        self.publishers = []
        #: What each submit gave, by id.
        self.sent = {}

    def open(self, options="", *, one_by_one=False):
        """A new publisher.

        one_by_one: the cluster knows no sequences, and would store what follows a request that
        failed, where a broker refuses it: only one is on its way.
        """
        transport = KafkaTransport(self.cluster.url + options)
        if one_by_one:
            config = transport._config.producer() | {"max.in.flight": 1}
            transport._config.producer = lambda: config
        self.publishers.append(transport.publisher())
        return self.publishers[-1]

    def submit(self, publisher, id, *, key=b"k", topic="t", within=WITHIN):
        """Hand one in."""
        message = Message(id, topic, key, b"body of " + id.encode(), created_at=1.0)
        deadline = time.monotonic() + within
        self.sent[id] = publisher.submit(message, Topic(), deadline=deadline)
        return self.sent[id]

    def warm(self, options="", *, one_by_one=False):
        """A publisher that knows its topic and has a connection."""
        publisher = self.open(options, one_by_one=one_by_one)
        assert isinstance(ending(self.submit(publisher, "0")), Receipt)
        return publisher

    def stored(self):
        """The ids that lie in the topic."""
        return [dict(one.headers())["rmq-id"].decode() for one in self.cluster.records("t")]

    def close(self):
        """All of it."""
        for publisher in self.publishers:
            publisher.close(0.0)
        for confirmation in self.sent.values():
            confirmation.outcome  # noqa: B018 - seen
        self.cluster.close()


#: Members come together in `session_timeout` less a second.
OPTIONS = "?session_timeout=1.5&commit_interval=0.02&drain_timeout=0.5"
NEVER = OPTIONS.replace("0.02", "600")


class Rig:
    """Members of groups; they are polled in turns, on this thread."""

    def __init__(self, *topics, brokers=1, partitions=1):
        self.cluster = MockCluster(brokers=brokers)
        for topic in topics:
            self.cluster.create(topic, partitions)
        self.members = []
        self.revoked = []

    def join(self, *topics, options=OPTIONS, on_revoke=None):
        """Another member of "g"; returns when it has work."""
        member = self.another(*topics, options=options, on_revoke=on_revoke)
        eventually(lambda: self.turn() is None and not member.standby, "an assignment")
        return member

    def another(self, *topics, options=OPTIONS, on_revoke=None):
        """One that is on its way."""
        # librdkafka loses two seconds where the coordinator is found before all else is.
        self.cluster.delay("FindCoordinator", 0.03)

        def revoke(leases, deadline):
            self.revoked.append(leases)
            return on_revoke(leases) if on_revoke else None

        asks = Subscribe(topics=topics or ("t",), group="g")
        member = KafkaTransport(self.cluster.url + options).subscribe(asks, revoke)
        member.got, member.settled, member.lost = [], [], []
        self.members.append(member)
        return member

    def turn(self, limit=0):
        """Each is polled once; what comes is kept."""
        for member in self.members:
            polled = member.poll(limit, 0.01)
            member.got += polled.deliveries
            member.settled += polled.settled
            member.lost += polled.lost

    def take(self, member, count):
        """So many deliveries, from now on."""
        first = len(member.got)
        eventually(lambda: self.turn(100) or len(member.got) - first >= count, f"{count} more")
        return member.got[first:]

    def settle(self, member, deliveries):
        """They are done, and the broker knows."""
        member.ack(deliveries)
        leases = {one.lease for one in deliveries}
        eventually(lambda: self.turn() or leases <= set(member.settled), "the settlement")

    def committed(self, topic="t", number=0):
        """The offset."""
        return self.cluster.committed("g", topic, number).offset

    def leave(self, member):
        """In order."""
        self.members.remove(member)
        member.close()

    def close(self):
        """All of it."""
        for member in self.members:
            member.close()
        self.cluster.close()
