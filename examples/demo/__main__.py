"""`python -m examples.demo [--broker URL]`: ends with 0 if every promise was kept.

1: a promise was broken. 2: wrong arguments. 3: it hung, and the watchdog ended it. 4: it could not
go on. 130, 143: it was interrupted.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from examples.demo.screen import Screen
from examples.demo.shop import plan
from examples.demo.stage import Broken, Stage
from examples.demo.verdict import judge

if TYPE_CHECKING:
    from types import FrameType

#: Seconds until it fails: in all, and without any progress. Another broker may need longer than
#: the embedded one needs here to notice that a consumer is dead.
EMBEDDED, ELSEWHERE = (40.0, 15.0), (180.0, 75.0)
#: Seconds that everything after the last round may take: stopping, judging, closing.
ENDING = 20.0
#: How soon the other consumer gets what a dead one had in hand, in seconds. Kafka allows 6.
LEASES = {"sqlite": "lease_timeout=3", "kafka": "session_timeout=6"}


def main() -> int:
    """Run the demo; returns the exit code."""
    given = _arguments()
    signal.signal(signal.SIGTERM, _interrupt)
    directory = Path(tempfile.mkdtemp(prefix="reliable-mq-demo-"))
    run = f"{time.time_ns() // 1000 % 16**8:08x}"
    broker = _impatient(given.broker or f"sqlite:///{directory / 'shop.db'}")
    planned = plan(run, given.orders, given.customers)
    title = f"{given.orders} orders of {given.customers} customers on {_scheme(broker)}"
    screen = Screen(title)
    stage = Stage(broker, run, planned, directory, screen.say, patience=given.patience)
    hung = threading.Timer(given.seconds + ENDING, _hung, [stage, directory])
    hung.daemon = True
    hung.start()
    try:
        with screen:
            _play(stage, screen, time.monotonic() + given.seconds)
        judgement = judge(stage)
        screen.result(stage, judgement)
    except Broken as error:
        print(f"the demo cannot go on: {error}", file=sys.stderr)
        return 4
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    else:
        return 1 if judgement.broken else 0
    finally:
        stage.close()
        hung.cancel()
        if given.keep:
            print(f"everything is left in {directory}")
        else:
            shutil.rmtree(directory, ignore_errors=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=__doc__)
    parser.add_argument(
        "--broker", default=os.environ.get("BROKER"), help="a URL; else SQLite in a new file"
    )
    parser.add_argument("--orders", type=int, default=2000)
    parser.add_argument("--customers", type=int, default=100)
    parser.add_argument("--seconds", type=float, help="not done by then: it fails")
    parser.add_argument("--patience", type=float, help="seconds without any progress: it fails")
    parser.add_argument("--keep", action="store_true", help="leave the files, to look at them")
    given = parser.parse_args()
    seconds, patience = ELSEWHERE if given.broker else EMBEDDED
    given.seconds = seconds if given.seconds is None else given.seconds
    given.patience = patience if given.patience is None else given.patience
    if given.orders < 100 or given.customers < 1:
        parser.error("--orders from 100 up, --customers from 1 up")
    if given.broker and given.broker.startswith("memory:"):
        parser.error("memory:// is one process alone; the demo kills processes")
    return given


def _play(stage: Stage, screen: Screen, deadline: float) -> None:
    stage.open()
    while not (why := stage.over()):
        if time.monotonic() > deadline:
            why = "the time is over"
            break
        stage.step()
        screen.show(stage)
    screen.say(why)
    stage.finish()


def _impatient(url: str) -> str:
    """The URL, with a short lease where it names no option and the broker lets us choose one."""
    lease = LEASES.get(url.partition(":")[0])
    return f"{url}?{lease}" if lease and "?" not in url else url


def _scheme(url: str) -> str:
    return "the embedded broker (SQLite)" if url.startswith("sqlite") else url.partition(":")[0]


def _interrupt(number: int, _: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _hung(stage: Stage, directory: Path) -> None:
    """The watchdog: something that has a deadline did not keep it."""
    print("the demo hangs; where, say these stacks:", file=sys.stderr, flush=True)
    faulthandler.dump_traceback()
    for member in stage.members:
        if member.process is not None:
            member.process.kill()
    shutil.rmtree(directory, ignore_errors=True)
    os._exit(3)


if __name__ == "__main__":
    raise SystemExit(main())
