"""`make brokers-up` and `brokers-down`: local brokers for development, and their URLs.

    python -m reliable_mq.testing.brokers up|down

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
    """Start or stop the brokers, and print their URLs; returns the exit code."""
    from reliable_mq.testing.brokers import local

    if len(arguments) != 1 or arguments[0] not in ACTIONS:
        _say("usage: python -m reliable_mq.testing.brokers up|down")
        return 2
    logging.getLogger("pika").setLevel(logging.CRITICAL)  # it tells each try that came too early
    starts = arguments[0] == "up"
    try:
        urls = (local.up if starts else local.down)(STATE.resolve())
    except (BrokerFailed, Missing) as error:
        _say(str(error))
        return 1
    for url in urls:
        print(url if starts else f"stopped {url}")  # noqa: T201 - the answer of this command
    if not urls:
        _say("nothing of ours runs (SQLite needs no server)")
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr)  # noqa: T201 - this is a command


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
