"""What you see: a live panel on a terminal, plain lines elsewhere, and the table at the end."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from examples.demo.stage import Member, Stage
    from examples.demo.verdict import Judgement
    from reliable_mq.deadletter import StoredDeadLetter

#: Seconds between two plain lines of progress.
LINE_SECONDS = 2.0


class Screen:
    """`say` an event, `show` the state; as a context manager."""

    def __init__(self, title: str) -> None:
        self.console = Console()
        self._title = title
        self._began = time.monotonic()
        self._events: deque[str] = deque(maxlen=8)
        self._live: Live | None = None
        self._line = 0.0

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live = Live(console=self.console, auto_refresh=False, transient=True)
            self._live.__enter__()
        else:
            self.console.print(self._title)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.__exit__(kind, error, trace)
            for event in self._events:
                self.console.print(event, markup=False, highlight=False)

    def say(self, event: str) -> None:
        """Something happened."""
        line = f"{time.monotonic() - self._began:6.1f} s  {event}"
        self._events.append(line)
        if self._live is None:
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def show(self, stage: Stage) -> None:
        """How it stands."""
        if self._live is not None:
            self._live.update(self._panel(stage), refresh=True)
        elif time.monotonic() >= self._line + LINE_SECONDS:
            self._line = time.monotonic()
            self.say(
                f"{stage.confirmed} confirmed, {len(stage.effects)} billed, "
                f"{stage.retries} retries, {len(stage.letters)} dead letters"
            )

    def _panel(self, stage: Stage) -> Panel:
        total = len(stage.planned)
        bars = Table.grid(padding=(0, 2))
        for name, done in (
            ("published", stage.published),
            ("confirmed", stage.confirmed),
            ("billed", len(stage.effects)),
            ("invoiced", len(stage.invoices)),
        ):
            bars.add_row(name, ProgressBar(total=total, completed=done, width=50), f"{done}")
        bars.add_row("retries", "", f"{stage.retries}")
        bars.add_row("dead letters", "", f"{len(stage.letters)}")
        members = Table.grid(padding=(0, 2))
        for member in stage.members:
            members.add_row(*_cells(member))
        events = Text("\n".join(self._events), style="dim")
        took = f"{time.monotonic() - self._began:.0f} s"
        return Panel(Group(bars, "", members, "", events), title=self._title, subtitle=took)

    def result(self, stage: Stage, judgement: Judgement) -> None:
        """The tables, and whether every promise was kept."""
        facts = judgement.facts
        promised = "[green]0[/]", "[red]{}[/]"
        lost = promised[0] if not facts.lost else promised[1].format(len(facts.lost))
        overtaken = len(facts.inversions)
        inversions = promised[0] if not overtaken else promised[1].format(overtaken)
        table = Table(title=f"{self._title}, {time.monotonic() - self._began:.1f} s")
        for heading in ("", "orders", ""):
            table.add_column(heading, justify="right" if heading else "left")
        hands = " and ".join(str(count) for count in judgement.killed_with)
        for row in (
            ("published", f"{facts.invoked}", "while two consumer processes run"),
            ("confirmed", f"{facts.confirmed}", "the broker has stored them"),
            ("effects", f"{facts.effects}", "billed, by the processes' own fsynced histories"),
            ("invoices", f"{judgement.invoices}", "published by the handlers, one an order"),
            ("killed", f"{len(judgement.killed_with)} times", f"kill -9, {hands} orders in hand"),
            ("redelivered", f"{judgement.redelivered}", "in hand when the process was killed"),
            (
                "billed twice",
                f"{sum(facts.duplicate_effects.values())}",
                "at-least-once: killed between the effect and the ack",
            ),
            ("retries", f"{judgement.retries}", "the payment provider could not be reached"),
            ("dead letters", f"{len(facts.dead_letters)}", "see below"),
            ("lost", lost, "confirmed, and neither billed nor a dead letter"),
            ("order inversions", inversions, "first effects of a customer's orders"),
        ):
            table.add_row(*row)
        self.console.print(table)
        self._letters(stage)
        for sentence in judgement.broken:
            self.console.print(f"BROKEN  {sentence}", markup=False, soft_wrap=True)
        text = "every promise was kept" if not judgement.broken else "a promise was broken"
        self.console.print(Text(text, style="bold red" if judgement.broken else "bold green"))

    def _letters(self, stage: Stage) -> None:
        table = Table(title=f"dead letters of {stage.orders}, group billing")
        for heading in ("order", "reason", "runs", "story"):
            table.add_column(heading, justify="right" if heading == "runs" else "left")
        for one in stage.planned:
            letter = stage.letters.get(one.id)
            if letter is not None:
                order = f"{one.order.number} of {one.order.customer}"
                runs = f"{letter.attempts}"
                table.add_row(order, letter.reason, runs, Text(_story(letter)))
        self.console.print(table)


def _story(letter: StoredDeadLetter) -> str:
    """What each run ended with, and what the last one said."""
    if not letter.history:
        return letter.error
    kinds = [failure.type.rpartition(".")[2] for failure in letter.history]
    return f"{', '.join(kinds)}: {letter.history[-1].text}"


def _cells(member: Member) -> tuple[str, ...]:
    process = member.process
    state = "not started" if process is None else f"pid {process.pid}, life {member.lives}"
    return member.name, state, f"{member.effects} billed", f"{len(member.in_hand)} in hand"
