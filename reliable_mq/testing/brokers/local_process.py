"""One broker as a local program: its folder, its ports, its log, and the faults of its processes.

What it is lies in its folder: made again there, it is the same broker, on the same ports.
"""

from __future__ import annotations

import abc
import json
import secrets
import shutil
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

from reliable_mq.testing.brokers.base import Broker
from reliable_mq.testing.brokers.guard import guard
from reliable_mq.testing.brokers.ports import free_port
from reliable_mq.testing.brokers.processes import Processes

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["PLAN", "LocalProcess", "new_folder"]

#: Seconds that a graceful stop gets before it counts as one that hangs.
STOPS_WITHIN: Final = 60.0

#: The file in the folder that keeps the ports and the marks.
PLAN: Final = "node.json"


def new_folder(kind: str) -> Path:
    """A folder for the data of a broker or a cluster."""
    return Path(tempfile.mkdtemp(prefix=f"reliable-mq-{kind}-"))


class LocalProcess(Broker):
    """A node. `keep` lets it outlive this Python; `port` is its own, where clients come.

    `more_ports` and `more_marks` name what it needs beside that port and the mark of its processes.
    """

    #: The program that ends gracefully on SIGTERM, as /proc names it.
    program: ClassVar[str]

    def __init__(
        self,
        folder: Path,
        *,
        name: str,
        more_ports: Sequence[str] = (),
        more_marks: Sequence[str] = (),
        prefer_port: int = 0,
        keep: bool = False,
    ) -> None:
        super().__init__(keep=keep)
        self.folder = folder
        self.name = name
        if not keep:
            guard().remove(folder)
        self._plan = _plan(folder, more_ports, ("mark", *more_marks), prefer_port)
        self.port = int(self._plan["port"])
        self._processes = Processes(mark=str(self._plan["mark"]), keep=keep)

    @abc.abstractmethod
    def begin(self) -> None:
        """Start it without waiting: nodes of one cluster may need each other to become ready."""

    # -- the fault interface -------------------------------------------------------------------

    def start(self) -> None:
        """Start it, or start it again; ready when this returns."""
        self.begin()
        self.resume()
        self.wait_ready()

    def stop(self) -> None:
        """End it as `systemctl stop` does."""
        self.resume()
        self._processes.signal(signal.SIGTERM, self.program)
        if not self._processes.ended(STOPS_WITHIN):
            self._failed(f"did not stop within {STOPS_WITHIN} s", None)

    def kill(self) -> None:
        """Kill -9 the node and its helpers."""
        self._processes.kill()

    def pause(self) -> None:
        """SIGSTOP the node and its helpers."""
        self._processes.pause()

    def resume(self) -> None:
        """SIGCONT them."""
        self._processes.resume()

    def alive(self) -> bool:
        """Whether any process of it is there."""
        return bool(self._processes.pids())

    def close(self) -> None:
        """Kill it and remove its folder."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def log_file(self) -> Path:
        """Where all that it says is kept."""
        return self.folder / "node.log"

    def log(self, lines: int = 30) -> str:
        """The end of its log."""
        if not self.log_file.exists():
            return ""
        return "\n".join(self.log_file.read_text(errors="replace").splitlines()[-lines:])


def _plan(
    folder: Path, ports: Sequence[str], marks: Sequence[str], prefer: int
) -> dict[str, str | int]:
    """Ports and marks, as they were chosen when the folder was new."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / PLAN
    if file.exists():
        kept: dict[str, str | int] = json.loads(file.read_bytes())
        return kept
    plan: dict[str, str | int] = {"port": free_port(prefer) if prefer else free_port()}
    plan |= {name: free_port() for name in ports}
    plan |= {name: secrets.token_hex(16) for name in marks}
    file.write_text(json.dumps(plan))
    return plan
