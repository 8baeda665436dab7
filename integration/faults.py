"""Runs of real processes: start them, hurt them, wait for what they say, check what they wrote.

No test sleeps to wait for a state: `until` looks for it again and again and gives up loudly.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from integration.places import OnFile, Place
from reliable_mq.testing.history import Entry, History, Verdict, check, read_history

T = TypeVar("T")

ROOT = Path(__file__).parent.parent
#: The long forms: more kill points, more seeds, longer faults.
LONG = os.environ.get("RELIABLE_MQ_LONG") == "1"
#: Seconds after which a state that does not come counts as not coming.
PATIENCE = 30.0


def brokers(*names: str) -> pytest.MarkDecorator:
    """The test, or all of a file's, on each of these: fixtures of conftest.py, and "sqlite"."""
    every = ("sqlite", "rabbitmq", "kafka")
    return pytest.mark.parametrize("run", names or every, indirect=True)


def until(look: Callable[[], T], what: str, seconds: float = PATIENCE) -> T:
    """The first thing that `look` returns that is true."""
    end = time.monotonic() + seconds
    while not (found := look()):
        if time.monotonic() > end:
            text = f"waited {seconds} s in vain: {what}"
            raise AssertionError(text)
        time.sleep(0.01)
    return found


def promises(verdicts: Iterable[Verdict]) -> set[str]:
    """Which promises were broken in any of these."""
    return {one.split(":")[0] for verdict in verdicts for one in verdict.broken}


def need(available: object, what: str) -> None:
    """Skip, loudly, for want of something; in CI that is a failure."""
    if available:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI=true, and yet there is no {what}")
    pytest.skip(f"NOT TESTED: there is no {what}")


def strace() -> str:
    """The program that makes system calls fail, or skip."""
    path = shutil.which("strace")
    works = (
        path
        and not subprocess.run(
            [path, "-f", "-e", "trace=none", "true"], capture_output=True, check=False
        ).returncode
    )
    need(works, "strace that may trace (a system call cannot be made to fail)")
    return str(path)


def is_whole(path: Path) -> bool:
    """What SQLite's own check of the file says."""
    file = sqlite3.connect(path)
    try:
        return file.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    except sqlite3.DatabaseError:
        return False
    finally:
        file.close()


class Child:
    """A child program, started to be hurt. Everything it says lies in its folder."""

    def __init__(self, run: Run, program: str, name: str, plan: dict[str, Any], wrap: list[str]):
        self.name = name
        self.history = run.folder / f"{name}.jsonl"
        self.state_file = run.folder / f"{name}.state"
        self.log = run.folder / f"{name}.log"
        plan = {"history": str(self.history), **run.place.plan(), **plan}
        if program == "consumer":
            plan.setdefault("state", str(self.state_file))
        command = [sys.executable, "-m", f"integration.children.{program}", json.dumps(plan)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*wrap, *command], cwd=ROOT, stdout=log, stderr=log, start_new_session=True
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def entries(self, *kinds: str) -> list[Entry]:
        """What it has written down so far, of these kinds or all."""
        if not self.history.exists():
            return []
        return [one for one in read_history(self.history) if not kinds or one.kind in kinds]

    def state(self) -> dict[str, Any]:
        """Its health, as it last said."""
        return json.loads(self.state_file.read_bytes()) if self.state_file.exists() else {}

    def comes_to(self, count: int, *kinds: str, seconds: float = PATIENCE) -> list[Entry]:
        """Wait until it has written down so many of these kinds."""

        def look() -> list[Entry] | None:
            found = self.entries(*kinds)
            if len(found) < count and self.process.poll() is not None:
                text = f"{self.name} ended with {self.process.returncode}: {self.said()}"
                raise AssertionError(text)
            return found if len(found) >= count else None

        return until(look, f"{self.name} has {count} {kinds}: {self.said()}", seconds) or []

    def comes_to_say(self, text: str) -> None:
        """Wait until it has printed this."""
        until(lambda: text in self.said(), f"{self.name} says {text!r}")

    def ends_well(self, seconds: float = PATIENCE) -> int:
        """Its exit code after SIGTERM."""
        self.signal(signal.SIGTERM)
        return self.ends(seconds)

    def said(self) -> str:
        """The end of what it printed."""
        return self.log.read_text(errors="replace")[-2_000:]

    def tells(self) -> str:
        """What its history counts, its health, and the end of what it printed."""
        counts = Counter(one.kind for one in self.entries())
        return f"{self.process.poll()} {dict(counts)} {self.state()}\n{self.said()}"

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """End it by kill -9; does nothing where it has ended."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """SIGSTOP, and wait until it stands."""
        self.signal(signal.SIGSTOP)
        self.stands()

    def stands(self) -> None:
        """Wait until it is stopped, by whomever."""
        stat = Path(f"/proc/{self.pid}/stat")
        until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", f"{self.name} stands")

    def go_on(self) -> None:
        """SIGCONT."""
        self.signal(signal.SIGCONT)

    def ends(self, seconds: float = PATIENCE) -> int:
        """Its exit code, which has to come in time; where it hangs, it says where."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGABRT)  # faulthandler writes the stack of each thread
            self.process.wait()
            raise AssertionError(f"{self.name} did not end in {seconds} s: {self.said()}") from None


