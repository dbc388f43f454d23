"""Makes text fit a column, whatever the character set of its database."""

import hashlib
import re
from functools import lru_cache
from typing import Any

from django.db import connections

from .connections import fetch

# The highest code point of character sets, by their PostgreSQL and MySQL names. Others count as ASCII.
_HIGHEST = {
    "UTF8": 0x10FFFF,
    "SQL_ASCII": 0x10FFFF,
    "utf8mb4": 0x10FFFF,
    "utf8mb3": 0xFFFF,
    "utf8": 0xFFFF,
    "LATIN1": 0xFF,
    "latin1": 0xFF,
}

_CHARACTER_SETS = """
SELECT character_set_name, @@character_set_client FROM information_schema.columns
WHERE table_schema = DATABASE() AND table_name = %s AND column_name = %s
"""


def storable(text: str, field: Any, using: str) -> str:
    """Return text in a form that a column can hold. Equal texts have equal results.

    Characters that the column can't hold become escapes such as `\\u20ac`, and so do NUL, which PostgreSQL rejects, and
    control characters. Text that is too long is cut and ends with a digest, so that it still differs from others.

    Args:
        field: a model field.
        using: the database alias. On MySQL, text that is not ASCII takes a query.
    """
    if "\0" in text or not text.isascii():
        text = _lacking(_highest(field, using)).sub(_escape, text)
    if field.max_length and len(text) > field.max_length:
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        text = f"{text[: field.max_length - 17]}~{digest}"
    return text


def _highest(field: Any, using: str) -> int:
    connection: Any = connections[using]
    character_sets: Any
    if connection.vendor == "postgresql":
        connection.ensure_connection()
        status = connection.connection.info.parameter_status
        character_sets = status("server_encoding"), status("client_encoding")
    elif connection.vendor == "mysql":
        # Not cached, because a column may be converted while the process runs.
        character_sets = fetch(connection, _CHARACTER_SETS, [field.model._meta.db_table, field.column]) or ("",)
    else:
        character_sets = ("UTF8",)
    return min(_HIGHEST.get(name, 0x7F) for name in character_sets)


@lru_cache
def _lacking(highest: int) -> re.Pattern[str]:
    return re.compile(f"[\0\x7f-\x9f\ud800-\udfff]|[^\0-{chr(highest)}]")


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()
