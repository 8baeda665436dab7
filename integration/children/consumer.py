"""Handles numbered messages, does what they say, and writes down what it did."""

from __future__ import annotations

import asyncio
import ctypes
import os
import resource
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from integration.children.kit import Plan, World, start, tell
from reliable_mq import Context, Reject, Retry, RetryPolicy
from reliable_mq.testing.history import Numbered


class ConsumerPlan(Plan, kw_only=True):
    """until: "drained" (then it writes the dead letters down), or "signal".

    within: seconds for draining. work: seconds between the arrival in the handler and the effect.
    hold: a file whose coming lets handlers go on. state: a file that tells how it is doing.
    heed_loss: wait for the loss of the lease, and then do nothing. cured: do not do what messages
    say.
    """

    concurrency: int = 4
    handler: str = "def"
    until: str = "drained"
    within: float = 25.0
    order_by: str = "key"
    attempts: int = 3
    backoff: float = 0.01
    work: float = 0.0
    hold: str = ""
    timeout: float | None = None
    max_stuck: int = 4
    drain: float = 25.0
    state: str = ""
    heed_loss: bool = False
    cured: bool = False


def main(plan: ConsumerPlan) -> int:
    """0: drained, or stopped with nothing left undone."""
    world = World(plan)
    declare(world, plan)
    if plan.state:
        threading.Thread(target=_report, args=(world, plan), daemon=True).start()
    if plan.until == "signal":
        world.mq.run(drain=plan.drain)
        return 0
    drained = drain(world, plan)
    write_dead_letters(world)
    for id in world.broker.waiting_copies():
        world.history.note("kept", id)
    return 0 if drained else 3


def drain(world: World, plan: ConsumerPlan) -> bool:
    """Whether the group had nothing left to do in time, and nothing was abandoned."""
    end = time.monotonic() + plan.within
    while True:
        world.mq.start()
        done = _seems_done(world, end)
        undone = world.mq.stop(plan.drain)
        if undone or not done or not world.broker.left():
            return done and not undone
        if time.monotonic() > end:
            return False
        # Some of it was on its way to us when we looked: once more.
        world.begin()
        declare(world, plan)


def _seems_done(world: World, end: float) -> bool:
    while not world.broker.seems_done(world.mq.health()):
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def declare(world: World, plan: ConsumerPlan) -> None:
    """The handler, as `def` or as `async def`."""
    options: dict[str, Any] = {
        "group": plan.group,
        "concurrency": plan.concurrency,
        "order_by": plan.order_by,
        "retry": RetryPolicy(plan.attempts, backoff=plan.backoff, jitter=False),
        "timeout": plan.timeout,
        "max_stuck": plan.max_stuck,
    }
    if plan.handler == "def":

        @world.mq.consumer(world.orders, **options)
        def handle(one: Numbered, ctx: Context) -> None:
            _arrived(world, one, ctx)
            if one.filler.startswith("hang") and not plan.cured:
                threading.Event().wait()
            time.sleep(plan.work)
            while plan.hold and not Path(plan.hold).exists():
                time.sleep(0.01)
            if plan.heed_loss and _is_lost(ctx, plan.within):
                world.history.note("retry", ctx.id, one, why="lost")
                return
            if not plan.cured:
                _obey(world, one, ctx)
            _took_effect(world, one, ctx)

    else:

        @world.mq.consumer(world.orders, **options)
        async def handle_async(one: Numbered, ctx: Context) -> None:
            _arrived(world, one, ctx)
            if one.filler.startswith("hang") and not plan.cured:
                await asyncio.Event().wait()
            await asyncio.sleep(plan.work)
            if not plan.cured:
                _obey(world, one, ctx)
            _took_effect(world, one, ctx)


def _arrived(world: World, one: Numbered, ctx: Context) -> None:
    world.boundaries.cross("deliver")
    world.history.note("deliver", ctx.id, one, why=f"attempt {ctx.attempt}")
    if not one.whole() or one.id != ctx.id:
        world.history.note("damaged", ctx.id, one)


def _is_lost(ctx: Context, seconds: float) -> bool:
    """Whether the lease is lost, now or within so many seconds."""
    end = time.monotonic() + seconds
    while not ctx.lost():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def _obey(world: World, one: Numbered, ctx: Context) -> None:
    """What the message says shall happen before its effect."""
    order = one.filler.strip()
    if order == "raise" or (order == "flaky" and ctx.attempt == 1):
        text = f"{order}, as {one.id} says"
        raise OSError(text)
    if order == "no files":
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
        world.history.note("retry", ctx.id, one, why="no file is left")
        Path("/dev/null").open("rb")  # noqa: SIM115 - it is the opening that fails
    if order == "reject":
        raise Reject("told to")
    if order == "later" and ctx.attempt == 1:
        raise Retry("told to", after=31.0)  # longer than 30 s: a copy goes through the broker
    if order == "abort":
        os.abort()
    if order == "segfault":
        ctypes.string_at(0)


def _took_effect(world: World, one: Numbered, ctx: Context) -> None:
    world.boundaries.cross("before effect")
    world.history.note("effect", ctx.id, one)
    world.boundaries.cross("behind effect")


def write_dead_letters(world: World) -> None:
    """Each as an event, with its reason."""
    for letter in world.mq.dead_letters(world.plan.topic, world.plan.group):
        world.history.note("dead_letter", letter.message.id, why=letter.reason)


def _report(world: World, plan: ConsumerPlan) -> None:
    while True:
        with suppress(OSError):  # as where it may open no more files
            tell(plan.state, world.mq.health())
        time.sleep(0.02)


if __name__ == "__main__":
    start(ConsumerPlan, main)
