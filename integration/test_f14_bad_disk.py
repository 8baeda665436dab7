"""F14: the disk is full, or fails. Sends are refused, no ack is false, the file stays whole."""

import os
import subprocess
from contextlib import suppress

import pytest

from integration.faults import LONG, is_whole, need, promises, strace, until

#: What fails, how, and from which such call on; ".." to which one, "+" for ever.
FAILURES = [
    "fdatasync:error=EIO:when=4..6",
    "fdatasync:error=EIO:when=3+",
    "pwrite64:error=ENOSPC:when=30..36",
    "pwrite64:error=ENOSPC:when=40+",
    "pwrite64:error=EIO:when=40+",
]
if LONG:
    FAILURES += [
        f"{call}:error={error}:when={first}{rest}"
        for call in ("fdatasync", "pwrite64", "ftruncate", "pread64")
        for error in ("EIO", "ENOSPC")
        for first in (1, 2, 5, 9, 17, 33, 65)
        for rest in (f"..{first + 2}", "+")
    ]


def failing(run, failure):
    """A command under which the calls on the broker's files, and on no others, fail."""
    call = failure.split(":")[0]
    files = [f"{run.path}{end}" for end in ("", "-wal", "-shm", "-journal")]
    paths = [option for file in files for option in ("-P", file)]
    options = ["-e", f"trace={call}", "-e", f"inject={failure}"]
    return [strace(), "-D", "-f", "-qq", "-o", f"{run.folder}/strace", *paths, *options]


@pytest.mark.parametrize("end", ["stop", "kill"])
@pytest.mark.parametrize("failure", FAILURES)
def test_a_receipt_means_that_it_is_there_after_the_disk_has_failed(run, failure, end):
    """And what was refused is not there: not even after a kill -9 behind the failure."""
    run.publish(keys=["z"], count=1)
    producer = run.spawn(
        "producer", wrap=failing(run, failure), count=4, publish_timeout=0.25, end=end
    )
    assert producer.ends() in (0, -9), producer.said()
    assert "INJECTED" in (run.folder / "strace").read_text()
    assert len(producer.entries("ok", "failed", "unknown")) == 8

    verdict = run.verdict(drained=run.drain(boot="the next"))

    assert verdict.broken == (), producer.said()
    assert is_whole(run.path)


@pytest.mark.parametrize("failure", [one for one in FAILURES if not one.endswith("+")])
def test_a_consumer_goes_on_after_the_disk_has_failed(run, failure):
    """It does not die, and what it could not ack comes again."""
    run.publish(count=30)

    consumer = run.spawn(
        "consumer", wrap=failing(run, failure), until="signal", lease_timeout=1.0, work=0.01
    )

    until(lambda: run.verdict().effects == 60 and run.lag() == 0, "the consumer has done it all")
    assert "INJECTED" in (run.folder / "strace").read_text()
    assert consumer.ends_well() in (0, 1), consumer.said()
    assert run.verdict(drained=run.drain(lease_timeout=1.0)).broken == ()


def test_a_receipt_before_the_disk_has_it_is_seen(run):
    """Control: the Receipt comes before COMMIT."""
    run.publish(keys=["z"], count=1)
    wrap = failing(run, "fdatasync:error=EIO:when=2+")
    run.spawn("producer", wrap=wrap, count=4, publish_timeout=0.5, remove="settle-first").ends()

    assert promises([run.verdict(drained=run.drain(boot="the next"))]) == {"lost"}


@pytest.fixture
def small(run):
    """A run whose file lies on a disk of its own, of 8 MB.

    5 are taken: folding the log into the file needs as much room once more as the log has.
    """
    disk = run.folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(disk)]
    done = (
        os.geteuid() == 0 and not subprocess.run(mount, capture_output=True, check=False).returncode
    )
    need(done, "root that may mount (a disk cannot be made full)")
    run.place.path = disk / "broker.db"
    (disk / "ballast").write_bytes(bytes(5_000_000))
    yield run
    run.end()
    subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(disk):
    """Take what is left, to the last byte."""
    with (disk / "ballast").open("ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(512))


def test_a_full_disk_refuses_and_forgets_nothing(small):
    """What was confirmed before is handled once there is room; the consumer outlives it."""
    consumer = small.spawn("consumer", until="signal", work=0.02, lease_timeout=2.0)
    until(lambda: consumer.state().get("ready"), "the consumer is at work")
    producer = small.spawn("producer", count=200, size=20_000, how="submit", publish_timeout=2.0)
    assert producer.ends() == 0, producer.said()
    assert producer.entries("ok")
    assert producer.entries("failed", "unknown")
    fill(small.path.parent)
    until(lambda: not consumer.state()["ready"], "the consumer cannot even renew its leases")
    assert consumer.process.poll() is None

    (small.path.parent / "ballast").unlink()

    until(lambda: consumer.state()["ready"], "the consumer is well")
    assert consumer.ends_well() == 0, consumer.said()
    verdict = small.verdict(drained=small.drain(boot="the next"))
    assert verdict.broken == ()
    assert is_whole(small.path)


def test_a_full_disk_is_seen_where_receipts_come_too_early(small):
    """Control: the Receipt comes before COMMIT."""
    small.spawn(
        "producer", count=200, size=20_000, how="submit", publish_timeout=0.5, remove="settle-first"
    ).ends()
    (small.path.parent / "ballast").unlink()

    assert promises([small.verdict(drained=small.drain(boot="the next"))]) == {"lost"}
