"""Publishes, kills, restarts, and knows when all is done.

One thread goes round: it publishes while the backlog is short, looks what the consumers have
written into their histories, kills when it is time, and ends when every order has what it was
promised, when nothing has moved for a while, or when the time is over. No round waits for long.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from examples.demo.shop import Invoice, Planned, message
from reliable_mq import (
    Backpressure,
    Confirmation,
    Context,
    PublishRejected,
    PublishUnknown,
    ReliableMQ,
)
from reliable_mq.testing.history import Entry, History, ending, read_history

if TYPE_CHECKING:
    from collections.abc import Callable

    from reliable_mq.deadletter import StoredDeadLetter

#: Orders that may be published and not yet billed.
BACKLOG: Final = 300
#: Orders that are published in one round, so that it can be watched.
BURST: Final = 40
#: When a consumer that has work is killed: at these shares of the orders.
KILLS: Final = (0.3, 0.6)
#: Until a kill that is due has come about, no more orders are open than these, beside a share of
#: them all: so that there is something left to do, whatever the machine is busy with.
TRICKLE: Final = 24
MARGIN: Final = 0.15
ROUND_SECONDS: Final = 0.05
ROOT: Final = Path(__file__).resolve().parents[2]

_decode = msgspec.json.Decoder(Entry).decode


class Broken(Exception):
    """The demo cannot go on."""


class Member:
    """One consumer process, its history, and what it has in hand; it may have several lives."""

    def __init__(self, name: str, directory: Path, arguments: list[str]) -> None:
        self.name = name
        self.lives = 0
        self.effects = 0
        self.in_hand: set[str] = set()
        self.process: subprocess.Popen[bytes] | None = None
        self.histories: list[Path] = []
        self._directory = directory
        self._arguments = arguments
        self._read = 0
        self._rest = b""

    def start(self) -> None:
        """Begin a life: a new process, with a history of its own."""
        self.lives += 1
        self._read, self._rest, self.in_hand = 0, b"", set()
        history = self._directory / f"{self.name}-{self.lives}.jsonl"
        self.histories.append(history)
        command = [sys.executable, "-m", "examples.demo.consumer", *self._arguments]
        with self._log().open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "--history", str(history)],
                cwd=ROOT,
                stdin=subprocess.PIPE,  # when it ends, so does the process: nobody is left behind
                stdout=log,
                stderr=log,
            )

    def ready(self) -> bool:
        """Whether this life has come as far as opening its history."""
        return self.histories[-1].exists()

    def news(self) -> list[Entry]:
        """What it has written since the last look."""
        path = self.histories[-1]
        if not self.ready():
            return []
        with path.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        self._read += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        entries = [_decode(line) for line in lines]
        for entry in entries:
            if entry.kind == "deliver":
                self.in_hand.add(entry.id)
            else:
                self.in_hand.discard(entry.id)
            self.effects += entry.kind == "effect"
        return entries

    def freeze(self) -> None:
        """Let it stand still, and return when it does."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        deadline = time.monotonic() + 5
        flags = os.WSTOPPED | os.WEXITED | os.WNOWAIT | os.WNOHANG
        while os.waitid(os.P_PID, self.process.pid, flags) is None:
            if time.monotonic() > deadline:
                msg = f"{self.name} cannot be stopped"
                raise Broken(msg)
            time.sleep(0.001)

    def thaw(self) -> None:
        """Let it go on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End its life, as nothing else can."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)
        assert self.process.stdin is not None
        self.process.stdin.close()

    def check(self) -> None:
        """Raise if it ended by itself."""
        assert self.process is not None
        code = self.process.poll()
        if code is not None:
            text = self._log().read_text(errors="replace")[-2000:]
            msg = f"{self.name} ended by itself, with {code}:\n{text}"
            raise Broken(msg)

    def terminate(self) -> None:
        """Tell it to end, as an operator does."""
        assert self.process is not None
        self.process.terminate()

    def wait(self, timeout: float) -> int | None:
        """Its exit code; None when it does not end in time and has to be killed."""
        assert self.process is not None
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
            return None

    def _log(self) -> Path:
        return self._directory / f"{self.name}-{self.lives}.log"


class Stage:
    """All that runs. `step` until `over`, then `close`."""

    def __init__(
        self,
        broker: str,
        run: str,
        planned: list[Planned],
        directory: Path,
        say: Callable[[str], None],
        *,
        patience: float,
    ) -> None:
        self.planned = planned
        self.say = say
        self.confirmed = 0
        self.effects: set[str] = set()
        self.retries = 0
        self.deliveries: Counter[str] = Counter()
        self.letters: dict[str, StoredDeadLetter] = {}
        #: The ids under which the invoice of an order came, in the order in which invoices came.
        self.invoices: dict[str, set[str]] = {}
        self.invoiced: list[Invoice] = []
        #: Orders in hand at each kill.
        self.killed_with: list[int] = []
        self.exit_codes: list[int | None] = []
        self.complete = False
        self.orders, self._invoices = f"orders-{run}", f"invoices-{run}"
        self._history = History(directory / "shop.jsonl")
        self._due = [int(share * len(planned)) for share in KILLS]
        self._mq = ReliableMQ(broker)
        self._next = 0
        self._pending: list[tuple[Planned, Confirmation]] = []
        self._poison = {one.id for one in planned if one.reason}
        self._calm = {one.id for one in planned if not (one.reason or one.order.unreachable)}
        self._orders_by_id = {one.id: one.order for one in planned}
        self._id_of = {one.order.number: one.id for one in planned}
        self._patience = patience
        self._looked = 0.0
        self._moved = time.monotonic()
        self._sum = 0
        self._bell = threading.Event()
        arguments = ["--broker", broker, "--run", run, "--orders", self.orders]
        arguments += ["--invoices", self._invoices]
        names = ("consumer-1", "consumer-2")
        self.members = [Member(name, directory, arguments) for name in names]

    def open(self) -> None:
        """Declare the topics, start the ledger here and the two consumer processes."""
        self._mq.topic(self.orders, groups=("billing",))

        @self._mq.consumer(self._mq.topic(self._invoices, groups=("ledger",)), group="ledger")
        def enter(invoice: Invoice, ctx: Context) -> None:
            order = self._id_of[invoice.order]
            if order not in self.invoices:
                self.invoiced.append(invoice)
            self.invoices.setdefault(order, set()).add(ctx.id)

        self._mq.start()
        for member in self.members:
            member.start()
            self.say(f"{member.name} starts")

    @property
    def published(self) -> int:
        """Orders that were handed to the broker."""
        return self._next

    @property
    def finished(self) -> int:
        """Orders that have been billed, or given up."""
        return len(self.effects | set(self.letters))

    def over(self) -> str:
        """Why nothing more will happen; "" while something will."""
        self.complete = (
            self._next == len(self.planned) == self.confirmed
            and not self._due
            and self._poison <= set(self.letters)
            and all(one.id in self.effects for one in self.planned if not one.reason)
            and self.effects <= set(self.invoices)
        )
        if self.complete:
            return "all is done"
        silence = time.monotonic() - self._moved
        return f"nothing has moved for {silence:.0f} s" if silence > self._patience else ""

    def step(self) -> None:
        """One round."""
        self._publish()
        self._confirm()
        for member in self.members:
            member.check()
            self._take(member.news())
        if self._due and len(self.effects) >= self._due[0]:
            # Where one member of a group has all the work, the others stand by.
            self._kill(max(self.members, key=lambda one: len(one.in_hand & self._calm)))
        now = time.monotonic()
        if now >= self._looked + 0.5:
            self._looked = now
            self._browse()
        moved = self.confirmed + sum(self.deliveries.values()) + len(self.invoices)
        moved += self.retries + len(self.effects) + len(self.letters)
        if moved != self._sum:
            self._sum, self._moved = moved, now
        self._bell.wait(ROUND_SECONDS)

    def finish(self) -> None:
        """Stop the consumers as an operator does, and write the dead letters down."""
        for member in self.members:
            member.terminate()
        for member in self.members:
            self.exit_codes.append(member.wait(15.0))
            self._take(member.news())
        self._browse()
        for letter in self.letters.values():
            self._history.note("dead_letter", letter.message.id, why=letter.reason)

    def close(self) -> None:
        """Leave nothing running. Idempotent, and safe wherever it went wrong."""
        for member in self.members:
            if member.process is not None and member.process.poll() is None:
                member.kill()
        self._mq.stop(timeout=2.0)

    def histories(self) -> list[list[Entry]]:
        """All that was written down, read again from the disk."""
        paths = [self._history.path]
        paths += [path for member in self.members for path in member.histories]
        return [read_history(path) for path in paths if path.exists()]

    def _publish(self) -> None:
        finished = self.finished
        room = finished + BACKLOG - self._next
        if self._due:
            up_to = self._due[0] + int(MARGIN * len(self.planned))
            if any(one.ready() for one in self.members):
                up_to = max(up_to, finished + TRICKLE)
            room = min(room, up_to - self._next)
        burst = self.planned[self._next : self._next + max(0, min(BURST, room))]
        self._next += len(burst)
        self._send(burst)

    def _send(self, burst: list[Planned]) -> None:
        if not burst:
            return
        self._history.note_all([("invoke", one.id, one.numbered) for one in burst])
        for one in burst:
            self._pending.append((one, self._mq.resend(message(self._mq, self.orders, one))))

    def _confirm(self) -> None:
        ended = [pair for pair in self._pending if pair[1].done()]
        if not ended:
            return
        self._pending = [pair for pair in self._pending if not pair[1].done()]
        again: list[Planned] = []
        notes = []
        for one, confirmation in ended:
            outcome = confirmation.outcome
            assert outcome is not None
            if isinstance(outcome, PublishRejected):
                msg = f"the broker refuses an order: {outcome}"
                raise Broken(msg)
            notes.append((ending(outcome), one.id, one.numbered))
            if isinstance(outcome, (PublishUnknown, Backpressure)):
                again.append(one)  # with the same id: whoever has it already knows it
            else:
                self.confirmed += 1
        self._history.note_all(notes)
        self._send(again)

    def _take(self, news: list[Entry]) -> None:
        for entry in news:
            if entry.kind == "deliver":
                self.deliveries[entry.id] += 1
            elif entry.kind == "effect":
                self.effects.add(entry.id)
            elif entry.kind == "retry":
                self.retries += 1

    def _kill(self, victim: Member) -> None:
        """Kill it in the middle of its work: it is frozen first, so that this is certain."""
        if not victim.in_hand & self._calm:
            return
        victim.freeze()
        self._take(victim.news())
        in_hand = victim.in_hand & self._calm
        if not in_hand:
            victim.thaw()  # a moment too early or too late: the next round tries again
            return
        victim.kill()
        del self._due[0]
        self.killed_with.append(len(in_hand))
        self.say(f"{victim.name} is killed (kill -9) with {len(in_hand)} orders in hand")
        victim.start()
        self.say(f"{victim.name} starts again")

    def _browse(self) -> None:
        if not self._next:
            return
        for letter in self._mq.dead_letters(self.orders, "billing"):
            if letter.message.id not in self.letters:
                self.letters[letter.message.id] = letter
                order = self._orders_by_id[letter.message.id]
                self.say(f"order {order.number} becomes a dead letter: {letter.reason}")
