"""What happened, written down as it happens, and whether the promises were kept.

Each process of a run keeps a History: one line per event, on disk before the call returns, so that
kill -9 takes nothing of it. Afterwards `check` reads them all and answers with a Verdict:

    history = History("consumer-1.jsonl")            # one file for each process
    history.note("invoke", message.id, numbered)     # before the publish; then "ok", "failed" or
    ...                                              #   "unknown": see `ending`
    verdict = check([read_history(path) for path in paths], drained=True)
    assert not verdict.broken, verdict

lost         confirmed, and yet neither an effect, nor a dead letter, nor kept anywhere
phantom      arrived or took effect, though never invoked, or definitely refused, or damaged
recovered    without an answer, and yet arrived: allowed
duplicated   arrived, or took effect, more than once: at-least-once, so allowed up to a bound
inversion    the first effect of a message came after that of a later one of its key

The names are those of the tests that RabbitMQ runs (github.com/rabbitmq/jepsen). Times are
monotonic seconds, which the processes of one machine share: histories of two machines, or of two
boots, cannot be checked together.
"""

from __future__ import annotations

import os
import threading
from collections import Counter, defaultdict
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal
from zlib import crc32

import msgspec
from msgspec import Struct

from reliable_mq.clock import SYSTEM_CLOCK
from reliable_mq.errors import PublishError, PublishUnknown
from reliable_mq.message import Receipt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

__all__ = ["Entry", "History", "Kind", "Numbered", "Verdict", "check", "ending", "read_history"]

#: What a line can tell. invoke, then one of ok, failed (definitely not stored), unknown: a publish.
#: deliver, effect: a handler, when it begins and when it has done what it is for. damaged: what
#: arrived is not what was sent. ack: settled. retry: it failed and comes again. dead_letter: found
#: among the dead letters. kept: found unhandled where it is safe, as in the broker at the end.
Kind = Literal[
    "invoke",
    "ok",
    "failed",
    "unknown",
    "deliver",
    "effect",
    "damaged",
    "ack",
    "retry",
    "dead_letter",
    "kept",
]
#: How many ids a sentence of the verdict names.
NAMED: Final = 5


class Numbered(Struct, frozen=True):
    """The body of a workload's message: it tells which one it is, and whether it is whole.

    seq counts up for each (run, producer, key); key None is no key and has no order.
    """

    run: str
    producer: str
    key: str | None
    seq: int
    filler: str = ""
    crc: int = 0

    @property
    def id(self) -> str:
        """The message id: whoever publishes this again, publishes it with the same one."""
        text = f"{self.run}/{self.producer}/{self.key}/{self.seq}"
        return f"{text}-{sha256(text.encode()).hexdigest()[:8]}"

    def sealed(self) -> Numbered:
        """The same, with the checksum that `whole` looks at."""
        return msgspec.structs.replace(self, crc=self._sum())

    def whole(self) -> bool:
        """Whether it is what `sealed` made."""
        return self.crc == self._sum()

    def _sum(self) -> int:
        return crc32(self.filler.encode(), crc32(self.id.encode()))


class Entry(Struct, frozen=True, omit_defaults=True):
    """One event. `at` is monotonic seconds; `why` is for whoever reads it."""

    kind: Kind
    id: str
    at: float
    pid: int
    run: str = ""
    producer: str = ""
    key: str | None = None
    seq: int = -1
    why: str = ""


class History:
    """The events of one process. Any thread; each call is one write and one fsync.

    Args:
        path: A new file. The history of a process that was restarted is another one.
        monotonic: The clock.

    Raises: FileExistsError; OSError, when an event could not be written down.
    """

    def __init__(
        self, path: Path | str, *, monotonic: Callable[[], float] = SYSTEM_CLOCK.monotonic
    ) -> None:
        self.path = Path(path)
        self._monotonic = monotonic
        self._lock = threading.Lock()
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND
        self._file = os.open(self.path, flags, 0o644)

    def note(self, kind: Kind, id: str, numbered: Numbered | None = None, *, why: str = "") -> None:
        """Write an event down; when this returns it is on disk."""
        self.note_all([(kind, id, numbered)], why=why)

    def note_all(
        self, events: Iterable[tuple[Kind, str, Numbered | None]], *, why: str = ""
    ) -> None:
        """Write many down, in this order, with one fsync."""
        with self._lock:
            lines = b"".join(self._line(kind, id, numbered, why) for kind, id, numbered in events)
            while lines:
                lines = lines[os.write(self._file, lines) :]
            os.fsync(self._file)

    def close(self) -> None:
        """Close the file. Not needed for what was noted."""
        os.close(self._file)

    def _line(self, kind: Kind, id: str, numbered: Numbered | None, why: str) -> bytes:
        at, pid = self._monotonic(), os.getpid()
        if numbered is None:
            entry = Entry(kind, id, at, pid, why=why)
        else:
            run, producer, key, seq = numbered.run, numbered.producer, numbered.key, numbered.seq
            entry = Entry(kind, id, at, pid, run, producer, key, seq, why)
        return msgspec.json.encode(entry) + b"\n"


