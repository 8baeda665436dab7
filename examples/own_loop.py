"""Parts alone, beside a consume loop of your own: no ReliableMQ, no broker of ours.

    KeyedExecutor   runs records side by side, those of a key in order
    OffsetTracker   says up to where it is safe to commit, however they end
    RetryPolicy     says what follows a failed run

`Partition` stands for your client: confluent-kafka's Consumer, or whatever yields records.
"""

# ruff: noqa: EM101, TRY003 - handlers raise as people write it

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from reliable_mq import KeyedExecutor, OffsetTracker, Reject, RetryPolicy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reliable_mq.ordering.tracker import Slot

WINDOW = 500


class Record(NamedTuple):
    """What your client hands out."""

    offset: int
    key: str
    total: float


class Partition:
    """A partition with 2,000 records; every fifth offset is missing, as in a compacted log."""

    def __init__(self) -> None:
        self.committed = 0

    def __iter__(self) -> Iterator[Record]:
        for offset in range(2_500):
            if offset % 5 != 3:
                yield Record(offset, f"customer-{offset % 40}", -1.0 if offset == 1_000 else 9.5)

    def commit(self, offset: int) -> None:
        """The next offset to be read after a restart."""
        self.committed = offset


policy = RetryPolicy(attempts=3, backoff=0.01, retry_on=(OSError,))
dead_letters: list[tuple[Record, str]] = []
billed: list[Record] = []
refused_once: set[int] = set()


def bill(record: Record) -> None:
    """What you want done; it fails now and then."""
    if record.total < 0:
        raise ValueError("a negative total")
    if record.offset % 100 == 0 and record.offset not in refused_once:
        refused_once.add(record.offset)
        raise OSError("the payment provider cannot be reached")
    billed.append(record)


def handle(record: Record, slot: Slot) -> None:
    """Run until it is done, or given up; only then may the offset be passed."""
    attempt = 1
    while True:
        try:
            bill(record)
        except Exception as error:  # noqa: BLE001 - the policy decides
            follows = policy.decide(attempt, error)
            if isinstance(follows, Reject):
                dead_letters.append((record, f"{follows.reason}: {error}"))
                break  # where a real dead letter is sent, wait here until it is confirmed
            time.sleep(follows.after or 0.0)
            attempt += 1
        else:
            break
    slot.done = True


def main() -> None:
    """The loop that stays yours."""
    partition = Partition()
    tracker = OffsetTracker(window=WINDOW)
    with KeyedExecutor(concurrency=8, limit=200) as executor:
        for record in partition:
            while tracker.full:  # the oldest one takes long: a real loop would go on polling
                time.sleep(0.001)
                tracker.advance()
            executor.submit(record.key, handle, record, tracker.add(record.offset))
            partition.commit(tracker.advance() or 0)
    partition.commit(tracker.advance() or 0)  # leaving the block has waited for all of them

    by_key: dict[str, list[int]] = {}
    for record in billed:
        by_key.setdefault(record.key, []).append(record.offset)
    in_order = all(offsets == sorted(offsets) for offsets in by_key.values())
    print(f"billed {len(billed)}, retried {len(refused_once)}, dead letters {len(dead_letters)}")
    print(f"in order within each of {len(by_key)} keys: {in_order}")
    print(f"committed offset: {partition.committed}")


if __name__ == "__main__":
    main()
