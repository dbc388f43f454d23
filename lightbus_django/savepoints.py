"""Savepoints one after the other within a transaction."""

from contextlib import suppress
from itertools import count
from types import TracebackType
from typing import Any

from django.db import Error, connections, transaction

from .exceptions import DatabaseUnavailable

# What libpq calls INTRANS, INERROR and PGRES_COMMAND_OK, in whichever driver.
IN_TRANSACTION = 2
ABORTED = 3
COMMAND_OK = 1

_numbers = count(1)


class Savepoints:
    """`with savepoints:` is what `with transaction.atomic():` is in a transaction that is open, at a part of the price.

    That takes two queries with a cursor for each; here the end of one savepoint goes with the beginning of
    the next, by the driver itself, and `end` ends the last. To be closed before the transaction ends.

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
        self._ahead = _Ahead.of(self._connection)
        self._name = ""

    def close(self) -> None:
        """Leave the connection as it was."""
        if self._ahead:
            self._ahead.close()

    def __enter__(self) -> None:
        name = f"lightbus_{next(_numbers)}"
        statements = [f"SAVEPOINT {name}"]
        if self._name:
            statements.insert(0, f"RELEASE SAVEPOINT {self._name}")
        self._execute(*statements, ahead=self._ahead)
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
            self._execute(f"RELEASE SAVEPOINT {self._name}", ahead=None)

    @property
    def is_lost(self) -> bool:
        """Whether the whole transaction can only be rolled back."""
        return bool(self._connection.needs_rollback)

    def _execute(self, *statements: str, ahead: "_Ahead | None") -> None:
        try:
            with self._connection.wrap_database_errors:
                if ahead:
                    ahead.send("; ".join(statements))
                elif self._at_once:
                    self._cursor.execute("; ".join(statements))
                else:
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


class _Ahead:
    """Statements that psycopg 3 is not waited for: the answer is fetched before it sends anything else.

    So a savepoint's way to the server and back, which is as long as that of a handler's own statement, passes while
    the handler is on its way to that one.
    """

    def __init__(self, database: Any, connection: Any) -> None:
        self._database = database
        self._connection = connection
        self._is_answered = True
        self._wait_for = connection.wait
        connection.wait = self._wait  # in which psycopg does whatever it has to do with the server

    @classmethod
    def of(cls, connection: Any) -> "_Ahead | None":
        """Return the one for a connection of Django's, None if there can't be any."""
        driver = connection.connection
        libpq = getattr(driver, "pgconn", None)  # which psycopg2 does not have
        # psycopg sends BEGIN with the first statement; and within a handler there may be savepoints like these.
        if libpq is None or libpq.transaction_status != IN_TRANSACTION or "wait" in vars(driver):
            return None
        return cls(connection.Database, driver)

    def close(self) -> None:
        del self._connection.wait
        with suppress(self._database.Error):
            self.fetch()

    def send(self, sql: str) -> None:
        """Send statements that return no rows; raises what those before have met, if nobody was told."""
        self.fetch()
        self._is_answered = False
        self._connection.pgconn.send_query(sql.encode())

    def fetch(self) -> None:
        """Wait for the answer, and raise it if it is an error."""
        if not self._is_answered:
            results = self._wait_for(self._database.generators.execute(self._connection.pgconn))
            self._is_answered = True
            if results and results[-1].status != COMMAND_OK:  # none, if somebody else took it off
                raise self._database.errors.error_from_result(results[-1])

    def _wait(self, generator: Any, *args: Any, **kwargs: Any) -> Any:
        self.fetch()
        return self._wait_for(generator, *args, **kwargs)


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
