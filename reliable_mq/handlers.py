"""The user's function made callable: its signature is read once, its parameters are given to it.

    def bill(order: Order, ctx: Context, rates: Annotated[Rates, Depends(get_rates)]) -> None: ...
             payload       the run and   what somebody else makes for it; see `injection`
                           its means

Around it run the app's context managers, the first one outermost. Whatever fails on the way, in a
manager, a dependency, the function, or the ending of any of them, is the handler's failure.
A function that takes only its payload, with nothing around it, is called as it is (`direct`).
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import AsyncGenerator, Awaitable, Coroutine, Generator
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn, get_args, get_origin

from msgspec import Struct

from reliable_mq.codec import JSON, decoder_for, name_of
from reliable_mq.errors import ConfigurationError
from reliable_mq.injection import (
    Depends,
    Injector,
    Unresolved,
    hints_of,
    is_context,
    kind_of,
    title_of,
)
from reliable_mq.outcome import Done, Reject, Retry

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from reliable_mq.codec import Codec
    from reliable_mq.context import Context
    from reliable_mq.message import Message

__all__ = ["Depends", "Handler", "compile_handler"]

log = logging.getLogger("reliable_mq.handlers")

_NOTHING: Final[Mapping[Any, Any]] = MappingProxyType({})
_SQLALCHEMY = {"Session", "AsyncSession", "Connection", "AsyncConnection"}


class Handler:
    """A function of the user, ready to run. Any thread; `ainvoke` on any event loop.

    Attributes:
        name: Module and qualified name of the function.
        is_async: Whether it is an `async def`: then `ainvoke` runs it, else `invoke`.
        decode: Message to payload; raises CodecError. For a batch, one element of the list.
        wants_context: Whether `invoke` and `ainvoke` need a Context; else None will do.
        invoke: Runs a `def`: payload and Context. What it returns goes to `unexpected`.
        ainvoke: Runs an `async def`, the same.
        direct: The function itself, where it takes only the payload and nothing is around it.
    """

    __slots__ = (
        "_warned",
        "ainvoke",
        "decode",
        "direct",
        "invoke",
        "is_async",
        "name",
        "wants_context",
    )

    def __init__(
        self, name: str, *, is_async: bool, decode: Callable[[Message], Any], wants_context: bool
    ) -> None:
        self.name = name
        self.is_async = is_async
        self.decode = decode
        self.wants_context = wants_context
        self.invoke: Callable[[Any, Context | None], Any] = self._other_kind
        self.ainvoke: Callable[[Any, Context | None], Awaitable[Any]] = self._other_kind
        self.direct: Callable[[Any], Any] | None = None
        self._warned = False

    def unexpected(self, result: object) -> BaseException | None:
        """What a returned value means: None, it is done; else the failure that it stands for.

        A Retry or Reject counts as if it had been raised. A coroutine or generator means that the
        work was never begun. Any other value is of no use here, which is logged once.
        """
        if result is None or isinstance(result, Done):
            return None
        if isinstance(result, (Retry, Reject)):
            return result
        if result is Retry or result is Reject:  # `return Reject`, as one may `raise Reject`
            return Reject() if result is Reject else Retry()
        if isinstance(result, (Coroutine, Generator)):
            result.close()  # also keeps Python from warning that it was never awaited
        if isinstance(result, (Awaitable, Generator, AsyncGenerator)):
            text = (
                f"{self.name} returned a {type(result).__name__}, so its work was not done: it "
                "must be an async def itself (a decorator may hide it), and no generator"
            )
            return TypeError(text)
        if not self._warned:
            self._warned = True
            log.warning(
                "%s returned a %s; return values are ignored", self.name, type(result).__name__
            )
        return None

    def _other_kind(self, value: object, context: object) -> NoReturn:
        text = (
            f"{self.name} is {'an async' if self.is_async else 'a plain'} def: use the other invoke"
        )
        raise TypeError(text)

    def __repr__(self) -> str:
        return f"<Handler {self.name}>"


def compile_handler(
    function: Callable[..., Any],
    *,
    codec: Codec | None = None,
    content_type: str | None = None,
    batch: bool = False,
    around: Sequence[Callable[[Context], Any]] = (),
    overrides: Mapping[Any, Callable[..., Any]] = _NOTHING,
) -> Handler:
    """Read a function's signature, and make a Handler of it.

    Args:
        function: A function, bound method or other callable, `def` or `async def`.
        codec: Reads its payload; None: the JsonCodec.
        content_type: What to assume of messages that do not say.
        batch: It takes a list of payloads, and no Context.
        around: Functions of the Context that make a context manager.
        overrides: Functions in place of those in Depends; looked up at each call, so they may come
            and go later.

    Raises:
        ConfigurationError: What the function asks for cannot be given, with the remedy.
    """
    if isinstance(function, staticmethod):
        function = function.__func__
    name = title_of(function)
    kind = _callable_kind(name, function)
    signature = _read(name, function)
    handler = Handler(
        name,
        is_async=kind == "coroutine",
        decode=_decoder(name, signature.payload, codec or JSON, content_type, batch=batch),
        # With dependencies always: a function that takes the place of one may want it.
        wants_context=bool(signature.context or around or signature.dependencies),
    )
    injector = Injector(
        function,
        context_parameter=signature.context,
        dependencies=signature.dependencies,
        around=around,
        overrides=overrides,
        unexpected=handler.unexpected,
    )
    _check(handler, injector, signature, around=around, batch=batch)
    plain = not around and not signature.dependencies
    if plain and signature.context is None:
        handler.direct = function
    call = _plain(function, signature) if plain else None
    if handler.is_async:
        handler.ainvoke = call or injector.ainvoke
    else:
        handler.invoke = call or injector.invoke
    return handler


class _Signature(Struct, frozen=True):
    """payload: annotation. context: parameter, and whether it is the second, given by position."""

    payload: Any
    context: str | None
    second: bool
    dependencies: dict[str, Any]


def _callable_kind(name: str, function: Any) -> str:
    if isinstance(function, type) or not callable(function):
        msg = f"{name} cannot be a handler: give a function, a bound method or a callable object"
        raise ConfigurationError(msg)
    kind = kind_of(function)
    if kind in ("generator", "async generator"):
        msg = f"{name} is a generator, so calling it would do nothing: a handler returns, no yield"
        raise ConfigurationError(msg)
    return kind


def _read(name: str, function: Callable[..., Any]) -> _Signature:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError) as error:
        msg = f"{name} has no signature that could be read; wrap it in a def"
        raise ConfigurationError(msg) from error
    hints = hints_of(function)
    payload = _payload(name, parameters, hints)
    context: str | None = None
    second = False
    dependencies: dict[str, Any] = {}
    for index, parameter in enumerate(parameters[1:]):
        hint = hints.get(parameter.name)
        depends = _depends(name, parameter, hint)
        if depends is not None:
            dependencies[parameter.name] = depends.function
        elif is_context(hint):
            if context is not None:
                _refuse(name, parameter, "is the second one annotated Context; one is enough")
            context = parameter.name
            second = index == 0 and parameter.kind is not parameter.KEYWORD_ONLY
        elif parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        elif parameter.default is parameter.empty:
            _refuse_parameter(name, parameter, hint)
        else:
            continue
        if parameter.kind is parameter.POSITIONAL_ONLY:
            _refuse(name, parameter, "is given by name; move it behind the `/`")
    return _Signature(payload, context, second, dependencies)


def _payload(name: str, parameters: list[inspect.Parameter], hints: Mapping[str, Any]) -> Any:
    first = parameters[0] if parameters else None
    if first is None or first.kind not in (first.POSITIONAL_ONLY, first.POSITIONAL_OR_KEYWORD):
        msg = f"{name} takes no payload: its first parameter is the message's, as in (order: Order)"
        raise ConfigurationError(msg)
    if first.name not in hints:
        remedy = (
            "annotate it with the type of the payload: Message, bytes, str, dict, a dataclass, …"
        )
        if first.name in ("self", "cls"):
            remedy = "declare the bound method instead: mq.consumer(...)(service.handle)"
        _refuse(name, first, f"has no annotation; {remedy}")
    hint = hints[first.name]
    if isinstance(hint, Unresolved):
        _refuse(name, first, f"has an {hint.text}")
    if is_context(hint) or any(isinstance(one, Depends) for one in _metadata(hint)):
        _refuse(name, first, "comes first, and the first parameter is the message's payload")
    return hint


def _metadata(hint: Any) -> tuple[Any, ...]:
    return get_args(hint)[1:] if get_origin(hint) is Annotated else ()


def _depends(name: str, parameter: inspect.Parameter, hint: Any) -> Depends | None:
    metadata = _metadata(hint)
    found = [one for one in metadata if isinstance(one, Depends)]
    if len(found) > 1 or Depends in metadata or isinstance(parameter.default, Depends):
        _refuse(name, parameter, "must be annotated Annotated[T, Depends(function)], just once")
    return found[0] if found else None


def _refuse_parameter(name: str, parameter: inspect.Parameter, hint: Any) -> NoReturn:
    if isinstance(hint, Unresolved):
        _refuse(name, parameter, f"has an {hint.text}")
    for one in (hint, *get_args(hint)):
        for base in getattr(one, "__mro__", ()):
            if base.__name__ in _SQLALCHEMY and base.__module__.partition(".")[0] == "sqlalchemy":
                _refuse(
                    name,
                    parameter,
                    f"is annotated {name_of(one)}: that comes with inbox=, which is not built yet; "
                    "use Annotated[…, Depends(function)]",
                )
    _refuse(
        name,
        parameter,
        "has nobody to give it: annotate it Context or Annotated[T, Depends(function)], or give it "
        "a default",
    )


def _refuse(name: str, parameter: inspect.Parameter, why: str) -> NoReturn:
    msg = f"{name}: parameter {parameter.name!r} {why}"
    raise ConfigurationError(msg)


def _check(
    handler: Handler,
    injector: Injector,
    signature: _Signature,
    *,
    around: Sequence[Any],
    batch: bool,
) -> None:
    why = None
    if batch and (signature.context or any(one.parameter for one in injector.providers)):
        why = "wants the Context, and a batch has none: it is many messages"
    elif batch and around:
        why = "handles batches, and what mq.around put around it needs a Context, which they lack"
    elif not handler.is_async and any(one.is_async for one in injector.providers):
        why = "is no async def, and one of its dependencies is async"
    if why is not None:
        msg = f"{handler.name} {why}"
        raise ConfigurationError(msg)


def _decoder(
    name: str, payload: Any, codec: Codec, content_type: str | None, *, batch: bool
) -> Callable[[Message], object]:
    if batch:
        if get_origin(payload) is not list:
            msg = (
                f"{name} takes {name_of(payload)}: with batch= it is handed a list, as list[Order]"
            )
            raise ConfigurationError(msg)
        payload = get_args(payload)[0]
    try:
        return decoder_for(payload, codec, content_type)
    except ConfigurationError as error:
        msg = f"{name}: {error}"
        raise ConfigurationError(msg) from error


def _plain(function: Callable[..., Any], signature: _Signature) -> Callable[[Any, Any], Any]:
    """A function of payload and Context, with nothing around it."""
    name = signature.context
    if signature.second:
        return function
    if name is None:
        return lambda value, _: function(value)
    return lambda value, context: function(value, **{name: context})
