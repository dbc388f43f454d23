"""The databases that have an outbox, and which of them an event goes to."""

from collections.abc import Iterator
from functools import lru_cache

from django.db import connections, router

from lightbus_django.database.connections import named_by_listeners
from lightbus_django.database.errors import transient_errors
from lightbus_django.models import OutboxEvent, ProcessedEvent

_PLACE = ("ENGINE", "NAME", "HOST", "PORT", "USER", "OPTIONS")
"""The settings that decide which tables an alias leads to. OPTIONS may name a service or a schema."""


def current_database() -> str:
    """Return the alias of the database whose transaction is open; if that isn't exactly one, the router's choice.

    Transactions of databases without an outbox, such as replicas, don't count.
    """
    in_transaction = [
        connection.alias
        for connection in connections.all(initialized_only=True)
        if connection.in_atomic_block and may_have_outbox(connection.alias)
    ]
    return in_transaction[0] if len(in_transaction) == 1 else router.db_for_write(OutboxEvent)


def may_have_outbox(alias: str) -> bool:
    """Whether events may be written to this database: the router does so, or a listener names it with `using`."""
    if not router.allow_migrate_model(alias, OutboxEvent):
        return False
    is_routed = router.db_for_write(OutboxEvent, instance=_row_in(alias)) == alias
    return is_routed or named_by_listeners[alias] > 0


@lru_cache
def _row_in(alias: str) -> OutboxEvent:
    row = OutboxEvent()
    row._state.db = alias
    return row


def distinct_databases() -> Iterator[str]:
    """Yield the aliases of all databases, without those that are only another name of a database.

    That is an alias whose settings lead to the same tables as those of an earlier one, unless a listener or the router
    names it.
    """
    seen = []
    for alias in connections:
        place = [connections[alias].settings_dict.get(key) for key in _PLACE]
        is_named = named_by_listeners[alias] > 0 or router.db_for_write(ProcessedEvent) == alias
        if place in seen and not is_named:
            continue
        if may_have_outbox(alias):
            seen.append(place)
        yield alias


def has_outbox(alias: str) -> bool:
    """Whether the outbox's table is in this database, and may be written there."""
    if connections[alias].vendor == "unknown":  # DATABASES = {"default": {}, ...}
        return False
    return may_have_outbox(alias) and OutboxEvent._meta.db_table in connections[alias].introspection.table_names()


def databases_with_tables() -> Iterator[str]:
    """Yield the aliases of the databases that have our tables, each database once. Raises DatabaseUnavailable."""
    for alias in distinct_databases():
        with transient_errors(alias):
            if has_outbox(alias):
                yield alias


def has_tables(alias: str) -> bool:
    """Return whether a database has our tables; False for an unknown alias."""
    return alias in connections and has_outbox(alias)
