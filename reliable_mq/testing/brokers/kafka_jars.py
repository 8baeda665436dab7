"""Kafka's jars, fetched once by Maven into `.cache` of the working directory, and Java for them.

As a command, `python -m reliable_mq.testing.brokers.kafka_jars`, it prints their folder.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Final

from reliable_mq.testing.brokers.base import Missing

__all__ = ["VERSION", "archive", "check_installed", "forget", "is_installed", "jars", "java"]

VERSION: Final = "4.3.1"

#: The first Java that runs Kafka 4.
JAVA: Final = 17

#: The broker, what writes its log, and YAML, in which the image's defaults of that are.
ARTIFACTS: Final = {
    "org.apache.kafka:kafka_2.13": VERSION,
    "org.apache.logging.log4j:log4j-core": "2.24.3",
    "org.apache.logging.log4j:log4j-slf4j-impl": "2.24.3",
    "org.apache.logging.log4j:log4j-1.2-api": "2.24.3",
    "com.fasterxml.jackson.dataformat:jackson-dataformat-yaml": "2.21.2",
}

REMEDY: Final = (
    "as root, `apt-get install --no-install-recommends default-jre-headless maven` "
    "(or RELIABLE_MQ_BROKERS=containers, or RELIABLE_MQ_KAFKA_URL=kafka://…)"
)


def _folder() -> Path:
    return Path(f".cache/kafka-{VERSION}").resolve()


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
    """The Java that runs Kafka; empty where there is none."""
    return _found()[0]


def archive() -> Path:
    """Where the classes that Kafka loads are kept as this Java has parsed them.

    It halves what a start costs. `keep_classes` of kafka_node.py writes it.
    """
    folder = _folder()
    return folder.with_name(f"{folder.name}-java-{_found()[1]}.jsa")


def is_installed() -> bool:
    """Whether there is a Java, and the jars or the Maven that fetches them."""
    return bool(java()) and (_folder().exists() or shutil.which("mvn") is not None)


def check_installed() -> None:
    """Raise `Missing`, with the remedy, where Kafka cannot be run."""
    if not is_installed():
        msg = f"a local Kafka takes Java {JAVA} and Maven: {REMEDY}"
        raise Missing(msg)


def forget() -> None:
    """Look for Java again: JAVA_HOME or PATH is another one."""
    _found.cache_clear()


def jars() -> Path:
    """The folder of the jars. The first call fetches them: 45 MB, ten seconds or more."""
    folder = _folder()
    if folder.exists():
        return folder
    check_installed()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():  # another run may have fetched them
            with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
                _fetch(Path(temporary))
                (Path(temporary) / "jars").rename(folder)
    return folder


def _fetch(folder: Path) -> None:
    pom = folder / "pom.xml"
    pom.write_text(_pom())
    command = ["mvn", "-B", "-q", "-f", str(pom), "dependency:copy-dependencies"]
    options = ["-DincludeScope=runtime", f"-DoutputDirectory={folder / 'jars'}"]
    try:
        done = subprocess.run(
            command + options, capture_output=True, text=True, check=False, timeout=240
        )
    except subprocess.TimeoutExpired as error:
        msg = f"Maven did not fetch Kafka {VERSION} within {error.timeout} s"
        raise Missing(msg) from error
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).strip().splitlines()[:5])
        msg = f"Maven could not fetch Kafka {VERSION}: {said}"
        raise Missing(msg)


def _pom() -> str:
    def dependency(name: str, version: str) -> str:
        group, _, artifact = name.partition(":")
        return (
            f"<dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId>"
            f"<version>{version}</version></dependency>"
        )

    wanted = "".join(dependency(name, version) for name, version in ARTIFACTS.items())
    return (
        '<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>'
        "<groupId>local</groupId><artifactId>kafka</artifactId><version>1</version>"
        f"<packaging>pom</packaging><dependencies>{wanted}</dependencies></project>"
    )


if __name__ == "__main__":
    try:
        print(jars())  # noqa: T201 - the answer of this command
    except Missing as error:
        sys.exit(str(error))
