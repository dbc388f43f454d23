"""The thread state of one event: its handler begins with a fresh one, as a view does, and leaves nothing behind."""

import decimal
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from functools import cached_property, partial
from typing import Any
from weakref import WeakKeyDictionary

from django.core.cache import caches
from django.db import connections
from django.db.backends.signals import connection_created

from .witness import RollbackDetector

logger = logging.getLogger("lightbus_django")

_wrappers: WeakKeyDictionary[Any, list[Any]] = WeakKeyDictionary()
"""The execute wrappers that each connection had when its event began, or since then, when it connected."""


class _Thread(threading.local):
    """What all events of a thread share."""

    @cached_property
    def connections(self) -> list[Any]:
        # The caches too: one that is first used in an event would be another one in the next event.
        _make_all(caches)
        return _make_all(connections)


def _make_all(handler: Any) -> list[Any]:
    made = []
    for alias in handler:
        with suppress(Exception):  # it is for those who use it to complain
            made.append(handler[alias])
    return made


_thread = _Thread()


class Isolation:
    """The state in which the handler of one event runs, and afterwards its commit hooks.

    It holds context variables, and with them asgiref's `Local`: language, time zone, URLconf, script prefix. On the
    connections of the thread it holds the execute wrappers, and the log of queries that Django keeps if DEBUG is on.
    """

    def __init__(self, using: str, group: str) -> None:
        self._using = using
        self._group = group
        self._connections = _thread.connections
        self._context = copy_context()
        # A copied context still shares the decimal context, which is changed in place.
        self._context.run(lambda: decimal.setcontext(decimal.getcontext().copy()))

    def run(self, call: Callable[..., None], *arguments: object) -> None:
        """Call a handler. A commit hook that it adds and that raises doesn't keep the hooks after it from running."""
        connection: Any = connections[self._using]
        first = len(connection.run_on_commit)
        self._run(call, *arguments)
        hooks = connection.run_on_commit
        for number in range(first, len(hooks)):
            savepoints, hook, _ = hooks[number]
            hooks[number] = savepoints, partial(self._run_hook, hook), False

    def _run(self, call: Callable[..., None], *arguments: object) -> None:
        for connection in self._connections:
            connection.queries_log.clear()
            _remember_wrappers(connection)
        try:
            self._context.run(call, *arguments)
        finally:
            for connection in self._connections:
                _restore_wrappers(connection)

    def _run_hook(self, hook: Callable[[], None]) -> None:
        try:
            self._run(hook)
        except KeyboardInterrupt:
            raise
        except BaseException:
            logger.exception("%s: what a handler gave to transaction.on_commit() raised", self._group)


def _remember_wrappers(connection: Any, **kwargs: object) -> None:
    _wrappers[connection] = list(connection.execute_wrappers)


def watch_connections() -> None:
    """Know from now on what execute wrappers the project gives to each new connection.

    It does that in receivers of the same signal, so ours must be the last one.
    """
    connection_created.disconnect(_remember_wrappers)
    connection_created.connect(_remember_wrappers)


def _restore_wrappers(connection: Any) -> None:
    connection.execute_wrappers[:] = _wrappers.get(connection, [])
    if isinstance(connection.wrap_database_errors, RollbackDetector):
        RollbackDetector.of(connection)  # its wrapper is one of ours
