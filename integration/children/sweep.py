"""Runs a child program again and again, killed at boundary 1, 2, 3 … until it ends unkilled.

Each run has a topic, or a file, of its own. Programs before the one that is killed prepare it,
those behind recover from it. They are forked from this process, which has imported everything and
started nothing, so that a run costs milliseconds. Some go on at once, as they mostly wait.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import msgspec

from integration.children.kit import broker_of, start, tell

#: The module of a program, and its kind of plan.
PROGRAMS = {"producer": "ProducerPlan", "consumer": "ConsumerPlan"}


class Step(msgspec.Struct):
    """A program and its plan; "{here}" is the folder of the run, "{at}" its number."""

    program: str
    plan: dict[str, Any]


class Sweep(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """steps: the programs of each run, one behind the other. killed: which of them, from 0."""

    folder: str
    steps: list[Step]
    killed: int = 0
    first: int = 1
    stride: int = 1
    most: int = 10_000
    at_once: int = 6


class Result(msgspec.Struct):
    """at: the boundary. codes: how each step ended; -9 is kill -9."""

    at: int
    codes: list[int]


def main(sweep: Sweep) -> int:
    """Go through all boundaries; writes results.json."""
    for step in sweep.steps:
        broker_of(step.plan["url"])
    results: list[Result] = []
    running: dict[int, Result] = {}
    at, last = sweep.first, sweep.most
    while at <= last or running:
        while at <= last and len(running) < sweep.at_once:
            result = Result(at, [])
            running[_fork(sweep, result)] = result
            at += sweep.stride
        pid, status = os.wait()
        result = running.pop(pid)
        result.codes.append(os.waitstatus_to_exitcode(status))
        if len(result.codes) < len(sweep.steps):
            running[_fork(sweep, result)] = result
            if len(result.codes) == sweep.killed + 1 and result.codes[-1] != -signal.SIGKILL:
                last = min(last, result.at)  # it came through, or fails by itself: no such boundary
            continue
        results.append(result)
    results.sort(key=lambda one: one.at)
    tell(f"{sweep.folder}/results.json", results)
    return 0


def _fork(sweep: Sweep, result: Result) -> int:
    here = Path(sweep.folder, str(result.at))
    number = len(result.codes)
    if number == 0:
        here.mkdir()
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        with open(here / f"{number}.log", "wb", buffering=0) as log:  # noqa: PTH123 - a descriptor
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        code = _run(sweep.steps[number], here, result.at, kill=number == sweep.killed)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:  # noqa: BLE001 - a fork must not go on as its parent
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _run(step: Step, here: Path, at: int, *, kill: bool) -> int:
    module = importlib.import_module(f"integration.children.{step.program}")
    plan = msgspec.json.encode({**step.plan, "kill_at": at if kill else 0})
    filled = plan.replace(b"{here}", str(here).encode()).replace(b"{at}", str(at).encode())
    return int(
        module.main(msgspec.json.decode(filled, type=getattr(module, PROGRAMS[step.program])))
    )


if __name__ == "__main__":
    for name in PROGRAMS:
        importlib.import_module(f"integration.children.{name}")
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    start(Sweep, main)
