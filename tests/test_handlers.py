import asyncio
import functools
import logging
from contextlib import contextmanager
from typing import Annotated, Any, Optional

import msgspec
import pytest

from reliable_mq.context import Context
from reliable_mq.errors import CodecError, ConfigurationError
from reliable_mq.handlers import Depends, compile_handler
from reliable_mq.message import Delivery, Lease, Message
from reliable_mq.outcome import DONE, Reject, Retry

MESSAGE = Message("id-1", "orders", None, b'{"id":7}')


class Order(msgspec.Struct):
    """A payload."""

    id: int


class Service:
    """Something with handlers on it."""

    def __init__(self):
        self.seen = []

    def handle(self, order: Order) -> None:
        """Note it."""
        self.seen.append(order)

    async def handle_async(self, order: Order) -> None:
        """Note it."""
        self.seen.append(order)

    def __call__(self, order: Order) -> None:
        """Note it."""
        self.seen.append(order)


def context():
    """A context of one run."""
    return Context(Delivery(MESSAGE, Lease()), group="g", attempt=1)


def get_rate():
    """A dependency."""
    return 1.5


Rate = Annotated[float, Depends(get_rate)]


def test_a_function_of_its_payload_is_called_as_it_is():
    """Nothing stands between the worker and a function that takes only its payload."""

    def bill(order: Order, retries: int = 3, *rest: Any, **options: Any) -> None:
        pass

    handler = compile_handler(bill)
    assert handler.direct is bill
    assert handler.is_async is False
    assert handler.wants_context is False
    assert handler.name == f"{__name__}.{bill.__qualname__}"
    assert handler.decode(MESSAGE) == Order(7)


def test_a_function_of_payload_and_context_is_called_as_it_is():
    """Where the Context is the second parameter, `invoke` is the function."""

    def bill(order: Order, ctx: Context) -> None:
        pass

    handler = compile_handler(bill)
    assert handler.invoke is bill
    assert handler.direct is None
    assert handler.wants_context is True


@pytest.mark.parametrize("hint", [Context, Context | None, Annotated[Context, "why"]])
def test_a_context_anywhere(hint):
    """The Context goes to the parameter that is annotated so, wherever it stands."""
    seen = []

    def bill(order: Order, other: int = 0, *, ctx: hint) -> None:
        seen.append((order, other, ctx))

    handler = compile_handler(bill)
    ctx = context()
    handler.invoke(Order(1), ctx)
    assert seen == [(Order(1), 0, ctx)]


def test_invoke_without_a_context():
    """`invoke` takes None where no Context is wanted."""
    service = Service()
    handler = compile_handler(service.handle)
    handler.invoke(Order(1), None)
    assert service.seen == [Order(1)]


@pytest.mark.parametrize(
    "make", [lambda s: s.handle, lambda s: s, lambda s: functools.partial(s.handle)]
)
def test_methods_objects_and_partials(make):
    """Bound methods, callable objects and partials are handlers as functions are."""
    service = Service()
    handler = compile_handler(make(service))
    handler.direct(handler.decode(MESSAGE))
    assert service.seen == [Order(7)]
    assert "Service" in handler.name


def test_an_async_method():
    """An `async def` is run by `ainvoke`."""
    service = Service()
    handler = compile_handler(service.handle_async)
    assert handler.is_async is True
    asyncio.run(handler.ainvoke(Order(1), None))
    asyncio.run(handler.direct(Order(2)))
    assert service.seen == [Order(1), Order(2)]


def test_an_async_call_method():
    """An object whose __call__ is async is async."""

    class Handler:
        async def __call__(self, order: Order, ctx: Context) -> None:
            ctx.publish("a", b"")

    ctx = context()
    handler = compile_handler(Handler())
    assert handler.is_async is True
    asyncio.run(handler.ainvoke(Order(1), ctx))
    assert len(ctx.outputs) == 1


def test_a_static_method_under_the_decorator():
    """A staticmethod object, as a class body hands it out, is its function."""

    def bill(order: Order) -> None:
        pass

    assert compile_handler(staticmethod(bill)).direct is bill


def test_the_wrong_invoke():
    """Calling the other kind says so."""
    service = Service()
    with pytest.raises(TypeError, match="is a plain def"):
        compile_handler(service.handle).ainvoke(Order(1), None)
    with pytest.raises(TypeError, match="is an async def"):
        compile_handler(service.handle_async).invoke(Order(1), None)


