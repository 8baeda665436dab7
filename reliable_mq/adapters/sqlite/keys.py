"""Which message of a key may be given out next.

The invariant: of the messages of one key that wait (nobody's, not delayed), the one with the lowest
position is `ready`: for the member that has the key in hand, or for any (0). No other is. So a
fetch finds each key once, whatever lies behind its first message, and never finds the keys of
others.

Every change goes in three steps, in one transaction: `hide` the first messages of the keys
concerned, change what waits, `show` the first ones. Keys are named by positions of messages that
have them, as a JSON list: one statement for all, because each statement gives up the interpreter
lock, and takes it back behind the handlers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from reliable_mq.adapters.sqlite.connection import Connection

__all__ = ["as_list", "claim", "free", "hide", "show"]

#: The rows of the positions that are listed.
LISTED: Final = "grp = :grp AND position IN (SELECT value FROM json_each(:positions))"
KEYS: Final = f"SELECT DISTINCT key FROM mq_state WHERE {LISTED} AND key IS NOT NULL"  # noqa: S608 - constants
#: The first waiting message of each key that is listed.
FIRST: Final = f"""
    grp = :grp AND position IN (
        SELECT (
            SELECT w.position FROM mq_state AS w INDEXED BY mq_waiting
            WHERE w.grp = :grp AND w.key = k.key AND w.owner IS NULL AND w.due IS NULL
            ORDER BY w.position LIMIT 1
        ) FROM ({KEYS}) AS k
    )"""  # noqa: S608 - constants
HIDE: Final = f"UPDATE mq_state SET ready = NULL WHERE {FIRST}"  # noqa: S608 - constants
SHOW: Final = f"""
    UPDATE mq_state SET ready = coalesce(
        (SELECT l.owner FROM mq_key_lease AS l WHERE l.grp = :grp AND l.key = mq_state.key), 0
    ) WHERE {FIRST}"""  # noqa: S608 - constants
CLAIM: Final = f"""
    INSERT OR IGNORE INTO mq_key_lease (grp, key, owner)
    SELECT :grp, key, :member FROM ({KEYS}) AS k"""  # noqa: S608 - constants
OPEN_TO_ALL: Final = f"""
    UPDATE mq_state INDEXED BY mq_ready SET ready = 0
    WHERE grp = :grp AND ready = :member AND key IN ({KEYS})"""  # noqa: S608 - constants
FREE: Final = f"""
    DELETE FROM mq_key_lease WHERE grp = :grp AND owner = :member AND key IN ({KEYS})"""  # noqa: S608 - constants


def as_list(positions: Iterable[int]) -> str:
    """Positions as the JSON list that these statements take."""
    return f"[{','.join(map(str, positions))}]"


def hide(connection: Connection, grp: int, positions: str) -> None:
    """Before what waits of these keys changes."""
    connection.execute(HIDE, {"grp": grp, "positions": positions})


def show(connection: Connection, grp: int, positions: str) -> None:
    """After what waits of these keys has changed."""
    connection.execute(SHOW, {"grp": grp, "positions": positions})


def claim(connection: Connection, grp: int, positions: str, member: int) -> None:
    """These keys are this member's until `free`. Only those that nobody else has may be claimed."""
    connection.execute(CLAIM, {"grp": grp, "positions": positions, "member": member})


def free(connection: Connection, grp: int, positions: str, member: int) -> None:
    """The member has nothing of these keys in hand any more: whoever comes first gets them."""
    parameters = {"grp": grp, "positions": positions, "member": member}
    connection.execute(OPEN_TO_ALL, parameters)
    connection.execute(FREE, parameters)
