"""What takes writes of a transaction back, though their commit hooks run."""

import re
from collections.abc import Callable
from types import TracebackType
from typing import Any

from django.db.utils import DatabaseErrorWrapper

from .database import is_aborted

_TAKES_BACK = re.compile(r"ROLLBACK|\bABORT\b", re.IGNORECASE).search


class Witness(DatabaseErrorWrapper):
    """Counts on one connection what Django does not know, or not in time.

    That is a savepoint which is rolled back by hand, and any error: after one that somebody caught, PostgreSQL takes
    COMMIT for ROLLBACK. To look for a row after each commit would take a query that is as dear as all of this
    package's other work in a request. What is done with the driver's own connection, not with Django's, is not seen.
    """

    def __init__(self, connection: Any) -> None:
        super().__init__(connection)
        self.connection = connection
        self.doubts = 0
        self.is_blind = connection.vendor == "mysql"
        """MySQL's procedures may roll back, and say nothing."""

    @classmethod
    def of(cls, connection: Any) -> "Witness":
        """Return the one that this connection has from now on."""
        witness = connection.wrap_database_errors
        if not isinstance(witness, cls):
            witness = cls(connection)
            connection.wrap_database_errors = witness
        if witness.execute not in connection.execute_wrappers:
            # First, for whoever leaves `with connection.execute_wrapper():` takes away the last.
            connection.execute_wrappers.insert(0, witness.execute)
        return witness

    def execute(self, execute: Callable[..., Any], sql: Any, *args: Any) -> Any:
        """Let Django execute a statement."""
        if _TAKES_BACK(str(sql)):
            self.doubts += 1
        return execute(sql, *args)

    def __enter__(self) -> None:
        # Django comes here for whatever it has the driver do: also with COMMIT, after what others had it do.
        if self.connection.connection is not None and is_aborted(self.connection):
            self.doubts += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self.doubts += 1
        super().__exit__(kind, error, traceback)
