import asyncio
import contextlib
import functools
from typing import Annotated

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reliable_mq.context import Context
from reliable_mq.errors import ConfigurationError
from reliable_mq.handlers import Depends, compile_handler
from reliable_mq.message import Delivery, Lease, Message
from reliable_mq.outcome import Reject, Retry


class Boom(Exception):
    """What a handler of these tests fails with."""


def context():
    """A context of one run."""
    return Context(Delivery(Message("id-1", "orders"), Lease()), group="g", attempt=3)


def run(function, *, ctx=None, **options):
    """Run a handler of either kind."""
    handler = compile_handler(function, **options)
    ctx = context() if ctx is None else ctx
    if handler.is_async:
        return asyncio.run(handler.ainvoke(b"value", ctx))
    return handler.invoke(b"value", ctx)


def test_dependencies_of_all_kinds():
    """A def, an async def, a generator, an async generator, a class and a builtin make values."""

    def plain():
        return "plain"

    async def asynchronous(ctx: Context):
        return f"async {ctx.attempt}"

    def generator(context: "Context"):
        yield f"generator {context.attempt}"

    async def async_generator():
        yield "async generator"

    class Settings:
        def __init__(self, ctx: Context, other=7):
            self.value = f"class {ctx.attempt} {other}"

    class Maker:
        def __call__(self):
            return "object"

    async def handle(
        value: bytes,
        *,
        a: Annotated[str, Depends(plain)],
        b: Annotated[str, Depends(asynchronous)],
        ctx: Context,
        c: Annotated[str, Depends(generator)],
        d: Annotated[str, Depends(async_generator)],
        e: Annotated[Settings, Depends(Settings)],
        f: Annotated[str, Depends(Maker())],
        g: Annotated[dict, Depends(dict)],
        h: Annotated[str, Depends(functools.partial(str, "partial"))],
    ) -> None:
        seen.extend([value, ctx.id, a, b, c, d, e.value, f, g, h])

    seen = []
    run(handle)
    assert seen == [
        b"value", "id-1", "plain", "async 3", "generator 3", "async generator", "class 3 7",
        "object", {}, "partial",
    ]  # fmt: skip


def test_a_dependency_is_made_once():
    """Two parameters with the same Depends get the same thing, made once a run."""

    def make():
        made.append(object())
        return made[-1]

    def handle(
        value: bytes, a: Annotated[object, Depends(make)], b: Annotated[object, Depends(make)]
    ) -> None:
        assert a is b

    made = []
    run(handle)
    run(handle)
    assert len(made) == 2


def test_the_order_of_endings():
    """Around comes first, dependencies in the order of the parameters, and all end in reverse."""

    def dependency(name):
        def make():
            log.append(f"make {name}")
            yield
            log.append(f"end {name}")

        return make

    @contextlib.contextmanager
    def outer(ctx):
        log.append(f"enter {ctx.id}")
        yield
        log.append("exit")

    def handle(
        value: bytes,
        a: Annotated[None, Depends(dependency("a"))],
        b: Annotated[None, Depends(dependency("b"))],
    ) -> None:
        log.append("handle")

    log = []
    run(handle, around=[outer])
    assert log == ["enter id-1", "make a", "make b", "handle", "end b", "end a", "exit"]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_generator_sees_the_exception(asynchronous):
    """The handler's exception is raised at the yield, so a session can roll back."""

    def session():
        try:
            yield
        except Boom:
            log.append("rollback")
            raise
        else:
            log.append("commit")

    async def async_session():
        try:
            yield
        except Boom:
            log.append("rollback")
        else:
            log.append("commit")

    def handle(value: bytes, s: Annotated[None, Depends(session)]) -> None:
        raise Boom

    async def handle_async(value: bytes, s: Annotated[None, Depends(async_session)]) -> None:
        raise Boom

    log = []
    with pytest.raises(Boom):
        run(handle_async if asynchronous else handle)
    assert log == ["rollback"]


