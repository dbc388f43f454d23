"""Idempotency keys: the record of which events a consumer group has handled."""

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
from lightbus_django.database.transaction_monitor import SAVEPOINT, TransactionMonitor
from lightbus_django.exceptions import DatabaseUnavailable, KeyLocked
from lightbus_django.models import FailedEvent, ProcessedEvent, stored_group

from .delivery import Delivery

_COLUMNS = tuple("event_id consumer_group event_name processed_at discarded process_name stream_id attempts".split())
_EVENT_NAME = ProcessedEvent._meta.get_field("event_name")
_PROCESS_NAME = ProcessedEvent._meta.get_field("process_name")

LOCK_TIMEOUT = 1000.0
"""Milliseconds to wait for the transaction of another process, which may hang or be cut off."""

_TIMEOUT = f"{LOCK_TIMEOUT:.0f}ms"

_SET = (
    "SELECT set_config('lightbus.lock_timeout', current_setting('lock_timeout'), true); "
    f"SELECT set_config('lock_timeout', '{_TIMEOUT}', true); "
)
_RESET = "; SELECT set_config('lock_timeout', current_setting('lightbus.lock_timeout'), true)"
LOCK_TIMEOUT_SQL = _SET, _RESET
"""What to put before and after a statement in the same string to apply LOCK_TIMEOUT to it."""

# Evaluated in this order: the previous value, then the new one, for this transaction.
_SET_LOCK_TIMEOUT = """
WITH before AS MATERIALIZED (SELECT current_setting('lock_timeout') AS value)
SELECT value, set_config('lock_timeout', %s, true) FROM before
"""


class AlreadyHandled(Exception):
    """A key is already there, or the failed event to retry is gone."""


class Keys:
    """The idempotency keys of one consumer group in one database."""

    def __init__(self, group: str, using: str, process_name: str) -> None:
        self.group = group
        self.using = using
        self.process_name = process_name

    @property
    def stored_group(self) -> str:
        """The consumer group's name as the database stores it."""
        return stored_group(self.group, self.using)

    @property
    def rows(self) -> QuerySet[ProcessedEvent]:
        """The rows of all keys."""
        return ProcessedEvent.objects.using(self.using).filter(consumer_group=self.stored_group)

    def of(self, keys: Iterable[str]) -> QuerySet[ProcessedEvent]:
        """Return the rows of these keys."""
        return self.rows.filter(event_id__in=list(keys))

    def of_events(self, event_names: Iterable[str]) -> QuerySet[ProcessedEvent]:
        """Return the rows of events with these names."""
        return self.rows.filter(event_name__in=[storable(name, _EVENT_NAME, self.using) for name in event_names])

    def existing(self, keys: Iterable[str]) -> set[str]:
        """Return those of these keys that are there."""
        return set(self.of(keys).values_list("event_id", flat=True))

    def check_exists(self, delivery: Delivery) -> None:
        """Raise DatabaseUnavailable if a key that could not be inserted doesn't exist: its event was not handled."""
        if not self.existing([delivery.key]):
            raise DatabaseUnavailable(f"{self.group}: the key of {delivery.key} was not inserted, and is not there")

    def insert(self, delivery: Delivery, now: datetime, *, limits_lock: bool = False) -> TransactionMonitor:
        """Insert a key as the first statement of a transaction, and return the transaction's monitor.

        Waits for another transaction that has inserted the key and not ended. On PostgreSQL this is limited by
        LOCK_TIMEOUT if another process had the event, or `limits_lock` is true.

        Raises:
            AlreadyHandled: it was not inserted; `check_exists` tells whether it is there.
            KeyLocked: another transaction has it and has not ended in time.
            DatabaseUnavailable, SequenceBehind: no keys can be inserted for now.
        """
        sql, row = self.statement(delivery, now)
        connection: Any = connections[self.using]
        mark: str | None = None
        lock_timeout = self._lock_timeout(applies=limits_lock or delivery.entry.is_redelivered)
        try:
            with lock_timeout, inserting(ProcessedEvent, self.using), connection.cursor() as cursor:
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
        return TransactionMonitor(connection, mark)

    def statement(self, delivery: Delivery, now: datetime) -> tuple[str, tuple[Any, ...]]:
        """Return the SQL that inserts a key unless it is there, and its parameters."""
        sql = statement(ProcessedEvent, self.using, _COLUMNS, 1)
        vendor = connections[self.using].vendor
        # MySQL's ways to ignore a duplicate ignore other errors too, or don't tell what they did.
        if vendor != "mysql":
            sql += UNLESS_THERE
        if vendor == "postgresql":
            sql += " RETURNING pg_current_xact_id()::text"
        (row,) = self._rows([delivery], now)
        return sql, row

    def insert_all(self, deliveries: Collection[Delivery], now: datetime) -> TransactionMonitor:
        """Insert keys as the first statements of a transaction, and return its monitor.

        They are inserted in sorted order, so that processes with the same events don't deadlock.

        Raises:
            AlreadyHandled: one of them may be there; the transaction can only be rolled back.
            KeyLocked, DatabaseUnavailable, SequenceBehind: as `insert`.
        """
        rows = sorted(self._rows(deliveries, now))
        try:
            with self._lock_timeout(applies=any(delivery.entry.is_redelivered for delivery in deliveries)):
                insert(ProcessedEvent, self.using, _COLUMNS, rows)
        except IntegrityError as error:
            raise AlreadyHandled from error
        return TransactionMonitor(connections[self.using])

    def renew(self, failed: FailedEvent, now: datetime) -> TransactionMonitor:
        """Update the key of a failed event for its retry, or insert it if there is none; return the monitor."""
        process_name = storable(self.process_name, _PROCESS_NAME, self.using)
        handled = {"processed_at": now, "process_name": process_name, "attempts": failed.attempts}
        if not self.of([failed.event_id]).update(**handled):
            with inserting(ProcessedEvent, self.using):
                self.rows.create(
                    event_id=failed.event_id,
                    consumer_group=self.stored_group,
                    event_name=failed.event_name,
                    stream_id=failed.stream_id,
                    **handled,
                )
        return TransactionMonitor(connections[self.using])

    @contextmanager
    def _lock_timeout(self, *, applies: bool) -> Iterator[None]:
        """Apply LOCK_TIMEOUT to the insertions in this block on PostgreSQL, and translate their transient errors."""
        connection = connections[self.using]
        applies = applies and connection.vendor == "postgresql"
        before = fetch(connection, _SET_LOCK_TIMEOUT, [_TIMEOUT])[0] if applies else None
        try:
            yield
        except OperationalError as error:
            kind = KeyLocked if is_locked(error) else DatabaseUnavailable
            raise kind(f"{self.group}: {error}") from error
        if applies:
            fetch(connection, "SELECT set_config('lock_timeout', %s, true)", [before])

    def _rows(self, deliveries: Iterable[Delivery], now: datetime) -> list[tuple[Any, ...]]:
        at = connections[self.using].ops.adapt_datetimefield_value(now)
        group, using = self.stored_group, self.using
        process = storable(self.process_name, _PROCESS_NAME, using)
        rows = []
        for each in deliveries:
            event_name, entry = storable(each.event_name, _EVENT_NAME, using), each.entry
            rows.append((each.key, group, event_name, at, False, process, entry.stream_id, entry.deliveries))
        return rows
