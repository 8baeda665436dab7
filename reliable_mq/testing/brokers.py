"""`make brokers-up` and `brokers-down`: local brokers for development, and their URLs.

The embedded broker needs no server, so there is nothing to start yet: the brokers with a network
bring their processes along.
"""

from __future__ import annotations

import sys

__all__ = ["main"]

ACTIONS = ("up", "down")


def main(arguments: list[str]) -> int:
    """Start or stop what there is, and say so; returns the exit code."""
    if len(arguments) != 1 or arguments[0] not in ACTIONS:
        print("usage: python -m reliable_mq.testing.brokers up|down", file=sys.stderr)  # noqa: T201
        return 2
    print(  # noqa: T201 - this is a command
        "sqlite:///file.db needs no server, so there is nothing to "
        f"{'start' if arguments[0] == 'up' else 'stop'}; RabbitMQ, Kafka and RocketMQ are not "
        "built yet"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