def test_a_lambda_with_annotations():
    """A lambda has no place for annotations, but may be given some."""
    handler = lambda order: None  # noqa: E731 - it is what is tested
    with pytest.raises(ConfigurationError, match="has no annotation"):
        compile_handler(handler)
    handler.__annotations__ = {"order": dict}
    assert compile_handler(handler).decode(MESSAGE) == {"id": 7}


def test_annotations_as_strings():
    """Names are resolved in the module, and then where the handler is declared."""

    class Local(msgspec.Struct):
        id: int

    def bill(order: "Local", ctx: "Context", other: "Order" = None) -> "Missing":  # noqa: F821
        pass

    handler = compile_handler(bill)
    assert handler.decode(MESSAGE) == Local(7)
    assert handler.invoke is bill


def test_names_are_still_known_when_it_is_compiled_again():
    """What was resolved where the handler was declared is known where it is started."""

    def declare():
        class Local(msgspec.Struct):
            id: int

        def bill(order: "Local") -> None:
            pass

        compile_handler(bill)
        return bill, Local

    bill, local = declare()
    assert compile_handler(bill).decode(MESSAGE) == local(7)


def test_a_local_name_does_not_hide_a_global_one():
    """Where the module knows a name, what is local to the caller does not count."""
    Order = "something else"  # noqa: N806, F841 - it has to have the name of the class
    assert type(compile_handler(ANNOTATED).decode(MESSAGE)).__name__ == "Order"


def ANNOTATED(order: "Order") -> None:  # noqa: N802 - a handler of this module
    """Do nothing."""


def test_a_name_that_the_function_closes_over():
    """A class that the function itself uses is found although its frame is gone."""

    def declare():
        class Local(msgspec.Struct):
            id: int

        def bill(order: "Local") -> None:
            Local(order.id)

        return bill, Local

    bill, local = declare()
    assert compile_handler(bill).decode(MESSAGE) == local(7)


def _no_payload():
    pass


def _only_rest(*orders: Order):
    pass


def _only_keyword(*, order: Order):
    pass


def _unannotated(order):
    pass


def _method(self, order: Order):
    pass


def _context_first(ctx: Context):
    pass


def _depends_first(rate: Rate):
    pass


def _two_contexts(order: Order, a: Context, b: Context):
    pass


def _other(order: Order, other: int):
    pass


def _default_depends(order: Order, rate: float = Depends(get_rate)):
    pass


def _bare_depends(order: Order, rate: Annotated[float, Depends]):
    pass


def _two_depends(order: Order, rate: Annotated[float, Depends(get_rate), Depends(get_rate)]):
    pass


def _positional(order: Order, rate: Rate, /):
    pass


def _unknown(order: "Missing"):  # noqa: F821 - that is what is tested
    pass


def _unknown_other(order: Order, other: "Missing"):  # noqa: F821 - as above
    pass


def _generator(order: Order):
    yield


async def _async_generator(order: Order):
    yield


def _union(order: bytes | Order):
    pass


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (_no_payload, "takes no payload"),
        (_only_rest, "takes no payload"),
        (_only_keyword, "takes no payload"),
        (_unannotated, "'order' has no annotation; annotate it with the type"),
        (_method, "bound method"),
        (_context_first, "the first parameter is the message's payload"),
        (_depends_first, "the first parameter is the message's payload"),
        (_two_contexts, "'b' is the second one annotated Context"),
        (_other, r"'other' has nobody to give it.*Annotated\[T, Depends\(function\)\]"),
        (_default_depends, r"'rate' must be annotated Annotated"),
        (_bare_depends, r"'rate' must be annotated Annotated"),
        (_two_depends, r"'rate' must be annotated Annotated"),
        (_positional, "'rate' is given by name"),
        (_unknown, r"'order' has an annotation 'Missing'.*TYPE_CHECKING"),
        (_unknown_other, r"'other' has an annotation 'Missing'"),
        (_generator, "is a generator"),
        (_async_generator, "is a generator"),
        (_union, "bytes and Message take every message"),
        (Order, "cannot be a handler"),
        (7, "cannot be a handler"),
    ],
)
def test_what_cannot_be_a_handler(function, text):
    """What cannot be called with a message is refused when it is declared, with the remedy."""
    with pytest.raises(ConfigurationError, match=text):
        compile_handler(function)


def test_a_callable_without_a_signature():
    """What cannot be looked into is refused."""

    class Opaque:
        __signature__ = "none"

        def __call__(self, order: Order) -> None:
            pass

    with pytest.raises(ConfigurationError, match="has no signature"):
        compile_handler(Opaque())


