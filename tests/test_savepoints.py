"""Savepoints one after the other: whatever a handler does with its connection comes after its own savepoint."""

import contextlib
from contextlib import closing

import pytest
from django.db import DatabaseError, Error, connection, transaction
from model_bakery import baker

from lightbus_django import BusUnavailable, listens_to
from lightbus_django.exceptions import DatabaseUnavailable
from lightbus_django.models import FailedEvent, ProcessedEvent
from lightbus_django.savepoints import Savepoints
from tests.app.models import Effect

from .test_inbox import deliver, effects, handle_all, inbox

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("listeners")]

with_psycopg = pytest.mark.skipif(connection.vendor != "postgresql", reason="only psycopg sends and answers later")

TABLE = Effect._meta.db_table
INSERT = f"INSERT INTO {TABLE} (name, number) VALUES ('', %s)"


def with_the_orm(number):
    Effect.objects.create(number=number)


def with_a_cursor(number):
    with connection.cursor() as cursor:
        cursor.execute(INSERT, [number])


def with_many(number):
    with connection.cursor() as cursor:
        cursor.executemany(INSERT, [(number,), (number,)])


def in_a_transaction(number):
    with transaction.atomic():
        Effect.objects.create(number=number)


def after_a_look(number):
    list(Effect.objects.iterator(chunk_size=2))
    Effect.objects.create(number=number)


def with_the_driver(number):
    connection.connection.cursor().execute(INSERT, [number])


WAYS = [with_the_orm, with_a_cursor, with_many, in_a_transaction, after_a_look]
if connection.vendor == "postgresql":

    def with_copy(number):
        with connection.cursor() as cursor, cursor.copy(f"COPY {TABLE} (name, number) FROM STDIN") as copy:
            copy.write_row(["", number])

    def with_a_transaction_of_the_driver(number):
        with connection.connection.transaction():
            connection.connection.execute(INSERT, [number])

    WAYS += [with_the_driver, with_copy, with_a_transaction_of_the_driver]


@pytest.mark.parametrize("write", WAYS)
@pytest.mark.parametrize("idle", [[], [1, 4]], ids=["", "between others that write nothing"])
def test_of_a_handler_that_raises_nothing_is_left_and_its_neighbours_stay(write, idle):
    @listens_to("shop.order_placed")
    def handler(event, number):
        if number not in idle:
            write(number)
        if number in (2, 3):
            raise ZeroDivisionError

    handle_all(inbox(), [deliver(number) for number in range(6)])
    assert set(effects()) == {0, 1, 4, 5} - set(idle)
    assert FailedEvent.objects.count() == 2
    assert ProcessedEvent.objects.count() == 6


@pytest.mark.skipif(connection.vendor == "mysql", reason="MySQL has no word to say about a transaction that is gone")
@pytest.mark.parametrize("numbers", [(1, 2, 3), (2, 1, 3), (2, 3, 1)])
@pytest.mark.parametrize("after", [with_the_orm, with_a_cursor])
def test_with_a_handler_that_rolls_all_back_nothing_is_settled(after, numbers):
    written = []

    @listens_to("shop.order_placed")
    def handler(event, number):
        if number == 1:
            with connection.cursor() as cursor:
                cursor.execute("ROLLBACK")
        else:
            with contextlib.suppress(Error):
                after(number)
                written.append(number)
            after(number)

    box = inbox()
    with pytest.raises((DatabaseUnavailable, DatabaseError)):
        box.handle([deliver(number) for number in numbers])
    assert effects() == []
    assert written == [*numbers[: numbers.index(1)]]
    handle_all(box, [deliver(2), deliver(3)])
    assert effects() == [2, 2, 3, 3]


def test_they_may_be_the_first_of_a_transaction():
    with transaction.atomic(), closing(Savepoints("default")) as savepoints:
        with savepoints:
            baker.make(Effect, number=1)
        with contextlib.suppress(ZeroDivisionError), savepoints:
            baker.make(Effect, number=2)
            raise ZeroDivisionError
        savepoints.end()
    assert effects() == [1]


