"""An SQL expression that gives each row its own value."""

from collections.abc import Mapping
from typing import Any

from django.db.models import Expression, F, Field

from .many_values import array_type

LIMIT = 200
"""The maximum number of keys in one expression. Databases compare them one after the other."""


class ValuesByKey(Expression):
    """The value for each primary key, such as `CASE id WHEN … THEN … END`; for other keys the field's empty value.

    Django's `Case` makes an object for each row, which takes longer than the update itself.
    """

    def __init__(self, values: Mapping[Any, Any], output_field: "Field[Any, Any]") -> None:
        """Make an expression.

        Args:
            values: values by primary key.
            output_field: a field of the values' type. The other keys get '' if it takes text, and null if not.
        """
        super().__init__(output_field=output_field)
        self._values = values
        self._key: Any = F("pk")

    def get_source_expressions(self) -> list[Any]:
        return [self._key]

    def set_source_expressions(self, expressions: Any) -> None:
        (self._key,) = expressions

    def as_sql(self, compiler: Any, connection: Any) -> tuple[str, tuple[Any, ...]]:
        if not self._values:
            return self._empty, ()
        sql, parameters = compiler.compile(self._key)
        keys, values = self._prepared(connection)
        whens = [item for pair in zip(keys, values, strict=True) for item in pair]
        return f"CASE {sql}{' WHEN %s THEN %s' * len(keys)} ELSE {self._empty} END", (*parameters, *whens)

    def as_postgresql(self, compiler: Any, connection: Any) -> tuple[str, tuple[Any, ...]]:
        """Take keys and values as an array each: psycopg takes longer over hundreds of parameters."""
        sql, parameters = compiler.compile(self._key)
        keys, values = self._prepared(connection)
        of_keys, of_values = (array_type(field, connection) for field in (self._key.output_field, self.output_field))
        value = f"(%s::{of_values})[array_position(%s::{of_keys}, {sql})]"
        return f"COALESCE({value}, {self._empty})", (values, keys, *parameters)

    @property
    def _empty(self) -> str:
        return "''" if self.output_field.empty_strings_allowed else "NULL"

    def _prepared(self, connection: Any) -> tuple[list[Any], list[Any]]:
        keys = [self._key.output_field.get_db_prep_value(key, connection) for key in self._values]
        return keys, [self.output_field.get_db_prep_value(value, connection) for value in self._values.values()]
