"""The requests of one publisher: where they go, what their answers mean. RocketMQ's thread only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from reliable_mq.adapters.endings import no_answer
from reliable_mq.adapters.rocketmq.answers import NOT_FOUND, Said, meaning, refusal, text_of
from reliable_mq.adapters.rocketmq.connection import CallFailed
from reliable_mq.adapters.rocketmq.flights import Shape
from reliable_mq.adapters.rocketmq.routes import Missing
from reliable_mq.adapters.rocketmq.wire import Code, Kind, span, types
from reliable_mq.errors import PublishError, ReliableMQError
from reliable_mq.message import Receipt

if TYPE_CHECKING:
    from reliable_mq.adapters.rocketmq.client import Client
    from reliable_mq.adapters.rocketmq.flights import Entry, Flight
    from reliable_mq.adapters.rocketmq.io import Io
    from reliable_mq.adapters.rocketmq.publisher import RocketPublisher
    from reliable_mq.adapters.rocketmq.routes import Route
    from reliable_mq.clock import Clock

__all__ = ["Sending"]

#: Seconds that a request waits for a connection before it is given back to its line.
CONNECTING: Final = 1.0
#: Seconds until a route that nobody could tell is asked for again.
ASK_AGAIN: Final = 0.5
#: The proxy delays for a day at most. What is due later comes early, and is delayed again.
LONGEST_DELAY: Final = 23 * 3600.0


class Sending:
    """Sends flights, and tells the publisher how they ended."""

    def __init__(self, io: Io, client: Client, clock: Clock, publisher: RocketPublisher) -> None:
        self._io = io
        self._client = client
        self._clock = clock
        self._publisher = publisher
        self._finding: set[str] = set()
        self._stopped = False

    def find_out(self, topic: str) -> None:
        """Ask what the topic takes; the publisher is told by `go_on`."""
        if topic not in self._finding:
            self._finding.add(topic)
            self._io.start(self._find_out(topic), f"route of {topic}")

    def send(self, flight: Flight) -> None:
        """Send it; the publisher is told."""
        self._io.start(self._send(flight), f"publishing to {flight.topic}")

    def stop(self) -> None:
        """Close the connections; what is under way gets no answer."""
        self._stopped = True
        self._io.start(self._client.close(), "closing a publisher")

    # -- topics --------------------------------------------------------------------------------

    async def _find_out(self, topic: str) -> None:
        flights = self._publisher.flights
        try:
            route = await self._client.routes.find(topic)
        except Missing as missing:
            self._finding.discard(topic)
            self._refuse_all(topic, missing)
        except ReliableMQError as error:
            self._publisher.note(str(error))
            self._io.later(ASK_AGAIN, lambda: self._ask_again(topic))
        else:
            self._finding.discard(topic)
            self._client.use(topic)
            flights.found(topic, _shape(route))
            self._publisher.go_on()

    def _ask_again(self, topic: str) -> None:
        self._finding.discard(topic)
        self._publisher.go_on()

    def _refuse_all(self, topic: str, missing: Missing) -> None:
        endings: list[tuple[Entry, Receipt | PublishError]] = []
        for entry in self._publisher.flights.lost(topic):
            message = entry.confirmation.message
            error = refusal(message, topic, missing.status)
            if entry.in_doubt:
                error = no_answer(message, str(error), "", in_doubt=True)
            endings.append((entry, error))
        self._publisher.end_all(endings)

    # -- requests ------------------------------------------------------------------------------

    async def _send(self, flight: Flight) -> None:
        publisher, flights = self._publisher, self._publisher.flights
        try:
            route = await self._client.routes.find(flight.topic)
            answer = await self._ask(flight, route)
        except Missing:
            flights.forget_shape(flight.topic)
        except ReliableMQError as error:
            sent = isinstance(error, CallFailed) and error.sent
            self._not_answered(flight, str(error), in_doubt=sent)
        else:
            self._judge(flight, answer)
        finally:
            flights.landed(flight)
        if not self._stopped:
            publisher.go_on()

    async def _ask(self, flight: Flight, route: Route) -> Any:
        place = route.place_for(flight.entries[0].group)
        connection = self._client.connection(place.addresses)
        if not await connection.up(CONNECTING):
            text = connection.reason or f"{connection.place} cannot be reached"
            raise CallFailed(text, sent=False)
        request = types().SendMessageRequest()
        for entry in flight.entries:
            if entry.over:
                continue
            request.messages.append(self._dressed(entry, route))
            entry.sent = True
        if not request.messages:
            return None
        return await connection.ask(
            "SendMessage", request, self._client.config.options.request_timeout
        )

    def _dressed(self, entry: Entry, route: Route) -> Any:
        """Its message with what only the route tells: the type that its topic takes."""
        wire = entry.wire
        wire.topic.CopyFrom(self._client.config.resource(entry.topic))
        system = wire.system_properties
        now = self._clock.now()
        if entry.due is not None or route.kinds == {Kind.DELAY}:
            system.message_type = Kind.DELAY
            span(min(entry.due or now, now + LONGEST_DELAY), system.delivery_timestamp)
        elif route.takes(Kind.FIFO):
            system.message_type, system.message_group = Kind.FIFO, entry.group
        else:
            system.message_type = Kind.PRIORITY if route.takes(Kind.PRIORITY) else Kind.NORMAL
        return wire

    # -- answers -------------------------------------------------------------------------------

    def _judge(self, flight: Flight, answer: Any) -> None:
        if answer is None:
            return
        entries = [entry for entry in flight.entries if entry.sent]
        statuses = [entry.status for entry in answer.entries] or [answer.status]
        if len(statuses) != len(entries):  # one for a batch: all of it, or nothing
            statuses = [statuses[0]] * len(entries)
        if answer.status.code != Code.OK and not answer.entries:
            statuses = [answer.status] * len(entries)
        endings: list[tuple[Entry, Receipt | PublishError]] = []
        for entry, status in zip(entries, statuses, strict=True):
            said = meaning(status.code)
            if said is Said.DONE:
                message = entry.confirmation.message
                position = entry.wire.system_properties.message_id if entry.wire else message.id
                endings.append((entry, Receipt(message.id, message.topic, 0, position)))
            elif said is Said.REFUSED and self._is_final(flight, entry, status):
                endings.append((entry, self._refused(entry, status)))
            else:
                entry.sent, entry.in_doubt = False, entry.in_doubt or said is Said.UNKNOWN
                entry.alone = True
        self._publisher.end_all(endings)
        if len(endings) == len(entries):
            self._publisher.flights.went_well(flight)
        else:
            self._publisher.note(text_of(statuses[0]))
            if meaning(statuses[0].code) is not Said.REFUSED:
                self._publisher.flights.rest(flight, self._clock.monotonic())

    def _is_final(self, flight: Flight, entry: Entry, status: Any) -> bool:
        """Whether asking again would change nothing."""
        if len(flight.entries) > 1:
            return False  # which of them is it? Each goes alone
        may_pass = status.code in NOT_FOUND or status.code == Code.WRONG_TYPE
        if may_pass and not entry.looked_again:
            entry.looked_again = True  # the topic may have been made anew
            self._client.routes.forget(flight.topic)
            self._publisher.flights.forget_shape(flight.topic)
            return False
        return True

    def _refused(self, entry: Entry, status: Any) -> PublishError:
        message = entry.confirmation.message
        if entry.in_doubt:  # an earlier request may have stored it
            return no_answer(message, text_of(status), "", in_doubt=True)
        return refusal(message, entry.topic, status)

    def _not_answered(self, flight: Flight, why: str, *, in_doubt: bool) -> None:
        self._publisher.note(why)
        for entry in flight.entries:
            entry.in_doubt = entry.in_doubt or (entry.sent and in_doubt)
            entry.sent = False
        self._client.routes.forget(flight.topic)
        self._publisher.flights.rest(flight, self._clock.monotonic())


def _shape(route: Route) -> Shape:
    if route.takes(Kind.FIFO):
        return Shape.ORDERED
    return Shape.BATCHED if route.takes(Kind.NORMAL) else Shape.SINGLE
