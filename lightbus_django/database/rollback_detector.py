"""Detects rollbacks that Django doesn't know of, after which its commit hooks run all the same."""

import re
from collections.abc import Callable
from functools import cache
from types import TracebackType
from typing import Any

from django.db.utils import DatabaseErrorWrapper

from .connections import is_aborted

_ROLLS_BACK = re.compile(r"ROLLBACK|\bABORT\b", re.IGNORECASE).search

INTERNALS = ["commit_on_exit", "execute_wrappers", "run_commit_hooks_on_set_autocommit_on", "run_on_commit"]
"""Attributes of Django's connection on which the detector relies. If one is missing, each transaction is in doubt."""


class Observation:
    """What was seen of one transaction.

    `in_doubt`: whether some of its writes may have been rolled back since the observation began.
    `is_committed`: whether Django has committed it and is about to run its commit hooks.
    """

    def __init__(self, *, in_doubt: bool) -> None:
        self.in_doubt = in_doubt
        self.is_committed = False


class RollbackDetector(DatabaseErrorWrapper):
    """Watches one connection for rollbacks to savepoints, and for signs that it may have missed one.

    To query the rows after each commit would cost as much as the rest of `on_commit()`. So they are queried only if
    their transaction is in doubt: after a rollback in SQL; after an error, because PostgreSQL then turns COMMIT into
    ROLLBACK; and after other code has replaced Django's list of commit hooks, its `execute_wrappers` or its
    `wrap_database_errors`. Each of the last two notices when the other is missing.

    With psycopg 3, use of the driver's own connection counts as well. It goes unnoticed with other drivers, and so does
    SQL that runs while both of Django's wrappers are replaced for a time. On MySQL each transaction is in doubt,
    because stored procedures may roll back.
    """

    def __init__(self, connection: Any) -> None:
        super().__init__(connection)
        self._connection = connection
        self._others: Any = getattr(connection, "wrap_database_errors", None)
        self._execute_wrapper = self._execute
        self._observation = Observation(in_doubt=True)
        self._is_supported = self._others is not None and all(hasattr(connection, name) for name in INTERNALS)
        self._hooks: object = None
        self._uses_of_driver = 0

    @classmethod
    def of(cls, connection: Any) -> "RollbackDetector":
        """Return the connection's detector, which is installed unless it was before."""
        detector = getattr(connection, "wrap_database_errors", None)
        if not isinstance(detector, cls):
            detector = cls(connection)
            if not detector._is_supported:
                return detector
            connection.wrap_database_errors = detector
        if detector._execute_wrapper not in connection.execute_wrappers:
            # First, because leaving `with connection.execute_wrapper():` removes the last one.
            connection.execute_wrappers.insert(0, detector._execute_wrapper)
        return detector

    def observe(self) -> Observation:
        """End the previous observation, and return that of the transaction that is open or about to begin."""
        if not self._is_supported:
            return Observation(in_doubt=True)
        connection = self._connection
        counts_uses = _count_uses(connection)
        self._hooks = connection.run_on_commit
        self._uses_of_driver = _uses(connection)
        self._observation = Observation(
            in_doubt=connection.vendor == "mysql"
            or not counts_uses
            # A transaction that is managed by hand may end unseen. So may one that begins after a commit hook raised,
            # because Django's flag for a commit is then still set.
            or not connection.commit_on_exit
            or connection.run_commit_hooks_on_set_autocommit_on
        )
        return self._observation

    def check(self) -> None:
        """Put the transaction in doubt if there are signs that a rollback was missed."""
        connection = self._connection
        if (
            not self._is_supported
            or self._execute_wrapper not in connection.execute_wrappers
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
        # Django enters this before each call of the driver, COMMIT included.
        self.check()
        connection = self._connection
        is_committed = connection.run_commit_hooks_on_set_autocommit_on and not connection.in_atomic_block
        if is_committed and not connection.autocommit:
            # Django is about to turn autocommit on again; what follows is another transaction.
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
    """Return how often the driver's connection has waited for the server, if that is counted."""
    return getattr(connection.connection, "lightbus_waits", 0)


def _count_uses(connection: Any) -> bool:
    """Have psycopg's connection count its waits; return False if that is not possible."""
    driver = connection.connection
    if connection.Database.__name__ != "psycopg" or hasattr(driver, "lightbus_waits"):
        return True
    connection_class: Any = type(driver)
    if issubclass(connection_class, connection.Database.Connection):  # not a proxy
        try:
            driver.__class__ = _counting(connection_class)
        except (AttributeError, TypeError):
            return False
    return True


@cache
def _counting(connection_class: Any) -> type:
    """Return a subclass of psycopg's Connection that counts its waits.

    Every statement waits: those of a cursor, of the connection itself, and of `connection.transaction()`.
    """

    original = connection_class.wait

    def wait(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.lightbus_waits += 1
        return original(self, *args, **kwargs)

    members = {"lightbus_waits": 0, "wait": wait, "__module__": connection_class.__module__}
    return type(connection_class.__name__, (connection_class,), members)
