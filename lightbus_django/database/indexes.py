"""Indexes of a few rows in a large table."""

from typing import Any

from django.db import models


class NotNullIndex(models.Index):
    """An index of the rows in which its first field is not null; of all rows where a database can't leave any out.

    It stays small, however many rows have left it. And PostgreSQL's planner reads the ends of an index of all rows,
    with all the dead entries there. Django's own `condition=` makes each `migrate` on MySQL and MariaDB warn.
    """

    def create_sql(self, model: type[models.Model], schema_editor: Any, using: str = "", **kwargs: Any) -> Any:
        """Return the statement that creates it."""
        if not schema_editor.connection.features.supports_partial_indexes:
            return super().create_sql(model, schema_editor, using, **kwargs)
        condition = models.Q((f"{self.fields[0]}__isnull", False))
        index = models.Index(fields=self.fields, name=self.name, condition=condition)
        return index.create_sql(model, schema_editor, using, **kwargs)
