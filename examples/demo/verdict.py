"""Compares what was promised with what happened.

The histories of all processes decide, not the counters of the library: they were on the disk before
anything else went on.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from msgspec import Struct

from reliable_mq.testing.history import Verdict, check

if TYPE_CHECKING:
    from collections.abc import Iterator

    from examples.demo.stage import Stage

#: Seconds within which a publish has to have an answer: the app's publish_timeout, and some.
PUBLISH_SECONDS = 15.0


class Judgement(Struct, frozen=True):
    """What came out. `broken` is empty when every promise was kept."""

    facts: Verdict
    redelivered: int
    retries: int
    killed_with: tuple[int, ...]
    invoices: int
    broken: tuple[str, ...]


def judge(stage: Stage) -> Judgement:
    """Read the histories, and compare."""
    histories = stage.histories()
    facts = check(
        histories,
        drained=stage.complete,
        poison={one.id: one.reason for one in stage.planned if one.reason},
        deadline=PUBLISH_SECONDS,
    )
    retries = Counter(one.id for all_ in histories for one in all_ if one.kind == "retry")
    again = facts.duplicate_deliveries
    return Judgement(
        facts,
        redelivered=sum(max(0, count - retries[id]) for id, count in again.items()),
        retries=sum(retries.values()),
        killed_with=tuple(stage.killed_with),
        invoices=len(stage.invoices),
        broken=(*facts.broken, *_stories(stage), *_invoices(stage, facts), *_processes(stage)),
    )


def _stories(stage: Stage) -> Iterator[str]:
    """A dead letter tells why, and after how many runs."""
    for one in stage.planned:
        letter = stage.letters.get(one.id)
        if letter is None or not one.reason:
            continue  # the history has seen that
        if letter.attempts != one.attempts:
            yield f"{one.id}: a dead letter after {letter.attempts} runs, not {one.attempts}"
        if not letter.error or len(letter.history) < one.attempts:
            yield f"{one.id}: its dead letter does not tell its story: {letter.error!r}"
        if letter.message.key != one.order.customer.encode():
            yield f"{one.id}: its dead letter has the key {letter.message.key!r}"


def _invoices(stage: Stage, facts: Verdict) -> Iterator[str]:
    """Each billed order has one invoice, and no other order has any; they are in order, too."""
    billed = {one.id for one in stage.planned if one.id in stage.effects}
    missing = billed - set(stage.invoices)
    if missing:
        yield f"invoices: {len(missing)} billed orders have none, {sorted(missing)[:3]}"
    surplus = set(stage.invoices) - billed
    if surplus:
        yield f"invoices: {len(surplus)} without a billed order, {sorted(surplus)[:3]}"
    twice = [order for order, ids in stage.invoices.items() if len(ids) > 1]
    if twice:
        yield f"invoices: {len(twice)} orders have two different ones, {twice[:3]}"
    if facts.effects != len(billed):
        yield f"effects: {facts.effects} in the histories, {len(billed)} seen while it ran"
    last: dict[str, int] = {}
    for invoice in stage.invoiced:
        if invoice.seq < last.get(invoice.customer, -1):
            yield f"invoices: order {invoice.order} of {invoice.customer} is out of order"
        last[invoice.customer] = invoice.seq


def _processes(stage: Stage) -> Iterator[str]:
    """The demo did what it says, and whoever was not killed ended well."""
    if len(stage.killed_with) < 2:
        yield f"only {len(stage.killed_with)} of 2 kills came about"
    if any(stage.exit_codes):
        yield f"the consumers were stopped and ended with {stage.exit_codes}, not with 0"
