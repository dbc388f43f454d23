"""Savepoints one after the other within a transaction."""

from itertools import count
from types import TracebackType
from typing import Any

from django.db import Error, connections, transaction

from .exceptions import DatabaseUnavailable

ABORTED = 3
"""What libpq calls INERROR, in whichever driver."""

_numbers = count(1)


class Savepoints:
    """`with savepoints:` is what `with transaction.atomic():` is in a transaction that is open, at half the price.

    That takes two queries with a cursor for each; here the end of one savepoint goes with the beginning of
    the next, by the driver's own cursor, and `end` ends the last.

    Raises:
        TransactionManagementError: at the end of the block, if an error that was caught in it broke the transaction.
        DatabaseUnavailable: the transaction is lost, and whatever was done in it.
    """

    def __init__(self, using: str) -> None:
        self._connection: Any = connections[using]
        self._using = using
        self._cursor = self._connection.connection.cursor()
        # Of the drivers only PostgreSQL's take two statements at once.
        self._at_once = self._connection.vendor == "postgresql"
        self._name = ""

    def __enter__(self) -> None:
        name = f"lightbus_{next(_numbers)}"
        statements = [f"SAVEPOINT {name}"]
        if self._name:
            statements.insert(0, f"RELEASE SAVEPOINT {self._name}")
        if self._at_once:
            statements = ["; ".join(statements)]
        self._execute(*statements)
        self._name = name
        # Where Django looks for what a commit hook belongs to.
        self._connection.savepoint_ids.append(name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._connection.savepoint_ids.pop()
        if error is not None:
            self._roll_back()
        elif self.is_lost or is_aborted(self._connection):
            self._roll_back()
            raise _broken()

    def end(self) -> None:
        """Release the last savepoint; an error shows that it is there no more."""
        if self._name:
            self._execute(f"RELEASE SAVEPOINT {self._name}")

    @property
    def is_lost(self) -> bool:
        """Whether the whole transaction can only be rolled back."""
        return bool(self._connection.needs_rollback)

    def _execute(self, *statements: str) -> None:
        try:
            with self._connection.wrap_database_errors:
                for statement in statements:
                    self._cursor.execute(statement)
        except Error as error:
            # MySQL takes the whole transaction back for a deadlock, and goes on with another, if somebody caught it.
            raise DatabaseUnavailable(
                f"the transaction was lost with an error that a handler caught: {error}"
            ) from error

    def _roll_back(self) -> None:
        transaction.set_rollback(False, self._using)
        try:
            self._connection.savepoint_rollback(self._name)
        except Error:
            transaction.set_rollback(True, self._using)


def is_aborted(connection: Any) -> bool:
    """Whether PostgreSQL takes no more statements, after an error of which Django does not know that it matters."""
    return bool(connection.vendor == "postgresql" and connection.connection.info.transaction_status == ABORTED)


def check_rollback(using: str) -> None:
    """Raise TransactionManagementError if an error that somebody caught has broken the transaction."""
    if transaction.get_rollback(using):
        raise _broken()


def _broken() -> transaction.TransactionManagementError:
    return transaction.TransactionManagementError(
        "the handler caught a database error that had broken its transaction: let it go, or wrap what "
        "may fail in transaction.atomic()"
    )
