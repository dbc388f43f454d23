"""Deferred commits on PostgreSQL, and the gate that makes them durable before events are acknowledged."""

import time
from typing import Any
from weakref import WeakKeyDictionary

from django.db import connections, transaction

from lightbus_django.database.connections import fetch
from lightbus_django.database.transactions import Guard
from lightbus_django.models import ProcessedEvent, stored_group

WINDOW = 0.1
"""Seconds for which commits may be deferred, and events be handled before they are acknowledged."""

SLOW = 0.01
"""Seconds of a handler next to which waiting for the disk doesn't matter."""

# The setting that the session began with; the view takes milliseconds.
_DEFAULT = "SELECT reset_val FROM pg_settings WHERE name = 'synchronous_commit'"

# To lock rows writes, and only a commit that writes makes those before it durable.
_PROVE = """
SELECT set_config('synchronous_commit', %s, true), count(*) FROM (
    SELECT 1 FROM {table} WHERE consumer_group = %s AND event_id = ANY(%s) FOR KEY SHARE
) AS keys
"""


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