def read_history(path: Path | str) -> list[Entry]:
    """All events of a file. What stands behind the last line break was cut by a kill, and ignored.

    Raises: ValueError for a line, other than that, that is none of ours.
    """
    *lines, _ = Path(path).read_bytes().split(b"\n")
    entries = []
    for number, line in enumerate(lines, 1):
        try:
            entries.append(_decode(line))
        except msgspec.DecodeError as error:
            msg = f"{path}, line {number}: {error}"
            raise ValueError(msg) from error
    return entries


_decode = msgspec.json.Decoder(Entry).decode


def ending(outcome: Receipt | PublishError) -> Literal["ok", "failed", "unknown"]:
    """How a publish ended, as the kind of an event."""
    if isinstance(outcome, Receipt):
        return "ok"
    # Rejected and Backpressure are definite: it is not stored.
    return "unknown" if isinstance(outcome, PublishUnknown) else "failed"


class Verdict(Struct, frozen=True, kw_only=True):
    """What `check` found. Empty and true is good; `broken` says in words what is not.

    lost, phantom, recovered: message ids.
    duplicate_deliveries, duplicate_effects: ids, and how often more than once.
    inversions: pairs of ids, the later message first: it overtook the other one.
    dead_letters_exact: the poison, and only the poison, is among the dead letters.
    liveness: everything was drained in time, and every publish ended by its deadline.
    """

    invoked: int = 0
    confirmed: int = 0
    effects: int = 0
    lost: tuple[str, ...] = ()
    phantom: tuple[str, ...] = ()
    recovered: tuple[str, ...] = ()
    duplicate_deliveries: Mapping[str, int] = {}
    duplicate_effects: Mapping[str, int] = {}
    inversions: tuple[tuple[str, str], ...] = ()
    dead_letters: Mapping[str, int] = {}
    dead_letters_exact: bool = True
    liveness: bool = True
    broken: tuple[str, ...] = ()

    def __str__(self) -> str:
        counts = (
            f"{self.invoked} invoked, {self.confirmed} confirmed, {self.effects} took effect, "
            f"{len(self.lost)} lost, {len(self.phantom)} phantom, {len(self.recovered)} recovered, "
            f"{sum(self.duplicate_effects.values())} duplicate effects, "
            f"{len(self.inversions)} inversions, {len(self.dead_letters)} dead letters"
        )
        return "\n".join([counts, *(f"  BROKEN {one}" for one in self.broken)])


def check(
    histories: Iterable[Sequence[Entry]],
    *,
    drained: bool,
    poison: Mapping[str, str] | None = None,
    duplicates: int | None = None,
    deadline: float | None = None,
) -> Verdict:
    """Compare what was promised with what happened, for the consumers of one group.

    Args:
        histories: One sequence for each process.
        drained: Whether the group had nothing left to do, within the time it was given. If not,
            what is called lost may only be late.
        poison: The ids that must end as dead letters, each with its reason ("" for any).
        duplicates: So many effects may be duplicates; None: any number.
        deadline: Seconds within which each publish that ended must have ended.
    """
    facts = _Facts(histories)
    poison = poison or {}
    lost = sorted(facts.confirmed - facts.safe)
    phantom = sorted(id for id in facts.arrived if not facts.may_be_stored(id))
    inversions = tuple(facts.inversions())
    twice = {id: count - 1 for id, count in facts.effects.items() if count > 1}
    late = facts.late(deadline)
    dead = facts.dead_letters
    not_poison = sorted(set(dead) - set(poison))
    missing = sorted(id for id in poison if id in facts.confirmed and id not in dead)
    wrong = sorted(
        f"{id} ({', '.join(sorted(reasons))}, expected {poison[id]})"
        for id, reasons in dead.items()
        if poison.get(id) and reasons != {poison[id]}
    )
    surplus = 0 if duplicates is None else sum(twice.values()) - duplicates
    broken = [
        *_sentence("lost", lost, "confirmed, and neither handled nor kept nor a dead letter"),
        *_sentence("phantom", phantom, "never sent, refused, or damaged, and yet there"),
        *_sentence("inversion", [f"{a} before {b}" for a, b in inversions], "a key out of order"),
        *_sentence("duplicated", sorted(twice) if surplus > 0 else [], f"{surplus} too many"),
        *_sentence("dead letters", not_poison, "no poison, and yet dead-lettered"),
        *_sentence("dead letters", missing, "poison, and not among the dead letters"),
        *_sentence("dead letters", wrong, "dead-lettered for another reason"),
        *_sentence("liveness", late, f"published without an answer within {deadline} s"),
    ]
    if not drained:
        broken.append("liveness: not drained in time")
    return Verdict(
        invoked=len(facts.invoked),
        confirmed=len(facts.confirmed),
        effects=len(facts.effects),
        lost=tuple(lost),
        phantom=tuple(phantom),
        recovered=tuple(sorted((facts.arrived & set(facts.invoked)) - facts.confirmed)),
        duplicate_deliveries={id: n - 1 for id, n in facts.deliveries.items() if n > 1},
        duplicate_effects=twice,
        inversions=inversions,
        dead_letters={id: facts.letters[id] for id in dead},
        dead_letters_exact=not (not_poison or missing or wrong),
        liveness=drained and not late,
        broken=tuple(broken),
    )


