"""What a database would do sooner or later after many rows were written, done before it is measured."""

from django.db import connection


def settle() -> None:
    """Let nothing that was prepared be written while something is measured, and the planner know about it."""
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("VACUUM ANALYZE")
            cursor.execute("CHECKPOINT")
        else:
            cursor.execute("ANALYZE")
