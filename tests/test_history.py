"""The checker finds each broken promise, and nothing where all of them were kept."""

import itertools
import os
import random
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reliable_mq.errors import Backpressure, PublishRejected, PublishUnknown
from reliable_mq.message import Message, Receipt
from reliable_mq.testing.history import Entry, History, Numbered, check, ending, read_history


class Story:
    """A history by hand: each call is one second later than the one before."""

    def __init__(self):
        self.entries = []
        self.seconds = itertools.count()

    def __call__(self, kind, seq, *, key="k", producer="p", pid=1, why="", after=0):
        """One event."""
        at = next(self.seconds) + after
        self.entries.append(
            Entry(kind, f"{key}{seq}", at, pid, "run", producer, key, seq=seq, why=why)
        )
        return self

    def published(self, *seqs, key="k"):
        """Invoked and confirmed, one after another."""
        for seq in seqs:
            self("invoke", seq, key=key)("ok", seq, key=key)
        return self

    def handled(self, *seqs, key="k"):
        """Delivered, with an effect."""
        for seq in seqs:
            self("deliver", seq, key=key, pid=2)("effect", seq, key=key, pid=2)
        return self

    def verdict(self, **options):
        """What the checker says of it."""
        return check([self.entries], **{"drained": True, **options})


@pytest.fixture
def story():
    """A history by hand."""
    return Story()


# ---- what is fine


def test_a_run_without_faults_breaks_nothing(story):
    """Everything confirmed took effect once, in order."""
    verdict = story.published(1, 2, 3).handled(1, 2, 3).verdict(duplicates=0)

    assert (verdict.invoked, verdict.confirmed, verdict.effects) == (3, 3, 3)
    assert verdict.broken == ()
    assert verdict.liveness
    assert verdict.dead_letters_exact


def test_an_unknown_publish_may_arrive_or_not(story):
    """Three-valued: without an answer both are right, and the one that came is recovered."""
    story("invoke", 1)("unknown", 1)("invoke", 2)("unknown", 2)("invoke", 3).handled(2, 3)

    verdict = story.verdict()

    assert verdict.recovered == ("k2", "k3")
    assert verdict.broken == ()


def test_a_refused_publish_may_be_tried_again(story):
    """Refused, then confirmed: it is no phantom."""
    verdict = story("invoke", 1)("failed", 1).published(1).handled(1).verdict()

    assert verdict.broken == ()


def test_reruns_are_duplicates_and_not_inversions(story):
    """A kill repeats a suffix of a key; only first effects have an order to keep."""
    verdict = story.published(1, 2).handled(1, 2, 1, 2).verdict(duplicates=2)

    assert {"k1": 1, "k2": 1} == verdict.duplicate_effects == verdict.duplicate_deliveries
    assert verdict.inversions == ()
    assert verdict.broken == ()


def test_what_was_published_once_more_behind_a_later_one_may_come_behind_it(story):
    """After an unknown ending it was the application that changed the order."""
    verdict = story("invoke", 1)("unknown", 1).published(2).published(1).handled(2, 1).verdict()

    assert verdict.broken == ()


def test_a_replayed_dead_letter_comes_late(story):
    """Its key went on without it, and that was reported when it died."""
    story.published(1, 2)("deliver", 1).handled(2)("dead_letter", 1, why="rejected").handled(1)

    assert story.verdict(poison={"k1": "rejected"}).broken == ()


def test_no_order_between_producers_keys_and_messages_without_a_key(story):
    """The numbers count for each producer and key."""
    story("invoke", 2, producer="a")("invoke", 1, producer="b")
    story("effect", 2, producer="a")("effect", 1, producer="b")
    for seq in (1, 2):
        story.entries.append(Entry("invoke", f"none{seq}", 50, 1, seq=seq))
    for seq in (2, 1):
        story.entries.append(Entry("effect", f"none{seq}", 60, 1, seq=seq))

    assert story.verdict().inversions == ()


# ---- what is not


@pytest.mark.parametrize("left", ["nothing", "deliver", "retry", "ack"])
def test_lost(story, left):
    """Confirmed, and neither an effect nor a dead letter nor kept: not even an ack excuses it."""
    story.published(1, 2).handled(1)
    if left != "nothing":
        story(left, 2)

    verdict = story.verdict()

    assert verdict.lost == ("k2",)
    assert verdict.broken == (
        "lost: 1 confirmed, and neither handled nor kept nor a dead letter: k2",
    )


def test_what_is_kept_is_not_lost(story):
    """Found in the broker at the end, as in a run that only publishes."""
    assert story.published(1)("kept", 1).verdict().broken == ()


@pytest.mark.parametrize("kind", ["deliver", "effect", "dead_letter", "kept"])
def test_phantom_was_never_invoked(story, kind):
    """Nothing may arrive that nobody sent."""
    verdict = story.published(1).handled(1)(kind, 9).verdict(poison={"k9": ""})

    assert verdict.phantom == ("k9",)
    assert verdict.broken[0].startswith("phantom: 1 ")


