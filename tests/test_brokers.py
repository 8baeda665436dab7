from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from reliable_mq.testing.brokers import (
    Broker,
    BrokerFailed,
    Missing,
    RunningKafka,
    RunningRabbitMQ,
    choose,
    provide_kafka,
    provide_rabbitmq,
    unavailable,
)
from reliable_mq.testing.brokers import __main__ as command
from reliable_mq.testing.brokers.guard import marked
from reliable_mq.testing.brokers.kafka_jars import forget
from reliable_mq.testing.brokers.ports import PORTS, free_port
from reliable_mq.testing.brokers.processes import Processes

URL = {"RELIABLE_MQ_RABBITMQ_URL": "amqp://elsewhere"}


@pytest.mark.parametrize(
    ("environment", "installed", "chosen"),
    [
        (URL, True, "url"),
        ({}, True, "process"),
        ({}, False, "containers"),
        ({"RELIABLE_MQ_BROKERS": "process"}, False, "process"),
        ({"RELIABLE_MQ_BROKERS": "containers"}, True, "containers"),
        ({"RELIABLE_MQ_BROKERS": "containers", **URL}, True, "containers"),
        ({"RELIABLE_MQ_BROKERS": "", "RELIABLE_MQ_RABBITMQ_URL": ""}, True, "process"),
        ({"RELIABLE_MQ_KAFKA_URL": "kafka://elsewhere"}, True, "process"),
    ],
)
def test_where_a_broker_comes_from(environment, installed, chosen) -> None:
    """What is named, else the URL, else the local package, else containers."""
    assert choose("rabbitmq", lambda: installed, environment) == chosen


def test_a_wrong_choice_is_an_error() -> None:
    """It says what there is."""
    with pytest.raises(ValueError, match=r"'docker': it is process or containers"):
        choose("rabbitmq", lambda: True, {"RELIABLE_MQ_BROKERS": "docker"})


def test_what_is_missing_skips_here_and_fails_in_ci(monkeypatch) -> None:
    """Both say what, and the remedy."""
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="NOT TESTED: no engine: start one"):
        unavailable(Missing("no engine: start one"))
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="CI=true, and yet: no engine: start one"):
        unavailable(Missing("no engine: start one"))


def test_a_running_broker_is_not_ours_to_hurt(monkeypatch) -> None:
    """Each fault is refused with the remedy, and no password is shown."""
    monkeypatch.delenv("RELIABLE_MQ_BROKERS", raising=False)
    monkeypatch.setenv("RELIABLE_MQ_RABBITMQ_URL", "amqp://user:secret@127.0.0.1:1/")

    broker = provide_rabbitmq()

    assert isinstance(broker, RunningRabbitMQ)
    assert not broker.controlled
    assert "secret" not in repr(broker)
    for fault in (broker.stop, broker.kill, broker.pause, broker.ctl):
        with pytest.raises(Missing, match="put a Proxy in front of it"):
            fault()
    broker.resume()
    broker.close()


def test_a_running_kafka_is_not_ours_to_hurt(monkeypatch) -> None:
    """The same; and where it is, as librdkafka takes it, is told without its password."""
    monkeypatch.delenv("RELIABLE_MQ_BROKERS", raising=False)
    monkeypatch.setenv("RELIABLE_MQ_KAFKA_URL", "kafka://user:secret@127.0.0.1:1,[::1],elsewhere")

    broker = provide_kafka()

    assert isinstance(broker, RunningKafka)
    assert broker.bootstrap == "127.0.0.1:1,[::1]:9092,elsewhere:9092"
    assert "secret" not in repr(broker)
    for fault in (broker.stop, broker.kill, broker.pause):
        with pytest.raises(Missing, match="RELIABLE_MQ_KAFKA_URL is not ours to stop"):
            fault()
    broker.resume()
    broker.close()


def test_a_machine_without_java_says_what_it_takes(monkeypatch, tmp_path) -> None:
    """No Kafka runs here: the text tells how to have one."""
    monkeypatch.setenv("RELIABLE_MQ_BROKERS", "process")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    forget()
    try:
        with pytest.raises(Missing, match=r"takes Java 17 and Maven: .*default-jre-headless maven"):
            provide_kafka()
    finally:
        forget()


class Scripted(Broker):
    """A broker that is up when its script says so."""

    def __init__(self, *answers: bool, alive: bool = True) -> None:
        super().__init__()
        self.answers = list(answers)
        self.did: list[str] = []
        self.lives = alive

    url = "scripted://"

    def probe(self) -> None:
        """The next answer; the last one for ever."""
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if not answer:
            raise OSError("nobody is there")

    def start(self) -> None:
        """Noted."""
        self.did.append("start")

    def resume(self) -> None:
        """Noted."""
        self.did.append("resume")

    def alive(self) -> bool:
        """As it was made."""
        return self.lives

    def log(self, lines: int = 30) -> str:
        """One line."""
        return "out of memory"

    stop = kill = pause = close = start


