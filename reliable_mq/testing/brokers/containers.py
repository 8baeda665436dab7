"""Containers by testcontainers-python: the engine, the image, and the faults that docker can do.

Ports are fixed, as a random one would change when a container starts again; readiness is asked of
the broker's own client, as docker's proxy accepts connections before anybody listens behind it.
"""

from __future__ import annotations

import abc
import gc
import os
import secrets
import sys
import warnings
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Final

from reliable_mq.testing.brokers.base import Broker, Missing
from reliable_mq.testing.brokers.guard import guard
from reliable_mq.testing.brokers.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testcontainers.core.container import DockerContainer

__all__ = ["LABEL", "Container", "check_engine", "image_of"]

#: Every container of ours carries it: `docker ps --filter label=reliable-mq.run`.
LABEL: Final = "reliable-mq.run"

RUN: Final = secrets.token_hex(8)

REMOVE: Final = """
import sys, docker
for one in docker.from_env().containers.list(all=True, filters={"label": sys.argv[1]}):
    one.remove(force=True, v=True)
"""


def check_engine() -> None:
    """Raise `Missing` where no container can run."""
    if missing := _what_is_missing():
        raise Missing(missing)


@lru_cache(maxsize=1)
def _what_is_missing() -> str:
    """Asked once, also when the answer is bad: an engine that hangs takes 5 s."""
    try:
        import docker
        import testcontainers.core.container  # noqa: F401 - whether it is there
    except ImportError as error:
        return f"{error.name} is missing: pip install 'reliable-mq[testing]'"
    # docker-py leaves the socket of a refused connection to the garbage collector, whose warning
    # would fail a test run that takes warnings for errors.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        reason = _ask_engine(docker)
        gc.collect()
    if reason:
        return f"no container engine answers ({reason}): start docker, or set DOCKER_HOST"
    guard().run([sys.executable, "-c", REMOVE, f"{LABEL}={RUN}"])
    return ""


def _ask_engine(docker: Any) -> str:
    try:
        client = docker.from_env(timeout=5)
        try:
            client.ping()
        finally:
            client.close()
    except docker.errors.DockerException as error:
        return str(error) or type(error).__name__
    return ""


def image_of(broker: str, public: str) -> str:
    """The image of a broker: what RELIABLE_MQ_<BROKER>_IMAGE names, else the public one."""
    return os.environ.get(f"RELIABLE_MQ_{broker.upper()}_IMAGE") or public


@contextmanager
def _without_cleaner() -> Iterator[None]:
    """The cleaner of testcontainers is one more image to pull; here the guard removes everything.

    It is switched off for our containers only: what else the test run starts by testcontainers is
    none of our business.
    """
    from testcontainers.core.config import testcontainers_config as config

    before, config.ryuk_disabled = config.ryuk_disabled, True
    try:
        yield
    finally:
        config.ryuk_disabled = before


class Container(Broker):
    """A broker in a container; subclasses say which image, and how a client sees it ready."""

    #: Where it listens inside; 0 is the same port as outside.
    inner_port: ClassVar[int] = 0

    def __init__(self, image: str) -> None:
        check_engine()
        super().__init__()
        self.image = image
        self.port = free_port()
        self._made: DockerContainer | None = None

    @abc.abstractmethod
    def configure(self, container: DockerContainer) -> None:
        """Give it environment and command, before it is made."""

    # -- the fault interface -------------------------------------------------------------------

    def start(self) -> None:
        """Make it, or start it again: same port, same data."""
        if self._made is None:
            self._make()
        elif not self.alive():
            self._docker.start()
        self.resume()
        self.wait_ready()

    def stop(self) -> None:
        """`docker stop`: SIGTERM, and a minute to end."""
        if self.alive():
            self.resume()
            self._docker.stop(timeout=60)

    def kill(self) -> None:
        """SIGKILL to its first process, which takes all others of it along."""
        if self.alive():
            self.resume()  # the kernel kills what is frozen only after it has thawed
            self._docker.kill("SIGKILL")
            self._docker.wait(timeout=30)

    def pause(self) -> None:
        """Freeze all of it."""
        if self._status() == "running":
            self._docker.pause()

    def resume(self) -> None:
        """Let it go on."""
        if self._status() == "paused":
            self._docker.unpause()

    def alive(self) -> bool:
        """Whether it runs, or stands paused."""
        return self._status() in ("running", "paused")

    def log(self, lines: int = 30) -> str:
        """The last lines of its output."""
        if self._made is None:
            return ""
        return str(self._docker.logs(tail=lines).decode(errors="replace"))

    def close(self) -> None:
        """Remove it with its data."""
        made, self._made = self._made, None
        if made is not None:
            made.stop(force=True, delete_volume=True)

    # -- what it is made of --------------------------------------------------------------------

    @property
    def _docker(self) -> Any:
        """The container as docker's own library knows it."""
        assert self._made is not None
        return self._made.get_wrapped_container()

    def execute(self, *command: str) -> tuple[int, str]:
        """Run a command inside: its exit code, and what it printed."""
        done = self._docker.exec_run(list(command))
        return int(done.exit_code), str(done.output.decode(errors="replace"))

    def _status(self) -> str:
        if self._made is None:
            return ""
        self._docker.reload()
        return str(self._docker.status)

    def _make(self) -> None:
        from docker.errors import APIError, ImageNotFound

        for last in (False, False, True):
            made = self._new()
            try:
                with _without_cleaner():
                    made.start()
            except (APIError, ImageNotFound) as error:
                made.stop()
                taken = "already in use" in str(error) or "already allocated" in str(error)
                if taken and not last:
                    self.port = free_port()
                    continue
                msg = (
                    f"the container image {self.image!r} could not be started ({error}). Images "
                    "are pulled where a registry can be reached; otherwise build one, and name it "
                    "by RELIABLE_MQ_<BROKER>_IMAGE"
                )
                raise Missing(msg) from error
            self._made = made
            return

    def _new(self) -> DockerContainer:
        from testcontainers.core.container import DockerContainer

        made = DockerContainer(self.image)
        ports: dict[str, Any] = made.ports  # typed for a number; docker also takes an address
        ports[f"{self.inner_port or self.port}/tcp"] = ("127.0.0.1", self.port)
        made.with_kwargs(labels={LABEL: RUN})
        self.configure(made)
        return made
