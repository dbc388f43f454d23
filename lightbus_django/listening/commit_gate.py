"""Deferred commits on PostgreSQL, and the gate that makes them durable before their events are acknowledged."""

import time
from typing import Any
from weakref import WeakKeyDictionary

from django.db import connections, transaction

from lightbus_django.database.connections import fetch
from lightbus_django.database.transaction_monitor import TransactionMonitor
from lightbus_django.models import ProcessedEvent, stored_group

WINDOW = 0.1
"""Seconds for which commits may be deferred and events be handled before they are acknowledged."""

SLOW = 0.01
"""A handler that takes this many seconds or more: its commit is not deferred, because the disk then hardly matters."""

# The value with which the session began; the pg_settings view takes milliseconds.
_DEFAULT = "SELECT reset_val FROM pg_settings WHERE name = 'synchronous_commit'"

# Row locks are writes, and only the commit of a transaction that writes makes earlier commits durable.
_PROVE = """
SELECT set_config('synchronous_commit', %s, true), count(*) FROM (
    SELECT 1 FROM {table} WHERE consumer_group = %s AND event_id = ANY(%s) FOR KEY SHARE
) AS keys
"""


class CommitGate:
    """Decides which commits of one consumer group are deferred, and proves that its keys are durable."""

    def __init__(self, using: str, group: str, *, defers: bool) -> None:
        self.unproven: set[str] = set()
        """Keys whose commits may not be durable."""
        self._using = using
        self._group = group
        self._defers = defers
        self._opened_at = 0.0
        self._defaults: WeakKeyDictionary[Any, str] = WeakKeyDictionary()

    @property
    def is_overdue(self) -> bool:
        """Whether the events handled since the last `confirm` have to be acknowledged now."""
        return bool(self._opened_at) and time.monotonic() - self._opened_at > WINDOW

    def open(self) -> None:
        """Start the window before an event is handled, unless it has started."""
        self._opened_at = self._opened_at or time.monotonic()

    def defer_at(self, monitor: TransactionMonitor) -> str | None:
        """Return the value of synchronous_commit at which the commit may be deferred, or None if it may not."""
        connection: Any = connections[self._using]
        if not self._defers or connection.vendor != "postgresql":
            return None
        # Commit hooks have effects outside the database, so their transaction must not be lost.
        if connection.run_on_commit or time.monotonic() - monitor.began_at > SLOW:
            return None
        if monitor.began_at - self._opened_at > WINDOW:
            return None
        return self._default_of(connection)

    def _default_of(self, connection: Any) -> str:
        """Return the value of synchronous_commit with which the session began. It is queried once."""
        connection.ensure_connection()
        session = connection.connection
        if session not in self._defaults:
            self._defaults[session] = fetch(connection, _DEFAULT)[0]
        return self._defaults[session]

    def add(self, key: str) -> None:
        """Add a key whose commit did not wait for the disk."""
        self.unproven.add(key)

    def add_found(self, key: str) -> None:
        """Add a key that was already there; the process that inserted it may have died before it was durable."""
        if connections[self._using].vendor == "postgresql":
            self.unproven.add(key)

    def confirm(self) -> bool:
        """Make durable what was handled since the last call; return False if some of it is lost.

        In that case all of it has to be handled again.
        """
        is_complete = not self.unproven or self._prove(sorted(self.unproven)) == len(self.unproven)
        self.unproven.clear()
        self._opened_at = 0.0
        return is_complete

    def _prove(self, keys: list[str]) -> int:
        connection = connections[self._using]
        table = connection.ops.quote_name(ProcessedEvent._meta.db_table)
        default = self._default_of(connection)
        if default == "off":  # the session's choice, but acknowledged events have to be durable
            default = "on"
        with transaction.atomic(using=self._using):
            group = stored_group(self._group, self._using)
            _, count = fetch(connection, _PROVE.format(table=table), [default, group, keys])
        return int(count)
