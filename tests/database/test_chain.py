"""The contract of chained transactions: what they rely on, and what happens without it."""

from types import SimpleNamespace

import pytest
from django.db import connection, transaction

from lightbus_django import listens_to
from lightbus_django.database.chain import Chain, chain_on
from tests.app.models import Effect
from tests.listening.handling import deliver, effects, handle_all, inbox

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("listeners")]

is_psycopg = connection.vendor == "postgresql" and connection.Database.__name__ == "psycopg"
of_psycopg = pytest.mark.skipif(not is_psycopg, reason="only psycopg 3 takes several statements at a time")


def chained():
    """Handle three events; return how many of their transactions were chained to the one before."""

    @listens_to("shop.order_placed")
    def handler(event, number):
        Effect.objects.create(number=number)

    def record(execute, sql, *args):
        statements.append(sql)
        return execute(sql, *args)

    statements = []
    with connection.execute_wrapper(record):
        handle_all(inbox(), [deliver(number) for number in range(3)])
    assert effects() == [0, 1, 2]
    return sum("COMMIT; BEGIN" in sql for sql in statements)


@of_psycopg
def test_the_events_of_a_batch_are_chained():
    assert chained() == 2


@of_psycopg
def test_psycopg_returns_the_result_of_each_statement():
    with connection.cursor() as cursor:
        cursor.execute("SELECT %s; SELECT 2; SELECT 3", [1])
        rows = [cursor.fetchone()]
        while cursor.nextset():
            rows.append(cursor.fetchone())
    assert rows == [(1,), (2,), (3,)]


@of_psycopg
def test_a_transaction_in_another_state_is_not_chained():
    with transaction.atomic(), chain_on("default") as chain:
        assert not chain.is_intact  # nothing has begun
        Effect.objects.count()
        assert chain.is_intact
        with transaction.atomic():
            assert not chain.is_intact
        transaction.on_commit(lambda: None)
        assert not chain.is_intact


@of_psycopg
@pytest.mark.parametrize("missing", ["django", "psycopg"])
def test_without_these_internals_nothing_is_chained(missing):
    with transaction.atomic(), chain_on("default") as chain:
        Effect.objects.count()
        assert chain.is_intact
        if missing == "django":
            chain._connection = SimpleNamespace(connection=connection.connection)
        else:
            chain._driver = SimpleNamespace()
            chain._connection = SimpleNamespace(**vars(connection) | {"connection": chain._driver})
        assert not chain.is_intact


def test_events_are_handled_without_a_chain(monkeypatch):
    monkeypatch.setattr(Chain, "is_intact", False)
    assert chained() == 0


@pytest.mark.skipif(is_psycopg, reason="transactions are chained")
def test_other_drivers_have_no_chain():
    with chain_on("default") as chain:
        assert chain is None
