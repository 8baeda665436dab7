"""`python -m benchmarks [ONLY...]`: run scenarios, print one JSON line each and a table."""

from __future__ import annotations

import argparse
import sys

from benchmarks.harness import Bench, chosen, run, tell
from benchmarks.scenarios import load


def main() -> int:
    """Exit 0 although a floor is missed; 1 when a message was lost, doubled or out of order."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("only", nargs="*", help="scenarios (B7-20) or families (B7); default: all")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each contestant")
    parser.add_argument("--quick", action="store_true", help="tiny, once: does it work at all")
    parser.add_argument("--list", action="store_true", help="list the scenarios and end")
    options = parser.parse_args()
    load()
    try:
        found = chosen(options.only)
    except LookupError as error:
        parser.error(str(error))
    if options.list:
        for name, function in found.items():
            about = getattr(function, "func", function).__doc__ or ""
            print(f"{name:24} {about.splitlines()[0]}")
        return 0
    bench = Bench(rounds=max(1, options.rounds), quick=options.quick)
    return 0 if tell(run(options.only, bench)) else 1


if __name__ == "__main__":
    sys.exit(main())
