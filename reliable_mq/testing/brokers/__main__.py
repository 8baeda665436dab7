"""`make brokers-up` and `brokers-down`: local brokers for development, and their URLs.

    python -m reliable_mq.testing.brokers up|down [rabbitmq] [kafka]

What runs is remembered in `.cache/brokers` of the working directory.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Final

from reliable_mq.testing.brokers import BrokerFailed, Missing

__all__ = ["main"]

ACTIONS: Final = ("up", "down")
STATE: Final = Path(".cache/brokers")


def main(arguments: list[str]) -> int:
    """Start or stop the brokers, and print their URLs; returns the exit code.

    What cannot be had is told, and does not keep the others from starting.
    """
    from reliable_mq.testing.brokers import local

    action, *names = arguments or [""]
    if action not in ACTIONS or not set(names) <= set(local.NAMES):
        _say(f"usage: python -m reliable_mq.testing.brokers up|down [{'|'.join(local.NAMES)}]")
        return 2
    logging.getLogger("pika").setLevel(logging.CRITICAL)  # it tells each try that came too early
    starts = action == "up"
    failed = ran = False
    for name in names or local.NAMES:
        try:
            url = (local.up if starts else local.down)(STATE.resolve(), name)
        except (BrokerFailed, Missing) as error:
            _say(str(error))
            failed = True
            continue
        if url:
            print(url if starts else f"stopped {url}")  # noqa: T201 - the answer of this command
            ran = True
    if not (ran or failed):
        _say("nothing of ours runs (SQLite needs no server)")
    return int(failed)


def _say(text: str) -> None:
    print(text, file=sys.stderr)  # noqa: T201 - this is a command


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
