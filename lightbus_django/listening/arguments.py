"""Converts payloads to the arguments of a handler, as its annotations say."""

import inspect
import re
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, time
from functools import partial
from types import MethodType, NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
from django.db import Error as DatabaseError

from lightbus_django.exceptions import ConfigurationError, UnreadableEvent


def function_of(handler: Any) -> Any:
    """Return the function behind a handler, which may be a method, a partial or an object with `__call__`."""
    while True:
        if isinstance(handler, partial):
            handler = handler.func
        elif isinstance(handler, MethodType | staticmethod):
            handler = handler.__func__
        elif hasattr(handler, "__qualname__"):
            return handler
        else:
            handler = type(handler).__call__


def path_of(handler: Any) -> str:
    """Return the dotted path of a handler, for log lines and error messages."""
    function = function_of(handler)
    return f"{getattr(function, '__module__', 'builtins')}.{function.__qualname__}"


def check_takes_list(handler: Callable[..., Any]) -> None:
    """Raise ConfigurationError if a batch handler can't be called with a list of events."""
    try:
        inspect.signature(handler).bind([])
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"The batch handler {path_of(handler)} must take one argument, the list of events: {error}."
        ) from error


class Arguments:
    """The keyword arguments of one handler."""

    def __init__(self, handler: Callable[..., Any]) -> None:
        """Inspect the handler, once for all events.

        Raises:
            ConfigurationError: the handler can't be called with any event.
        """
        path = path_of(handler)
        try:
            parameters = list(inspect.signature(handler).parameters.values())
            inner = inspect.signature(function_of(handler)).parameters.values()
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"Can't inspect the arguments of the handler {path}: {error}.") from error
        if not parameters or parameters[0].kind in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD):
            raise ConfigurationError(
                f"The first argument of the handler {path} must take the event, as in (event, **kwargs)."
            )
        self._hints: dict[str, Any] = {}
        self._required: list[str] = []
        self._takes_all = False
        self._rest: Any = Any
        # Payload keys with these names are only in event.payload: the names are taken by the event, by `self`, or by
        # arguments that a partial gives.
        names = {parameter.name for parameter in parameters[1:]}
        self._taken = {
            parameter.name
            for parameter in inner
            if parameter.name not in names and parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        }
        hints = _hints(function_of(handler), path)
        for parameter in parameters[1:]:
            hint = hints.get(parameter.name, Any)
            if hint is object:
                hint = Any
            if hint is not Any:
                hint = _for_msgspec(hint, f"The argument {parameter.name!r} of the handler {path}")
            if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
                raise ConfigurationError(
                    f"The handler {path} can't be called with {parameter.name!r} as a keyword argument: move it "
                    f"behind the '/'."
                )
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                self._takes_all, self._rest = True, hint
            elif parameter.kind is not inspect.Parameter.VAR_POSITIONAL:
                # As in Lightbus, `number: int = None` also takes None.
                self._hints[parameter.name] = hint | None if parameter.default is None and hint is not Any else hint
                if parameter.default is inspect.Parameter.empty:
                    self._required.append(parameter.name)

    def read(self, payload: dict[str, Any]) -> dict[str, Any]:
        """Return the handler's arguments for a payload.

        Raises:
            UnreadableEvent: an argument is missing, or can't be converted.
        """
        for name in self._required:
            if name not in payload:
                raise UnreadableEvent(f"the handler's argument {name!r} is missing from the event")
        arguments = {}
        for name, value in payload.items():
            if name in self._taken or (name not in self._hints and not self._takes_all):
                continue
            hint = self._hints.get(name, self._rest)
            try:
                arguments[name] = value if hint is Any or hint is type(value) else _convert(value, hint)
            except DatabaseError:
                raise  # a __from_bus__() may query the database
            except Exception as error:
                raise UnreadableEvent(
                    f"the event's {name!r} can't be converted for the handler: {_without_value(error)}"
                ) from error
        return arguments


