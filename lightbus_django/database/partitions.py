"""Partitioned tables of PostgreSQL: docs/partitioning.md makes them of ours."""

from django.db import connections, models

from .connections import fetch


def is_partitioned(model: type[models.Model], using: str) -> bool:
    """Whether the table of a model is partitioned, so that old rows go with their partitions."""
    connection = connections[using]
    if connection.vendor != "postgresql":
        return False
    table = connection.ops.quote_name(model._meta.db_table)
    return bool(fetch(connection, "SELECT relkind = 'p' FROM pg_class WHERE oid = to_regclass(%s)", [table])[0])
