"""Django's database connections: queries, autocommit, and when a thread gives its connections back."""

import logging
from collections import Counter
from collections.abc import Iterable
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from lightbus_django.exceptions import ConfigurationError

logger = logging.getLogger("lightbus_django")
_MULTI_STATEMENTS = 1 << 16  # of the protocol's flags
_ABORTED = 3  # what libpq calls a transaction after an error, in whichever driver

named_by_listeners: Counter[str] = Counter()
"""How many listeners name a database with `using=`, by its alias. The router need not know these databases."""


def check_autocommit(using: str) -> None:
    """Raise ConfigurationError if Django does not end transactions there."""
    if not connections[using].settings_dict["AUTOCOMMIT"]:
        raise ConfigurationError(
            f"The database {using!r} has AUTOCOMMIT off, so nothing would commit what a listener does: take "
            "'AUTOCOMMIT': False out of settings.DATABASES, or give the listener another database with using=."
        )


def restore_autocommit(connection: BaseDatabaseWrapper, *, commit: bool) -> None:
    """End a transaction that somebody began with `transaction.set_autocommit(False)`, and did not end."""
    if connection.connection is None or connection.autocommit:
        return
    if commit:
        connection.commit()
    else:
        connection.rollback()
    connection.set_autocommit(True)


def fetch(connection: BaseDatabaseWrapper, sql: str, params: Any = None) -> Any:
    """Execute a query; return its first row."""
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        return cursor.fetchone()


def is_aborted(connection: Any) -> bool:
    """Whether PostgreSQL takes no more statements, after an error of which Django does not know that it matters."""
    return bool(connection.vendor == "postgresql" and connection.connection.info.transaction_status == _ABORTED)


def takes_several_statements(connection: Any) -> bool:
    """Whether MySQL's driver, mysqlclient, takes several statements at a time, as it does unless told otherwise."""
    flags = getattr(connection.connection, "client_flag", 0)
    return isinstance(flags, int) and bool(flags & _MULTI_STATEMENTS) and hasattr(connection.connection, "next_result")


def release_connections(*, idle: bool) -> None:
    """Close this thread's connections that are unusable or too old, and give those of a pool back.

    Args:
        idle: nothing is to be done. Else a connection of which CONN_MAX_AGE is 0 stays: who works on has no use for
            a new one each time.
    """
    opened: Iterable[Any] = connections.all(initialized_only=True)
    for connection in opened:
        is_kept = connection.settings_dict["CONN_MAX_AGE"] == 0 and not getattr(connection, "pool", None)
        if not connection.in_atomic_block and (idle or not is_kept):
            connection.close_if_unusable_or_obsolete()


def warn_of_small_pools(uses: Iterable[str]) -> None:
    """Log a warning of each database whose pool has fewer connections than threads that use it.

    Args:
        uses: the alias of the database, once for each thread.
    """
    for alias, count in Counter(uses).items():
        pool: Any = getattr(connections[alias], "pool", None)
        size = getattr(pool, "max_size", None)
        if size is not None and size < count:
            logger.warning(
                "the pool of database %r has at most %d connections, for %d threads of this process: they wait for "
                'one another; set OPTIONS["pool"] = {"max_size": %d} or more',
                alias,
                size,
                count,
                count,
            )
