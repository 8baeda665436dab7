"""What a handler's parameters are given: annotations resolved, dependencies made and ended.

Every dependency and every manager around a handler is ended in reverse order, also when a later one
could not be made. A failure stays a failure: what an ending says about swallowing it is ignored,
because what ends well is acked, and then nobody would ever see it again.
"""

from __future__ import annotations

import inspect
import sys
from collections import ChainMap
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from types import FrameType, SimpleNamespace, UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)
from weakref import WeakKeyDictionary

from reliable_mq.context import Context
from reliable_mq.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["Depends", "Injector", "Unresolved", "hints_of", "is_context", "kind_of", "title_of"]

Kind = Literal["value", "coroutine", "generator", "async generator"]


class Depends:
    """In `Annotated[T, Depends(function)]`: the parameter gets what `function` makes.

    The function takes nothing or the Context, and is called for each run of the handler, once even
    if several parameters want it. It may be a `def` or, for `async def` handlers, an `async def`.
    As a generator it yields the value once, and what follows the yield runs when the handler has
    ended: the handler's exception is raised at the yield, and what the generator raises is the
    handler's failure.
    """

    __slots__ = ("function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        made: Any = function
        if not callable(made):
            msg = f"Depends({function!r:.80}): it needs a function that makes the value"
            raise ConfigurationError(msg)
        self.function = function

    def __repr__(self) -> str:
        return f"Depends({title_of(self.function)})"


# ---- reading functions


class Unresolved:
    """Stands for an annotation whose names are not known at run time."""

    def __init__(self, annotation: object, error: Exception) -> None:
        self.text = (
            f"annotation {annotation!r} that cannot be resolved ({type(error).__name__}: {error}): "
            "import its names outside of `if TYPE_CHECKING:`, or define them at module level"
        )


# Kept because a handler is read twice, when it is declared and when it is started, and only the
# first time the names that are local to where it was declared can still be found.
_known: WeakKeyDictionary[Any, dict[str, Any]] = WeakKeyDictionary()


def hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a function's parameters, or an Unresolved where that is not possible."""
    source = _source(function)
    hints = _known.get(source)
    if hints is None:
        hints = {
            name: _resolved(source, name, annotation)
            for name, annotation in getattr(source, "__annotations__", {}).items()
            if name != "return"
        }
        if hints and not any(isinstance(hint, Unresolved) for hint in hints.values()):
            _known[source] = hints
    return hints


def _source(function: Any) -> Any:
    """The plain function whose annotations count."""
    while isinstance(function, partial):
        function = function.func
    if isinstance(function, type):
        function = function.__init__  # type: ignore[misc]  # only read, never called
    elif not hasattr(function, "__code__") and not inspect.ismethod(function):
        function = type(function).__call__
    return inspect.unwrap(getattr(function, "__func__", function))


def _resolved(source: Any, name: str, annotation: object) -> Any:
    holder = SimpleNamespace(__annotations__={name: annotation})
    scope = getattr(source, "__globals__", {})
    try:
        try:
            return get_type_hints(holder, scope, {}, include_extras=True)[name]
        except NameError:
            # Not before: a local name of whoever declares the handler must not hide a global one.
            local = _local_names(source, scope)
            return get_type_hints(holder, scope, local, include_extras=True)[name]
    except Exception as error:  # noqa: BLE001 - an annotation is an expression: anything may come
        return Unresolved(annotation, error)


def _local_names(source: Any, scope: dict[str, Any]) -> dict[str, Any]:
    """What the function closes over, then what is local where it is declared, inner first."""
    places: list[dict[str, Any]] = []
    closure = getattr(source, "__closure__", None)
    if closure:
        places.append(inspect.getclosurevars(source).nonlocals)  # type: ignore[arg-type]
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - there is no other way to them
    while frame is not None:
        if frame.f_globals is scope:
            places.append(frame.f_locals)
        frame = frame.f_back
    return dict(ChainMap(*places))


def is_context(hint: Any) -> bool:
    """Whether a parameter with this annotation gets the Context."""
    if get_origin(hint) in (Union, UnionType, Annotated):
        return any(is_context(one) for one in get_args(hint))
    return hint is Context


def kind_of(function: Any) -> Kind:
    """What calling a function gives."""
    candidates = [function]
    if not isinstance(function, (type, partial)) and not hasattr(function, "__code__"):
        candidates.append(getattr(function, "__call__", None))  # noqa: B004 - the method itself
    for one in candidates:
        if inspect.iscoroutinefunction(one):
            return "coroutine"
        if inspect.isgeneratorfunction(one):
            return "generator"
        if inspect.isasyncgenfunction(one):
            return "async generator"
    return "value"


def title_of(function: Any) -> str:
    """A function as it is named in texts."""
    while isinstance(function, partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


# ---- making and ending


class Provider:
    """A dependency function that has been read."""

    __slots__ = ("call", "is_async", "is_manager", "parameter", "title")

    def __init__(self, function: Callable[..., Any]) -> None:
        kind = kind_of(function)
        self.title = title_of(function)
        self.parameter = self._context_parameter(function)
        self.is_async = kind in ("coroutine", "async generator")
        self.is_manager = kind in ("generator", "async generator")
        self.call = function
        if self.is_manager:
            self.call = asynccontextmanager(function) if self.is_async else contextmanager(function)

    def __call__(self, context: Context | None) -> Any:
        if self.parameter is None:
            return self.call()
        if context is None:
            msg = f"{self.title} takes the Context, and a batch handler has none"
            raise ConfigurationError(msg)
        return self.call(**{self.parameter: context})

    def _context_parameter(self, function: Callable[..., Any]) -> str | None:
        try:
            parameters = inspect.signature(function).parameters.values()
        except ValueError:  # a builtin without a signature
            return None
        hints = hints_of(function)
        found = None
        for parameter in parameters:
            if (
                is_context(hints.get(parameter.name))
                and parameter.kind is not parameter.POSITIONAL_ONLY
            ):
                found = parameter.name
            elif parameter.default is parameter.empty and parameter.kind not in (
                parameter.VAR_POSITIONAL,
                parameter.VAR_KEYWORD,
            ):
                msg = (
                    f"Depends({self.title}): parameter {parameter.name!r} has nobody to give it; "
                    "a dependency takes nothing, or a parameter annotated Context"
                )
                raise ConfigurationError(msg)
        return found


class Injector:
    """Runs one handler with what is around it and what it depends on. Any thread or loop.

    Args:
        function: The handler.
        context_parameter: Its parameter that gets the Context.
        dependencies: Its parameters that get what a function makes.
        around: Makers of context managers, the first one outermost.
        overrides: Functions in place of others; looked up at each call.
        unexpected: Says what is wrong with what the handler returned.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        context_parameter: str | None,
        dependencies: Mapping[str, Callable[..., Any]],
        around: Sequence[Callable[[Context], Any]],
        overrides: Mapping[Any, Callable[..., Any]],
        unexpected: Callable[[object], BaseException | None],
    ) -> None:
        self._function = function
        self._context_parameter = context_parameter
        self._dependencies = dict(dependencies)
        self._around = tuple(around)
        self._overrides = overrides
        self._unexpected = unexpected
        self._providers = {one: Provider(one) for one in self._dependencies.values()}
        self._replacements: dict[Any, Provider] = {}

    @property
    def providers(self) -> list[Provider]:
        """The dependencies as they are declared."""
        return list(self._providers.values())

    def invoke(self, value: object, context: Context | None) -> None:
        """Run a `def` handler. Raises what it or anything around it raised, or returned as such."""
        entered: list[Any] = []
        error: BaseException | None = None
        try:
            for make in self._around:
                self._enter(make(context), entered)  # type: ignore[arg-type]
            made: dict[Any, Any] = {}
            for function in self._providers:
                provider = self._sync(self._provider(function))
                thing = provider(context)
                made[function] = self._enter(thing, entered) if provider.is_manager else thing
            self._judge(self._function(value, **self._arguments(made, context)))
        except BaseException as caught:  # noqa: BLE001 - it is raised below, after the endings
            error = caught
        while entered:
            try:
                entered.pop().__exit__(*_details(error))
            except BaseException as later:  # noqa: BLE001 - as above
                error = _after(error, later)
        _raise(error)

    async def ainvoke(self, value: object, context: Context | None) -> None:
        """The same for an `async def` handler; what is around it may be sync or async."""
        entered: list[Any] = []
        error: BaseException | None = None
        try:
            for make in self._around:
                await self._aenter(make(context), entered)  # type: ignore[arg-type]
            made: dict[Any, Any] = {}
            for function in self._providers:
                provider = self._provider(function)
                thing = provider(context)
                if provider.is_manager:
                    thing = await self._aenter(thing, entered)
                elif provider.is_async:
                    thing = await thing
                made[function] = thing
            self._judge(await self._function(value, **self._arguments(made, context)))
        except BaseException as caught:  # noqa: BLE001 - as in invoke
            error = caught
        while entered:
            manager = entered.pop()
            try:
                if hasattr(manager, "__aexit__"):
                    await manager.__aexit__(*_details(error))
                else:
                    manager.__exit__(*_details(error))
            except BaseException as later:  # noqa: BLE001 - as in invoke
                error = _after(error, later)
        _raise(error)

    def _provider(self, function: Callable[..., Any]) -> Provider:
        replacement = self._overrides.get(function, function)
        provider = self._providers.get(replacement) or self._replacements.get(replacement)
        if provider is None:
            provider = self._replacements[replacement] = Provider(replacement)
        return provider

    def _sync(self, provider: Provider) -> Provider:
        if provider.is_async:  # it took the place of one that is not
            msg = f"{provider.title} is async, and the handler is not"
            raise ConfigurationError(msg)
        return provider

    def _arguments(self, made: dict[Any, Any], context: Context | None) -> dict[str, Any]:
        arguments = {name: made[function] for name, function in self._dependencies.items()}
        if self._context_parameter is not None:
            arguments[self._context_parameter] = context
        return arguments

    def _judge(self, result: object) -> None:
        """Raise a returned failure inside of everything around the handler: it is no success."""
        if result is not None:
            error = self._unexpected(result)
            if error is not None:
                raise error

    def _enter(self, manager: Any, entered: list[Any]) -> Any:
        if not hasattr(manager, "__enter__"):
            raise _no_manager(manager, "an async handler" if hasattr(manager, "__aenter__") else "")
        value = manager.__enter__()
        entered.append(manager)
        return value

    async def _aenter(self, manager: Any, entered: list[Any]) -> Any:
        if not hasattr(manager, "__aenter__"):
            return self._enter(manager, entered)
        value = await manager.__aenter__()
        entered.append(manager)
        return value


def _no_manager(thing: object, needs: str) -> ConfigurationError:
    what = f"a context manager for {needs} only" if needs else "no context manager"
    return ConfigurationError(f"a {type(thing).__name__} stands around a handler and is {what}")


def _details(error: BaseException | None) -> tuple[Any, Any, Any]:
    """The arguments of __exit__."""
    return (None, None, None) if error is None else (type(error), error, error.__traceback__)


def _after(error: BaseException | None, later: BaseException) -> BaseException:
    """The failure of an ending takes the place of the one before, which stays its context."""
    if error is not None and later is not error and later.__context__ is None:
        later.__context__ = error
    return later


def _raise(error: BaseException | None) -> None:
    if error is not None:
        try:
            raise error
        finally:
            del error  # its traceback has this frame: without this the two would keep each other