class _Facts:
    """The histories, read once."""

    def __init__(self, histories: Iterable[Sequence[Entry]]) -> None:
        #: When each message was invoked, in order.
        self.invoked: dict[str, list[float]] = defaultdict(list)
        self.confirmed: set[str] = set()
        #: Found anywhere behind the publish.
        self.arrived: set[str] = set()
        #: In a place where a confirmed message may be at the end.
        self.safe: set[str] = set()
        self.deliveries: Counter[str] = Counter()
        self.effects: Counter[str] = Counter()
        self.letters: Counter[str] = Counter()
        self.dead_letters: dict[str, set[str]] = defaultdict(set)
        self._damaged: set[str] = set()
        self._refused: Counter[str] = Counter()
        self._ended: list[tuple[str, float]] = []
        self._firsts: list[Entry] = []
        open_ones: dict[tuple[int, str], float] = {}
        # Stable: events of one process that have the same time stay in their order.
        for entry in sorted((one for all_ in histories for one in all_), key=lambda one: one.at):
            self._read(entry, open_ones)

    def _read(self, entry: Entry, open_ones: dict[tuple[int, str], float]) -> None:
        if entry.kind == "invoke":
            self.invoked[entry.id].append(entry.at)
            open_ones[entry.pid, entry.id] = entry.at
        elif entry.kind in ("ok", "failed", "unknown"):
            began = open_ones.pop((entry.pid, entry.id), entry.at)
            self._ended.append((entry.id, entry.at - began))
            if entry.kind == "ok":
                self.confirmed.add(entry.id)
            elif entry.kind == "failed":
                self._refused[entry.id] += 1
        else:
            self._read_arrival(entry)

    def _read_arrival(self, entry: Entry) -> None:
        id, kind = entry.id, entry.kind
        self.arrived.add(id)
        if kind in ("effect", "dead_letter", "kept"):
            self.safe.add(id)
        if kind == "deliver":
            self.deliveries[id] += 1
        elif kind == "effect":
            if not self.effects[id]:
                self._firsts.append(entry)
            self.effects[id] += 1
        elif kind == "dead_letter":
            self.letters[id] += 1
            self.dead_letters[id].add(entry.why)
        elif kind == "damaged":
            self._damaged.add(id)

    def may_be_stored(self, id: str) -> bool:
        """Whether one of its publishes ended otherwise than in a refusal, and it is not damaged."""
        return len(self.invoked.get(id, ())) > self._refused[id] and id not in self._damaged

    def late(self, deadline: float | None) -> list[str]:
        """The publishes that took longer."""
        if deadline is None:
            return []
        return [f"{id} ({took:.1f} s)" for id, took in self._ended if took > deadline]

    def inversions(self) -> Iterator[tuple[str, str]]:
        """(later, earlier) for each message whose first effect came after that of a later one.

        Two reasons excuse it: it was a dead letter (its key went on without it, and a replay came
        late), or it was invoked once more after the later one, as after an unknown ending.
        """
        seen: dict[tuple[str, str, str], list[Entry]] = defaultdict(list)
        highest: dict[tuple[str, str, str], int] = {}
        for entry in self._firsts:
            if entry.key is None or entry.seq < 0:
                continue
            lane = (entry.run, entry.producer, entry.key)
            if entry.seq < highest.get(lane, -1) and entry.id not in self.letters:
                last = max(self.invoked.get(entry.id, [0.0]))
                for other in seen[lane]:
                    first = min(self.invoked.get(other.id, [float("inf")]))
                    if other.seq > entry.seq and first > last:
                        yield other.id, entry.id
                        break
            seen[lane].append(entry)
            highest[lane] = max(entry.seq, highest.get(lane, -1))


def _sentence(promise: str, found: Sequence[str], text: str) -> list[str]:
    if not found:
        return []
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return [f"{promise}: {len(found)} {text}: {', '.join(found[:NAMED])}{more}"]
