"""Chained transactions on PostgreSQL: COMMIT, BEGIN and the next event's key in one round trip.

An event that writes one row then takes two round trips instead of five. Django sees one `atomic()` block that stays
open. With another driver, a proxy of psycopg's cursor, or internals that have changed, nothing is chained.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import Error, connections

from .transaction_monitor import TransactionMonitor

IN_TRANSACTION = 2
"""libpq's PQTRANS_INTRANS."""


class ChainBroken(Exception):
    """The next transaction did not begin. The key tells whether the open one was committed."""


class Chain:
    """Successive transactions on one connection, within one `atomic()` block."""

    def __init__(self, using: str, cursor: Any) -> None:
        self._connection: Any = connections[using]
        self._driver = self._connection.connection
        self._cursor = cursor

    @property
    def is_intact(self) -> bool:
        """Whether the open transaction is in the state in which the block began, as far as Django and psycopg tell."""
        connection, driver = self._connection, self._connection.connection
        try:
            return bool(
                driver is self._driver
                and connection.commit_on_exit
                and len(connection.atomic_blocks) == 1
                and not (connection.savepoint_ids or connection.run_on_commit)
                and not (connection.needs_rollback or connection.closed_in_transaction)
                and driver.read_only is None
                and driver.deferrable is None
                and driver.info.transaction_status == IN_TRANSACTION
                and hasattr(driver, "isolation_level")
            )
        except AttributeError:  # another version of one of them
            return False

    def commit_and_begin(
        self, monitor: TransactionMonitor, defer: str, insert: str, row: tuple[Any, ...], limits: tuple[str, str]
    ) -> bool:
        """Commit the open transaction and begin the next with a key; return whether that key was inserted.

        Args:
            monitor: of the open transaction; afterwards, of the next one.
            defer: as for `TransactionMonitor.check`.
            insert: SQL that inserts the key, and returns the transaction id if the key is new.
            row: its parameters.
            limits: SQL to run before and after the insertion.

        Raises:
            ChainBroken: a statement failed, or the handler had ended its transaction, as `monitor` then says.
        """
        cursor = self._cursor
        monitor.handler_returned()
        try:
            check, parameters = monitor.query(defer)
            before, after = limits
            cursor.execute(f"{check}; COMMIT; BEGIN{self._isolation}; {before}{insert}{after}", [*parameters, *row])
            monitor.read_answer(*cursor.fetchone())
            for _ in range(3 + before.count(";")):
                cursor.nextset()
            inserted = cursor.fetchone()
        except Error as error:
            raise ChainBroken from error
        if monitor.has_ended:
            raise ChainBroken
        if inserted:
            monitor.restart(*inserted)
        return bool(inserted)

    @property
    def _isolation(self) -> str:
        """The connection's isolation level, without which BEGIN would use the default of the session."""
        level = self._driver.isolation_level
        return "" if level is None else f" ISOLATION LEVEL {level.name.replace('_', ' ')}"


@contextmanager
def chain_on(using: str) -> Iterator[Chain | None]:
    """Yield a chain on an open connection, or None where transactions can't be chained.

    psycopg 3 can, with a cursor that binds parameters on the client: it takes several statements at a time and returns
    the result of each.
    """
    connection: Any = connections[using]
    client_cursor = getattr(connection.Database, "ClientCursor", ())
    with connection.cursor() as cursor:
        yield Chain(using, cursor) if isinstance(getattr(cursor, "cursor", None), client_cursor) else None