@pytest.mark.parametrize("name", ["Session", "AsyncSession", "Connection"])
def test_sessions_of_sqlalchemy(name):
    """A session without Depends is the inbox's, which is not built yet."""
    base = type(name, (), {"__module__": "sqlalchemy.orm.session"})
    session = type("MySession", (base,), {})

    def bill(order: Order, session: session) -> None:
        pass

    def optional(order: Order, session: Optional[session]) -> None:  # noqa: UP045 - as users do
        pass

    for function in (bill, optional):
        with pytest.raises(ConfigurationError, match=r"inbox=, which is not built yet"):
            compile_handler(function)


def test_batches():
    """A batch handler takes a list; each message is decoded by itself."""

    def bill(orders: list[Order], rate: Rate) -> None:
        seen.append((orders, rate))

    seen = []
    handler = compile_handler(bill, batch=True)
    orders = [handler.decode(MESSAGE), handler.decode(MESSAGE)]
    handler.invoke(orders, None)
    assert seen == [([Order(7), Order(7)], 1.5)]


def test_what_batch_handlers_cannot_have():
    """A batch is many messages: it is a list, and has no Context."""

    def single(order: Order) -> None:
        pass

    def bare(orders: list) -> None:
        pass

    def with_context(orders: list[Order], ctx: Context) -> None:
        pass

    def get(ctx: Context) -> int:
        return 1

    def with_dependency(orders: list[Order], n: Annotated[int, Depends(get)]) -> None:
        pass

    def plain(orders: list[Order]) -> None:
        pass

    for function in (single, bare):
        with pytest.raises(ConfigurationError, match=r"list\[Order\]"):
            compile_handler(function, batch=True)
    for function in (with_context, with_dependency):
        with pytest.raises(ConfigurationError, match="wants the Context"):
            compile_handler(function, batch=True)
    with pytest.raises(ConfigurationError, match=r"mq\.around"):
        compile_handler(plain, batch=True, around=[lambda ctx: None])


def test_decoding():
    """`content_type` and `codec` are the decoder's."""

    def text(body: str) -> None:
        pass

    sent = Message("id-1", "orders", None, b"hello")
    assert compile_handler(text, content_type="text/plain").decode(sent) == "hello"
    with pytest.raises(CodecError):
        compile_handler(text).decode(sent)

    class Upper:
        def encode(self, value):
            raise NotImplementedError

        def decode(self, body, content_type, target):
            return body.decode().upper()

    assert compile_handler(text, codec=Upper()).decode(sent) == "HELLO"


def _bill(order: Order) -> None:
    pass


def test_results_that_are_fine():
    """None and Done mean that it is done."""
    handler = compile_handler(_bill)
    assert handler.unexpected(None) is None
    assert handler.unexpected(DONE) is None


def test_returned_signals():
    """A returned Retry or Reject is what it would be if it had been raised."""
    handler = compile_handler(_bill)
    retry, reject = Retry("busy", after=5), Reject("bad")
    assert handler.unexpected(retry) is retry
    assert handler.unexpected(reject) is reject
    assert isinstance(handler.unexpected(Retry), Retry)
    assert isinstance(handler.unexpected(Reject), Reject)


def test_work_that_was_never_begun():
    """A returned coroutine, generator or other awaitable is a failure, and never left open."""

    async def coroutine():
        pass

    def generator():
        yield

    async def async_generator():
        yield

    handler = compile_handler(_bill)
    loop = asyncio.new_event_loop()
    future = loop.create_future()
    for result in (coroutine(), generator(), async_generator(), future):
        error = handler.unexpected(result)
        assert isinstance(error, TypeError)
        assert "so its work was not done" in str(error)
    loop.close()


def test_other_results_warn_once(caplog):
    """Any other value is ignored, which is logged once for each handler."""
    handler = compile_handler(_bill)
    with caplog.at_level(logging.WARNING, "reliable_mq.handlers"):
        assert handler.unexpected(7) is None
        assert handler.unexpected("x") is None
    assert [record.getMessage() for record in caplog.records] == [
        f"{handler.name} returned a int; return values are ignored"
    ]


def test_around_needs_a_context():
    """A handler that something is around of is not called directly."""

    @contextmanager
    def manager(ctx):
        yield

    handler = compile_handler(_bill, around=[manager])
    assert handler.direct is None
    assert handler.wants_context is True
    assert repr(handler).endswith("_bill>")