@pytest.mark.parametrize("end", [None, ZeroDivisionError, BusUnavailable("away")])
@pytest.mark.parametrize("writes", [True, False])
def test_the_connection_is_left_as_it_was(end, writes):
    @listens_to("shop.order_placed")
    def handler(event, number):
        if writes:
            Effect.objects.create(number=number)
        if end:
            raise end

    connection.ensure_connection()
    driver = connection.connection
    before = set(getattr(driver, "__dict__", ()))
    with contextlib.suppress(BusUnavailable):
        inbox().handle([deliver(1), deliver(2)])
    assert not connection.in_atomic_block
    assert connection.is_usable()
    assert connection.connection is driver
    assert set(getattr(driver, "__dict__", ())) == before


def test_the_connection_is_left_as_it_was_though_the_next_event_does_not_begin():
    @listens_to("shop.order_placed")
    def handler(event, number):
        pass

    def begin(delivery):
        if delivery is second:
            raise BusUnavailable("away")

    first, second = deliver(1), deliver(2)
    connection.ensure_connection()
    driver = connection.connection
    with pytest.raises(BusUnavailable):
        inbox().handle([first, second], begin=begin)
    assert connection.connection is driver
    assert connection.is_usable()


def test_within_a_handler_there_may_be_others():
    with transaction.atomic():
        baker.make(Effect, number=0)
        with closing(Savepoints("default")) as outer:
            with outer:
                baker.make(Effect, number=1)
                with closing(Savepoints("default")) as inner:
                    with inner:
                        baker.make(Effect, number=2)
                    with contextlib.suppress(ZeroDivisionError), inner:
                        baker.make(Effect, number=3)
                        raise ZeroDivisionError
                    inner.end()
            with outer:
                baker.make(Effect, number=4)
            outer.end()
    assert effects() == [0, 1, 2, 4]


class Traced:
    """What monitoring puts around a driver's connection: not of its type, and hands on what it is asked for."""

    def __init__(self, wrapped):
        object.__setattr__(self, "wrapped", wrapped)

    @property
    def __dict__(self):
        return vars(self.wrapped)

    def __getattr__(self, name):
        return getattr(self.wrapped, name)

    def __setattr__(self, name, value):
        setattr(self.wrapped, name, value)

    def __delattr__(self, name):
        delattr(self.wrapped, name)


@with_psycopg
def test_the_connection_may_be_wrapped():
    @listens_to("shop.order_placed")
    def handler(event, number):
        Effect.objects.create(number=number)

    connection.ensure_connection()
    driver = connection.connection
    connection.connection = Traced(driver)
    try:
        handle_all(inbox(), [deliver(number) for number in range(3)])
    finally:
        connection.connection = driver
    assert effects() == [0, 1, 2]


@with_psycopg
def test_an_answer_that_somebody_else_took_is_not_missed():
    @listens_to("shop.order_placed")
    def handler(event, number):
        if hasattr(connection.connection, "pgconn"):
            connection.connection.pgconn.exec_(b"SELECT 1")
        Effect.objects.create(number=number)

    handle_all(inbox(), [deliver(number) for number in range(3)])
    assert effects() == [0, 1, 2]


@with_psycopg
def test_psycopg_is_not_waited_for():
    """The handler begins while the server is at its savepoint."""
    connection.ensure_connection()
    if not hasattr(connection.connection, "pgconn"):
        pytest.skip("psycopg2 waits always")
    libpq, busy = connection.connection.pgconn, connection.Database.pq.TransactionStatus.ACTIVE
    with transaction.atomic():
        baker.make(Effect)
        with closing(Savepoints("default")) as savepoints:
            for _ in range(2):
                with savepoints:
                    assert libpq.transaction_status == busy
                    baker.make(Effect)
                    assert libpq.transaction_status != busy
            savepoints.end()
