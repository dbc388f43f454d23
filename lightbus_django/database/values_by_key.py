"""An SQL expression that gives each row its own value."""

from collections.abc import Mapping
from typing import Any

from django.db.models import CharField, Expression, F

LIMIT = 200
"""The maximum number of keys in one expression. Databases compare them one after the other."""


class ValuesByKey(Expression):
    """The text for each primary key, and an empty one for other keys: `CASE id WHEN … THEN … END`.

    Django's `Case` makes an object for each row, which takes longer than the update itself.
    """

    def __init__(self, values: Mapping[Any, str]) -> None:
        super().__init__(output_field=CharField())
        self._values = values
        self._key: Any = F("pk")

    def get_source_expressions(self) -> list[Any]:
        return [self._key]

    def set_source_expressions(self, expressions: Any) -> None:
        (self._key,) = expressions

    def as_sql(self, compiler: Any, connection: Any) -> tuple[str, tuple[Any, ...]]:
        if not self._values:
            return "''", ()
        sql, parameters = compiler.compile(self._key)
        field = self._key.output_field
        whens = [
            item for key, text in self._values.items() for item in (field.get_db_prep_value(key, connection), text)
        ]
        return f"CASE {sql}{' WHEN %s THEN %s' * len(self._values)} ELSE '' END", (*parameters, *whens)