def _hints(handler: Callable[..., Any], path: str) -> dict[str, Any]:
    try:
        return get_type_hints(handler, include_extras=True)
    except (NameError, TypeError) as error:
        raise ConfigurationError(f"Can't read the annotations of the handler {path}: {error}.") from error


def _for_msgspec(hint: Any, what: str) -> Any:
    """Return a type for which msgspec converts as Lightbus does, also inside list[...], ... | None and the like.

    By itself, msgspec reads named tuples from arrays, though they are objects on the bus. For classes that it knows,
    such as dataclasses, it ignores Lightbus's hook `__from_bus__()`.
    """
    if isinstance(hint, type) and (hasattr(hint, "__from_bus__") or hasattr(hint, "_fields")):
        return _stand_in(hint, what)
    arguments = get_args(hint)
    if not arguments or get_origin(hint) in (Literal, Annotated):
        return _known(hint, what)
    converted = tuple(item if item in (..., NoneType) else _for_msgspec(item, what) for item in arguments)
    if converted == arguments:
        return _known(hint, what)
    origin = get_origin(hint)
    return Union[converted] if origin in (Union, UnionType) else origin[converted]  # noqa: UP007


class _StandIn(type):
    """A type that msgspec does not know, so that it calls `_from_bus` for a value."""

    def __instancecheck__(cls, instance: object) -> bool:
        return True  # msgspec checks the value that it got


def _stand_in(cls: Any, what: str) -> type:
    if hasattr(cls, "__from_bus__"):
        return _StandIn(cls.__name__, (), {"make": staticmethod(cls.__from_bus__)})
    hints = {name: _for_msgspec(cls.__annotations__.get(name, Any), what) for name in cls._fields}

    def make(value: Any) -> Any:
        # The producer may have added fields.
        return cls(**{name: _convert(value[name], hint) for name, hint in hints.items() if name in value})

    return _StandIn(cls.__name__, (), {"make": staticmethod(make)})


def _known(hint: Any, what: str) -> Any:
    try:
        known = msgspec.inspect.type_info(hint)
    except TypeError as error:
        raise ConfigurationError(f"{what} has a type that JSON can't be converted to: {error}") from error
    if isinstance(known, msgspec.inspect.CustomType):
        raise ConfigurationError(f"{what} has a type that JSON can't be converted to: give {hint!r} a __from_bus__().")
    return hint


def _without_value(error: Exception) -> str:
    """Return what is wrong with a value without the value itself, which must not get into the log."""
    if isinstance(error, msgspec.ValidationError) and error.__cause__ is None:
        return re.sub(r"^(Invalid enum value) .*?( - at `[^`]*`)?$", r"\1\2", str(error), flags=re.DOTALL)
    return type(error).__name__


def _convert(value: Any, hint: Any) -> Any:
    try:
        return msgspec.convert(value, hint, strict=False, dec_hook=_from_bus)
    except msgspec.ValidationError:
        parsed = _parse_offsets(value)
        if parsed == value:
            raise
        return msgspec.convert(parsed, hint, strict=False, dec_hook=_from_bus)


_OFFSET_WITH_SECONDS = re.compile(r"(\d{4}-\d\d-\d\dT)?\d\d:\d\d:\d\d(\.\d+)?[+-]\d\d:\d\d:\d\d(\.\d+)?").fullmatch


def _parse_offsets(value: Any) -> Any:
    """Return `value` with datetimes and times parsed whose UTC offset has seconds, which msgspec can't read."""
    if isinstance(value, list):
        return [_parse_offsets(item) for item in value]
    if isinstance(value, dict):
        return {_parse_offsets(key): _parse_offsets(item) for key, item in value.items()}
    if isinstance(value, str) and (found := _OFFSET_WITH_SECONDS(value)):
        with suppress(ValueError):
            return datetime.fromisoformat(value) if found[1] else time.fromisoformat(value)
    return value


def _from_bus(stand_in: Any, value: Any) -> Any:
    return stand_in.make(value)
