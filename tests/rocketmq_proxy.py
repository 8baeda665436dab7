"""A proxy of RocketMQ that says what a test tells it to: no broker, no rules of its own."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

import grpc

from reliable_mq.adapters.rocketmq.wire import SERVICE, Code, Kind, calls, types

__all__ = ["ScriptedProxy", "status"]


def status(code=Code.OK, text=""):
    """A status of the protocol."""
    return types().Status(code=code, message=text)


class ScriptedProxy:
    """Topics by their kinds; `on_send`, `on_receive` and so on may be replaced by a test.

    Every request is kept in `requests`, by the name of its call, in the order it came.
    """

    def __init__(self, **topics):
        self.topics = topics
        self.requests = defaultdict(list)
        self.metadata = defaultdict(list)
        self.fifo_groups = set()
        self.port = 0
        #: Streams of telemetry that were opened; and whether settings are answered.
        self.streams = 0
        self.answers_settings = True
        #: What the receives of a topic find, one list each.
        self.waiting = defaultdict(list)
        self._gate = threading.Lock()
        self._server = None
        self._commands = []

    # -- life ------------------------------------------------------------------------------------

    def start(self):
        """On the port that it had, if it had one."""
        self._server = grpc.server(ThreadPoolExecutor(32), options=[("grpc.so_reuseport", 0)])
        handlers = {name: self._handler(name, call) for name, call in calls().items()}
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, handlers),)
        )
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        self._server.start()
        return self

    def stop(self):
        """At once: every connection is reset."""
        if self._server is not None:
            self._server.stop(0).wait()
            self._server = None

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.stop()

    @property
    def url(self):
        """With options that make tests quick."""
        return f"rocketmq://127.0.0.1:{self.port}?lease_timeout=2&long_poll=0.2&request_timeout=1"

    def sent(self):
        """The messages of each send."""
        return [list(one.messages) for one in self.requests["SendMessage"]]

    # -- answers ---------------------------------------------------------------------------------

    def on_route(self, request):
        """Where a topic is: here."""
        kinds = self.topics.get(request.topic.name)
        answer = types().QueryRouteResponse(status=status())
        if kinds is None:
            answer.status.CopyFrom(status(Code.TOPIC_NOT_FOUND, "no such topic"))
            return answer
        for number in range(2):
            queue = answer.message_queues.add(id=number, permission=4)
            queue.topic.CopyFrom(request.topic)
            queue.accept_message_types.append(kinds)
            queue.broker.name = "broker"
            queue.broker.endpoints.scheme = 1
            queue.broker.endpoints.addresses.add(host="127.0.0.1", port=self.port)
        return answer

    def on_send(self, request):
        """Stored; one entry for a batch."""
        answer = types().SendMessageResponse(status=status())
        first = request.messages[0]
        answer.entries.add(status=status(), message_id=first.system_properties.message_id)
        return answer

    def on_receive(self, request):
        """What waits, or nothing after a moment."""
        with self._gate:
            waiting = self.waiting[request.message_queue.topic.name]
            found = waiting.pop(0) if waiting else []
        answer = types().ReceiveMessageResponse
        if not found:
            time.sleep(0.05)
            yield answer(status=status(Code.NO_MESSAGE))
            return
        yield answer(status=status())
        for message in found:
            yield answer(message=message)

    def on_ack(self, request):
        """All are taken."""
        answer = types().AckMessageResponse(status=status())
        for entry in request.entries:
            answer.entries.add(receipt_handle=entry.receipt_handle, status=status())
        return answer

    def on_change(self, request):
        """Another handle."""
        return types().ChangeInvisibleDurationResponse(
            status=status(), receipt_handle=f"{request.receipt_handle}'"
        )

    def on_heartbeat(self, request):
        """All is well."""
        return types().HeartbeatResponse(status=status())

    def on_leave(self, request):
        """Good bye."""
        return types().NotifyClientTerminationResponse(status=status())

    # -- parts -----------------------------------------------------------------------------------

    def _handler(self, name, call):
        answers = {
            "QueryRoute": "on_route",
            "SendMessage": "on_send",
            "ReceiveMessage": "on_receive",
            "AckMessage": "on_ack",
            "ChangeInvisibleDuration": "on_change",
            "Heartbeat": "on_heartbeat",
            "NotifyClientTermination": "on_leave",
        }

        def unary(request, context):
            self._note(name, request, context)
            return getattr(self, answers[name])(request)

        def streamed(request, context):
            self._note(name, request, context)
            yield from getattr(self, answers[name])(request)

        coders = {
            "request_deserializer": call.request.FromString,
            "response_serializer": call.response.SerializeToString,
        }
        if name == "Telemetry":
            return grpc.stream_stream_rpc_method_handler(self._talk, **coders)
        if call.streams_down:
            return grpc.unary_stream_rpc_method_handler(streamed, **coders)
        return grpc.unary_unary_rpc_method_handler(unary, **coders)

    def _note(self, name, request, context):
        with self._gate:
            self.requests[name].append(request)
            self.metadata[name].append(dict(context.invocation_metadata()))

    def _talk(self, commands, context):
        with self._gate:
            self.streams += 1
        for command in commands:
            self._note("Telemetry", command, context)
            if command.HasField("settings") and self.answers_settings:
                settings = types().Settings()
                settings.CopyFrom(command.settings)
                group = settings.subscription.group.name
                if group:
                    settings.subscription.fifo = group in self.fifo_groups
                yield types().TelemetryCommand(status=status(), settings=settings)


def arrival(wire, offset=0, attempt=1, queue=0):
    """A message as a receive brings it."""
    found = types().Message()
    found.CopyFrom(wire)
    system = found.system_properties
    system.receipt_handle = f"handle-{queue}-{offset}"
    system.queue_id, system.queue_offset = queue, offset
    system.delivery_attempt = attempt
    return found


FIFO, NORMAL, DELAY = Kind.FIFO, Kind.NORMAL, Kind.DELAY