def test_an_engine_that_refuses_leaves_no_warning_behind(tmp_path) -> None:
    """Users may take warnings for errors; docker-py leaves a socket open."""
    pytest.importorskip("docker", reason="NOT TESTED: docker-py is not installed")
    asks = textwrap.dedent(
        """
        from reliable_mq.testing.brokers import Missing
        from reliable_mq.testing.brokers.containers import check_engine

        for _ in range(2):
            try:
                check_engine()
            except Missing as missing:
                print(missing)
        """
    )
    with socket.socket(socket.AF_UNIX) as nobody:
        nobody.bind(str(tmp_path / "docker.sock"))
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", asks],
            env=os.environ | {"DOCKER_HOST": f"unix://{tmp_path}/docker.sock"},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    assert done.stdout.count("no container engine answers") == 2
    assert done.stderr == ""


def test_ready_is_what_a_client_says() -> None:
    """It is asked again until it answers."""
    broker = Scripted(False, False, True)

    broker.wait_ready(10.0)

    assert broker.answers == [True]


def test_what_does_not_become_ready_tells_its_last_lines() -> None:
    """At the deadline; and at once where it has ended."""
    with pytest.raises(BrokerFailed, match=r"not ready after 0.1 s(?s:.*)out of memory"):
        Scripted(False).wait_ready(0.1)
    began = time.monotonic()
    with pytest.raises(BrokerFailed, match=r"ended while it started(?s:.*)out of memory"):
        Scripted(False, alive=False).wait_ready(30.0)
    assert time.monotonic() - began < 10.0


def test_a_broker_is_healed_only_where_it_is_ill() -> None:
    """One that serves is left alone."""
    well, ill = Scripted(True), Scripted(False)

    well.ensure_up()
    ill.ensure_up()

    assert (well.did, ill.did) == ([], ["resume", "start"])


def test_ports_are_given_once_and_below_those_of_clients() -> None:
    """A client's own socket can never sit on the port of a broker that is down."""
    ports = {free_port() for _ in range(20)}

    assert len(ports) == 20
    assert ports <= set(PORTS)
    taken = ports.pop()
    assert free_port(taken) != taken


def test_a_port_that_somebody_listens_on_is_not_free() -> None:
    """Also when it is asked for."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert free_port(port) != port


# -- processes ---------------------------------------------------------------------------------

#: A program with a helper in a session of its own, as the Erlang VM has them.
PROGRAM = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
time.sleep(600)
"""


@pytest.fixture
def processes(tmp_path):
    """A program that runs with its helper."""
    made = Processes()
    made.spawn([sys.executable, "-c", PROGRAM], dict(os.environ), tmp_path / "log")
    wait_for(lambda: len(made.pids()) == 2)
    yield made
    made.kill()


def wait_for(state) -> None:
    """Wait until it is so."""
    end = time.monotonic() + 20
    while not state():
        assert time.monotonic() < end
        time.sleep(0.01)


def state_of(pid: int) -> str:
    """R, S, T, Z, as /proc has it."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.slow
def test_a_pause_is_of_the_whole_tree(processes) -> None:
    """Helpers in sessions of their own stand still, too, and go on with the rest."""
    pids = processes.pids()

    processes.pause()
    assert {state_of(pid) for pid in pids} == {"T"}

    processes.resume()
    wait_for(lambda: {state_of(pid) for pid in pids} == {"S"})


@pytest.mark.slow
def test_a_kill_is_of_the_whole_tree(processes) -> None:
    """Also of what stands still; twice is once."""
    processes.pause()

    processes.kill()
    processes.kill()

    assert processes.pids() == []


@pytest.mark.slow
def test_a_process_is_seen_in_the_middle_of_an_exec(tmp_path) -> None:
    """A start script that becomes the node is never taken for one that has ended."""
    made = Processes()
    script = tmp_path / "script"
    script.write_text('[ "$1" -gt 0 ] && exec sh "$0" $(($1 - 1)); exec sleep 600')
    made.spawn(["sh", str(script), "300"], dict(os.environ), tmp_path / "log")

    scans = 0
    while not made.named("sleep"):
        assert marked(made.mark)
        scans += 1
    made.kill()
    assert scans > 10


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_outlives_a_run_that_is_killed(tmp_path, number) -> None:
    """The guard ends what a kill -9 of the test run leaves behind, and removes its folder."""
    folder = tmp_path / "data"
    folder.mkdir()
    run = textwrap.dedent(
        f"""
        import os, sys, time
        from pathlib import Path
        from reliable_mq.testing.brokers.guard import guard
        from reliable_mq.testing.brokers.processes import Processes
        processes = Processes()
        guard().remove(Path({str(folder)!r}))
        processes.spawn([sys.executable, "-c", {PROGRAM!r}], dict(os.environ), Path("log"))
        print(processes.mark, flush=True)
        time.sleep(600)
        """
    )
    with subprocess.Popen(
        [sys.executable, "-c", run], stdout=subprocess.PIPE, text=True, cwd=tmp_path
    ) as child:
        assert child.stdout is not None
        mark = child.stdout.readline().strip()
        wait_for(lambda: len(marked(mark)) == 2)

        child.send_signal(number)
        child.wait()

    wait_for(lambda: not marked(mark))
    wait_for(lambda: not folder.exists())


# -- the command -------------------------------------------------------------------------------


def test_down_without_up_says_so(tmp_path, monkeypatch, capsys) -> None:
    """It is no error, and starts nothing."""
    monkeypatch.chdir(tmp_path)

    assert command.main(["down"]) == 0
    assert "nothing of ours runs" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_command_says_what_there_is(capsys) -> None:
    """Exit code 2, as of every command."""
    assert command.main(["sideways"]) == 2
    assert "up|down" in capsys.readouterr().err
