"""A broker that somebody else runs: it can be used, and cut off by a `Proxy`, but not hurt."""

from __future__ import annotations

from typing import ClassVar

from reliable_mq.testing.brokers.base import Broker, Missing

__all__ = ["Running"]


class Running(Broker):
    """The broker at a URL that the environment gives."""

    controlled = False

    #: The variable that holds its URL.
    variable: ClassVar[str]

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url

    @property
    def url(self) -> str:
        """Where it is."""
        return self._url

    def start(self) -> None:
        """Wait until it serves."""
        self.wait_ready(10.0)

    def stop(self) -> None:
        """Refused."""
        self._refuse()

    def kill(self) -> None:
        """Refused."""
        self._refuse()

    def pause(self) -> None:
        """Refused."""
        self._refuse()

    def resume(self) -> None:
        """Nothing to do: it was never paused."""

    def log(self, lines: int = 30) -> str:
        """Nothing: its log is where it runs."""
        return ""

    def close(self) -> None:
        """Leave it alone."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"  # its URL may hold a password

    def _refuse(self) -> None:
        msg = (
            f"a broker given by {self.variable} is not ours to stop or to ask; "
            "unset it to have one of our own, or put a Proxy in front of it"
        )
        raise Missing(msg)
