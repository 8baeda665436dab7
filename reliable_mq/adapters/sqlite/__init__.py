"""The durable embedded broker: one SQLite file, any number of threads and processes, no server.

    ordered      by key, over all members: who has any message of a key in hand gets the next, too
    members      processes on one machine; a killed one loses its leases after `lease_timeout`
    delays       kept in the file: RetryCopy, `not_before` and `nack`, attempts too; a delayed
                 message takes no place among those of its key until it is due
    retains      yes: `retention` seconds, and whatever a group still needs; a topic without a group
                 keeps everything
    starts       earliest, latest, time (by `created_at`), offset
    revokes      no: a member keeps what it has as long as it polls
    durable      a Receipt means that the disk has it (WAL, synchronous=FULL)
    max_body     4 MiB; max_hold: none; lease_timeout: 30 s (the first and the last can be set)
    dead letters browse, discard; they are a topic like any other, too, and stay until discarded
    foreign      any program may publish with SQL: see `schema`; ids are derived from the position
    optional     DeadLetterStore, Lag

The file has to be on a local disk: SQLite's locks do not work on network file systems.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from reliable_mq.adapters.base import Capabilities
from reliable_mq.adapters.sqlite import operations
from reliable_mq.adapters.sqlite.bell import Bell
from reliable_mq.adapters.sqlite.broker import Broker
from reliable_mq.adapters.sqlite.connection import boot_id as this_boot
from reliable_mq.adapters.sqlite.publisher import SqlitePublisher
from reliable_mq.adapters.sqlite.subscription import SqliteSubscription
from reliable_mq.adapters.sqlite.topology import check, create
from reliable_mq.clock import SYSTEM_CLOCK
from reliable_mq.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from reliable_mq.adapters.base import OnRevoke, StoredMessage, Subscribe, Topology
    from reliable_mq.adapters.sqlite.connection import Connect, Connection
    from reliable_mq.clock import Clock

__all__ = ["SqlitePublisher", "SqliteSubscription", "SqliteTransport"]

#: Seconds that declaring and discarding wait for the lock of another process.
PATIENCE: Final = 10.0
#: What SQLite stores at most in one row, less what a dead letter needs beyond the body.
LARGEST_BODY: Final = 999_000_000


class SqliteTransport:
    """Transport, DeadLetterStore and Lag. Any thread; constructing it opens nothing.

    Args:
        path: The file; its directory has to exist. It is made when it is missing.
        clock: What leases, delays and deadlines are measured with.
        connect: What opens the file; a test hands in connections that fail.
        lease_timeout: Seconds a member may go without a poll before others get what it has.
        retention: Seconds that a message stays after every group has finished it.
        max_body: Bytes of the largest body.
        boot_id: What tells this boot of the machine from others; None: as the system says.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        clock: Clock = SYSTEM_CLOCK,
        connect: Connect = sqlite3.connect,
        lease_timeout: float = 30.0,
        retention: float = 86400.0,
        max_body: int = 4 * 1024 * 1024,
        boot_id: str | None = None,
    ) -> None:
        name = os.fspath(path)
        if not name or ":memory:" in name:
            text = f"{name!r} is no file: for a broker without one use memory://"
            raise ConfigurationError(text)
        if lease_timeout <= 0 or retention < 0 or not 0 < max_body <= LARGEST_BODY:
            text = (
                f"lease_timeout={lease_timeout!r} has to be above 0, retention={retention!r} not "
                f"below 0, max_body={max_body!r} from 1 to {LARGEST_BODY}"
            )
            raise ConfigurationError(text)
        self.capabilities = Capabilities(
            name="sqlite",
            key_order="key",
            durable=True,
            durable_delay=True,
            durable_attempts=True,
            retains=True,
            revokes=False,
            members=True,
            starts=frozenset({"earliest", "latest", "time", "offset"}),
            lease_timeout=lease_timeout,
            max_hold=None,
            max_body=max_body,
            tombstones=True,
        )
        self._broker = Broker(
            path=os.path.abspath(name),  # noqa: PTH100 - as SQLite takes it; fixed against chdir
            clock=clock,
            connect=connect,
            lease_timeout=lease_timeout,
            retention=retention,
            max_body=max_body,
            boot_id=this_boot() if boot_id is None else boot_id,
            bell=Bell(),
        )

    def ensure(self, topology: Topology) -> None:
        """See Transport.ensure."""
        with self._opened() as connection:
            if topology.mode == "check":
                check(connection, topology)
            else:
                create(connection, topology, PATIENCE)

    def publisher(self) -> SqlitePublisher:
        """See Transport.publisher."""
        return SqlitePublisher(self._broker)

    def subscribe(self, subscribe: Subscribe, on_revoke: OnRevoke) -> SqliteSubscription:
        """See Transport.subscribe; `on_revoke` is never called."""
        return SqliteSubscription(self._broker, subscribe)

    def close(self) -> None:
        """Nothing is shared: every publisher and subscription has a connection of its own."""

    def browse(self, topic: str, group: str, limit: int) -> Iterator[StoredMessage]:
        """See DeadLetterStore.browse."""
        with self._opened() as connection:
            yield from operations.browse(connection, topic, group, limit)

    def discard(self, topic: str, group: str, positions: Sequence[int | str]) -> int:
        """See DeadLetterStore.discard."""
        with self._opened() as connection:
            return operations.discard(connection, topic, group, positions, PATIENCE)

    def lag(self, topic: str, group: str) -> int:
        """See Lag.lag."""
        with self._opened() as connection:
            return operations.lag(connection, topic, group)

    def damaged(self, topic: str, group: str) -> list[int]:
        """Positions of messages that are damaged and will not be delivered to this group."""
        with self._opened() as connection:
            return operations.damaged(connection, topic, group)

    @contextmanager
    def _opened(self) -> Iterator[Connection]:
        connection = self._broker.connection()
        try:
            yield connection
        finally:
            connection.drop()
