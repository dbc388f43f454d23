"""On PostgreSQL: the end of one event's transaction, and the beginning of the next with its key, in one round trip.

So an event that writes one row takes two round trips instead of five. Only where all is ordinary; elsewhere each event
has Django's plain `atomic()`. Django sees one block that stays open; nothing of the driver or of Django is replaced.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import Error, connections

from .transactions import Guard

IN_TRANSACTION = 2
"""What libpq calls PQTRANS_INTRANS."""


class ChainBroken(Exception):
    """Whether the transaction at hand was committed is for its key to tell; the next one did not begin."""


class Chain:
    """The transactions on one connection, within a block of Django's."""

    def __init__(self, using: str, cursor: Any) -> None:
        self._connection: Any = connections[using]
        self._driver = self._connection.connection
        self._cursor = cursor

    def holds(self) -> bool:
        """Whether the transaction at hand is as ordinary as it was when the block began."""
        connection, driver = self._connection, self._connection.connection
        return bool(
            driver is self._driver
            and connection.commit_on_exit
            and len(connection.atomic_blocks) == 1
            and not (connection.savepoint_ids or connection.run_on_commit)
            and not (connection.needs_rollback or connection.closed_in_transaction)
            and driver.read_only is None
            and driver.deferrable is None
            and driver.info.transaction_status == IN_TRANSACTION
        )

    def link(
        self, guard: Guard, defer: str, insert: str, row: tuple[Any, ...], *, limits: tuple[str, str] = ("", "")
    ) -> bool:
        """Commit the transaction at hand, and begin the next with a key; return whether that was inserted.

        Args:
            guard: what watches the transaction at hand, and then the next one.
            defer: as `Guard.check` takes it.
            insert: the SQL that inserts a key, and returns the transaction's id if it is new.
            row: its parameters.
            limits: what goes before and behind that.

        Raises:
            ChainBroken: it did not get through, or the handler had ended the transaction at hand, as `guard` says then.
        """
        cursor = self._cursor
        guard.handler_returned()
        try:
            check, parameters = guard.question(defer)
            before, behind = limits
            begin = f"BEGIN{self._isolation()}"
            cursor.execute(f"{check}; COMMIT; {begin}; {before}{insert}{behind}", [*parameters, *row])
            guard.read(*cursor.fetchone())
            for _ in range(3 + before.count(";")):
                cursor.nextset()
            found = cursor.fetchone()
        except Error as error:
            raise ChainBroken from error
        if guard.is_broken:
            raise ChainBroken
        if found:
            guard.begin(*found)
        return bool(found)

    def _isolation(self) -> str:
        """Spell out the level, which a BEGIN without it would take from the session's default."""
        level = self._driver.isolation_level
        return "" if level is None else f" ISOLATION LEVEL {level.name.replace('_', ' ')}"


@contextmanager
def chain_on(using: str) -> Iterator[Chain | None]:
    """Yield the chain on an open connection; None where the driver does not take several statements at a time.

    Of the drivers psycopg 3 answers each of them, with a cursor that binds parameters on the client's side.
    """
    connection: Any = connections[using]
    client_cursor = getattr(connection.Database, "ClientCursor", ())
    with connection.cursor() as cursor:
        yield Chain(using, cursor) if isinstance(cursor.cursor, client_cursor) else None
