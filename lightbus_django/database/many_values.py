"""Filters with thousands of values."""

from collections.abc import Iterable
from typing import Any

from django.db import connections
from django.db.models import Field
from django.db.models.expressions import RawSQL


def many(values: Iterable[Any], field: "Field[Any, Any]", using: str) -> RawSQL | list[Any]:
    """Return values for a filter of `field` with `__in`.

    On PostgreSQL they are one array, because Django and psycopg take longer over thousands of parameters than the
    database over the query.
    """
    found = list(values)
    if connections[using].vendor != "postgresql":
        return found
    return RawSQL(f"SELECT unnest(%s::{array_type(field, connections[using])})", [found])  # noqa: S611


def array_type(field: "Field[Any, Any]", connection: Any) -> str:
    """Return PostgreSQL's type for an array of a field's values, without their maximum length."""
    return str(field.db_type(connection) or "text").partition("(")[0] + "[]"
