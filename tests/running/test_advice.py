"""Database errors come with what to do."""

import pytest
from django.db import DatabaseError, connection, transaction

from lightbus_django.models import ProcessedEvent
from lightbus_django.running.advice import advice

pytestmark = pytest.mark.django_db(transaction=True)


def test_advice() -> None:
    def error_of(*statements: str) -> Exception:
        with pytest.raises(DatabaseError) as caught, transaction.atomic(), connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
        return caught.value

    table = ProcessedEvent._meta.db_table
    assert "manage.py migrate" in advice(error_of("SELECT * FROM no_table"))
    assert "manage.py migrate" in advice(error_of(f"SELECT no_column FROM {table}"))
    assert advice(error_of("SELECT 1 FROM")) == ""
    delete = f"DELETE FROM {table}"
    if connection.vendor == "sqlite":
        assert "read-only" in advice(error_of("PRAGMA query_only = 1", delete))
        with connection.cursor() as cursor:
            cursor.execute("PRAGMA query_only = 0")
    elif connection.vendor == "postgresql":
        assert "read-only" in advice(error_of("SET TRANSACTION READ ONLY", delete))
        assert "grant" in advice(error_of("SET LOCAL ROLE pg_monitor", delete))
