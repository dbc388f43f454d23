"""The transaction of one event: what its handler did to it, and whether its commit waits for the disk.

PostgreSQL's commits may be deferred: such a commit is durable once a later one is that waits for the disk, and is lost
if the server crashes before. So a gate stands before every acknowledgement; it proves that the keys of these events are
there, and makes them durable, once for many.
"""

import time
from typing import Any
from weakref import WeakKeyDictionary

from django.db import DatabaseError, connections, transaction

from .database import fetch, is_aborted
from .models import ProcessedEvent, stored_group

WINDOW = 0.1
"""Seconds for which commits may be deferred, and events be handled before they are acknowledged."""

SLOW = 0.01
"""Seconds of a handler next to which waiting for the disk doesn't matter."""

NO_SAVEPOINT = 1305
"""What MySQL says of a savepoint that has gone with its transaction."""

SAVEPOINT = "SAVEPOINT lightbus"
"""The savepoint that is gone if a transaction of MySQL has ended."""

# The setting that the session began with; the view takes milliseconds.
_DEFAULT = "SELECT reset_val FROM pg_settings WHERE name = 'synchronous_commit'"

# Which transaction this is, and whether its commit waits. That is set for it alone: a pooler gives the session to
# somebody else. Nor for one that the handler began: what is in that, no key proves.
_CHECK = """
SELECT pg_current_xact_id_if_assigned()::text, CASE
    WHEN current_setting('synchronous_commit') = %s AND pg_current_xact_id_if_assigned()::text = %s
    THEN set_config('synchronous_commit', 'off', true) ELSE current_setting('synchronous_commit')
END
"""

# To lock rows writes, and only a commit that writes makes those before it durable.
_PROVE = """
SELECT set_config('synchronous_commit', %s, true), count(*) FROM (
    SELECT 1 FROM {table} WHERE consumer_group = %s AND event_id = ANY(%s) FOR KEY SHARE
) AS keys
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


class Gate:
    """Says when commits of one consumer group may be deferred, and proves that its keys are durable."""

    def __init__(self, using: str, group: str, *, defers: bool) -> None:
        self._using = using
        self._group = group
        self._defers = defers
        self._unproven: set[str] = set()
        self._opened_at = 0.0
        self._defaults: WeakKeyDictionary[Any, str] = WeakKeyDictionary()

    @property
    def is_overdue(self) -> bool:
        """Whether what was handled since the gate was passed has to be acknowledged now."""
        return bool(self._opened_at) and time.monotonic() - self._opened_at > WINDOW

    @property
    def is_open(self) -> bool:
        """Whether there are keys to prove, and time for more of them."""
        return bool(self._unproven) and not self.is_overdue

    def begin(self) -> None:
        """An event is about to be handled."""
        self._opened_at = self._opened_at or time.monotonic()

    def defer(self, guard: Guard) -> str | None:
        """Return the value of synchronous_commit at which the commit at hand may be deferred; None if it may not."""
        connection: Any = connections[self._using]
        if not self._defers or connection.vendor != "postgresql":
            return None
        # What commit hooks do reaches the outside, so it must not be taken back.
        if connection.run_on_commit or time.monotonic() - guard.began_at > SLOW:
            return None
        if guard.began_at - self._opened_at > WINDOW:
            return None
        return self._default_of(connection)

    def _default_of(self, connection: Any) -> str:
        """Return the value of synchronous_commit with which a session began; it is asked once."""
        connection.ensure_connection()
        session = connection.connection
        if session not in self._defaults:
            self._defaults[session] = fetch(connection, _DEFAULT)[0]
        return self._defaults[session]

    def add(self, key: str) -> None:
        """Have a key proved whose commit did not wait for the disk."""
        self._unproven.add(key)

    def add_found(self, key: str) -> None:
        """Have a key proved that was there before: the process that inserted it may have died without doing that."""
        if connections[self._using].vendor == "postgresql":
            self._unproven.add(key)

    def pass_through(self) -> bool:
        """Make all durable that was handled since the last time; return False if some of it is lost.

        Then all of it has to be handled again.
        """
        count = self._prove(sorted(self._unproven)) if self._unproven else 0
        is_whole = count == len(self._unproven)
        self._unproven.clear()
        self._opened_at = 0.0
        return is_whole

    def _prove(self, keys: list[str]) -> int:
        connection = connections[self._using]
        table = connection.ops.quote_name(ProcessedEvent._meta.db_table)
        default = self._default_of(connection)
        if default == "off":  # a session may be like that, but what is acknowledged has to be durable
            default = "on"
        with transaction.atomic(using=self._using):
            _, count = fetch(
                connection, _PROVE.format(table=table), [default, stored_group(self._group, self._using), keys]
            )
        return int(count)
