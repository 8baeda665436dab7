from __future__ import annotations

import pytest

from reliable_mq.testing.brokers import Missing
from reliable_mq.testing.brokers.maven import forget
from reliable_mq.testing.brokers.rocketmq_jars import OLDER, VERSION, is_installed, jars_of

#: A Maven that does what it is asked for, and notes that it was.
MAVEN = """#!/bin/sh
echo "$@" >> asked
for option in "$@"; do
    case $option in
    -DoutputDirectory=*) mkdir "${option#*=}" ;;
    */pom.xml) grep -o 'rocketmq-[a-z]*</artifactId><version>[0-9.]*' "$option" >> wanted ;;
    esac
done
"""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A folder that is all of PATH but for the shell's own tools, to be filled with programs."""
    programs = tmp_path / "programs"
    programs.mkdir()

    def has(name: str, script: str) -> None:
        (programs / name).write_text(script)
        (programs / name).chmod(0o755)

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(programs))
    for tool in ("mkdir", "grep"):
        (programs / tool).symlink_to(f"/bin/{tool}")
    forget()
    yield has
    forget()


def a_java(version: str) -> str:
    """A program that says its version as Java does."""
    return f"#!/bin/sh\necho 'openjdk version \"{version}\" 2025-04-15' >&2\n"


@pytest.mark.slow
def test_each_version_is_fetched_once(machine, tmp_path) -> None:
    """Into the cache of the working directory; then neither Maven nor a network is needed."""
    machine("java", a_java("17.0.15"))
    machine("mvn", MAVEN)

    for version in (VERSION, OLDER):
        jars = jars_of(version)
        assert jars.fetched() == jars.fetched() == tmp_path / ".cache" / f"rocketmq-{version}"
        assert jars.archive().name == f"rocketmq-{version}-java-17.0.15.jsa"

    assert len((tmp_path / "asked").read_text().splitlines()) == 2
    assert (tmp_path / "wanted").read_text().splitlines() == [
        f"rocketmq-{part}</artifactId><version>{version}"
        for version in (VERSION, OLDER)
        for part in ("namesrv", "proxy")
    ]
    (tmp_path / "programs" / "mvn").unlink()
    assert is_installed()


@pytest.mark.slow
def test_a_maven_that_fails_leaves_nothing_behind(machine, tmp_path) -> None:
    """What it said is told; the next run tries again."""
    machine("java", a_java("21"))
    machine("mvn", "#!/bin/sh\necho '[ERROR] no network'\nexit 1\n")

    with pytest.raises(Missing, match=r"Maven could not fetch RocketMQ .*no network"):
        jars_of().fetched()

    assert [path.name for path in (tmp_path / ".cache").iterdir()] == [f"rocketmq-{VERSION}.lock"]


@pytest.mark.slow
@pytest.mark.parametrize("java", [a_java("11.0.2"), a_java("1.8.0_392"), "#!/bin/sh\nexit 1\n"])
def test_an_old_java_is_none(machine, java) -> None:
    """The remedy says from which on, and what else there is."""
    machine("java", java)
    machine("mvn", MAVEN)

    with pytest.raises(Missing, match=r"Java 17 and Maven.*RELIABLE_MQ_ROCKETMQ_URL=rocketmq://"):
        jars_of().check_installed()


def test_no_java_is_none(machine) -> None:
    """Also where Maven is there."""
    machine("mvn", MAVEN)

    assert not is_installed()


def test_a_version_that_was_never_tried_is_refused() -> None:
    """It says which there are."""
    with pytest.raises(ValueError, match=r"'4\.9\.4': there is 5\.5\.0 and 5\.3\.3"):
        jars_of("4.9.4")
