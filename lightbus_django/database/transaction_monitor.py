"""Notices handlers that end their own transaction."""

import time
from typing import Any

from django.db import DatabaseError, transaction

from .connections import fetch, is_aborted

NO_SAVEPOINT = 1305
"""MySQL's error code for a savepoint that doesn't exist, here because its transaction has ended."""

SAVEPOINT = "SAVEPOINT lightbus"
"""The savepoint that marks a transaction on MySQL."""

# The id of the open transaction, and whether its commit waits for the disk. The setting is changed for this transaction
# only, because a pooler gives the session to others, and not for one that the handler began, which no key covers.
_CHECK = """
SELECT pg_current_xact_id_if_assigned()::text, CASE
    WHEN current_setting('synchronous_commit') = %s AND pg_current_xact_id_if_assigned()::text = %s
    THEN set_config('synchronous_commit', 'off', true) ELSE current_setting('synchronous_commit')
END
"""


class TransactionMonitor:
    """Tells whether the open transaction is still the one that it was created in."""

    def __init__(self, connection: Any, mark: str | None = None) -> None:
        """Start to monitor.

        Args:
            connection: Django's, with an open transaction.
            mark: as for `restart`, if it is already known or set.
        """
        self._connection = connection
        self._driver = connection.connection
        self.is_deferred = False
        """Whether the commit that was last checked doesn't wait for the disk."""
        # SQLite tells whether a transaction is open, without a query.
        if mark is None and connection.vendor == "postgresql":
            (mark,) = fetch(connection, "SELECT pg_current_xact_id()::text")
        elif mark is None and connection.vendor == "mysql":
            with connection.cursor() as cursor:
                cursor.execute(SAVEPOINT)
            mark = SAVEPOINT
        self.restart(mark)

    def restart(self, mark: str | None) -> None:
        """Monitor the transaction that has just begun. `mark` is its id on PostgreSQL, and SAVEPOINT on MySQL."""
        self._mark = mark
        self.began_at = time.monotonic()
        self.has_returned = False
        """Whether the handler has returned, so that later errors are not its own."""
        self.has_ended = False
        """Whether the handler ended the transaction."""

    @property
    def has_lost_connection(self) -> bool:
        """Whether the connection on which the transaction began is closed or replaced."""
        return self._connection.connection is not self._driver

    def handler_returned(self) -> None:
        """Note that the handler has returned.

        Raises:
            TransactionManagementError: the transaction can only be rolled back, which Django would do silently.
        """
        self.has_returned = True
        if self._connection.needs_rollback or is_aborted(self._connection):
            raise transaction.TransactionManagementError(
                "the transaction can only be rolled back: the handler caught a database error that had broken it, "
                "closed its connection, or called set_rollback(True). Let the error propagate, or wrap what may fail "
                "in transaction.atomic()"
            )

    def check(self, defer: str | None = None) -> None:
        """Check whether the handler ended the transaction, as the last statement in it.

        Args:
            defer: let the commit skip the wait for the disk if synchronous_commit has this value.
        """
        if self._connection.vendor == "postgresql":
            self.read_answer(*fetch(self._connection, *self.query(defer)))
        elif self._connection.vendor == "sqlite":
            self.has_ended = not self._connection.connection.in_transaction
        elif self._mark:
            try:
                with self._connection.cursor() as cursor:
                    cursor.execute(f"RELEASE {self._mark}")
            except DatabaseError as error:
                if error.args[0] != NO_SAVEPOINT:
                    raise
                self.has_ended = True

    def query(self, defer: str | None) -> tuple[str, list[str | None]]:
        """Return the query with which `check` asks PostgreSQL, and its parameters."""
        return _CHECK, [defer or "", self._mark]

    def read_answer(self, mark: str | None, synchronous_commit: str) -> None:
        """Read the row that `query` returns."""
        self.has_ended, self.is_deferred = mark != self._mark, synchronous_commit == "off"
