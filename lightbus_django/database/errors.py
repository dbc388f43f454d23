"""Classifies database errors: after a transient one, the same work may succeed later."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from django.db import Error, InternalError, OperationalError, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from lightbus_django.exceptions import DatabaseUnavailable

from .connections import fetch

logger = logging.getLogger("lightbus_django")

# Classes and codes of SQLSTATE: connection exceptions, insufficient resources, operator intervention,
# serialization failure, deadlock, lock not available. Not query cancelled (57014): the handler itself may be too slow.
_POSTGRESQL = ("08", "53", "57P", "40001", "40P01", "55P03")
# Lock wait timeout, deadlock; gone away, lost, can't connect, too many connections, shutdown, killed;
# read-only (a failover), disk full, record changed, node not ready.
_MYSQL = {1205, 1213, 2002, 2003, 2006, 2013, 2055, 1040, 1053, 1927, 1290, 1021, 1020, 1047}
_LOCKED = {"55P03", "57014", 1205}  # lock not available, query cancelled, lock wait timeout
_SQLITE = {5, 6, 10, 13, 14}  # busy, locked, I/O error, full, can't open


def is_transient(error: BaseException, using: str) -> bool:
    """Whether `error`, or an error that led to it, means that a database is unavailable, overloaded or contended."""
    origin: BaseException | None = error
    seen = set()
    while origin is not None and not isinstance(origin, _error_types()):
        seen.add(id(origin))
        origin = origin.__cause__ or (None if origin.__suppress_context__ else origin.__context__)
        if id(origin) in seen:  # "raise error from error"
            return False
    return origin is not None and _is_transient(origin, using)


def _is_transient(error: BaseException, using: str) -> bool:
    cause: Any = error.__cause__
    # psycopg raises InternalError if an answer doesn't match its query.
    if isinstance(error, (OperationalError, InternalError)):
        if hasattr(cause, "sqlite_errorcode"):
            return bool(cause.sqlite_errorcode & 0xFF in _SQLITE)
        if hasattr(cause, "sqlstate") or hasattr(cause, "pgcode"):
            code = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
            return code is None or code.startswith(_POSTGRESQL)
        if error.args and error.args[0] in _MYSQL:
            return True
    return connections[using].connection is None or bool(_broken())


def is_locked(error: Error) -> bool:
    """Whether a statement gave up waiting for a lock."""
    cause: Any = error.__cause__
    code = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None) or (error.args[0] if error.args else None)
    return code in _LOCKED


def is_sqlite_unavailable(error: BaseException) -> bool:
    """Whether SQLite's file as a whole is locked or can't be used, which is no matter of one connection."""
    cause: BaseException | None = error
    while cause is not None and not hasattr(cause, "sqlite_errorcode"):
        cause = cause.__cause__
    return getattr(cause, "sqlite_errorcode", 0) & 0xFF in _SQLITE


def one_line(error: Exception) -> str:
    """Return the text of an error, which may have several lines, on one line."""
    return " ".join(str(error).split())


def describe(error: Exception, using: str) -> str:
    """Return the text of an error of a database on one line, with the alias of the database."""
    text = one_line(error)
    return text if isinstance(error, DatabaseUnavailable) else f"database {using!r}: {text}"


def close_broken() -> None:
    """Close this thread's broken connections to any database. The next query opens new ones."""
    for connection in _broken():
        if not connection.in_atomic_block:
            with suppress(*_error_types()):  # mysqlclient raises if the connection is already closed
                connection.close()


def reconnect() -> bool:
    """Replace this thread's broken connections; return whether each database that it has used answers a query."""
    close_broken()
    try:
        for connection in connections.all(initialized_only=True):
            fetch(connection, "SELECT 1")
    except _error_types():
        return False
    return True


def _error_types() -> tuple[type[Exception], ...]:
    """Return Django's database errors, and those of the drivers, which closing a cursor raises untranslated."""
    initialized: Iterable[Any] = connections.all(initialized_only=True)
    return Error, *{connection.Database.Error for connection in initialized}


def _broken() -> list[BaseDatabaseWrapper]:
    opened = (connection for connection in connections.all(initialized_only=True) if connection.connection is not None)
    return [connection for connection in opened if not connection.is_usable()]


@contextmanager
def transient_errors(using: str) -> Iterator[None]:
    """Raise DatabaseUnavailable instead of transient database errors.

    Inside a transaction of `using`, all errors pass unchanged to the code that opened it.
    """
    try:
        yield
    except DatabaseUnavailable:
        if not connections[using].in_atomic_block:
            close_broken()
        raise
    except Exception as error:
        if connections[using].in_atomic_block:
            raise
        transient = is_transient(error, using)
        if not transient and not isinstance(error, _error_types()):
            raise
        close_broken()
        if transient:
            raise DatabaseUnavailable(f"database {using!r}: {type(error).__name__}: {error}") from error
        raise
