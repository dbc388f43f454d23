"""Database errors that were caught, and that rolled back more than Django knows."""

import threading
from contextlib import suppress

import pytest
from django.db import DatabaseError, connection, connections, transaction

from lightbus_django import listens_to, on_commit
from lightbus_django.exceptions import LightbusError
from lightbus_django.models import FailedEvent, OutboxEvent, ProcessedEvent
from tests.app.models import Effect
from tests.listening.handling import deliver, inbox

KEY = "shop.*:stream"

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])

on_postgresql = pytest.mark.skipif(connection.vendor != "postgresql", reason="PostgreSQL aborts a transaction")
on_mysql = pytest.mark.skipif(connection.vendor != "mysql", reason="InnoDB rolls back a whole transaction")


def fail_and_catch():
    """Fail in a query that writes nothing: Django does not notice the aborted transaction, and COMMIT rolls back."""
    with suppress(DatabaseError):
        Effect.objects.extra(where=["1/0 = 1"]).first()


@on_postgresql
class TestAnErrorThatWasCaught:
    def test_publishes_nothing_of_what_was_rolled_back(self, r):
        with transaction.atomic():
            on_commit("shop.order_placed", number=1)
            fail_and_catch()
        assert not OutboxEvent.objects.exists()  # PostgreSQL answers COMMIT with ROLLBACK, without an error
        assert not r.exists(KEY)

    def test_among_the_rows_of_a_cursor_publishes_nothing_either(self, r):
        for number in (1, 0):
            Effect.objects.create(number=number)
        with transaction.atomic():
            rows = Effect.objects.extra(select={"share": "1 / number"}).iterator(chunk_size=1)
            next(rows)
            on_commit("shop.order_placed", number=1)
            with suppress(DatabaseError):
                next(rows)
        assert not OutboxEvent.objects.exists()
        assert not r.exists(KEY)

    def test_of_the_driver_s_own_cursor_publishes_nothing_either(self, r):
        with transaction.atomic():
            on_commit("shop.order_placed", number=1)
            with suppress(connection.Database.Error):
                connection.connection.cursor().execute("SELECT 1 / 0")
        assert not OutboxEvent.objects.exists()
        assert not r.exists(KEY)

    def test_is_no_error_if_it_is_an_abort_in_sql_and_publishes_nothing_either(self, r):
        with transaction.atomic(), connection.cursor() as cursor:
            on_commit("shop.order_placed", number=1)
            cursor.execute("abort")
        assert not r.exists(KEY)

    def test_loses_no_event(self, listeners):
        @listens_to("shop.order_placed")
        def handler(event, number):
            Effect.objects.create(number=number)
            fail_and_catch()

        assert inbox().handle([deliver(1)]) == 1
        assert ProcessedEvent.objects.exists()  # neither key, nor effect, nor failure: acknowledged and gone
        assert FailedEvent.objects.exists() or Effect.objects.exists()

    def test_of_the_last_one_loses_no_neighbours(self, listeners):
        @listens_to("shop.order_placed")
        def handler(event, number):
            Effect.objects.create(number=number)
            if number == 3:
                fail_and_catch()

        assert inbox().handle([deliver(1), deliver(2), deliver(3)]) == 3
        assert sorted(Effect.objects.values_list("number", flat=True))[:2] == [1, 2]

    def test_of_a_batch_handler_loses_no_event(self, listeners):
        @listens_to("shop.order_placed", batch=True)
        def handler(events):
            Effect.objects.create(number=len(events))
            fail_and_catch()

        box = inbox()
        left = [deliver(1), deliver(2)]
        while left:
            left = left[box.handle(left) :]
        assert FailedEvent.objects.count() == 2


@on_mysql
class TestADeadlockThatWasCaught:
    """InnoDB rolls back the whole transaction with its savepoints, and begins another. Django does not notice."""

    def lose_a_deadlock(self):
        first, second = Effect.objects.filter(number__lt=0).order_by("pk")
        Effect.objects.select_for_update().get(pk=first.pk)
        locked, go = threading.Event(), threading.Event()

        def other():
            try:
                with transaction.atomic():
                    Effect.objects.filter(pk=second.pk).update(name="other")
                    for _ in range(50):  # the heavier transaction wins
                        Effect.objects.create(number=9)
                    locked.set()
                    go.wait(10)
                    Effect.objects.filter(pk=first.pk).update(name="other")
            finally:
                connections.close_all()

        thread = threading.Thread(target=other)
        thread.start()
        locked.wait(10)
        go.set()
        with pytest.raises(DatabaseError, match="1213"):
            Effect.objects.select_for_update().get(pk=second.pk)
        thread.join()

    @pytest.fixture(autouse=True)
    def rows(self, db):
        for number in (-1, -2):
            Effect.objects.create(number=number)

    def test_publishes_nothing(self, r):
        with transaction.atomic():
            on_commit("shop.order_placed", number=1)
            self.lose_a_deadlock()
        assert not OutboxEvent.objects.exists()
        assert not r.exists(KEY)

    def test_is_not_the_next_event_s_fault_and_loses_no_effects(self, listeners):
        @listens_to("shop.order_placed")
        def handler(event, number):
            Effect.objects.create(number=number)
            if number == 2:
                self.lose_a_deadlock()

        settled = 0
        with suppress(LightbusError):  # "nobody is to blame" would do
            settled = inbox().handle([deliver(1), deliver(2), deliver(3)])
        assert [failed.stream_id for failed in FailedEvent.objects.all()] in ([], ["3-0"])  # that of number 2
        assert ProcessedEvent.objects.count() == settled


@on_mysql
class TestAProcedureThatRollsBack:
    @pytest.fixture
    def procedure(self):
        with connection.cursor() as cursor:
            cursor.execute("CREATE PROCEDURE lightbus_takes_back() ROLLBACK")
        yield "lightbus_takes_back"
        with connection.cursor() as cursor:
            cursor.execute("DROP PROCEDURE lightbus_takes_back")

    def test_publishes_nothing(self, r, procedure):
        with transaction.atomic(), connection.cursor() as cursor:
            on_commit("shop.order_placed", number=1)
            cursor.callproc(procedure)
        assert not OutboxEvent.objects.exists()
        assert not r.exists(KEY)
