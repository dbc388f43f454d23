"""Inserts rows from tuples.

Model instances and Django's SQL compiler would take twice as long as the database itself.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import chain
from typing import Any

from django.core.management.color import no_style
from django.db import IntegrityError, connections, models

from lightbus_django.exceptions import SequenceBehind

UNLESS_THERE = " ON CONFLICT (event_id, consumer_group) DO NOTHING"
"""The target is named because any other conflict, such as that of a sequence behind its rows, is an error."""


def insert(model: type[models.Model], using: str, names: tuple[str, ...], rows: Sequence[tuple[Any, ...]]) -> None:
    """Insert rows with as few statements as the database allows, without signals or default values.

    Args:
        names: the fields of the tuples, in order.
        rows: values in the form that the driver takes.
    """
    if not rows:
        return
    connection: Any = connections[using]
    size = 1
    if len(rows) > 1:
        size = connection.ops.bulk_batch_size([model._meta.get_field(name) for name in names], rows)
    with inserting(model, using), connection.cursor() as cursor:
        if connection.vendor == "postgresql" and len(rows) > 1:
            cursor.execute(_unnest_statement(model, using, names), [list(column) for column in zip(*rows, strict=True)])
            return
        for first in range(0, len(rows), size):
            chunk = rows[first : first + size]
            cursor.execute(statement(model, using, names, len(chunk)), list(chain.from_iterable(chunk)))


def insert_unless_there(model: type[models.Model], using: str, names: tuple[str, ...], row: tuple[Any, ...]) -> None:
    """Insert a row, as `insert` does, unless its consumer group already has one for its event."""
    is_mysql = connections[using].vendor == "mysql"  # its INSERT IGNORE ignores other errors too
    sql = statement(model, using, names, 1)
    try:
        with inserting(model, using), connections[using].cursor() as cursor:
            cursor.execute(sql if is_mysql else sql + UNLESS_THERE, row)
    except IntegrityError:
        if not is_mysql:
            raise


@contextmanager
def inserting(model: type[models.Model], using: str) -> Iterator[None]:
    """Raise SequenceBehind if a primary key that the database generated is already taken."""
    try:
        yield
    except IntegrityError as error:
        if not isinstance(model._meta.pk, models.AutoField | models.BigAutoField):
            raise
        diagnosis: Any = getattr(error.__cause__, "diag", None)  # PostgreSQL only
        key = f"({model._meta.pk.column})="
        if getattr(diagnosis, "table_name", None) != model._meta.db_table or key not in (
            diagnosis.message_detail or ""
        ):
            raise
        statements = connections[using].ops.sequence_reset_sql(no_style(), [model])
        raise SequenceBehind(
            f"database {using!r}: the sequence of {model._meta.db_table} is behind its rows, as after a restore, so no "
            f"rows can be inserted. No events are lost. To continue, execute: {' '.join(statements)}"
        ) from error


@lru_cache(maxsize=256)
def statement(model: type[models.Model], using: str, names: tuple[str, ...], count: int) -> str:
    """Return the SQL that inserts `count` rows of these fields."""
    fields: Any = [model._meta.get_field(name) for name in names]
    ops: Any = connections[using].ops
    return f"{_insert_into(fields, ops)} {ops.bulk_insert_sql(fields, [['%s'] * len(fields)] * count)}"


@lru_cache(maxsize=256)
def _unnest_statement(model: type[models.Model], using: str, names: tuple[str, ...]) -> str:
    """Return the SQL that inserts rows from one array for each field. It is short, however many the rows are."""
    connection: Any = connections[using]
    fields: Any = [model._meta.get_field(name) for name in names]
    arrays = ", ".join(f"(%s)::{field.db_type(connection)}[]" for field in fields)
    return f"{_insert_into(fields, connection.ops)} SELECT * FROM UNNEST({arrays})"  # noqa: S608


def _insert_into(fields: Sequence[Any], ops: Any) -> str:
    columns = ", ".join(ops.quote_name(field.column) for field in fields)
    return f"INSERT INTO {ops.quote_name(fields[0].model._meta.db_table)} ({columns})"
