"""F15: the power is cut, the log is torn off, bits flip. Earlier records stay, and damage shows."""

import random
import shutil
import sqlite3
from pathlib import Path

import pytest

from integration.disk_images import PowerCut, commits, copied, folded, read, shortened
from integration.faults import LONG, is_whole, promises, strace
from reliable_mq.testing.history import check

MOMENTS = 60 if LONG else 8
LENGTHS = 40 if LONG else 5
FLIPS = 3_000 if LONG else 150


def at_many_moments(run, moments):
    """A writer, stopped again and again: its file as it is then, and what it had confirmed."""
    run.publish(keys=["z"], count=1)
    writer = run.spawn("producer", keys=["a"], count=20_000, size=8_000)
    rng = random.Random(15)
    for moment in range(moments):
        # Somewhere between two messages and the next few: wherever SIGSTOP hits it.
        writer.comes_to(len(writer.entries("ok")) + rng.randrange(1, 60), "ok")
        writer.stop()
        yield writer, copied(run.path, run.folder / f"moment-{moment}"), folded(run.path)
        writer.go_on()


def test_what_is_confirmed_is_in_every_copy_and_survives_a_torn_log(run):
    """Cut off anywhere: exactly the transactions that lie before the cut are there, in order."""
    rng = random.Random(15)
    for writer, image, safe in at_many_moments(run, MOMENTS):
        sent, ends = writer.entries(), commits(image)
        order = [entry.id for entry in sent if entry.kind == "invoke"]
        everything = read(shortened(image, image.parent / "whole", 1 << 40))
        verdict = check([run.children[0].entries(), sent, everything.entries], drained=True)
        assert verdict.broken == ()
        present = len(everything.ids) - 1
        for number in range(LENGTHS):
            length = rng.randrange(safe, ends[-1]) if ends and safe < ends[-1] else safe
            cut = shortened(image, image.parent / f"cut-{number}", length)
            found = read(cut)
            assert found.error is None
            # One message a transaction: with each that is cut off, one is gone, and it is the last.
            gone = sum(end > length for end in ends)
            assert found.ids[1:] == order[: len(found.ids) - 1]
            assert len(found.ids) - 1 == present - gone
            assert is_whole(cut)


def test_a_copy_shows_a_receipt_that_came_too_early(run):
    """Control: the Receipt comes before COMMIT, which somebody else holds up."""
    run.publish(keys=["z"], count=1)
    holder = run.spawn("producer", keys=["h"], count=1, stop_at="INSERT INTO mq_message")
    holder.stands()
    writer = run.spawn("producer", keys=["a"], count=5, how="submit", remove="settle-first")
    writer.comes_to(5, "ok")
    writer.stop()

    found = read(copied(run.path, run.folder / "copy"))

    assert promises([check([writer.entries(), found.entries[1:]], drained=True)]) == {"lost"}


def after_a_power_cut(run, **plan):
    """What is left of the file if nothing survives but what was synced, for each confirmation."""
    run.publish(keys=["z"], count=1)
    trace = run.folder / "strace"
    wrap = [strace(), "-D", "-f", "-y", "-qq", "-s", "200", "-o", str(trace), "-e", PowerCut.CALLS]
    writer = run.spawn("producer", wrap=wrap, count=60 if LONG else 15, end="kill", **plan)
    assert writer.ends() == -9, writer.said()
    log = Path(f"{run.path}-wal")
    cut = PowerCut(trace.read_text(), log)
    assert [one for one, _ in cut.confirmed] == [entry.id for entry in writer.entries("ok")]
    image = copied(run.path, run.folder / "image")
    for number in range(4, len(cut.confirmed), 5):
        length = cut.confirmed[number][1]
        found = read(shortened(image, run.folder / f"cut-{number}", length))
        last = next(one for one in writer.entries("ok") if one.id == cut.confirmed[number][0])
        sent = [one for one in writer.entries() if one.at <= last.at]
        yield check([run.children[0].entries(), sent, found.entries], drained=True)


def test_a_receipt_means_that_the_disk_has_it(run):
    """Of the log only what fdatasync had finished when the Receipt came: every message is there."""
    assert promises(after_a_power_cut(run)) == set()


def test_without_waiting_for_the_disk_a_power_cut_loses(run):
    """Control: PRAGMA synchronous=OFF."""
    assert promises(after_a_power_cut(run, remove="sync")) == {"lost"}


@pytest.fixture
def finished(run):
    """A file with 120 messages, and the history of who wrote them."""
    run.publish(keys=["a", "b", None], count=40, size=120)
    return run


def flipped(run, seed, end=""):
    """A copy with one bit flipped, at random."""
    folder = run.folder / "flipped"
    shutil.rmtree(folder, ignore_errors=True)
    copy = copied(run.path, folder)
    file = Path(f"{copy}{end}")
    data = bytearray(file.read_bytes())
    rng = random.Random(seed)
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    file.write_bytes(data)
    return copy


def test_a_flipped_bit_is_reported_and_never_delivered_as_if_it_were_right(finished, caplog):
    """What is missing was set aside and told, or the file was refused with an error of ours."""
    sent = finished.children[0].entries()
    reported = silent = 0
    for seed in range(FLIPS):
        copy = flipped(finished, seed)
        found = read(copy)
        verdict = check([sent, found.entries], drained=True)
        assert verdict.phantom == (), seed
        assert found.damaged == 0 or "is damaged" in caplog.text
        reported += bool(found.damaged or found.error)
        if len(verdict.lost) > found.damaged and found.error is None:
            silent += 1
            # An index that lies is seen by nobody who reads through it.
            assert not is_whole(copy), seed
        caplog.clear()
    assert reported > FLIPS / 10
    assert silent <= FLIPS / 100


def test_a_flipped_bit_in_the_log_takes_at_most_what_follows_it(run):
    """To SQLite it is the torn end of the log: what lies before it stays."""
    run.publish(keys=["z"], count=1)
    writer = run.spawn("producer", keys=["a"], count=60, size=120, end="kill")
    assert writer.ends() == -9
    order = [entry.id for entry in writer.entries("invoke")]
    for seed in range(FLIPS // 5):
        found = read(flipped(run, seed, "-wal"))
        assert all(entry.kind == "kept" for entry in found.entries), seed
        assert found.ids[1:] == order[: len(found.ids) - 1], seed


def test_without_checksums_a_flipped_bit_is_delivered(finished):
    """Control: rows as a program without checksums writes them."""
    with sqlite3.connect(finished.path) as file:
        file.execute("UPDATE mq_message SET crc = NULL")
    file.close()
    sent = finished.children[0].entries()
    found = [
        check([sent, read(flipped(finished, seed)).entries], drained=True) for seed in range(60)
    ]
    assert "phantom" in promises(found)
