"""The database's bad days, which are nobody's fault, and its commit hooks."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from django.db import Error, InterfaceError, OperationalError, connections

from .exceptions import DatabaseUnavailable

logger = logging.getLogger("lightbus_django")

# Classes and codes of SQLSTATE: connection exceptions, insufficient resources, operator intervention,
# serialization failure, deadlock, lock not available. Not 57014, for a handler may be too slow by itself.
_POSTGRESQL = ("08", "53", "57P", "40001", "40P01", "55P03")
# Lock wait timeout, deadlock, gone away, lost, can't connect, too many connections, shutdown, killed,
# read-only (a failover), disk full.
_MYSQL = {1205, 1213, 2002, 2003, 2006, 2013, 2055, 1040, 1053, 1927, 1290, 1021}
_SQLITE = {5, 6, 10, 13, 14}  # busy, locked, I/O error, full, can't open


def is_transient(error: BaseException) -> bool:
    """Whether `error` says that the database is away, overloaded or busy with others."""
    if isinstance(error, InterfaceError):
        return True
    if not isinstance(error, OperationalError):
        return False
    cause: Any = error.__cause__
    if hasattr(cause, "sqlstate"):
        return bool(cause.sqlstate is None or cause.sqlstate.startswith(_POSTGRESQL))
    if hasattr(cause, "sqlite_errorcode"):
        return bool(cause.sqlite_errorcode & 0xFF in _SQLITE)
    return bool(error.args) and error.args[0] in _MYSQL


def close_if_broken(using: str) -> bool:
    """Close the connection if it can't go on, so that the next query opens a new one; return whether it was so."""
    connection = connections[using]
    if connection.connection is not None and connection.is_usable():
        return False
    connection.close()
    return True


@contextmanager
def nobody_to_blame(using: str) -> Iterator[None]:
    """Raise DatabaseUnavailable instead of errors of the database `using` that the same work may not meet later.

    Within a transaction all errors go as they are to the one who opened it.
    """
    try:
        yield
    except Error as error:
        if connections[using].in_atomic_block:
            raise
        broken = close_if_broken(using)
        if broken or is_transient(error):
            raise DatabaseUnavailable(f"database {using!r}: {type(error).__name__}: {error}") from error
        raise


@contextmanager
def independent_hooks(using: str, group: str) -> Iterator[None]:
    """Let a commit hook that is added in this block and raises not keep the hooks behind it from running."""
    connection: Any = connections[using]
    first = len(connection.run_on_commit)
    yield
    hooks = connection.run_on_commit
    for number in range(first, len(hooks)):
        savepoints, hook, robust = hooks[number]
        if not robust:
            hooks[number] = savepoints, partial(_run_hook, hook, group), True


def _run_hook(hook: Callable[[], object], group: str) -> None:
    try:
        hook()
    except Exception:
        logger.exception("%s: what a handler gave to transaction.on_commit() raised", group)
