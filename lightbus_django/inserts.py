"""Rows inserted as tuples.

An instance of a model for each row, and Django's compiler for each statement, take twice as long as the database.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

from django.db import connections, models


def insert(model: type[models.Model], using: str, names: tuple[str, ...], rows: Sequence[tuple[Any, ...]]) -> None:
    """Insert rows with as few statements as the database allows. No signals are sent, no defaults filled in.

    Args:
        names: the fields that the tuples hold, in order.
        rows: values as the driver takes them.
    """
    if not rows:
        return
    connection: Any = connections[using]
    size = 1
    if len(rows) > 1:
        size = connection.ops.bulk_batch_size([model._meta.get_field(name) for name in names], rows)
    with connection.cursor() as cursor:
        for first in range(0, len(rows), size):
            chunk = rows[first : first + size]
            cursor.execute(statement(model, using, names, len(chunk)), list(chain.from_iterable(chunk)))


@lru_cache(maxsize=256)
def statement(model: type[models.Model], using: str, names: tuple[str, ...], count: int) -> str:
    """Return the SQL that inserts so many rows of these fields."""
    ops: Any = connections[using].ops
    fields: Any = [model._meta.get_field(name) for name in names]
    columns = ", ".join(ops.quote_name(field.column) for field in fields)
    rows = ops.bulk_insert_sql(fields, [["%s"] * len(fields)] * count)
    return f"INSERT INTO {ops.quote_name(model._meta.db_table)} ({columns}) {rows}"
