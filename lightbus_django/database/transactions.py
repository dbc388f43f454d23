"""Whether a handler ended its own transaction."""

import time
from typing import Any

from django.db import DatabaseError, transaction

from .connections import fetch, is_aborted

NO_SAVEPOINT = 1305
"""What MySQL says of a savepoint that has gone with its transaction."""

SAVEPOINT = "SAVEPOINT lightbus"
"""The savepoint that is gone if a transaction of MySQL has ended."""

# Which transaction this is, and whether its commit waits. That is set for it alone: a pooler gives the session to
# somebody else. Nor for one that the handler began: what is in that, no key proves.
_CHECK = """
SELECT pg_current_xact_id_if_assigned()::text, CASE
    WHEN current_setting('synchronous_commit') = %s AND pg_current_xact_id_if_assigned()::text = %s
    THEN set_config('synchronous_commit', 'off', true) ELSE current_setting('synchronous_commit')
END
"""


class Guard:
    """Finds out whether the transaction at hand is still the one that it was made in."""

    def __init__(self, connection: Any, mark: str | None = None) -> None:
        """Begin to watch.

        Args:
            connection: Django's, with a transaction open.
            mark: as `begin` takes it, if it is known or set already.
        """
        self._connection = connection
        self.is_deferred = False
        """Whether the commit that was looked at last does not wait for the disk."""
        # SQLite says whether there is a transaction, and that costs nothing.
        if mark is None and connection.vendor == "postgresql":
            (mark,) = fetch(connection, "SELECT pg_current_xact_id()::text")
        elif mark is None and connection.vendor == "mysql":
            with connection.cursor() as cursor:
                cursor.execute(SAVEPOINT)
            mark = SAVEPOINT
        self.begin(mark)

    def begin(self, mark: str | None) -> None:
        """Watch the transaction that has just begun; `mark` is its id on PostgreSQL, SAVEPOINT on MySQL."""
        self._mark = mark
        self.began_at = time.monotonic()
        self.has_returned = False
        """Whether the handler is done, so that what is raised from now on is not its own."""
        self.is_broken = False
        """Whether the transaction ended before its time."""

    def handler_returned(self) -> None:
        """The handler is done.

        Raises:
            TransactionManagementError: the transaction can only be rolled back, which Django would do silently.
        """
        self.has_returned = True
        if self._connection.needs_rollback or is_aborted(self._connection):
            raise transaction.TransactionManagementError(
                "the transaction can only be rolled back: the handler caught a database error that had broken it, "
                "closed its connection, or called set_rollback(True). Let the error go, or wrap what may fail in "
                "transaction.atomic()"
            )

    def check(self, defer: str | None = None) -> None:
        """Look whether the handler ended the transaction, as the last statement in it.

        Args:
            defer: let the commit not wait for the disk if this is the value of synchronous_commit.
        """
        if self._connection.vendor == "postgresql":
            self.read(*fetch(self._connection, *self.question(defer)))
        elif self._connection.vendor == "sqlite":
            self.is_broken = not self._connection.connection.in_transaction
        elif self._mark:
            try:
                with self._connection.cursor() as cursor:
                    cursor.execute(f"RELEASE {self._mark}")
            except DatabaseError as error:
                if error.args[0] != NO_SAVEPOINT:
                    raise
                self.is_broken = True

    def question(self, defer: str | None) -> tuple[str, list[str | None]]:
        """Return what PostgreSQL is asked at the end of a transaction, and its parameters; `defer` as in `check`."""
        return _CHECK, [defer or "", self._mark]

    def read(self, mark: str | None, synchronous_commit: str) -> None:
        """Read PostgreSQL's answer."""
        self.is_broken, self.is_deferred = mark != self._mark, synchronous_commit == "off"
