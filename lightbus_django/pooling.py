"""Connections that a thread does not need for now: what Django does between two requests, done between two batches."""

import logging
from collections import Counter
from collections.abc import Iterable
from typing import Any

from django.db import connections

logger = logging.getLogger("lightbus_django")


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
