"""Who takes part in a group, and until when.

A member has one lease over all it has in hand: one row to renew, whatever its load. `until` is in
seconds since the machine's boot, so a wall clock that jumps ends nothing; a lease of another boot
is over. Whoever polls takes back what a dead member had: in order, counted as redelivered.

The caller is in a transaction, but for `next_end`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from reliable_mq.adapters.sqlite import keys
from reliable_mq.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from reliable_mq.adapters.base import Order
    from reliable_mq.adapters.sqlite.connection import Connection

__all__ = ["bury", "is_alive", "join", "leave", "next_end", "renew"]

#: A lease that ends much further ahead than it is long was given before the clock began again. Not
#: a little: whoever read the time before the renewal was committed must not take it for dead.
DEAD: Final = "(boot <> :boot OR until <= :now OR until > :now + lease + 60)"


def join(
    connection: Connection,
    groups: Iterable[tuple[int, str]],
    order: Order,
    *,
    boot: str,
    now: float,
    lease: float,
) -> int:
    """A new member of these groups (id, and name for the error); returns its id.

    Raises: ConfigurationError where a live member asks for another order: a key would be given to
        one that does not know of keys.
    """
    bury(connection, boot, now)
    member = int(connection.row("SELECT random() & 0x3fffffffffffffff | 1")[0])
    sql = "INSERT INTO mq_member (id, boot, until, lease) VALUES (?, ?, ?, ?)"
    connection.execute(sql, (member, boot, now + lease, lease))
    for grp, name in groups:
        sql = "SELECT mode FROM mq_membership WHERE grp = ? AND mode <> ?"
        if other := connection.row(sql, (grp, order)):
            text = (
                f"group {name!r} has live members with order={other[0]!r}, this one asks for "
                f"{order!r}: use one order for the group, or stop the others first"
            )
            raise ConfigurationError(text)
        connection.execute("INSERT INTO mq_membership VALUES (?, ?, ?)", (grp, member, order))
        if order == "partition":
            sql = "UPDATE mq_group SET active = ? WHERE id = ? AND active IS NULL"
            connection.execute(sql, (member, grp))
    return member


def is_alive(connection: Connection, member: int, boot: str, now: float) -> bool:
    """Whether this member still has what it had."""
    sql = f"SELECT 1 FROM mq_member WHERE id = :member AND NOT {DEAD}"  # noqa: S608 - constants
    parameters = {"member": member, "boot": boot, "now": now}
    return connection.row(sql, parameters) is not None


def renew(connection: Connection, member: int, now: float) -> None:
    """Its leases hold as long as they can from now on."""
    connection.execute("UPDATE mq_member SET until = ? + lease WHERE id = ?", (now, member))


def bury(connection: Connection, boot: str, now: float) -> None:
    """Take back what dead members had."""
    sql = f"SELECT id FROM mq_member WHERE {DEAD}"  # noqa: S608 - constants
    for (member,) in connection.rows(sql, {"boot": boot, "now": now}):
        leave(connection, member, counted=True)


def leave(connection: Connection, member: int, *, counted: bool) -> None:
    """Give back all it has in hand and forget it. `counted`: as redelivered."""
    in_hand = """
        SELECT grp, json_group_array(position) FROM mq_state INDEXED BY mq_in_hand
        WHERE owner = ? AND key IS NOT NULL GROUP BY grp"""
    keyed = connection.rows(in_hand, (member,))
    for grp, positions in keyed:
        keys.hide(connection, grp, positions)
    give_back = """
        UPDATE mq_state INDEXED BY mq_in_hand
        SET owner = NULL, redelivered = redelivered + :counted,
            ready = CASE WHEN key IS NULL THEN 0 END
        WHERE owner = :member"""
    connection.execute(give_back, {"member": member, "counted": int(counted)})
    for grp, positions in keyed:
        keys.free(connection, grp, positions, member)
        keys.show(connection, grp, positions)
    connection.execute("UPDATE mq_group SET active = NULL WHERE active = ?", (member,))
    connection.execute("DELETE FROM mq_member WHERE id = ?", (member,))


def next_end(connection: Connection, member: int, boot: str, now: float) -> float:
    """When another member's lease ends if it is not renewed: monotonic seconds, or infinity."""
    sql = f"""
        SELECT min(CASE WHEN {DEAD} THEN :now ELSE until END) FROM mq_member
        WHERE id <> :member"""  # noqa: S608 - constants
    found = connection.row(sql, {"member": member, "boot": boot, "now": now})[0]
    return float("inf") if found is None else float(found)
