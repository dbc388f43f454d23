"""Indexes on a few rows of a large table."""

from typing import Any

from django.db import models


class NotNullIndex(models.Index):
    """A partial index on the rows whose first field is not null, or a full index where partial ones don't exist.

    It stays small however many rows have left it. PostgreSQL's planner reads the ends of an index, which in a full one
    would be dead entries. Django's `condition=` would warn at each `migrate` on MySQL and MariaDB.
    """

    def create_sql(self, model: type[models.Model], schema_editor: Any, using: str = "", **kwargs: Any) -> Any:
        """Return the statement that creates the index."""
        if not schema_editor.connection.features.supports_partial_indexes:
            return super().create_sql(model, schema_editor, using, **kwargs)
        condition = models.Q((f"{self.fields[0]}__isnull", False))
        index = models.Index(fields=self.fields, name=self.name, condition=condition)
        return index.create_sql(model, schema_editor, using, **kwargs)