def test_phantom_was_refused_each_time(story):
    """A refusal is definite: it may not be stored."""
    story("invoke", 1)("failed", 1)("invoke", 1)("failed", 1).handled(1)

    assert story.verdict().phantom == ("k1",)


def test_phantom_is_damaged(story):
    """A damaged body must not be delivered as if it were right."""
    assert story.published(1).handled(1)("damaged", 1).verdict().phantom == ("k1",)


def test_inversion(story):
    """2 took effect before 1."""
    verdict = story.published(1, 2, 3).handled(2, 1, 3).verdict()

    assert verdict.inversions == (("k2", "k1"),)
    assert verdict.broken == ("inversion: 1 a key out of order: k2 before k1",)


def test_inversion_over_processes(story):
    """Histories of all processes are one order: by time."""
    story.published(1, 2)
    first, second = Story(), Story()
    first("effect", 1, pid=2, after=200)
    second("effect", 2, pid=3, after=100)

    verdict = check([story.entries, first.entries, second.entries], drained=True)

    assert verdict.inversions == (("k2", "k1"),)


def test_a_key_that_goes_on_without_a_failed_one_is_an_inversion_if_it_was_no_dead_letter(story):
    """Retry by requeue: 1 failed, 2 ran, then 1 again."""
    story.published(1, 2)("deliver", 1)("retry", 1).handled(2, 1)

    assert story.verdict().inversions == (("k2", "k1"),)


def test_too_many_duplicates(story):
    """The bound is what was in hand when the process was killed."""
    story.published(1, 2).handled(1, 2, 1, 2, 1)

    assert story.verdict(duplicates=3).broken == ()
    assert story.verdict(duplicates=2).broken == ("duplicated: 2 1 too many: k1, k2",)


@pytest.mark.parametrize(
    ("poison", "sentence"),
    [
        ({}, "dead letters: 1 no poison, and yet dead-lettered: k1"),
        ({"k1": "", "k2": ""}, "dead letters: 1 poison, and not among the dead letters: k2"),
        (
            {"k1": "fatal-exception"},
            (
                "dead letters: 1 dead-lettered for another reason: "
                "k1 (rejected, expected fatal-exception)"
            ),
        ),
    ],
)
def test_dead_letters_that_are_not_exact(story, poison, sentence):
    """The poison, all of it and nothing else, each for its reason."""
    story.published(1, 2)("dead_letter", 1, why="rejected").handled(2)

    verdict = story.verdict(poison=poison)

    assert not verdict.dead_letters_exact
    assert (sentence,) == verdict.broken


def test_dead_letters_exact(story):
    """A second copy, as a kill between letter and ack leaves it, is the same letter."""
    story.published(1)("dead_letter", 1, why="rejected")("dead_letter", 1, why="rejected")

    verdict = story.verdict(poison={"k1": "rejected"})

    assert verdict.dead_letters_exact
    assert verdict.dead_letters == {"k1": 2}
    assert verdict.broken == ()


def test_not_drained(story):
    """A consumer that stands still is as bad as one that loses."""
    verdict = story.published(1).handled(1).verdict(drained=False)

    assert not verdict.liveness
    assert verdict.broken == ("liveness: not drained in time",)


def test_a_publish_that_took_too_long(story):
    """Every call has a deadline."""
    story("invoke", 1)
    story("unknown", 1, after=9)

    assert story.verdict(deadline=10).liveness
    verdict = story.verdict(deadline=9.5)
    assert verdict.broken == ("liveness: 1 published without an answer within 9.5 s: k1 (10.0 s)",)


def test_a_sentence_names_the_first_few(story):
    """Long lists stay readable."""
    verdict = story.published(*range(10, 30)).verdict()

    assert verdict.broken[0].endswith("k10, k11, k12, k13, k14 and 15 more")
    assert "  BROKEN lost: 20 confirmed" in str(verdict)


# ---- the checker against a queue that keeps its promises, and against one that does not


@st.composite
def runs(draw):
    """An at-least-once queue with keys, unknown endings, poison and consumers that die."""
    rng = random.Random(draw(st.integers(0, 2**32)))
    story, poison, log = Story(), {}, {}
    for seq in range(draw(st.integers(1, 6))):
        for key in "abc"[: draw(st.integers(1, 3))]:
            story("invoke", seq, key=key)
            fate = rng.choice(["ok", "ok", "ok", "failed", "unknown", "unknown, stored"])
            story(fate.split(",")[0], seq, key=key)
            if fate in ("ok", "unknown, stored"):
                log.setdefault(key, []).append(seq)
    for key, seqs in log.items():
        at = 0
        while at < len(seqs):
            story("deliver", seqs[at], key=key)
            if rng.random() < 0.1 or f"{key}{seqs[at]}" in poison:
                poison[f"{key}{seqs[at]}"] = "rejected"
                story("dead_letter", seqs[at], key=key, why="rejected")
            else:
                story("effect", seqs[at], key=key)
            # Killed: what was not acked runs again.
            at = rng.randint(max(0, at - 2), at) if rng.random() < 0.2 else at + 1
    return story, poison, log


