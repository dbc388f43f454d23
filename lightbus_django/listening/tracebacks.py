"""Describes errors: their text, their traceback, and their place in the user's code."""

import os
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path

import asgiref
import django

from lightbus_django.exceptions import UnreadableEvent

MAX_IN_LOG = 1000
"""Characters of an error's text in a log line."""

_INSTALLED = {"site-packages", "dist-packages"}


def _directories(*paths: str | Path) -> tuple[str, ...]:
    return tuple({f"{path}{os.sep}" for path in paths})


_STANDARD_LIBRARY = _directories(
    Path(os.__file__).parent, sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")
)
_CALLERS = _directories(Path(__file__).parent.parent, Path(asgiref.__file__).parent)
_DJANGO = _directories(Path(django.__file__).parent)


def describe(error: BaseException) -> str:
    """Return the type and text of an error."""
    name = type(error).__name__
    try:
        return f"{name}: {error}"
    except BaseException:  # its __str__() may raise anything
        return f"{name}: its __str__() raised an error"


def format_traceback(error: BaseException) -> str:
    """Return the traceback of an error and of those that led to it."""
    try:
        return "".join(traceback.format_exception(error))
    except BaseException:  # as in `describe`
        return describe(error)


def locate(error: BaseException) -> str:
    """Return the type and place of an error. Its text may quote the payload, which must not be logged."""
    if isinstance(error, UnreadableEvent):
        return str(error)[:MAX_IN_LOG]
    filename, line = find_place(error)
    return f"{type(error).__name__} at {filename}:{line}" if filename else type(error).__name__


def qualified_type(error: BaseException) -> str:
    """Return the type of an error with its module, unless it is built in."""
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def short_place(error: BaseException) -> str:
    """Return the place of an error, its file relative to the directory that it is imported from; "" if unknown."""
    filename, line = find_place(error)
    # Some projects put other objects than text there, such as pathlib's paths.
    directories = (f"{str(path).rstrip(os.sep)}{os.sep}" for path in sys.path if path)
    prefix = max((path for path in directories if filename.startswith(path)), key=len, default="")
    return f"{filename[len(prefix) :]}:{line}" if filename else ""


def find_place(error: BaseException) -> tuple[str, int]:
    """Return file and line of the last frame of the user's own code that led to an error; "" if there is none."""
    places = [
        (frame.f_code.co_filename, line)
        for origin in _origins(error)
        for frame, line in traceback.walk_tb(origin.__traceback__)
    ]
    own = [place for place in places if not is_library(place[0])]
    if not own:  # the handler may be in an installed package
        own = [place for place in places if not _calls_handlers(place[0])][:1]
        own = [place for place in own if not place[0].startswith(_DJANGO)]
    return own[-1] if own else ("", 0)


def _origins(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those that it was raised from."""
    seen = set()
    origin: BaseException | None = error
    while origin is not None and id(origin) not in seen:
        yield origin
        seen.add(id(origin))
        origin = origin.exceptions[0] if isinstance(origin, BaseExceptionGroup) else origin.__cause__


def is_library(filename: str) -> bool:
    """Whether a file is not the user's own code, but Python's, Django's, ours, or installed."""
    return _is_installed(filename) or filename.startswith(_DJANGO) or _calls_handlers(filename)


def _calls_handlers(filename: str) -> bool:
    # Code compiled from a string has a file name such as "<string>".
    is_standard = filename.startswith(_STANDARD_LIBRARY) and not _is_installed(filename)
    return is_standard or filename.startswith(("<", *_CALLERS))


def _is_installed(filename: str) -> bool:
    return not _INSTALLED.isdisjoint(Path(filename).parts)
