"""Runs a child program again and again, killed at boundary 1, 2, 3 … until it ends unkilled.

Each run is a process of its own with a file of its own, and is followed by the programs that
recover from it. They are forked from this one, which has imported everything and started nothing,
so that a run costs milliseconds. Some go on at once, as they mostly wait for leases to end.
"""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import msgspec

from integration.children.kit import start, tell

#: The module of a program, and its kind of plan.
PROGRAMS = {"producer": "ProducerPlan", "consumer": "ConsumerPlan"}


class Step(msgspec.Struct):
    """A program and its plan; "{here}" stands for the folder of the run."""

    program: str
    plan: dict[str, Any]


class Sweep(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """steps: the first is killed, the others recover. template: the file each run begins with."""

    folder: str
    steps: list[Step]
    template: str = ""
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
            if result.codes == [0]:
                last = min(last, result.at)  # it came through: there is no such boundary
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
        if sweep.template:
            shutil.copy(sweep.template, here / "broker.db")
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        with open(here / f"{number}.log", "wb", buffering=0) as log:  # noqa: PTH123 - a descriptor
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        code = _run(sweep.steps[number], here, result.at if number == 0 else 0)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:  # noqa: BLE001 - a fork must not go on as its parent
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _run(step: Step, here: Path, kill_at: int) -> int:
    module = importlib.import_module(f"integration.children.{step.program}")
    plan = msgspec.json.encode({**step.plan, "kill_at": kill_at})
    filled = plan.replace(b"{here}", str(here).encode())
    return int(
        module.main(msgspec.json.decode(filled, type=getattr(module, PROGRAMS[step.program])))
    )


if __name__ == "__main__":
    for name in PROGRAMS:
        importlib.import_module(f"integration.children.{name}")
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    start(Sweep, main)
