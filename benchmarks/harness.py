"""Runs scenarios and tells what was seen: interleaved rounds, medians, spread, a JSON line each.

A scenario is a function of a Bench that returns a Result, registered by name. It measures ours, the
peers and the limit in turns (A/B/A/B) in one process, so that a neighbour who takes the CPU takes
it from all of them. Trust the ratios and the CPU time, not the absolute rates.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import resource
import sqlite3
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from reliable_mq.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from types import TracebackType

    from typing_extensions import Self

#: A limit that moved by more than this between rounds makes the figures of the run doubtful.
NOISY = 0.15


class Counts(msgspec.Struct, frozen=True):
    """What went wrong with the messages of one run. All zero, or the run proves nothing."""

    lost: int = 0
    duplicated: int = 0
    inversions: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.lost + other.lost,
            self.duplicated + other.duplicated,
            self.inversions + other.inversions,
        )

    def __bool__(self) -> bool:
        return bool(self.lost or self.duplicated or self.inversions)


class Sample(msgspec.Struct, frozen=True):
    """One run: its figure in the scenario's unit, its CPU, its counters, whatever else it saw."""

    value: float
    cpu_us: float = 0.0
    counts: Counts = Counts()
    detail: dict[str, float] = {}


class Series:
    """The runs of one contestant."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []

    @property
    def value(self) -> float:
        """The median."""
        return median(sample.value for sample in self.samples)

    @property
    def cpu_us(self) -> float:
        """The median CPU per message, microseconds."""
        return median(sample.cpu_us for sample in self.samples)

    @property
    def spread(self) -> float:
        """How far apart the runs are: (highest - lowest) / median."""
        values = [sample.value for sample in self.samples]
        return (max(values) - min(values)) / abs(self.value) if self.value else 0.0

    @property
    def counts(self) -> Counts:
        """All that went wrong in any run."""
        return sum((sample.counts for sample in self.samples), Counts())

    def detail(self, name: str) -> float:
        """The median of something else that each run saw."""
        return median(sample.detail[name] for sample in self.samples)


class Floor(msgspec.Struct, frozen=True):
    """What has to be reached: `of` is "ours" or "ratio"."""

    of: Literal["ours", "ratio"]
    sense: Literal[">=", "<="]
    bound: float

    def met(self, ours: float, ratio: float | None) -> bool:
        """Whether it is."""
        value = ours if self.of == "ours" or ratio is None else ratio
        return value >= self.bound if self.sense == ">=" else value <= self.bound

    def __str__(self) -> str:
        return f"{self.of} {self.sense} {self.bound:g}"


@dataclass
class Result:
    """What one scenario found. `series` holds all contestants, "ours" and perhaps "limit" too."""

    unit: str
    ours: float
    limit: float | None
    ratio: float | None
    floor: Floor | None
    series: Mapping[str, Series]
    cpu_us: float | None = None
    #: Peers that were not run but computed or read elsewhere; the name says which.
    computed: Mapping[str, float] = field(default_factory=dict)
    detail: Mapping[str, Any] = field(default_factory=dict)

    @property
    def counts(self) -> Counts:
        """What went wrong with ours."""
        ours = [one for name, one in self.series.items() if name.startswith("ours")]
        return sum((one.counts for one in ours), Counts())

    def line(self, scenario: str, *, rounds: int, quick: bool) -> dict[str, Any]:
        """The JSON line. `passed` is null where nothing is judged: no floor, or a smoke run."""
        peers = {
            name: round_(one.value)
            for name, one in self.series.items()
            if not name.startswith(("ours", "limit"))
        }
        spread = {name: round(one.spread, 3) for name, one in self.series.items()}
        judged = self.floor is not None and not quick
        return {
            "scenario": scenario,
            "unit": self.unit,
            "ours": round_(self.ours),
            "limit": None if self.limit is None else round_(self.limit),
            "ratio": None if self.ratio is None else round_(self.ratio),
            "peers": {**peers, **{name: round_(one) for name, one in self.computed.items()}},
            "cpu_us": None if self.cpu_us is None else round(self.cpu_us, 2),
            **msgspec.structs.asdict(self.counts),
            "floor": None if self.floor is None else str(self.floor),
            "passed": self.floor.met(self.ours, self.ratio) if self.floor and judged else None,
            "spread": spread,
            "noisy": "limit" in self.series and self.series["limit"].spread > NOISY,
            "rounds": rounds,
            "quick": quick,
            "detail": dict(self.detail),
            "versions": versions(),
        }


class Bench:
    """How a scenario shall be measured.

    Args:
        rounds: Runs of each contestant.
        quick: Tiny sizes and one round: whether it works, not how fast.
    """

    def __init__(self, *, rounds: int = 5, quick: bool = False) -> None:
        self.rounds = 1 if quick else rounds
        self.quick = quick

    def size(self, full: int, quick: int) -> int:
        """How many."""
        return quick if self.quick else full

    def interleave(
        self, runs: Mapping[str, Callable[[], Sample]], *, at_most: int | None = None
    ) -> dict[str, Series]:
        """Run all contestants in turns, `rounds` times each, `at_most` so often.

        Raises: RuntimeError when a peer loses, doubles or reorders messages: it is no peer then.
        """
        series = {name: Series() for name in runs}
        rounds = self.rounds if at_most is None else min(self.rounds, at_most)
        for _ in range(rounds):
            for name, run in runs.items():
                if not self.quick:
                    gc.collect()  # what the run before left is not this one's to collect
                sample = run()
                if sample.counts and not name.startswith("ours"):
                    msg = f"{name} does not do the same work: {sample.counts}"
                    raise RuntimeError(msg)
                series[name].samples.append(sample)
        return series


class Meter:
    """Wall clock and CPU (user and system, all threads) of a `with` block."""

    seconds = 0.0
    cpu = 0.0

    def __enter__(self) -> Self:
        self._cpu = cpu_seconds()
        self._began = time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.seconds = time.perf_counter() - self._began
        self.cpu = cpu_seconds() - self._cpu

    def rate(self, count: int, counts: Counts = Counts()) -> Sample:  # noqa: B008 - frozen
        """So many messages a second."""
        return Sample(count / self.seconds, self.cpu / count * 1e6, counts)

    def took(self, count: int, counts: Counts = Counts()) -> Sample:  # noqa: B008 - frozen
        """So many seconds."""
        return Sample(self.seconds, self.cpu / count * 1e6, counts)


def cpu_seconds() -> float:
    """CPU that this process has used."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


