"""Jars of a broker, fetched once by Maven into `.cache` of the working directory, and a Java."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from reliable_mq.testing.brokers.base import Missing

__all__ = ["JAVA", "Jars", "forget", "java"]

#: The first Java that runs all of these brokers.
JAVA: Final = 17

#: Seconds that Maven gets: a hundred megabytes, by a line that may be slow.
FETCHES_WITHIN: Final = 240.0


@lru_cache(maxsize=1)
def _found() -> tuple[str, str]:
    """The Java of JAVA_HOME, else of PATH, and its version; empty where none is new enough."""
    home = os.environ.get("JAVA_HOME")
    found = shutil.which("java", path=f"{home}/bin") if home else shutil.which("java")
    if found is None:
        return "", ""
    said = subprocess.run([found, "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "((\d+)[\w.+-]*)', said)
    return (found, version[1]) if version and int(version[2]) >= JAVA else ("", "")


def java() -> str:
    """The Java that runs brokers; empty where there is none. Asked once."""
    return _found()[0]


def forget() -> None:
    """Look for Java again: JAVA_HOME or PATH is another one."""
    _found.cache_clear()


@dataclass(frozen=True)
class Jars:
    """What one version of a broker is made of, and where it lies. Any thread or process may ask."""

    #: As its own project writes it.
    title: str
    version: str
    #: "group:artifact" and its version.
    artifacts: tuple[tuple[str, str], ...]

    @property
    def _name(self) -> str:
        return self.title.lower()

    def _folder(self) -> Path:
        return Path(f".cache/{self._name}-{self.version}").resolve()

    def archive(self) -> Path:
        """Where the classes that the broker loads are kept as this Java has parsed them.

        With them it starts sooner. They are good for this Java and these jars only, so the name
        tells both; whoever has run the broker writes the file.
        """
        folder = self._folder()
        return folder.with_name(f"{folder.name}-java-{_found()[1]}.jsa")

    def is_installed(self) -> bool:
        """Whether there is a Java, and the jars or the Maven that fetches them."""
        return bool(java()) and (self._folder().exists() or shutil.which("mvn") is not None)

    def check_installed(self) -> None:
        """Raise `Missing`, with the remedy, where the broker cannot be run."""
        if not self.is_installed():
            url = f"RELIABLE_MQ_{self._name.upper()}_URL={self._name}://…"
            msg = (
                f"a local {self.title} takes Java {JAVA} and Maven: as root, "
                "`apt-get install --no-install-recommends default-jre-headless maven` "
                f"(or RELIABLE_MQ_BROKERS=containers, or {url})"
            )
            raise Missing(msg)

    def fetched(self) -> Path:
        """The folder of the jars; a `Missing` where they cannot be had.

        The first call fetches them, which may take a minute; another run that wants them meanwhile
        waits for it.
        """
        folder = self._folder()
        if folder.exists():
            return folder
        self.check_installed()
        folder.parent.mkdir(parents=True, exist_ok=True)
        with folder.with_name(f"{folder.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():  # another run may have fetched them
                with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
                    self._fetch(Path(temporary))
                    (Path(temporary) / "jars").rename(folder)
        return folder

    def _fetch(self, folder: Path) -> None:
        pom = folder / "pom.xml"
        pom.write_text(self._pom())
        command = ["mvn", "-B", "-q", "-f", str(pom), "dependency:copy-dependencies"]
        options = ["-DincludeScope=runtime", f"-DoutputDirectory={folder / 'jars'}"]
        try:
            done = subprocess.run(
                command + options,
                capture_output=True,
                text=True,
                check=False,
                timeout=FETCHES_WITHIN,
            )
        except subprocess.TimeoutExpired as error:
            msg = f"Maven did not fetch {self.title} {self.version} within {error.timeout} s"
            raise Missing(msg) from error
        if done.returncode:
            said = "\n".join((done.stdout + done.stderr).strip().splitlines()[:5])
            msg = f"Maven could not fetch {self.title} {self.version}: {said}"
            raise Missing(msg)

    def _pom(self) -> str:
        def dependency(name: str, version: str) -> str:
            group, _, artifact = name.partition(":")
            return (
                f"<dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId>"
                f"<version>{version}</version></dependency>"
            )

        wanted = "".join(dependency(name, version) for name, version in self.artifacts)
        return (
            '<project xmlns="http://maven.apache.org/POM/4.0.0">'
            f"<modelVersion>4.0.0</modelVersion><groupId>local</groupId>"
            f"<artifactId>{self._name}</artifactId><version>1</version>"
            f"<packaging>pom</packaging><dependencies>{wanted}</dependencies></project>"
        )
