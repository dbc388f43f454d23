"""The thread state of one event: its handler begins with a fresh one, as a view does, and leaves nothing behind."""

import decimal
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context, copy_context
from functools import partial
from typing import Any

from django.core.cache import caches
from django.db import connections
from django.db.backends.signals import connection_created

from lightbus_django.database.rollback_detector import RollbackDetector

logger = logging.getLogger("lightbus_django")


class _Thread:
    """What all events of a thread share."""

    def __init__(self) -> None:
        # The caches too: one that is first used in an event would be another one in the next event.
        _make_all(caches)
        self.connections = _make_all(connections)
        self.wrappers: list[list[Any]] = []
        """The execute wrappers that each connection had when its event began, or since then, when it connected."""
        self._seen = Context()
        self._has_decimal = False

    def new_context(self) -> Context:
        """Return a copy of this thread's context."""
        context = copy_context()
        if context != self._seen:
            self._seen = context.copy()
            self._has_decimal = any(isinstance(value, decimal.Context) for value in context.values())
        if self._has_decimal:  # it is changed in place
            context.run(lambda: decimal.setcontext(decimal.getcontext().copy()))
        return context

    def run(self, context: Context, call: Callable[..., None], *arguments: object) -> None:
        """Call something of an event's; what it leaves on the connections is taken away."""
        for connection in self.connections:
            if connection.queries_log:
                connection.queries_log.clear()
        self.wrappers = [connection.execute_wrappers[:] for connection in self.connections]
        try:
            context.run(call, *arguments)
        finally:
            for connection, wrappers in zip(self.connections, self.wrappers, strict=True):
                if connection.execute_wrappers != wrappers:
                    _restore(connection, wrappers)


_local = threading.local()


def _this_thread() -> _Thread:
    try:
        found: _Thread = _local.thread
    except AttributeError:
        found = _local.thread = _Thread()
    return found


def _make_all(handler: Any) -> list[Any]:
    made = []
    for alias in handler:
        with suppress(Exception):  # it is for those who use it to complain
            made.append(handler[alias])
    return made


def _restore(connection: Any, wrappers: list[Any]) -> None:
    connection.execute_wrappers[:] = wrappers
    if isinstance(connection.wrap_database_errors, RollbackDetector):
        RollbackDetector.of(connection)  # its wrapper is one of ours


class Isolation:
    """The state in which a listener's handler runs for one event, and afterwards the event's commit hooks.

    It holds context variables, and with them asgiref's `Local`: language, time zone, URLconf, script prefix. On the
    connections of the thread it holds the execute wrappers, and the log of queries that Django keeps if DEBUG is on.
    """

    def __init__(self, using: str, group: str) -> None:
        self._using = using
        self._group = group

    def run(self, call: Callable[..., None], *arguments: object) -> None:
        """Call a handler. A commit hook that it adds and that raises doesn't keep the hooks after it from running."""
        thread = _this_thread()
        context = thread.new_context()
        connection: Any = connections[self._using]
        first = len(connection.run_on_commit)
        thread.run(context, call, *arguments)
        hooks = connection.run_on_commit
        for number in range(first, len(hooks)):
            savepoints, hook, _ = hooks[number]
            hooks[number] = savepoints, partial(self._run_hook, context, hook), False

    def _run_hook(self, context: Context, hook: Callable[[], None]) -> None:
        try:
            _this_thread().run(context, hook)
        except KeyboardInterrupt:
            raise
        except BaseException:
            logger.exception("%s: what a handler gave to transaction.on_commit() raised", self._group)


def watch_connections() -> None:
    """Know from now on what execute wrappers the project gives to each new connection.

    It does that in receivers of the same signal, so ours must be the last one.
    """
    connection_created.disconnect(_remember_wrappers)
    connection_created.connect(_remember_wrappers)


def _remember_wrappers(connection: Any, **kwargs: object) -> None:
    thread: _Thread | None = getattr(_local, "thread", None)
    if thread is None:
        return
    for number, watched in enumerate(thread.connections):
        if watched is connection and thread.wrappers:
            thread.wrappers[number] = connection.execute_wrappers[:]
