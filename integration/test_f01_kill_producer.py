"""F01: the producer dies by kill -9 at any moment; what was confirmed is there, once and whole."""

import pytest

from integration.faults import LONG, brokers, is_whole, promises, strace

WORKLOAD = {"keys": ["a", None], "count": 3}
AGAIN = {"earlier": ["{here}/0.jsonl"]}


def swept(run, stride, **plan):
    """Kill at each boundary; publish again what is not confirmed; consume it all."""
    return run.sweep(
        ("producer", {**WORKLOAD, **plan}),
        ("producer", {**WORKLOAD, **AGAIN}),
        ("consumer", {"boot": "the next"}),
        stride=stride,
    )


@brokers()
@pytest.mark.parametrize(("how", "on_their_way"), [("publish", 1), ("submit", 6)])
def test_what_is_confirmed_survives_a_kill_at_each_boundary(run, how, on_their_way):
    """After the restart all are there, in order; only what had no answer may be there twice."""
    every = LONG or how == "publish" or run.place.sparse
    results = swept(run, 1 if every else 3, how=how)

    assert len(results) > 20
    assert [0, 0, 0] in [killed.codes for killed in results]
    for killed in results:
        assert killed.codes[1:] == [0, 0], killed
        verdict = killed.verdict(duplicates=on_their_way)
        assert verdict.broken == (), (killed, str(verdict))
        assert verdict.effects == 6, killed
    if how == "publish":  # killed between COMMIT, or send, and the answer: nobody knew
        assert any(killed.verdict().duplicate_effects for killed in results)


@brokers()
def test_without_waiting_for_the_commit_the_checker_sees_the_loss(run):
    """Control: the Receipt comes before COMMIT, or before the broker's confirm."""
    results = swept(run, 1 if LONG else 4, remove="settle-first")

    assert promises(killed.verdict() for killed in results) == {"lost"}


def killed_in_a_system_call(run, call, when, **plan):
    """One run whose n-th such call kills it instead of being made: its code, and the file."""
    run.forget()
    inject = f"inject={call}:signal=SIGKILL:when={when}"
    wrap = [strace(), "-D", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", inject]
    first = run.spawn("producer", wrap=wrap, **WORKLOAD, **plan)
    code = first.ends()
    return code, is_whole(run.path)


@pytest.mark.parametrize(("call", "calls"), [("pwrite64", 40), ("fdatasync", 10)])
def test_nothing_is_torn_by_a_kill_in_the_middle_of_a_commit(run, call, calls):
    """COMMIT is many system calls: killed at any of them, it has happened or it has not."""
    killed = 0
    for when in range(1, calls, 1 if LONG else calls // 3):
        code, whole = killed_in_a_system_call(run, call, when)
        killed += code != 0
        assert whole, (call, when)
        run.publish(**WORKLOAD, earlier=[str(run.children[0].history)])
        verdict = run.verdict(drained=run.drain(boot="the next"), duplicates=1)
        assert verdict.broken == (), (call, when, str(verdict))
        assert verdict.effects == 6
    assert killed >= 2


def test_without_a_journal_the_file_is_torn(run):
    """Control: pages go into the file at once."""
    wholes = (
        killed_in_a_system_call(run, "pwrite64", when, remove="journal")[1]
        for when in range(2, 60, 3)
    )
    assert not all(wholes)