# ---- scenarios by name

SCENARIOS: dict[str, Callable[[Bench], Result]] = {}


def scenario(family: str, *cases: Any) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Register a function of a Bench, or, with cases, of a Bench and one of them: FAMILY-case."""

    def register(function: Callable[..., Result]) -> Callable[..., Result]:
        if not cases:
            SCENARIOS[family] = function
        for case in cases:
            SCENARIOS[f"{family}-{case}"] = partial(function, case=case)
        return function

    return register


def chosen(only: Sequence[str]) -> dict[str, Callable[[Bench], Result]]:
    """The scenarios of these names or families, all if there are none.

    Raises: LookupError for a name that means nothing, listing what there is.
    """
    found = {}
    for wanted in only:
        low = wanted.lower()
        names = [one for one in SCENARIOS if f"{one.lower()}-".startswith(f"{low}-")]
        if not names:
            msg = f"no scenario {wanted!r}; there are {', '.join(SCENARIOS)}"
            raise LookupError(msg)
        found.update({name: SCENARIOS[name] for name in names})
    return found if only else dict(SCENARIOS)


def run(only: Sequence[str], bench: Bench) -> Iterator[dict[str, Any]]:
    """Run what is chosen; yields one line each, as soon as it is known."""
    for name, function in chosen(only).items():
        began = time.perf_counter()
        result = function(bench)
        rounds = max((len(one.samples) for one in result.series.values()), default=0)
        line = result.line(name, rounds=rounds, quick=bench.quick)
        yield {**line, "seconds": round(time.perf_counter() - began, 1)}


def versions() -> dict[str, Any]:
    """What it ran on."""
    return {
        "reliable_mq": __version__,
        "python": platform.python_version(),
        "msgspec": msgspec.__version__,
        "sqlite": sqlite3.sqlite_version,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def round_(value: float) -> float:
    """Four figures that mean something."""
    if value == 0 or abs(value) >= 1000:
        return round(value)
    return float(f"{value:.4g}")


# ---- telling


def tell(lines: Iterable[dict[str, Any]]) -> bool:
    """Print each line as it comes, then the table; whether no message came to harm."""
    told = []
    for line in lines:
        print(json.dumps(line), flush=True)
        told.append(line)
    show(told)
    return not any(line["lost"] or line["duplicated"] or line["inversions"] for line in told)


def show(lines: Sequence[dict[str, Any]]) -> None:
    """The table, where rich is installed (dependency group `bench`)."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        print("no table: `pip install rich`", file=sys.stderr)
        return
    table = Table(title="reliable-mq: ours / limit / peers, medians (spread)")
    for name in ("scenario", "ours", "limit", "ratio", "peers", "CPU µs", "floor", "lost/dup/inv"):
        table.add_column(name, justify="left" if name in ("scenario", "peers") else "right")
    for line in lines:
        table.add_row(*_row(line))
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(table)
    versions_ = ", ".join(f"{name} {value}" for name, value in versions().items())
    console.print(versions_, style="dim", highlight=False)


def _row(line: Mapping[str, Any]) -> list[str]:
    def shown(value: float | None) -> str:
        return "" if value is None else f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"

    spread = line["spread"].get("ours")
    peers = "\n".join(f"{name}: {shown(value)}" for name, value in line["peers"].items())
    verdict = {True: "[green]✓[/]", False: "[red]missed[/]", None: ""}[line["passed"]]
    harmed = [line["lost"], line["duplicated"], line["inversions"]]
    harm = "/".join(map(str, harmed))
    return [
        line["scenario"] + (" [yellow](noisy)[/]" if line["noisy"] else ""),
        f"{shown(line['ours'])} {line['unit']}"
        + ("" if spread is None else f"\n[dim]±{spread / 2:.0%}[/]"),
        shown(line["limit"]),
        shown(line["ratio"]),
        peers,
        shown(line["cpu_us"]),
        f"{line['floor'] or ''} {verdict}",
        f"[red]{harm}[/]" if any(harmed) else harm,
    ]
