"""Isolates the thread state of events: each handler starts afresh, as a view does, and leaves nothing behind."""

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
    """The state that all events of a thread share."""

    def __init__(self) -> None:
        # Caches too, because one that is first used in an event would be another object in the next event.
        _make_all(caches)
        self.connections: list[Any] = _make_all(connections)
        self.by_alias = {connection.alias: connection for connection in self.connections}
        self.wrappers: list[list[Any]] = []
        """The execute wrappers of each connection when its event began, or when it connected since."""
        self._seen = Context()
        self._has_decimal = False

    def new_context(self) -> Context:
        """Return a copy of the thread's context."""
        context = copy_context()
        if context != self._seen:
            self._seen = context.copy()
            self._has_decimal = any(isinstance(value, decimal.Context) for value in context.values())
        if self._has_decimal:  # decimal contexts are changed in place
            context.run(lambda: decimal.setcontext(decimal.getcontext().copy()))
        return context

    def run(self, context: Context, call: Callable[..., None], *arguments: object) -> None:
        """Call a handler or a commit hook, then restore the execute wrappers of all connections."""
        self.wrappers = []
        for connection in self.connections:
            self.wrappers.append(connection.execute_wrappers[:])
            if connection.queries_log:
                connection.queries_log.clear()
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
        with suppress(Exception):  # raised again for the code that uses it
            made.append(handler[alias])
    return made


def _restore(connection: Any, wrappers: list[Any]) -> None:
    connection.execute_wrappers[:] = wrappers
    if isinstance(connection.wrap_database_errors, RollbackDetector):
        RollbackDetector.of(connection)  # puts its own wrapper back


class Isolation:
    """Runs handlers and their commit hooks, each event with a state of its own.

    The state consists of context variables, which include asgiref's `Local` (language, time zone, URLconf, script
    prefix), and of the connections' execute wrappers and query logs.
    """

    def __init__(self, using: str, group: str) -> None:
        self._using = using
        self._group = group

    def run(self, call: Callable[..., None], *arguments: object) -> None:
        """Call a handler. If one of its commit hooks raises, the error is logged and the other hooks run."""
        thread = _this_thread()
        context = thread.new_context()
        connection: Any = thread.by_alias.get(self._using) or connections[self._using]
        before = len(connection.run_on_commit)
        thread.run(context, call, *arguments)
        if len(connection.run_on_commit) > before:
            self._isolate_hooks(connection.run_on_commit, before, context)

    def _isolate_hooks(self, hooks: list[Any], start: int, context: Context) -> None:
        for index in range(start, len(hooks)):
            if len(hooks[index]) == 3:  # Django keeps savepoint ids, the hook, and whether it is robust
                savepoints, hook, _ = hooks[index]
                hooks[index] = savepoints, partial(self._run_hook, context, hook), False

    def _run_hook(self, context: Context, hook: Callable[[], None]) -> None:
        try:
            _this_thread().run(context, hook)
        except KeyboardInterrupt:
            raise
        except BaseException:
            logger.exception("%s: a transaction.on_commit() hook of the handler raised an error", self._group)


def watch_connections() -> None:
    """Learn of the execute wrappers that the project adds to new connections.

    It adds them in receivers of `connection_created`, so ours has to be the last receiver.
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