@pytest.mark.parametrize("signal", [Retry("busy"), Reject("bad")])
def test_a_returned_signal_rolls_back(signal):
    """A returned Retry or Reject is raised inside the dependencies: nothing must commit."""

    def session():
        try:
            yield
        except (Retry, Reject):
            log.append("rollback")
            raise

    def handle(value: bytes, s: Annotated[None, Depends(session)]):
        return signal

    log = []
    with pytest.raises(type(signal)) as caught:
        run(handle)
    assert caught.value is signal
    assert log == ["rollback"]


def test_a_hidden_coroutine_is_a_failure():
    """A def that returns a coroutine has done nothing, and its dependencies learn of that."""

    async def work():
        pass

    def handle(value: bytes, ctx: Context, n: Annotated[int, Depends(lambda: 1)]):
        return work()

    with pytest.raises(TypeError, match="its work was not done"):
        run(handle)


def test_a_returned_value_is_fine(caplog):
    """A value that means nothing is ignored inside of dependencies, too."""

    def handle(value: bytes, n: Annotated[int, Depends(lambda: 1)]) -> int:
        return n

    assert run(handle) is None
    assert "return values are ignored" in caplog.text


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_failing_end_is_the_handlers_failure(asynchronous):
    """A commit that fails after the handler returned fails the run."""

    def session():
        yield
        raise Boom

    def handle(value: bytes, s: Annotated[None, Depends(session)]) -> None:
        pass

    async def handle_async(value: bytes, s: Annotated[None, Depends(session)]) -> None:
        pass

    with pytest.raises(Boom):
        run(handle_async if asynchronous else handle)


def test_a_failing_end_keeps_the_first_failure_as_its_context():
    """The failure of the handler is not forgotten when an ending fails, too."""

    class Manager:
        def __enter__(self):
            pass

        def __exit__(self, *details):
            raise KeyError

    def handle(value: bytes) -> None:
        raise Boom

    with pytest.raises(KeyError) as caught:
        run(handle, around=[lambda ctx: Manager()])
    assert isinstance(caught.value.__context__, Boom)


def test_swallowing_is_not_done():
    """A manager that swallows the failure does not make it a success."""

    def handle(value: bytes) -> None:
        raise Boom

    async def handle_async(value: bytes) -> None:
        raise Boom

    for function in (handle, handle_async):
        with pytest.raises(Boom):
            run(function, around=[lambda ctx: contextlib.suppress(Boom)])


def test_a_manager_may_change_the_failure():
    """A manager may turn one failure into another."""

    @contextlib.contextmanager
    def translate(ctx):
        try:
            yield
        except Boom as error:
            raise Reject from error

    def handle(value: bytes) -> None:
        raise Boom

    with pytest.raises(Reject):
        run(handle, around=[translate])


def test_managers_around_async_handlers():
    """Async handlers take sync and async managers; a manager that is both is used as async."""

    class Both:
        def __enter__(self):
            raise AssertionError

        def __exit__(self, *details):
            raise AssertionError

        async def __aenter__(self):
            log.append("aenter")

        async def __aexit__(self, *details):
            log.append(f"aexit {details}")

    @contextlib.contextmanager
    def sync(ctx):
        log.append("enter")
        yield
        log.append("exit")

    async def handle(value: bytes) -> None:
        log.append("handle")

    log = []
    run(handle, around=[lambda ctx: Both(), sync])
    assert log == ["aenter", "enter", "handle", "exit", "aexit (None, None, None)"]


def test_what_is_no_manager_for_the_handler():
    """An async manager around a def, or no manager at all, fails the run and says why."""

    @contextlib.asynccontextmanager
    async def asynchronous(ctx):
        yield

    def handle(value: bytes) -> None:
        pass

    with pytest.raises(ConfigurationError, match="for an async handler only"):
        run(handle, around=[asynchronous])
    with pytest.raises(ConfigurationError, match=r"a NoneType .* no context manager"):
        run(handle, around=[lambda ctx: None])


