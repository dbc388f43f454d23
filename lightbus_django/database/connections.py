"""Django's database connections: queries, autocommit, and when a thread releases its connections."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from lightbus_django.exceptions import ConfigurationError

logger = logging.getLogger("lightbus_django")
_MULTI_STATEMENTS = 1 << 16  # CLIENT_MULTI_STATEMENTS in MySQL's protocol
_ABORTED = 3  # libpq's PQTRANS_INERROR

named_by_listeners: Counter[str] = Counter()
"""The number of listeners with `using=`, by database alias. The router may not know these databases."""


def check_autocommit(using: str) -> None:
    """Raise ConfigurationError if the database has AUTOCOMMIT off."""
    if not connections[using].settings_dict["AUTOCOMMIT"]:
        raise ConfigurationError(
            f"The database {using!r} has AUTOCOMMIT off, so nothing would commit what a listener does. Remove "
            "'AUTOCOMMIT': False from settings.DATABASES, or choose another database for the listener with using=."
        )


def restore_autocommit(connection: BaseDatabaseWrapper, *, commit: bool) -> None:
    """End a transaction that was begun with `transaction.set_autocommit(False)` and left open."""
    if connection.connection is None or connection.autocommit:
        return
    if commit:
        connection.commit()
    else:
        connection.rollback()
    connection.set_autocommit(True)


def fetch(connection: BaseDatabaseWrapper, sql: str, params: Any = None) -> Any:
    """Execute a query and return its first row."""
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        return cursor.fetchone()


def is_aborted(connection: Any) -> bool:
    """Whether an error has aborted PostgreSQL's transaction, which Django may not know."""
    return bool(connection.vendor == "postgresql" and connection.connection.info.transaction_status == _ABORTED)


def takes_several_statements(connection: Any) -> bool:
    """Whether mysqlclient takes several statements at a time, as it does by default."""
    flags = getattr(connection.connection, "client_flag", 0)
    return isinstance(flags, int) and bool(flags & _MULTI_STATEMENTS) and hasattr(connection.connection, "next_result")


def release_connections(*, idle: bool) -> None:
    """Close this thread's unusable and obsolete connections, and return pooled ones to their pool.

    Args:
        idle: whether the thread has nothing to do. If not, connections with a CONN_MAX_AGE of 0 stay open.
    """
    opened: Iterable[Any] = connections.all(initialized_only=True)
    for connection in opened:
        is_kept = connection.settings_dict["CONN_MAX_AGE"] == 0 and not getattr(connection, "pool", None)
        if not connection.in_atomic_block and (idle or not is_kept):
            connection.close_if_unusable_or_obsolete()


def warn_of_small_pools(threads: Mapping[str, int]) -> None:
    """Log a warning for each database whose pool has fewer connections than threads that use it.

    Args:
        threads: the number of threads, by database alias.
    """
    for alias, count in threads.items():
        pool: Any = getattr(connections[alias], "pool", None)
        size = getattr(pool, "max_size", None)
        if size is not None and size < count:
            logger.warning(
                "the pool of database %r has at most %d connections for %d threads of this process, which wait for one "
                'another; set OPTIONS["pool"] = {"max_size": %d} or more',
                alias,
                size,
                count,
                count,
            )
