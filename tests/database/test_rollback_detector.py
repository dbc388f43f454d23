"""Events of savepoints that were rolled back are never published, whatever others do to Django's connection."""

from contextlib import contextmanager, suppress

import pytest
from django.db import DatabaseError, connection, transaction
from django.db.utils import DatabaseErrorWrapper
from django.test.utils import CaptureQueriesContext

from lightbus_django import on_commit
from lightbus_django.database import rollback_detector
from lightbus_django.models import OutboxEvent
from tests.app.models import Effect
from tests.firing.helpers import KEY, numbers

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])

USES_PSYCOPG = connection.vendor == "postgresql" and connection.Database.__name__ == "psycopg"
IS_SEEN = USES_PSYCOPG or connection.vendor == "mysql"
"""Whether SQL is seen that passes by everything of Django's: psycopg tells of it, and MySQL is always asked."""

of_psycopg = pytest.mark.skipif(not USES_PSYCOPG, reason="the driver of PostgreSQL")


@pytest.fixture(autouse=True)
def untouched():
    """A connection as Django makes it, before the test and after it."""
    connection.ensure_connection()
    yield
    connection.execute_wrappers = []
    with suppress(AttributeError):
        del connection.wrap_database_errors


def place(number):
    on_commit("shop.order_placed", number=number)


# --- What others do to a connection ----------------------------------------------------------


def clear_wrappers():
    connection.execute_wrappers.clear()


def replace_wrappers():
    connection.execute_wrappers = []


def replace_error_wrapper():
    connection.wrap_database_errors = DatabaseErrorWrapper(connection)


def delete_error_wrapper():
    del connection.wrap_database_errors


def replace_both():
    replace_wrappers()
    replace_error_wrapper()


MEDDLERS = [clear_wrappers, replace_wrappers, replace_error_wrapper, delete_error_wrapper, replace_both]


@contextmanager
def for_good(meddle):
    meddle()
    yield


@contextmanager
def for_a_while(meddle):
    wrappers, content = connection.execute_wrappers, list(connection.execute_wrappers)
    errors = connection.wrap_database_errors
    meddle()
    yield
    connection.execute_wrappers = wrappers
    wrappers[:] = content
    connection.wrap_database_errors = errors


# --- How a savepoint is rolled back ----------------------------------------------------------


@contextmanager
def by_django():
    with suppress(ZeroDivisionError), transaction.atomic():
        yield
        raise ZeroDivisionError


@contextmanager
def by_hand():
    # The name before Django 6.1.
    savepoint = (getattr(transaction, "savepoint_create", None) or transaction.savepoint)()
    yield
    transaction.savepoint_rollback(savepoint)


@contextmanager
def in_sql():
    with connection.cursor() as cursor:
        cursor.execute("SAVEPOINT by_hand")
        yield
        cursor.execute("ROLLBACK TO SAVEPOINT by_hand")


ROLLBACKS = [by_django, by_hand, in_sql]


@pytest.mark.parametrize("rolled_back", ROLLBACKS)
@pytest.mark.parametrize("meddle", MEDDLERS)
class TestMeddling:
    def test_before_the_savepoint(self, r, meddle, rolled_back):
        with transaction.atomic():
            place(1)
            meddle()
            with rolled_back():
                place(2)
            place(3)
        assert numbers(r) == [1, 3]

    def test_within_the_savepoint(self, r, meddle, rolled_back):
        with transaction.atomic():
            place(1)
            with rolled_back():
                place(2)
                meddle()
        assert numbers(r) == [1]

    def test_with_one_that_is_put_back(self, r, meddle, rolled_back):
        with transaction.atomic():
            place(1)
            with for_a_while(meddle), rolled_back():
                place(2)
        assert numbers(r) == [1]

    def test_while_the_savepoint_ends(self, r, meddle, rolled_back):
        if meddle is replace_both and rolled_back is in_sql and not IS_SEEN:
            pytest.skip("leaves no trace")
        with transaction.atomic():
            place(1)
            rollback = rolled_back()
            rollback.__enter__()
            place(2)
            with for_a_while(meddle):
                rollback.__exit__(
                    *((ZeroDivisionError, ZeroDivisionError(), None) if rolled_back is by_django else (None,) * 3)
                )
        assert numbers(r) == [1]

    def test_that_goes_on(self, r, meddle, rolled_back):
        for number in range(3):
            with transaction.atomic():
                with rolled_back():
                    place(number)
                    meddle()
                place(10 + number)
        assert numbers(r) == [10, 11, 12]


@pytest.mark.skipif(connection.vendor != "sqlite", reason="only there an error may end the transaction")
def test_an_error_that_somebody_elses_error_wrapper_sees(r):
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE TEMP TRIGGER poison BEFORE INSERT ON tests_effect WHEN NEW.name = 'poison' "
            "BEGIN SELECT RAISE(ROLLBACK, 'no'); END"
        )
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            place(1)
            with for_a_while(replace_error_wrapper), suppress(DatabaseError):
                cursor.execute("INSERT INTO tests_effect (name, number) VALUES ('poison', 1)")
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP TRIGGER poison")
    assert not OutboxEvent.objects.exists()
    assert not r.exists(KEY)


