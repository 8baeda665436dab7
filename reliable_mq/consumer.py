"""One consumer: its owner thread, its lanes, and its place in the group.

The owner thread is the only one that touches the Subscription and the lanes. It goes round:

    collect    what workers and publisher reported, and settle it (`settle`)
    wake       lanes whose wait is over
    poll       the heartbeat; its limit is the credit that is left
    route      new arrivals into their lanes, lanes to the workers
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from reliable_mq.batches import Batcher
from reliable_mq.errors import ConnectionFailed, ReliableMQError
from reliable_mq.events import LeasesLost, Suspected
from reliable_mq.execution import not_run
from reliable_mq.ordering.lanes import Lane, Lanes
from reliable_mq.settle import InHand, Sent, Settler
from reliable_mq.turns import Progress, Report
from reliable_mq.watch import ConsumerHealth, State, Watch
from reliable_mq.workers import Mailbox

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from reliable_mq.adapters.base import Polled, Publisher, Subscribe, Subscription, Transport
    from reliable_mq.clock import Clock
    from reliable_mq.events import Observers
    from reliable_mq.message import Delivery, Lease
    from reliable_mq.pipeline import Pipeline
    from reliable_mq.turns import Gate
    from reliable_mq.workers import Workers

__all__ = ["Consumer", "ConsumerHealth", "State"]

log = logging.getLogger("reliable_mq.consumer")

#: The longest wait of one poll; a heartbeat is due every second.
HEARTBEAT = 0.5
#: Seconds between two tries to reach a broker that is gone.
RECONNECT = 1.0


class Consumer:
    """One member of a group. `health`, `call` and `stop_soon`: any thread; all else: the owner.

    `own` goes round until it is told to stop, then drains. `step` is one round, which tests drive
    by hand in virtual time.

    Args:
        lane_of: The key of a delivery's lane; equal keys run one after another, in order.
        pause: Waits until the event is set or so many seconds are over.
    """

    def __init__(
        self,
        name: str,
        subscribe: Subscribe,
        pipeline: Pipeline,
        *,
        lane_of: Callable[[Delivery], Hashable],
        credit: int,
        credit_bytes: int,
        timeout: float | None,
        dead_letter_limit: int,
        max_stuck: int,
        transport: Transport,
        publisher: Callable[[], Publisher],
        publish_timeout: float,
        clock: Clock,
        draw: Callable[[], float],
        observers: Observers,
        pause: Callable[[threading.Event, float], object] = threading.Event.wait,
    ) -> None:
        self.name = name
        self.subscribe = subscribe
        #: What was handed to the workers and not begun, the next in front. They take from it.
        self.waiting: deque[Any] = deque()
        #: Where workers leave their reports.
        self.mailbox = Mailbox(self._wake)
        #: Deliveries whose handlers still ran when the time to stop was over.
        self.abandoned: list[Delivery] = []
        self._transport = transport
        self._clock = clock
        self._observers = observers
        self._pause = pause
        self._lane_of = lane_of
        self._workers: Workers | None = None
        self._batcher: Batcher | None = None
        self._subscription: Subscription | None = None
        self._news = threading.Event()
        self._in_hand = InHand(credit, credit_bytes)
        self._lanes = Lanes(self._hand_out, draw)
        self._settler = Settler(
            pipeline,
            self._lanes,
            self._in_hand,
            self.mailbox,
            group=subscribe.group,
            publisher=publisher,
            publish_timeout=publish_timeout,
            dead_letter_limit=dead_letter_limit,
            clock=clock,
            observers=observers,
        )
        self._threaded = False
        self._state: State = "starting"
        self._why = ""
        self._stop_at: float | None = None
        self._last_poll: float | None = None
        self._watch = Watch(
            name,
            subscribe,
            self._lanes,
            self._in_hand,
            self._settler,
            timeout=timeout,
            max_stuck=max_stuck,
            observers=observers,
        )

    # ---- life

    def open(self, workers: Workers) -> None:
        """Join the group. Raises ConfigurationError, TransportError."""
        self._workers = workers
        self._batcher = workers if isinstance(workers, Batcher) else None
        self._subscription = self._transport.subscribe(self.subscribe, self._on_revoke)
        self._settler.subscription = self._subscription
        workers.start()
        self._state = "running"

    def own(self) -> None:
        """Go round until `stop_soon`, then drain; "failed" is the state when it cannot go on."""
        self._threaded = True
        try:
            while self._stop_at is None:
                self._round(None)
            self.drain(self._stop_at)
        except Exception as error:
            self._state, self._why = "failed", f"{type(error).__name__}: {error}"
            log.critical("consumer %s cannot go on", self.name, exc_info=True)
        finally:
            self.close()

    def stop_soon(self, deadline: float) -> None:
        """Drain, and be through by `deadline`, monotonic seconds. Any thread."""
        self._stop_at = deadline
        self._wake()

    def drain(self, deadline: float) -> None:
        """Take nothing more, drop what has not started, wait for what runs; then flush the acks."""
        self._stop_at = deadline
        self._state = "stopping"
        self._in_hand.give(self._lanes.close())
        if self._batcher is not None:
            self._batcher.flush()  # nothing joins these any more
        while self._busy():
            left = deadline - self._clock.monotonic()
            if left <= 0:
                break
            self._round(min(HEARTBEAT, left))
        self.collect()

    def close(self) -> None:
        """Give back what has not ended, and leave the group. Idempotent."""
        subscription, self._subscription = self._subscription, None
        self._settler.subscription = None
        if subscription is None:
            return
        self.abandoned = self._unfinished()
        if self._workers is not None:
            self._workers.stop()
        try:
            subscription.close()
        except ReliableMQError:
            # Its leases run out by themselves; what was acked may come again.
            log.warning("consumer %s: leaving the group failed", self.name, exc_info=True)
        if self._state != "failed":
            self._state = "stopped"

    def left_running(self) -> list[Delivery]:
        """What still ran when the time to stop was over. Any thread."""
        return self.abandoned if self._subscription is None else self._unfinished()

    def _unfinished(self) -> list[Delivery]:
        found: dict[int, Delivery] = {}
        for lane in self._lanes.snapshot():
            turn = lane.turn
            over = [] if turn is None else [*turn.done, *[one.delivery for one in turn.ended]]
            for one in lane.in_run():
                if not any(one is other for other in over):
                    found[id(one)] = one
        return list(found.values())

    def call(self, command: Callable[[Settler, Lanes], object]) -> None:
        """Have the owner thread run `command` soon. Any thread."""
        self.mailbox.put(lambda: command(self._settler, self._lanes))

    # ---- one round

    def step(self, timeout: float | None = None) -> Polled:
        """One round. `timeout`: the longest wait for news; None: until something is due."""
        assert self._subscription is not None  # noqa: S101 - open() comes first
        self._news.clear()
        self.collect()
        now = self._clock.monotonic()
        self._lanes.wake(now)
        polled = self._subscription.poll(self._limit(), self._patience(now, timeout))
        self._last_poll = now = self._clock.monotonic()
        if self._state == "disconnected":
            self._state, self._why = "running", ""
        if polled.lost:
            self._lost(polled.lost)
        if polled.deliveries:
            self._route(polled.deliveries)
            if self._batcher is not None:
                self._batcher.flush_if_full()
        if self._lanes.suspects:
            # Only here, behind the poll that took the acks along: should this one kill the
            # process, what ended before it stays ended.
            self._run_suspect()
        # A transport that never lets a member wait need not say so.
        self._watch.look(now, standby=bool(getattr(self._subscription, "standby", False)))
        return polled

    @property
    def gate(self) -> Gate:
        """While it is paused, workers leave lanes alone. Any thread."""
        return self._settler

    def call_at(self, due: float, call: Callable[[], None]) -> None:
        """Call on the owner thread at `due`, monotonic seconds. The owner thread only."""
        self._lanes.call_later(None, due, lambda _: call())

    @property
    def threaded(self) -> bool:
        """Whether an owner thread of its own goes round; else somebody steps it by hand."""
        return self._threaded

    def idle(self) -> bool:
        """Whether nothing runs, nothing is being published and nothing waits to be collected."""
        return not (self._busy() or self.mailbox)

    def next_due(self) -> float | None:
        """When something is due of its own accord, monotonic seconds."""
        return self._lanes.next_due()

    def _round(self, timeout: float | None) -> None:
        try:
            self.step(timeout)
        except ConnectionFailed as error:
            self._last_poll = self._clock.monotonic()  # it goes round: no reason to end the process
            if self._state == "running":
                log.warning("consumer %s: %s", self.name, error)
                self._state = "disconnected"
            if self._state == "disconnected":
                self._why = str(error)  # each time: first it was cut off, now its login is refused
            self.collect()  # handlers go on, and what they report must not pile up
            self._pause(self._news, RECONNECT if timeout is None else min(timeout, RECONNECT))

    def _patience(self, now: float, timeout: float | None) -> float:
        if self.mailbox:
            return 0.0
        longest = HEARTBEAT if timeout is None else timeout
        due = self._lanes.next_due()
        return longest if due is None else min(longest, max(0.0, due - now))

    def _limit(self) -> int:
        if self._stop_at is not None or self._settler.paused or self._lanes.suspects:
            return 0
        return self._in_hand.room()

    def _busy(self) -> bool:
        return bool(self._lanes.busy or self._settler.sending)

    def collect(self) -> None:
        """Settle what was reported since the last time."""
        finished: list[Delivery] = []
        for item in self.mailbox.take():
            if isinstance(item, Report):
                self._reported(item, finished)
            elif isinstance(item, Progress):
                finished += item.done
                self._watch.reported(item.lane)
            elif isinstance(item, list):  # of a bundle
                for report in item:
                    self._reported(report, finished)
            elif isinstance(item, Sent):
                self._settler.sent(item)
            else:
                item()
        if finished:
            self._settler.finished(finished)

    def _reported(self, report: Report, finished: list[Delivery]) -> None:
        finished += report.done
        if report.dropped:
            self._in_hand.give(report.dropped)
        self._watch.reported(report.lane)
        self._lanes.handed_back(report.lane, len(report.ended))
        for execution in report.ended:
            self._settler.settle(report.lane, execution)

    def _route(self, deliveries: Sequence[Delivery]) -> None:
        self._in_hand.take(deliveries)
        add, lane_of = self._lanes.add, self._lane_of
        for delivery in deliveries:
            try:
                key = lane_of(delivery)
            except Exception as error:  # noqa: BLE001 - order_by is the user's: it is a failed run
                lane = self._lanes.stand(delivery.lease)
                self._settler.settle(lane, not_run(delivery, error))
            else:
                add(key, delivery)

    def _hand_out(self, lane: Lane) -> None:
        self._workers.hand_out(lane)  # type: ignore[union-attr]  # open() has set it

    def _run_suspect(self) -> None:
        head = self._lanes.run_suspect()
        if head is None:
            return
        log.warning(
            "message %s came again %d times without an end; it runs alone",
            head.message.id,
            head.redelivered,
        )
        self._observers.emit(Suspected(head.message, self.subscribe.group, head.redelivered))

    # ---- what the broker takes back

    def _lost(self, leases: Sequence[Lease]) -> None:
        count = len(leases)
        log.warning("consumer %s lost %d leases; they come again", self.name, count)
        self._observers.emit(LeasesLost(self.subscribe.group, count))
        # Now, not when their lanes go on: until then they would count against the credit.
        self._in_hand.give(self._lanes.drop(set(leases)))
        self._settler.lost()

    def _on_revoke(self, leases: Sequence[Lease], deadline: float) -> set[Lease]:
        """Called from inside poll: finish what runs of these, ack it, and leave the rest.

        Returns the leases of what still runs, or is being published, when the time is over.
        """
        revoked = set(leases)
        while True:
            self.collect()
            self._in_hand.give(self._lanes.drop(revoked))
            running = {one.lease for lane in self._lanes for one in lane.in_run()}
            running = (running | self._settler.sending_for()) & revoked
            # The mailbox last: a worker tells what it has done before it forgets that.
            if not (running or self._settler.sending or self.mailbox):
                return running
            left = deadline - self._clock.monotonic()
            if left <= 0:
                return running
            self._pause(self._news, min(left, HEARTBEAT))
            self._news.clear()

    # ---- how it is doing

    def health(self) -> ConsumerHealth:
        """A snapshot, at most a quarter of a second old. Any thread, no I/O."""
        now = self._clock.monotonic()
        return self._watch.health(now, self._state, self._why, self._last_poll)

    def _wake(self) -> None:
        self._news.set()
        subscription = self._subscription
        if subscription is not None:
            subscription.wake()
