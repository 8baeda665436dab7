"""A process that ends what a test run left behind, also when the run was ended by kill -9.

It reads from a pipe that the run holds open. The end of the pipe is the end of the run: then it
kills every process with one of the marks it was told, removes the folders and runs the commands.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Final

__all__ = ["MARK", "Guard", "guard", "marked"]

#: The variable that marks a process and all that it starts.
MARK: Final = "RELIABLE_MQ_BROKER_MARK"


def marked(mark: str) -> list[int]:
    """The processes that live and carry this mark."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with suppress(OSError):  # ended meanwhile, or somebody else's
                if wanted in _environment(Path(entry.path)):
                    found.append(int(entry.name))
    return found


def _environment(process: Path) -> list[bytes]:
    """The variables of a process. In the middle of an exec there are none for a moment: look again.

    Otherwise a node would be taken for dead while its start script becomes it.
    """
    for _ in range(100):
        if variables := (process / "environ").read_bytes():
            return variables.split(b"\0")
        (process / "exe").readlink()  # OSError: the kernel's own, or dead; they never have any
        time.sleep(0.001)
    return []


class Guard:
    """The run's end of the pipe."""

    def __init__(self) -> None:
        read, self._write = os.pipe()
        with open(read, "rb") as pipe:  # noqa: PTH123 - a descriptor, not a path
            self._process = subprocess.Popen(
                [sys.executable, "-I", __file__],
                stdin=pipe,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C and a closed terminal are not for it
            )

    def watch(self, mark: str) -> None:
        """Kill the processes of this mark at the end."""
        self._tell("mark", mark)

    def remove(self, folder: Path) -> None:
        """Remove this folder at the end."""
        self._tell("folder", str(folder))

    def run(self, command: list[str]) -> None:
        """Run this at the end."""
        self._tell("command", command)

    def _tell(self, kind: str, value: object) -> None:
        os.write(self._write, json.dumps([kind, value]).encode() + b"\n")

    def end(self) -> None:
        """Let it do its work now, and wait for it; in a fork of the run only let go of it."""
        os.close(self._write)
        self._process.wait()  # returns at once in a fork, whose child it is not


@lru_cache(maxsize=1)
def guard() -> Guard:
    """The guard of this process, started when it is first asked for."""
    made = Guard()
    atexit.register(made.end)
    return made


def _main() -> None:
    told: list[tuple[str, object]] = [tuple(json.loads(line)) for line in sys.stdin]
    end = time.monotonic() + 20.0
    while time.monotonic() < end:
        pids = [pid for kind, mark in told if kind == "mark" for pid in marked(str(mark))]
        if not pids:
            break
        for pid in pids:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    for kind, value in told:
        if kind == "folder":
            shutil.rmtree(str(value), ignore_errors=True)
        elif kind == "command" and isinstance(value, list):
            subprocess.run(value, check=False, capture_output=True)


if __name__ == "__main__":
    _main()
