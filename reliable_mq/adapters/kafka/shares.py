"""How many records of each partition are handed out next.

Those that have more left get more, so that all end together: with equal shares the keys of a small
partition would be done first, and in the end few keys would have all the work. A quarter of an
equal share is everybody's: what has just come does not wait behind a backlog. What a share has over
or under a whole record is kept for the next time, as in deficit round robin (Shreedhar and
Varghese, 1995).
"""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reliable_mq.adapters.kafka.partition import Partition

__all__ = ["share"]

#: The part of an equal share that each has at least.
LEAST: Final = 0.25


def share(partitions: Sequence[Partition], room: int) -> list[tuple[Partition, int]]:
    """How many of the inbox of each of these, all together as many as there is room for."""
    if len(partitions) == 1:
        return [(partitions[0], min(room, len(partitions[0].inbox)))]
    left = [one.left for one in partitions]
    least = LEAST * sum(left) / (len(left) or 1)
    weights = [max(one, least) for one in left]
    scale = room / (sum(weights) or 1)
    for partition, weight in zip(partitions, weights, strict=True):
        partition.owed += weight * scale
    amounts = dict.fromkeys(partitions, 0)
    for owed in (True, False):  # what nobody is owed goes to whoever has some
        for one in sorted(partitions, key=attrgetter("owed"), reverse=True):
            amount = min(room, len(one.inbox) - amounts[one], round(one.owed) if owed else room)
            if amount > 0:
                room -= amount
                one.owed -= amount
                amounts[one] += amount
    for one in partitions:  # what could not be given is not owed for ever
        one.owed = max(-1.0, min(1.0, one.owed))
    return [(one, amount) for one, amount in amounts.items() if amount]