def test_cancellation_ends_what_was_begun():
    """A cancelled handler is a failure, after all endings ran."""

    async def session():
        try:
            yield
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            log.append("rollback")
            raise

    async def handle(value: bytes, s: Annotated[None, Depends(session)]) -> None:
        started.set()
        await asyncio.Event().wait()

    async def main():
        task = asyncio.ensure_future(compile_handler(handle).ainvoke(b"", context()))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    log = []
    started = asyncio.Event()
    asyncio.run(main())
    assert log == ["rollback"]


def test_overrides_are_looked_up_at_each_call():
    """A replacement counts from when it is there until it is gone, of whatever kind it is."""

    def get_rate():
        return "real"

    def fake(ctx: Context):
        yield f"fake {ctx.id}"
        seen.append("end")

    def handle(value: bytes, rate: Annotated[str, Depends(get_rate)]) -> None:
        seen.append(rate)

    seen = []
    overrides = {}
    handler = compile_handler(handle, overrides=overrides)
    handler.invoke(b"", context())
    overrides[get_rate] = fake
    handler.invoke(b"", context())
    handler.invoke(b"", context())
    del overrides[get_rate]
    handler.invoke(b"", context())
    assert seen == ["real", "fake id-1", "end", "fake id-1", "end", "real"]
    assert handler.wants_context is True


def test_overrides_that_do_not_fit():
    """A replacement that the handler cannot use fails the run and says why."""

    def get_rate():
        return "real"

    async def asynchronous():
        return "fake"

    def with_context(ctx: Context):
        return "fake"

    def handle(values: list[bytes], rate: Annotated[str, Depends(get_rate)]) -> None:
        pass

    for fake, text in ((asynchronous, "is async"), (with_context, "a batch handler has none")):
        handler = compile_handler(handle, overrides={get_rate: fake}, batch=True)
        with pytest.raises(ConfigurationError, match=text):
            handler.invoke([], None)


def test_dependencies_that_nobody_can_call():
    """A dependency takes nothing or the Context; an async one needs an async handler."""

    def needy(order):
        pass

    async def asynchronous():
        pass

    async def async_generator():
        yield

    def handle_needy(value: bytes, a: Annotated[None, Depends(needy)]) -> None:
        pass

    with pytest.raises(ConfigurationError, match="'order' has nobody to give it"):
        compile_handler(handle_needy)
    for one in (asynchronous, async_generator):

        def handle(value: bytes, a: Annotated[None, Depends(one)]) -> None:
            pass

        with pytest.raises(ConfigurationError, match="is no async def"):
            compile_handler(handle)
    with pytest.raises(ConfigurationError, match="needs a function"):
        Depends("text")
    assert repr(Depends(needy)).endswith("needy)")


class Manager:
    """A context manager that notes its calls and behaves as it is told."""

    def __init__(self, index, behaviour, entered, exited):
        self.index = index
        self.behaviour = behaviour
        self.entered = entered
        self.exited = exited

    def __enter__(self):
        if self.behaviour == "enter fails":
            raise Boom
        self.entered.append(self.index)

    def __exit__(self, *details):
        self.exited.append(self.index)
        if self.behaviour == "exit fails":
            raise Boom
        return self.behaviour == "swallows"


behaviours = st.sampled_from(["fine", "enter fails", "exit fails", "swallows"])


@given(
    st.lists(behaviours, min_size=1, max_size=4),
    st.sampled_from(["returns", "raises", "signals"]),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_only_what_never_failed_is_done(managers, ending, asynchronous):
    """Whatever is around a handler: it is done only if nothing failed, and all is ended once."""
    entered, exited = [], []

    def work():
        if ending == "raises":
            raise Boom
        return Retry() if ending == "signals" else None

    def handle(value: bytes) -> None:
        return work()

    async def handle_async(value: bytes) -> None:
        return work()

    around = [lambda ctx, i=i, b=b: Manager(i, b, entered, exited) for i, b in enumerate(managers)]
    failed = False
    try:
        run(handle_async if asynchronous else handle, around=around)
    except (Boom, Retry):
        failed = True
    assert failed == (ending != "returns" or bool({"enter fails", "exit fails"} & set(managers)))
    assert exited == entered[::-1]
