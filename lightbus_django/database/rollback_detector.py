"""Rollbacks within a transaction that Django does not know of: its commit hooks run all the same."""

import re
from collections.abc import Callable
from functools import cache
from types import TracebackType
from typing import Any

from django.db.utils import DatabaseErrorWrapper

from .connections import is_aborted

_ROLLS_BACK = re.compile(r"ROLLBACK|\bABORT\b", re.IGNORECASE).search


class Observation:
    """What was seen of one transaction.

    `in_doubt` says that writes may have been rolled back since the observation began; `is_committed`, that Django has
    committed the transaction and is about to run its hooks.
    """

    def __init__(self, *, in_doubt: bool) -> None:
        self.in_doubt = in_doubt
        self.is_committed = False


class RollbackDetector(DatabaseErrorWrapper):
    """Watches one connection for rollbacks to savepoints, and for signs that it could not see them.

    Asking the database for the rows after each commit would cost as much as everything else that this package does in
    a request. So it is asked only in doubt: after a rollback in SQL; after any error, for PostgreSQL then takes COMMIT
    for ROLLBACK; and when somebody else replaced what is watched here, which is Django's list of hooks and what it
    calls around statements (`execute_wrappers`) and around the driver (`wrap_database_errors`). Of these two each tells
    when the other one is missing.

    psycopg 3 also tells when somebody uses the driver's own connection. With other drivers that is not seen, nor is
    SQL executed while both of Django's are replaced for a while. MySQL is always in doubt, for its procedures may roll
    back.
    """

    def __init__(self, connection: Any) -> None:
        super().__init__(connection)
        self._connection = connection
        self._others = connection.wrap_database_errors
        self._execute_wrapper = self._execute
        self._observation = Observation(in_doubt=True)
        self._hooks: object = None
        self._uses_of_driver = 0

    @classmethod
    def of(cls, connection: Any) -> "RollbackDetector":
        """Return the detector that watches this connection from now on."""
        detector = connection.wrap_database_errors
        if not isinstance(detector, cls):
            detector = connection.wrap_database_errors = cls(connection)
        if detector._execute_wrapper not in connection.execute_wrappers:
            # First, because leaving `with connection.execute_wrapper():` removes the last.
            connection.execute_wrappers.insert(0, detector._execute_wrapper)
        return detector

    def observe(self) -> Observation:
        """Return the observation of a transaction that is open, if one is; it ends the one before."""
        connection = self._connection
        _count_uses(connection)
        self._hooks = connection.run_on_commit
        self._uses_of_driver = _uses(connection)
        self._observation = Observation(
            in_doubt=connection.vendor == "mysql"
            # A transaction that is managed by hand may end unseen, and so may one after a hook that raised: there
            # Django's flag for a commit is still set.
            or not connection.commit_on_exit
            or connection.run_commit_hooks_on_set_autocommit_on
        )
        return self._observation

    def check(self) -> None:
        """Put the transaction in doubt if there are signs that something happened unseen."""
        connection = self._connection
        if (
            self._execute_wrapper not in connection.execute_wrappers
            or connection.run_on_commit is not self._hooks
            or _uses(connection) != self._uses_of_driver
            or (connection.connection is not None and is_aborted(connection))
        ):
            self._observation.in_doubt = True

    def _execute(self, execute: Callable[..., Any], sql: Any, *args: Any) -> Any:
        if _ROLLS_BACK(str(sql)) or self._connection.wrap_database_errors is not self:
            self._observation.in_doubt = True
        return execute(sql, *args)

    def __enter__(self) -> None:
        # Django enters before whatever it asks of the driver, COMMIT included.
        self.check()
        connection = self._connection
        is_committed = connection.run_commit_hooks_on_set_autocommit_on and not connection.in_atomic_block
        if is_committed and not connection.autocommit:
            # Autocommit is about to be turned on again. What comes afterwards is another transaction.
            self._observation.is_committed = True
            self._observation = Observation(in_doubt=True)
        self._others.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._uses_of_driver = _uses(self._connection)
        if error is not None:
            self._observation.in_doubt = True
        self._others.__exit__(kind, error, traceback)


def _uses(connection: Any) -> int:
    """Return how often the driver's connection has waited for the server, where that is counted."""
    return getattr(connection.connection, "lightbus_waits", 0)


def _count_uses(connection: Any) -> None:
    driver = connection.connection
    if connection.Database.__name__ != "psycopg" or hasattr(driver, "lightbus_waits"):
        return
    connection_class: Any = type(driver)
    if issubclass(connection_class, connection.Database.Connection):  # not somebody's proxy of one
        driver.__class__ = _counting(connection_class)


@cache
def _counting(connection_class: Any) -> type:
    """Return a subclass of psycopg's Connection that counts its waits.

    Every statement waits: of a cursor, of the connection itself, and of `connection.transaction()`.
    """

    def wait(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.lightbus_waits += 1
        return connection_class.wait(self, *args, **kwargs)

    members = {"lightbus_waits": 0, "wait": wait, "__module__": connection_class.__module__}
    return type(connection_class.__name__, (connection_class,), members)