@settings(max_examples=60)
@given(runs())
def test_a_queue_that_keeps_its_promises(run):
    """No false alarm."""
    story, poison, _ = run

    assert story.verdict(poison=poison).broken == ()


@settings(max_examples=60)
@given(runs(), st.randoms(use_true_random=False))
def test_a_queue_that_breaks_one_is_caught(run, rng):
    """Take one safety away, anywhere in the run, and the verdict names the promise."""
    story, poison, _ = run
    firsts = {}
    for index, entry in enumerate(story.entries):
        if entry.kind == "effect":
            firsts.setdefault(entry.id, index)
    confirmed = {one.id for one in story.entries if one.kind == "ok"}

    for id in sorted(confirmed & set(firsts))[:1]:
        without = [one for one in story.entries if one.id != id or one.kind in ("invoke", "ok")]
        assert (id,) == check([without], drained=True, poison=poison).lost

    pairs = [
        (one, two)
        for one, two in itertools.combinations(sorted(firsts.values()), 2)
        if story.entries[one].key == story.entries[two].key
        and story.entries[one].id not in poison
        and story.entries[two].id not in poison
    ]
    if pairs:
        one, _ = rng.choice(pairs)
        entries = list(story.entries)
        late = entries[one]
        # The earlier one happens, for the first time, only after everything else.
        entries = [e for e in entries if e.kind != "effect" or e.id != late.id]
        entries.append(Entry("effect", late.id, 1e9, 1, "run", "p", late.key, late.seq))
        assert late.id in [early for _, early in check([entries], drained=True).inversions]


# ---- the file


@pytest.fixture
def history(tmp_path):
    """A history whose clock counts its events."""
    history = History(tmp_path / "one.jsonl", monotonic=iter(range(100)).__next__)
    yield history
    history.close()


def test_what_is_noted_is_read(history):
    """With all of its fields."""
    numbered = Numbered("run", "p", "k", 7).sealed()

    history.note("invoke", numbered.id, numbered)
    history.note_all([("deliver", "x", None), ("dead_letter", "x", None)], why="rejected")

    pid = os.getpid()
    assert read_history(history.path) == [
        Entry("invoke", numbered.id, 0, pid, "run", "p", "k", 7),
        Entry("deliver", "x", 1, pid, why="rejected"),
        Entry("dead_letter", "x", 2, pid, why="rejected"),
    ]


def test_a_line_cut_by_a_kill_is_ignored_wherever_it_is_cut(history, tmp_path):
    """All lines before it are there."""
    for seq in range(3):
        history.note("ok", f"é{seq}")
    whole = history.path.read_bytes()
    cut = tmp_path / "cut.jsonl"
    for length in range(len(whole) + 1):
        cut.write_bytes(whole[:length])
        assert whole[:length].count(b"\n") == len(read_history(cut))


@pytest.mark.parametrize("line", [b"{", b'{"kind":"no such","id":"x","at":1,"pid":1}', b""])
def test_any_other_damage_is_an_error(history, line):
    """A history that lies is worse than none."""
    history.note("ok", "x")
    history.path.write_bytes(line + b"\n" + history.path.read_bytes())

    with pytest.raises(ValueError, match=r"one\.jsonl, line 1: "):
        read_history(history.path)


def test_a_history_belongs_to_one_process(history):
    """The next one has a file of its own: two writers would hide whose torn line it is."""
    with pytest.raises(FileExistsError):
        History(history.path)


def test_many_threads_write_whole_lines(tmp_path):
    """Handlers note what they do from the threads they run on."""
    history = History(tmp_path / "one.jsonl")
    threads = [
        threading.Thread(target=lambda: [history.note("effect", "x") for _ in range(20)])
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    history.close()

    assert len(read_history(history.path)) == 160


def test_a_numbered_message_tells_who_it_is_and_whether_it_is_whole():
    """Its id depends on nothing but its number, so that a second publish has the same one."""
    one = Numbered("run", "p", "k", 7, filler="x" * 10).sealed()

    assert one.whole()
    assert one.id == Numbered("run", "p", "k", 7).id
    assert one.id != Numbered("run", "p", "k", 8).id
    fields = {"run": "run", "producer": "p", "key": "k", "seq": 7, "crc": one.crc}
    assert not Numbered(**fields, filler="y" * 10).whole()


def test_how_a_publish_ended():
    """Refusals and Backpressure are definite, PublishUnknown is not."""
    message = Message("x", "orders")

    assert ending(Receipt("x", "orders", 0, 1)) == "ok"
    assert ending(PublishRejected("text", message)) == "failed"
    assert ending(Backpressure("text", message)) == "failed"
    assert ending(PublishUnknown("text", message)) == "unknown"
