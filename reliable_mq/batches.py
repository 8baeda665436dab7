"""Batch handlers: lanes bundled into one run.

A bundle takes the heads of several lanes, each lane's in its order, and the lanes are busy until
it is through: so a key is never in two bundles at once, and bundles run side by side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from reliable_mq.clock import Clock
    from reliable_mq.ordering.lanes import Lane
    from reliable_mq.policy import Batch
    from reliable_mq.workers import Workers

__all__ = ["Batcher"]


class Batcher:
    """Stands before the workers and hands them bundles: full ones at once, others after `wait`.

    The owner thread only.

    Args:
        call_at: Calls a function on the owner thread at a time, monotonic seconds.
    """

    def __init__(
        self,
        workers: Workers,
        batch: Batch,
        clock: Clock,
        call_at: Callable[[float, Callable[[], None]], None],
    ) -> None:
        self._workers = workers
        self._batch = batch
        self._clock = clock
        self._call_at = call_at
        self._lanes: list[Lane] = []
        self._since = 0.0

    def start(self) -> None:
        """Be ready to run."""
        self._workers.start()

    def stop(self) -> None:
        """Run nothing further."""
        self._workers.stop()

    def hand_out(self, lane: Lane) -> None:
        """Add a lane to the next bundle."""
        if not self._lanes:
            self._since = self._clock.monotonic()
            self._call_at(self._since + self._batch.wait, self._flush_if_due)
        self._lanes.append(lane)
        self.flush_if_full()

    def flush_if_full(self) -> None:
        """Hand a full bundle out at once; lanes grow also after they have joined it."""
        if self._lanes and sum([len(one.queue) for one in self._lanes]) >= self._batch.size:
            self.flush()

    def _flush_if_due(self) -> None:
        # A bundle may have gone out full since, and the next one have a time of its own.
        if self._lanes and self._clock.monotonic() >= self._since + self._batch.wait:
            self.flush()

    def flush(self) -> None:
        """Hand out what there is."""
        lanes, self._lanes = self._lanes, []
        if lanes:
            self._workers.hand_out(lanes)