class TestOthersErrorWrapper:
    class Translator(DatabaseErrorWrapper):
        def __exit__(self, kind, error, traceback):
            try:
                super().__exit__(kind, error, traceback)
            except DatabaseError as caught:
                raise DatabaseError("translated") from caught

    def test_still_works(self, r):
        connection.wrap_database_errors = self.Translator(connection)
        with pytest.raises(DatabaseError, match="translated"), transaction.atomic():
            place(1)
            Effect.objects.extra(where=["nonsense"]).first()
        place(2)
        assert numbers(r) == [2]

    def test_may_stand_around_ours(self, r):
        with transaction.atomic():
            place(1)
            ours = connection.wrap_database_errors

            class Around(self.Translator):
                def __enter__(self):
                    ours.__enter__()

                def __exit__(self, *error):
                    ours.__exit__(*error)

            connection.wrap_database_errors = Around(connection)
            with by_hand():
                place(2)
        assert numbers(r) == [1]


def looks(work):
    """How often the outbox was asked for rows."""
    with CaptureQueriesContext(connection) as captured:
        work()
    table = OutboxEvent._meta.db_table
    return len(
        [query for query in captured.captured_queries if query["sql"].startswith("SELECT") and table in query["sql"]]
    )


@pytest.mark.skipif(connection.vendor == "mysql", reason="is always asked")
class TestTheDatabaseIsNotAsked:
    def test_for_savepoints_of_django_s_that_last(self, r):
        def work():
            with transaction.atomic():
                place(1)
                with transaction.atomic():
                    place(2)
                    list(Effect.objects.all())
                with connection.cursor() as cursor:
                    cursor.execute("SELECT 1")
                    cursor.fetchall()
                Effect.objects.create(name="x")

        assert looks(work) == 0
        assert numbers(r) == [1, 2]

    def test_for_what_another_hook_does(self, r):
        def meet_trouble():
            with by_django():
                place(1)

        def work():
            with transaction.atomic():
                transaction.on_commit(meet_trouble)
                place(2)

        assert looks(work) == 0
        assert numbers(r) == [2]

    def test_in_a_test_case_without_rollbacks(self, r, django_capture_on_commit_callbacks):
        def work():
            with transaction.atomic(), django_capture_on_commit_callbacks(execute=True):
                place(1)

        assert looks(work) == 0
        assert numbers(r) == [1]

    def test_again_after_a_transaction_in_doubt(self, r):
        def work():
            place(2)
            with transaction.atomic():
                place(3)

        with transaction.atomic():
            place(0)
            with by_hand():
                place(1)
        assert looks(work) == 0
        assert numbers(r) == [0, 2, 3]


@of_psycopg
class TestTheDriversConnection:
    """psycopg tells when somebody else than Django uses it."""

    def test_its_savepoints_take_events_with_them(self, r):
        with transaction.atomic():
            place(1)
            with suppress(ZeroDivisionError), connection.connection.transaction():
                place(2)
                raise ZeroDivisionError
            place(3)
        assert numbers(r) == [1, 3]

    def test_also_the_last(self, r):
        with transaction.atomic():
            place(1)
            with suppress(ZeroDivisionError), connection.connection.transaction():
                place(2)
                raise ZeroDivisionError
        assert numbers(r) == [1]

    def test_so_do_those_in_sql(self, r):
        with transaction.atomic():
            connection.connection.execute("SAVEPOINT by_hand")
            place(1)
            connection.connection.cursor().execute("ROLLBACK TO SAVEPOINT by_hand")
            place(2)
        assert numbers(r) == [2]

    def test_so_does_a_whole_transaction(self, r):
        with transaction.atomic():
            place(1)
            connection.connection.rollback()
        assert not r.exists(KEY)

    def test_in_a_test_case(self, r, django_capture_on_commit_callbacks):
        with transaction.atomic(), django_capture_on_commit_callbacks(execute=True):
            place(1)
            with connection.cursor() as cursor:
                cursor.execute("SAVEPOINT by_hand")
            place(2)
            connection.connection.execute("ROLLBACK TO SAVEPOINT by_hand")
        assert numbers(r) == [1]

    def test_a_new_connection_is_watched_as_well(self, r):
        place(1)
        connection.close()
        with transaction.atomic():
            with suppress(ZeroDivisionError), connection.connection.transaction():
                place(2)
                raise ZeroDivisionError
            place(3)
        assert numbers(r) == [1, 3]

    def test_it_stays_what_it_was(self, r):
        place(0)
        assert isinstance(connection.connection, connection.Database.Connection)
        assert type(connection.connection).__qualname__ == "Connection"
        assert len(type(connection.connection).__mro__) == len(connection.Database.Connection.__mro__) + 1
        place(1)
        assert len(type(connection.connection).__mro__) == len(connection.Database.Connection.__mro__) + 1


class TestInternalsThatHaveChanged:
    """Each transaction is in doubt."""

    def test_of_django(self, r, monkeypatch):
        connection.execute_wrappers = []
        with suppress(AttributeError):
            del connection.wrap_database_errors
        monkeypatch.setattr(rollback_detector, "INTERNALS", ["gone"])
        with transaction.atomic():
            place(1)
            with in_sql():
                place(2)
            place(3)
        assert numbers(r) == [1, 3]
        assert not connection.execute_wrappers

    @of_psycopg
    def test_of_psycopg(self, r, monkeypatch):
        def refuse(connection_class):
            raise TypeError

        connection.close()
        monkeypatch.setattr(rollback_detector, "_counting", refuse)
        with transaction.atomic():
            place(1)
            with suppress(ZeroDivisionError), connection.connection.transaction():
                place(2)
                raise ZeroDivisionError
        assert numbers(r) == [1]
