"""A local program and everything that it starts, found again by a mark in their environment.

A process group or a session is not enough: the Erlang VM starts its helpers in sessions of their
own, and what is killed leaves orphans. The environment is inherited by all of them.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from reliable_mq.testing.brokers.base import BrokerFailed, until
from reliable_mq.testing.brokers.guard import MARK, guard, marked

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["Processes"]

#: Seconds until a signal has shown. The kernel takes milliseconds; a core dump may take longer.
PATIENCE: Final = 20.0


class Processes:
    """The processes of one mark. `keep`: they outlive this process, as a daemon's do."""

    def __init__(self, *, mark: str = "", keep: bool = False) -> None:
        self.mark = mark or secrets.token_hex(16)
        self._keep = keep
        self._children: list[subprocess.Popen[bytes]] = []

    def spawn(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> int:
        """Start a program; its output is appended to `log`. Returns its process id."""
        if not self._keep:
            guard().watch(self.mark)
        with log.open("ab") as output:
            child = subprocess.Popen(
                command,
                env={**environment, MARK: self.mark},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=log.parent,
                start_new_session=True,
            )
        self._children.append(child)
        return child.pid

    def pids(self) -> list[int]:
        """Who of them lives now."""
        self._children = [child for child in self._children if child.poll() is None]
        return sorted({*marked(self.mark), *(child.pid for child in self._children)})

    def named(self, name: str) -> list[int]:
        """Who of them runs this program."""
        return [pid for pid in self.pids() if _stat(pid)[0] == name]

    def signal(self, number: signal.Signals, name: str = "") -> None:
        """Send a signal to all of them, or to those that run one program."""
        for pid in self.named(name) if name else self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def pause(self) -> None:
        """SIGSTOP to all of them; returns when each stands still."""

        def stand() -> bool:
            self.signal(signal.SIGSTOP)  # again and again: one may have started another
            states = {_stat(pid)[1] for pid in self.pids()}
            if "D" in states:
                self.signal(signal.SIGCONT)  # a vfork: it waits for a child that stands still, too
            return states <= set("TtZX")

        self._wait(stand, "stand still")

    def resume(self) -> None:
        """SIGCONT to all of them."""
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL to all of them; returns when none is left."""

        def gone() -> bool:
            self.signal(signal.SIGKILL)
            return not self.pids()

        self._wait(gone, "end by SIGKILL")

    def ended(self, within: float) -> bool:
        """Wait until none is left; whether that came in time."""
        return until(lambda: not self.pids(), within)

    def _wait(self, look: Callable[[], bool], what: str) -> None:
        if not until(look, PATIENCE, every=0.01):
            msg = f"processes {self.pids()} did not {what} within {PATIENCE} s"
            raise BrokerFailed(msg)


def _stat(pid: int) -> tuple[str, str]:
    """Name and state of a process; a process that is gone counts as dead."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return "", "X"
    name, _, rest = text.partition("(")[2].rpartition(")")
    return name, rest.split()[0]
