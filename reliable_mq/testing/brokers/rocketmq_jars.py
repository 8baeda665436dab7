"""RocketMQ's jars, by Maven: the name server, and the proxy, which brings the broker along.

`python -m reliable_mq.testing.brokers.rocketmq_jars [VERSION]` prints their folder.
"""

from __future__ import annotations

import sys
from typing import Final

from reliable_mq.testing.brokers.base import Missing
from reliable_mq.testing.brokers.maven import Jars

__all__ = ["OLDER", "VERSION", "VERSIONS", "is_installed", "jars_of"]

#: What tests get who do not say which.
VERSION: Final = "5.5.0"

#: The last one before it of which Maven Central has all parts: 5.3.4 lacks the proxy.
OLDER: Final = "5.3.3"

VERSIONS: Final = (VERSION, OLDER)


def jars_of(version: str = VERSION) -> Jars:
    """The jars of a version, fetched or not; a ValueError for one that was never tried."""
    if version not in VERSIONS:
        msg = f"RocketMQ {version!r}: there is {' and '.join(VERSIONS)}"
        raise ValueError(msg)
    parts = ("namesrv", "proxy")
    artifacts = tuple((f"org.apache.rocketmq:rocketmq-{part}", version) for part in parts)
    return Jars("RocketMQ", version, artifacts)


def is_installed() -> bool:
    """Whether there is what a local RocketMQ takes."""
    return jars_of().is_installed()


if __name__ == "__main__":
    try:
        print(jars_of(*sys.argv[1:2]).fetched())  # noqa: T201 - the answer of this command
    except (Missing, ValueError) as error:
        sys.exit(str(error))
