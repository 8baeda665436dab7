"""RabbitMQ as a local process, from Debian's package `rabbitmq-server`.

Nothing of the machine's own RabbitMQ is touched or used: ports, data, cookie, logs, configuration
and the Erlang port mapper are ours, everything listens on 127.0.0.1, and any user may run it.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Final

from reliable_mq.testing.brokers.base import BrokerFailed, Missing, until
from reliable_mq.testing.brokers.local_process import LocalProcess, new_folder
from reliable_mq.testing.brokers.ports import free_port
from reliable_mq.testing.brokers.processes import Processes
from reliable_mq.testing.brokers.rabbitmq import RabbitMQ

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reliable_mq.testing.brokers.certificates import Certificates

__all__ = ["ErlangHome", "RabbitMQProcess", "check_installed", "is_installed"]

#: The real scripts: what lies in /usr/sbin wants su, and the user `rabbitmq`.
SCRIPTS: Final = Path("/usr/lib/rabbitmq/bin")

#: No busy waiting: idle schedulers would take the time of everything else on a small machine. What
#: a queue cannot dead-letter at once, as while others come back, waits for 5 s and not for 3 min.
ERLANG: Final = (
    "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none "
    "-kernel inet_dist_use_interface {127,0,0,1} "
    "-rabbit dead_letter_worker_publisher_confirm_timeout 5000"
)

SETTINGS: Final = {
    "disk_free_limit.absolute": "200MB",
    "vm_memory_high_watermark.absolute": "512MB",
    "log.console.level": "info",
}


def is_installed() -> bool:
    """Whether the package, and what it needs, is there."""
    return (SCRIPTS / "rabbitmq-server").exists() and all(map(shutil.which, ("epmd", "erl")))


def check_installed() -> None:
    """Raise `Missing`, with the remedy, where it is not installed."""
    if not is_installed():
        msg = (
            "RabbitMQ is not installed on this machine: as root, "
            "`apt-get install --no-install-recommends rabbitmq-server` "
            "(or RELIABLE_MQ_BROKERS=containers, or RELIABLE_MQ_RABBITMQ_URL=amqp://…)"
        )
        raise Missing(msg)


class ErlangHome:
    """What Erlang nodes that know each other share: a cookie, and a port mapper of their own."""

    def __init__(self, folder: Path, *, keep: bool = False, mark: str = "", port: int = 0) -> None:
        self.folder = folder
        self.port = port or free_port()
        self.processes = Processes(mark=mark, keep=keep)

    def environment(self) -> dict[str, str]:
        """The variables of every program in it; none of the machine's own RabbitMQ gets in."""
        foreign = ("RABBITMQ_", "ERL_", "NOTIFY_SOCKET", "RUNNING_UNDER_SYSTEMD")
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
        return inherited | {
            "HOME": str(self.folder),
            "ERL_EPMD_PORT": str(self.port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "LC_ALL": "C.UTF-8",
            "RUNNING_UNDER_SYSTEMD": "true",  # the script execs the node: our child, ours to reap
            "RABBITMQ_CONF_ENV_FILE": str(self.folder / "no-environment"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.folder / "no-advanced-config"),
            "RABBITMQ_CTL_DIST_PORT_MIN": "30000",
            "RABBITMQ_CTL_DIST_PORT_MAX": "32767",
        }

    def start(self) -> None:
        """Start the port mapper, if it does not run."""
        self.folder.mkdir(parents=True, exist_ok=True)
        cookie = self.folder / ".erlang.cookie"
        if not cookie.exists():
            cookie.touch(mode=0o600)
            cookie.write_text(secrets.token_hex(16))
            cookie.chmod(0o400)
        if not self.processes.pids():
            command = ["epmd", "-port", str(self.port), "-address", "127.0.0.1"]
            self.processes.spawn(command, self.environment(), self.folder / "epmd.log")
        if not until(self._answers, 20.0, every=0.01):
            msg = f"the Erlang port mapper does not answer on port {self.port}"
            raise BrokerFailed(msg)

    def close(self) -> None:
        """End the port mapper."""
        self.processes.kill()

    def _answers(self) -> bool:
        try:
            with closing(socket.create_connection(("127.0.0.1", self.port), 1.0)):
                return True
        except OSError:
            return False


class RabbitMQProcess(LocalProcess, RabbitMQ):
    """One node. What it is lies in its folder: made again there, it is the same broker.

    `settings` are lines of rabbitmq.conf; `certificates` add a listener at `tls_url`; `keep` lets
    it outlive this Python; `home` is given to the nodes of a cluster.
    """

    program = "beam.smp"

    def __init__(
        self,
        folder: Path | None = None,
        *,
        name: str = "rmq1",
        settings: Mapping[str, str] | None = None,
        certificates: Certificates | None = None,
        home: ErlangHome | None = None,
        prefer_port: int = 0,
        keep: bool = False,
    ) -> None:
        check_installed()
        super().__init__(
            folder or new_folder("rabbitmq"),
            name=f"{name}@localhost",
            more_ports=("tls_port", "distribution", "epmd"),
            more_marks=("epmd_mark",),
            prefer_port=prefer_port,
            keep=keep,
        )
        self._settings = dict(settings or {})
        self._certificates = certificates
        plan = self._plan
        self.tls_port = int(plan["tls_port"])
        self._distribution = int(plan["distribution"])
        self._own_home = home is None
        self._home = home or ErlangHome(
            self.folder / "home", keep=keep, mark=str(plan["epmd_mark"]), port=int(plan["epmd"])
        )

    # -- the fault interface -------------------------------------------------------------------

    @property
    def url(self) -> str:
        """Its address, as `guest`, who may do everything from this machine."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    @property
    def tls_url(self) -> str:
        """Its address with TLS, by the name that its certificate holds."""
        if self._certificates is None:
            msg = f"{self!r} was made without certificates"
            raise ValueError(msg)
        return f"amqps://guest:guest@localhost:{self.tls_port}/"

    def begin(self) -> None:
        """Start it without waiting: nodes of one cluster may need each other to become ready."""
        if self._processes.pids():
            return
        self._home.start()
        self._write_configuration()
        command = [str(SCRIPTS / "rabbitmq-server")]
        self._processes.spawn(command, self._environment(), self.log_file)

    def close(self) -> None:
        """Kill it and remove its folder."""
        self.kill()
        if self._own_home:
            self._home.close()
        super().close()

    # -- what is RabbitMQ's own ----------------------------------------------------------------

    def ctl(self, *arguments: str, within: float = 60.0) -> str:
        """What rabbitmqctl prints; takes a second or two, as it is an Erlang node, too."""
        command = [str(SCRIPTS / "rabbitmqctl"), "-q", "-n", self.name, *arguments]
        try:
            done = subprocess.run(
                command,
                env=self._environment(),
                capture_output=True,
                check=False,
                timeout=within,
                cwd=self.folder,
            )
        except subprocess.TimeoutExpired as error:
            msg = f"rabbitmqctl {' '.join(arguments)} did not end within {within} s"
            raise BrokerFailed(msg) from error
        if done.returncode:
            said = (done.stdout + done.stderr).decode(errors="replace").strip()
            msg = f"rabbitmqctl {' '.join(arguments)} ended with {done.returncode}: {said}"
            raise BrokerFailed(msg)
        return done.stdout.decode()

    def trust(self, certificates: Certificates) -> None:
        """Exchange the certificates under a running node: new connections get the new ones."""
        self._certificates = certificates
        self._write_configuration()
        self.eval("ssl:clear_pem_cache().")

    # -- what it is made of --------------------------------------------------------------------

    def _environment(self) -> dict[str, str]:
        return self._home.environment() | {
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_DIST_PORT": str(self._distribution),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_PID_FILE": str(self.folder / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": ERLANG,
        }

    def _write_configuration(self) -> None:
        lines = {"listeners.tcp.1": f"127.0.0.1:{self.port}"} | SETTINGS
        if self._certificates is not None:
            kept = self._certificates.copy_to(self.folder / "tls")
            lines |= {
                "listeners.ssl.1": f"127.0.0.1:{self.tls_port}",
                "ssl_options.cacertfile": str(kept.authority),
                "ssl_options.certfile": str(kept.certificate),
                "ssl_options.keyfile": str(kept.key),
            }
        lines |= self._settings
        text = "".join(f"{key} = {value}\n" for key, value in lines.items())
        (self.folder / "rabbitmq.conf").write_text(text)
        (self.folder / "enabled_plugins").write_text("[].\n")
