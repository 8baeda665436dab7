"""Declared consumers and their broker: what they need of it, what it cannot do, and their lanes."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from reliable_mq.adapters.base import GroupSpec, TopicSpec, Topology
from reliable_mq.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

    from reliable_mq.adapters.base import Capabilities, Order
    from reliable_mq.message import Delivery
    from reliable_mq.policy import Limits
    from reliable_mq.routes import ConsumerOptions, Declared

__all__ = ["check_against", "credit_of", "keyed_of", "lane_of", "order_of", "topology_of"]

log = logging.getLogger("reliable_mq.consumer")


def topology_of(
    topics: Mapping[str, TopicSpec], declared: Sequence[Declared], mode: Any
) -> Topology:
    """What an app declares: its topics, and those of its consumers with their groups.

    Raises: ConfigurationError when two consumers of one group start at different places.
    """
    specs = dict(topics)
    for one in declared:
        options = one.options
        for name in options.topics:
            spec = specs.get(name) or TopicSpec(name)
            groups = {group.name: group for group in spec.groups}
            known = groups.get(options.group)
            starts = {options.start_from} | ({known.start} if known else set())
            if len(starts - {None}) > 1:
                msg = f"group {options.group!r} of {name!r} starts at two places; name one"
                raise ConfigurationError(msg)
            if known is None or known.start is None:
                groups[options.group] = GroupSpec(options.group, options.start_from)
            specs[name] = TopicSpec(name, spec.ordered, tuple(groups.values()))
    return Topology(tuple(specs.values()), mode)


def check_against(
    options: ConsumerOptions,
    handler: str,
    capabilities: Capabilities,
    topics: Mapping[str, TopicSpec],
    limits: Limits,
) -> None:
    """Refuse what this broker, these topics or these limits cannot honour; name the remedy.

    What it cannot do though nobody asked for it is said in the log.
    """
    order, broker = order_of(options.order_by), capabilities.name
    if order != "none":
        for name in options.topics:
            if not topics[name].ordered:
                msg = f"{handler}: topic {name!r} is declared ordered=False; use order_by='none'"
                raise ConfigurationError(msg)
        if capabilities.key_order == "none":
            msg = f"{handler}: {broker} keeps no order; use order_by='none'"
            raise ConfigurationError(msg)
    start = options.start_from
    kind = "time" if isinstance(start, float) else start
    if kind is not None and kind not in capabilities.starts:
        what = "a time" if kind == "time" else repr(kind)
        msg = f"{handler}: {broker} cannot start a group from {what}; leave it out"
        raise ConfigurationError(msg)
    hold = capabilities.max_hold
    if hold is not None and options.timeout is not None and options.timeout >= hold:
        msg = f"{handler}: timeout={options.timeout} must be below the {hold} s that {broker} waits"
        raise ConfigurationError(msg)
    needed = max(options.concurrency, options.batch.size if options.batch else 0)
    if limits.credit is not None and limits.credit < needed:
        msg = f"{handler}: Limits(credit={limits.credit}) is less than the {needed} it runs at once"
        raise ConfigurationError(msg)
    if not capabilities.counts_redeliveries:
        log.warning(
            "%s: %s does not count deliveries, and there is no store that does: a message that "
            "kills the process comes again each time, and is no suspect",
            handler,
            broker,
        )


def credit_of(options: ConsumerOptions, limits: Limits) -> int:
    """Enough to keep the workers fed, little enough to leave other members their share."""
    if limits.credit is not None:
        return limits.credit
    batch = options.batch.size if options.batch else 1
    return max(min(1_000, 64 * options.concurrency), 2 * options.concurrency * batch)


def order_of(order_by: Any) -> Order:
    """The order that is asked of the broker."""
    # The broker knows keys, not functions: for one of those, one member has the whole partition.
    return "partition" if callable(order_by) else order_by


def lane_of(order_by: Any) -> Callable[[Delivery], Hashable]:
    """What tells the lane of a delivery: its lease where it has no key. Raises what theirs does."""
    if order_by == "key":
        return lambda one: (
            one.lease
            if one.message.key is None
            else (one.message.topic, one.partition, one.message.key)
        )
    if order_by == "partition":
        return lambda one: (one.message.topic, one.partition)
    if order_by == "none":
        return lambda one: one.lease

    def lane(one: Delivery) -> Hashable:
        key = order_by(one.message)
        hash(key)  # what cannot be a key raises here, as a failure of this message alone
        return one.lease if key is None else (one.message.topic, one.partition, key)

    return lane


def keyed_of(order_by: Any) -> Callable[[Delivery], bool]:
    """What tells whether a delivery has a place in an order."""
    if order_by == "key":
        return lambda one: one.message.key is not None
    if order_by in ("partition", "none"):
        return lambda _: order_by == "partition"
    lane = lane_of(order_by)

    def keyed(one: Delivery) -> bool:
        try:
            return lane(one) is not one.lease
        except Exception:  # noqa: BLE001 - it has no key, and its failed run says why
            return False

    return keyed
