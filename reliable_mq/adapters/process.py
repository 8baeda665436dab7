"""Whether this is still the process that made something: threads do not come along with a fork.

`os.getpid` would tell, too, by a call of the system for each message.
"""

from __future__ import annotations

import os

__all__ = ["HERE"]


class _Process:
    __slots__ = ("forks",)

    def __init__(self) -> None:
        self.forks = 0

    def count(self) -> None:
        """In the child."""
        self.forks += 1


#: `forks` is another number in the child of a fork than in its parent.
HERE = _Process()

if hasattr(os, "register_at_fork"):  # pragma: no branch - all but Windows
    os.register_at_fork(after_in_child=HERE.count)
