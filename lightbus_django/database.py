"""Which database errors are nobody's fault: the same work may well succeed a little later."""

from typing import Any

from django.db import InterfaceError, OperationalError, connections

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


def is_broken(using: str) -> bool:
    """Whether the connection to the database `using` can't go on; it is closed then, and opens anew."""
    connection = connections[using]
    if connection.connection is not None and connection.is_usable():
        return False
    connection.close()
    return True