class Run:
    """The processes of one test, the place between them, and what they wrote."""

    def __init__(self, folder: Path, place: Place | None = None) -> None:
        self.folder = folder
        self.place = place or OnFile(folder / "broker.db")
        self.children: list[Child] = []
        self._own: list[Path] = []

    @property
    def path(self) -> Path:
        """The broker's file, of a test that is about a broker in a file."""
        assert isinstance(self.place, OnFile)
        return self.place.path

    def own_history(self, name: str) -> History:
        """A history of what the test itself does."""
        self._own.append(self.folder / f"{name}.jsonl")
        return History(self._own[-1])

    def spawn(self, program: str, *, wrap: Iterable[str] = (), **plan: Any) -> Child:
        """Start a child program; `wrap`: a command to run it under."""
        name = f"{program}-{len(self.children)}"
        child = Child(self, program, name, plan, list(wrap))
        self.children.append(child)
        return child

    def publish(self, **plan: Any) -> Child:
        """Publish, and wait for the end of it."""
        child = self.spawn("producer", **plan)
        assert child.ends() == 0, child.said()
        return child

    def drain(self, **plan: Any) -> bool:
        """Let one more consumer finish what is left; whether it could."""
        child = self.spawn("consumer", **plan)
        code = child.ends(plan.get("within", 25.0) + 15.0)
        assert code in (0, 3, 5), child.said()
        return code == 0

    def lag(self) -> int:
        """What the group has not finished."""
        return self.place.lag()

    def verdict(self, *, drained: bool = True, of: Iterable[Child] = (), **options: Any) -> Verdict:
        """What the histories of all children, or of these, say."""
        histories = [child.entries() for child in of or self.children]
        histories += [read_history(path) for path in self._own if not of]
        return check(histories, drained=drained, **options)

    def sweep(self, *steps: tuple[str, dict[str, Any]], **options: Any) -> list[Killed]:
        """A program killed at each of its boundaries: what became of each run."""
        listed = []
        for number, (program, plan) in enumerate(steps):
            own = {"too_long": 40.0, "history": f"{{here}}/{number}.jsonl"}
            own |= self.place.plan_of_each()
            listed.append({"program": program, "plan": {**own, **plan}})
        folder = self.folder / "sweep"
        folder.mkdir()
        sweep = {"folder": str(folder), "steps": listed, **options}
        command = [sys.executable, "-m", "integration.children.sweep", json.dumps(sweep)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False, timeout=600)
        assert done.returncode == 0, done.stderr.decode()
        results = json.loads((folder / "results.json").read_bytes())
        self.place.was_swept([one["at"] for one in results])
        runs = [Killed(folder / str(one["at"]), one["at"], one["codes"]) for one in results]
        for killed in runs:
            assert set(killed.codes) <= {0, 3, 5, -signal.SIGKILL}, killed
        return runs

    def forget(self) -> None:
        """Begin anew, with no messages and no history."""
        self.end()
        self.children.clear()
        self._own.clear()
        for path in self.folder.iterdir():
            if path.is_file():
                path.unlink()
        self.place.renew()

    def end(self) -> None:
        """Kill what still runs."""
        for child in self.children:
            child.kill()


class Killed:
    """One run of a sweep."""

    def __init__(self, folder: Path, at: int, codes: list[int]) -> None:
        self.folder = folder
        self.at = at
        self.codes = codes
        self.histories = [read_history(path) for path in sorted(folder.glob("*.jsonl"))]

    def __repr__(self) -> str:
        """The boundary in words, and what each of its programs said."""
        logs = [path.read_text(errors="replace") for path in sorted(self.folder.glob("*.log"))]
        return f"<{self.at}, ended {self.codes}: {' | '.join(logs)}>"

    def ids(self, kind: str) -> set[str]:
        """What its histories tell of this kind."""
        return {one.id for history in self.histories for one in history if one.kind == kind}

    def verdict(self, **options: Any) -> Verdict:
        """What its histories say; drained is what its last program says."""
        return check(self.histories, drained=self.codes[-1] == 0, **options)
