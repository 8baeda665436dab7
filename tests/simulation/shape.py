"""What a run is like: everything that its seed decides before anything happens."""

import random
from typing import Any

from reliable_mq import Retry
from tests.simulation.ledger import FINE, LONG, Ledger

#: What may happen, and how often: always, and more or less often, as the seed likes trouble.
WORK = {"publish": 14, "step": 30, "work": 45, "pass_time": 8, "answer": 6}
TROUBLE = {
    "join": 1,
    "crash": 1,
    "leave": 1,
    "stall": 1,
    "revoke": 1,
    "fault": 2,
    "heal": 3,
    "operate": 2,
    "replay": 1,
}


class Shape:
    """The options of the consumers, and how much of what happens.

    order: "key", "partition", "none", or "function": the first letter of the key.
    is_async, size, plain: handlers are `async def`; take bundles; take no Context.
    observed: somebody observes events, which switches the short way of handlers off.
    """

    ledger: Ledger

    def __init__(self, dice: random.Random, options: dict[str, Any]) -> None:
        self.order = dice.choice(["key", "key", "key", "partition", "none", "function"])
        self.is_async = dice.random() < 0.6
        self.size = dice.choice([0, 0, 0, 3])
        self.plain = dice.random() < 0.2
        self.observed = dice.random() < 0.7
        self.max_hold = dice.choice([None, None, None, 70.0])
        self.on_failure = dice.choice(["dead_letter", "dead_letter", "block"])
        self.limit = dice.choice([2, 50, 50])
        self.concurrency = dice.randint(1, 4)
        self.groups = dice.choice([("billing",), ("billing",), ("billing", "audit")])
        self.steps = dice.choice([60, 120, 180])
        trouble = {name: often * dice.choice([0, 1, 1, 2, 4]) for name, often in TROUBLE.items()}
        self.events = {**WORK, **trouble}
        for option, value in options.items():
            setattr(self, option, value)
        if self.order == "none":
            self.on_failure = "dead_letter"

    @property
    def order_by(self) -> Any:
        """What consumers are declared with."""
        return self._initial if self.order == "function" else self.order

    def _initial(self, message: Any) -> Any:
        plan = self.ledger.plans.get(message.id, FINE)
        if plan.kind != "odd":
            return message.key and message.key[:1]
        if plan.times > 1:
            raise Retry("whose is this?", after=LONG)
        return []  # cannot be a key

    def lane_of(self, message: Any) -> Any:
        """What must keep its order; None for nothing."""
        if self.order == "function":
            odd = self.ledger.plans.get(message.id, FINE).kind == "odd"
            return None if odd else message.key and message.key[:1]
        return {"key": message.key, "partition": "all", "none": None}[self.order]
