"""What the members of a simulation run: handlers of every kind that do what the ledger planned."""

from typing import Any

from reliable_mq import BatchFailed, Context


class Suspended:
    """What an `async def` handler waits for, until its worker goes on."""

    def __await__(self) -> Any:
        """Give the worker back to the simulation."""
        return (yield self)


def handler_for(world: Any, member: Any, place: tuple[str, str]) -> Any:
    """The handler of this member for (topic, group)."""
    if world.size:
        return several(world, member, place)
    return plain(world, member, place) if world.plain else single(world, member, place)


def single(world: Any, member: Any, place: tuple[str, str]) -> Any:
    """Takes one message and the Context, and may publish."""
    conclude, dice = world.ledger.conclude, world.dice

    def one(order: dict, ctx: Context) -> None:
        plan = conclude(member, place, order["label"])
        for number in range(plan.outputs if place == ("orders", "billing") else 0):
            ctx.publish("invoices", {"label": f"{order['label']}/{number}"}, key=ctx.key)

    async def one_async(order: dict, ctx: Context) -> None:
        for _ in range(dice.randrange(3)):
            await Suspended()
        one(order, ctx)

    return one_async if world.is_async else one


def plain(world: Any, member: Any, place: tuple[str, str]) -> Any:
    """Takes one message and nothing else."""
    conclude, dice = world.ledger.conclude, world.dice

    def one(order: dict) -> None:
        conclude(member, place, order["label"])

    async def one_async(order: dict) -> None:
        for _ in range(dice.randrange(3)):
            await Suspended()
        conclude(member, place, order["label"])

    return one_async if world.is_async else one


def several(world: Any, member: Any, place: tuple[str, str]) -> Any:
    """Takes a bundle, and says which of it failed."""
    conclude, dice = world.ledger.conclude, world.dice

    def some(orders: list[dict]) -> None:
        failed = {}
        for index, order in enumerate(orders):
            try:
                conclude(member, place, order["label"])
            except Exception as error:  # noqa: BLE001 - one of the bundle
                failed[index] = error
        if failed:
            raise BatchFailed(failed)

    async def some_async(orders: list[dict]) -> None:
        for _ in range(dice.randrange(3)):
            await Suspended()
        some(orders)

    return some_async if world.is_async else some
