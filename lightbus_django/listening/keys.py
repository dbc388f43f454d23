"""Idempotency keys: which events a consumer group has handled, as the database knows it."""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from django.db import IntegrityError, OperationalError, connections
from django.db.models import QuerySet

from lightbus_django.database.bulk_insert import UNLESS_THERE, insert, inserting, statement
from lightbus_django.database.connections import fetch, takes_several_statements
from lightbus_django.database.errors import is_locked
from lightbus_django.database.text import storable
from lightbus_django.database.transactions import SAVEPOINT, Guard
from lightbus_django.exceptions import DatabaseUnavailable, KeyLocked
from lightbus_django.models import ProcessedEvent, stored_group

from .delivery import Delivery

_COLUMNS = ("event_id", "consumer_group", "event_name", "processed_at", "discarded")
_EVENT_NAME = ProcessedEvent._meta.get_field("event_name")


LOCK_TIMEOUT = 1000.0
"""Milliseconds to wait for the transaction of a process that has had an event before. It may hang, or be cut off."""

_TIMEOUT = f"{LOCK_TIMEOUT:.0f}ms"

_LIMIT_BEFORE = (
    "SELECT set_config('lightbus.lock_timeout', current_setting('lock_timeout'), true); "
    f"SELECT set_config('lock_timeout', '{_TIMEOUT}', true); "
)
LIMITS = _LIMIT_BEFORE, "; SELECT set_config('lock_timeout', current_setting('lightbus.lock_timeout'), true)"
"""What goes before and behind a statement in the same string, for it not to wait for longer."""

# In this order: what was set before, then the limit, for this transaction.
_LIMIT = """
WITH before AS MATERIALIZED (SELECT current_setting('lock_timeout') AS value)
SELECT value, set_config('lock_timeout', %s, true) FROM before
"""


class AlreadyHandled(Exception):
    """One of the keys is there already, or what was to be retried is gone."""


class Keys:
    """The keys of one consumer group in one database."""

    def __init__(self, group: str, using: str) -> None:
        self.group = group
        self.using = using

    @property
    def stored_group(self) -> str:
        """The name of the consumer group as the database has it."""
        return stored_group(self.group, self.using)

    @property
    def rows(self) -> QuerySet[ProcessedEvent]:
        """All of them."""
        return ProcessedEvent.objects.using(self.using).filter(consumer_group=self.stored_group)

    def of(self, keys: Iterable[str]) -> QuerySet[ProcessedEvent]:
        """Return the rows of these keys."""
        return self.rows.filter(event_id__in=list(keys))

    def known(self, keys: Iterable[str]) -> set[str]:
        """Return those of these keys that are there."""
        return set(self.of(keys).values_list("event_id", flat=True))

    def of_events(self, event_names: Iterable[str]) -> QuerySet[ProcessedEvent]:
        """Return the rows of events of these names."""
        return self.rows.filter(event_name__in=[storable(name, _EVENT_NAME, self.using) for name in event_names])

    def insert(self, delivery: Delivery, now: datetime) -> Guard:
        """Insert a key as the first statement of a transaction; return what watches that.

        Waits for another transaction that is about to insert it.

        Raises:
            AlreadyHandled: it was not inserted; `check_known` tells whether it is there.
            SequenceBehind: no key can be inserted.
        """
        sql, row = self.statement(delivery, now)
        connection: Any = connections[self.using]
        mark: str | None = None
        try:
            with inserting(ProcessedEvent, self.using), connection.cursor() as cursor:
                if connection.vendor == "mysql" and takes_several_statements(connection):
                    mark = SAVEPOINT
                    sql += f"; {SAVEPOINT}"
                cursor.execute(sql, row)
                if not cursor.rowcount:
                    raise AlreadyHandled
                if connection.vendor == "postgresql":
                    (mark,) = cursor.fetchone()
                elif mark:
                    cursor.nextset()
        except IntegrityError as error:
            if connection.vendor != "mysql":
                raise
            raise AlreadyHandled from error
        return Guard(connection, mark)

    def statement(self, delivery: Delivery, now: datetime) -> tuple[str, tuple[Any, ...]]:
        """Return the SQL that inserts a key unless it is there, and its parameters."""
        sql = statement(ProcessedEvent, self.using, _COLUMNS, 1)
        vendor = connections[self.using].vendor
        # MySQL's own ways to ignore a conflict ignore more, or don't tell what they did.
        if vendor != "mysql":
            sql += UNLESS_THERE
        if vendor == "postgresql":
            sql += " RETURNING pg_current_xact_id()::text"
        return sql, self._row(delivery, now)

    def insert_all(self, deliveries: Collection[Delivery], now: datetime) -> None:
        """Insert keys with few statements, in their own order: two processes that have them in others would deadlock.

        Raises:
            AlreadyHandled: one may be there; the transaction can only be rolled back.
            SequenceBehind: as `insert`.
        """
        rows = sorted(self._row(delivery, now) for delivery in deliveries)
        try:
            insert(ProcessedEvent, self.using, _COLUMNS, rows)
        except IntegrityError as error:
            raise AlreadyHandled from error

    def check_known(self, delivery: Delivery) -> None:
        """Make sure that a key which was not inserted is there.

        Raises:
            DatabaseUnavailable: it is not, so the event is not handled.
        """
        if not self.known([delivery.key]):
            raise DatabaseUnavailable(f"{self.group}: the key of {delivery.key} is neither inserted nor there")

    @contextmanager
    def waiting(self, *, is_patient: bool) -> Iterator[None]:
        """Limit how long keys that are inserted in this block are waited for, on PostgreSQL, unless `is_patient`.

        Raises:
            KeyLocked: another transaction that has one has not ended in time.
            DatabaseUnavailable: they can't be inserted for now.
        """
        connection = connections[self.using]
        limits = not is_patient and connection.vendor == "postgresql"
        before = fetch(connection, _LIMIT, [_TIMEOUT])[0] if limits else None
        try:
            yield
        except OperationalError as error:
            kind = KeyLocked if is_locked(error) else DatabaseUnavailable
            raise kind(f"{self.group}: {error}") from error
        if limits:
            fetch(connection, "SELECT set_config('lock_timeout', %s, true)", [before])

    def _row(self, delivery: Delivery, now: datetime) -> tuple[Any, ...]:
        at = connections[self.using].ops.adapt_datetimefield_value(now)
        return delivery.key, self.stored_group, storable(delivery.event_name, _EVENT_NAME, self.using), at, False
