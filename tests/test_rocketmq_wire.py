"""The protocol definition: compiled, of its own pool, beside what other packages load."""

import subprocess
import sys
import textwrap

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool

from reliable_mq.adapters.rocketmq import wire
from reliable_mq.adapters.rocketmq.wire import COMPILED, PACKAGE, calls, span, types


def described(data):
    """The files of a compiled definition, as values."""
    return descriptor_pb2.FileDescriptorSet.FromString(data)


def test_what_is_shipped_is_what_the_definition_says(tmp_path):
    """After a change of rocketmq.proto: `make protos`."""
    protoc = pytest.importorskip("grpc_tools.protoc", reason="grpcio-tools compiles the .proto")
    source = COMPILED.with_suffix(".proto")
    compiled = tmp_path / "again.binpb"

    status = protoc.main(
        ["protoc", f"-I{source.parent}", f"--descriptor_set_out={compiled}", source.name]
    )

    assert status == 0
    assert described(compiled.read_bytes()) == described(COMPILED.read_bytes())


def test_nothing_of_it_is_in_the_pool_that_the_process_shares():
    """There it would keep the official client from being loaded."""
    types()
    with pytest.raises(KeyError):
        descriptor_pool.Default().FindMessageTypeByName(f"{PACKAGE}.Message")


@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_the_official_client_lives_beside_it(first):
    """In one process, whichever is loaded first."""
    pytest.importorskip("rocketmq", reason="rocketmq-python-client is not installed")
    code = textwrap.dedent(
        """
        def ours():
            from reliable_mq.adapters.rocketmq.wire import types
            return types().Message(body=b"x").SerializeToString()
        def theirs():
            from rocketmq.grpc_protocol import definition_pb2
            return definition_pb2.Message(body=b"x").SerializeToString()
        print(FIRST() == SECOND())
        """
    )
    second = "theirs" if first == "ours" else "ours"
    code = code.replace("FIRST", first).replace("SECOND", second)

    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert ran.stdout == "True\n", ran.stderr


def test_every_call_has_its_path_and_its_streams():
    """As the service says."""
    found = calls()

    assert found["SendMessage"].path == "/apache.rocketmq.v2.MessagingService/SendMessage"
    assert [name for name, call in found.items() if call.streams_down] == [
        "ReceiveMessage",
        "Telemetry",
    ]
    assert [name for name, call in found.items() if call.streams_up] == ["Telemetry"]


def test_what_a_newer_broker_adds_is_passed_over():
    """A field of a number that we do not know."""
    status = types().Status(code=20000).SerializeToString() + b"\xf2\x7f\x03new"

    assert types().Status.FromString(status).code == 20000


@pytest.mark.parametrize("seconds", [0.0, 0.0005, 1.0, 1.5, 1_700_000_000.123])
def test_times_are_kept_to_the_microsecond(seconds):
    """Seconds and nanoseconds."""
    moment = types().Moment()

    span(seconds, moment)

    assert moment.seconds + moment.nanos / 1e9 == pytest.approx(seconds, abs=1e-6)
    assert 0 <= moment.nanos < 1_000_000_000


def test_a_class_that_is_not_there_is_no_surprise():
    """An AttributeError, as of any object."""
    assert not hasattr(types(), "NoSuchMessage")
    assert wire.types() is types()
