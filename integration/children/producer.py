"""Publishes numbered messages and writes down how each ended.

A restart with the same numbers publishes again, with the same ids, what `earlier` histories do not
show as confirmed.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import msgspec

from integration.children.kit import Plan, World, start
from reliable_mq import PublishError, ReliableMQError
from reliable_mq.testing.history import Numbered, ending, read_history


class ProducerPlan(Plan, kw_only=True):
    """keys: each gets the numbers 0 to count - 1. how: one by one, or all on their way at once.

    end: "stop", or "kill", without a goodbye. wait_for: a file beside its history, whose coming
        lets it begin when all is declared already.
    orders: what a message tells its handler to do, by "key/seq". size: characters that fill it up.
    """

    run: str = "run"
    producer: str = "p"
    keys: tuple[str | None, ...] = ("a", "b")
    count: int = 3
    how: str = "publish"
    size: int = 0
    orders: dict[str, str] = msgspec.field(default_factory=dict)
    earlier: tuple[str, ...] = ()
    timeout: float | None = None
    end: str = "stop"
    wait_for: str = ""


def main(plan: ProducerPlan) -> int:
    """Publish all; 0, whatever became of each."""
    world = World(plan)
    confirmed = {
        entry.id
        for path in plan.earlier
        if Path(path).exists()
        for entry in read_history(path)
        if entry.kind == "ok"
    }
    todo = [one for one in workload(plan) if one.id not in confirmed]
    if plan.wait_for:
        _wait(world, plan)
    if plan.how == "publish":
        _publish(world, todo, plan)
    else:
        _submit(world, todo, plan)
    if plan.end == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    world.mq.stop()
    return 0


def workload(plan: ProducerPlan) -> list[Numbered]:
    """Its messages, in the order in which they are published."""
    return [
        Numbered(
            plan.run,
            plan.producer,
            key,
            seq,
            plan.orders.get(f"{key}/{seq}", "") + " " * plan.size,
        ).sealed()
        for seq in range(plan.count)
        for key in plan.keys
    ]


def _wait(world: World, plan: ProducerPlan) -> None:
    world.mq.start(consume=False)
    print(f"waits for {plan.wait_for}", flush=True)
    file = Path(plan.history).parent / plan.wait_for
    while not file.exists():
        time.sleep(0.01)


def _publish(world: World, todo: list[Numbered], plan: ProducerPlan) -> None:
    for one in todo:
        world.history.note("invoke", one.id, one)
        world.boundaries.cross("before publish")
        why = ""
        try:
            outcome = ending(
                world.orders.publish(one, key=one.key, id=one.id, timeout=plan.timeout)
            )
        except PublishError as error:
            outcome, why = ending(error), f"{type(error).__name__}: {error}"
        except ReliableMQError as error:  # no broker: it was never handed in
            outcome, why = "failed", f"{type(error).__name__}: {error}"
        world.boundaries.cross("behind publish")
        world.history.note(outcome, one.id, one, why=why)


def _submit(world: World, todo: list[Numbered], plan: ProducerPlan) -> None:
    confirmations = []
    for one in todo:
        world.history.note("invoke", one.id, one)
        confirmation = world.orders.submit(one, key=one.key, id=one.id, timeout=plan.timeout)
        # On the publisher's thread, when it ends: what a deadline is measured by.
        confirmation.add_done_callback(
            lambda ended, one=one: world.history.note(
                ending(ended.outcome), one.id, one, why=_why(ended.outcome)
            )
        )
        confirmations.append(confirmation)
    for confirmation in confirmations:
        with suppress(PublishError):  # its callback has written it down
            confirmation.result(plan.publish_timeout + 30.0)


def _why(outcome: object) -> str:
    return f"{type(outcome).__name__}: {outcome}" if isinstance(outcome, PublishError) else ""


if __name__ == "__main__":
    start(ProducerPlan, main)
