"""Free ports for brokers, each given once.

They lie below the range of outgoing connections: there a client's own socket may take the port of a
broker that is down for a moment, and the broker could not come back.
"""

from __future__ import annotations

import fcntl
import os
import random
import socket
import tempfile
from pathlib import Path
from typing import Final

__all__ = ["free_port"]

PORTS: Final = range(20_000, 30_000)

_locks: list[int] = []  # open files: each keeps its port from other test runs until we end


def free_port(*preferred: int) -> int:
    """A port of 127.0.0.1 that is free, and that no other process is given while this one lives."""
    for _ in range(200):
        for port in (*preferred, random.choice(PORTS)):
            if _is_free(port) and _reserve(port):
                return port
    msg = f"no free port between {PORTS.start} and {PORTS.stop - 1} in 200 tries"
    raise OSError(msg)


def _is_free(port: int) -> bool:
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _reserve(port: int) -> bool:
    folder = Path(tempfile.gettempdir()) / f"reliable-mq-ports-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    lock = os.open(folder / str(port), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return False
    _locks.append(lock)
    return True
