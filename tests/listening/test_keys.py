"""An idempotency key is inserted once, whoever else has its event."""

import threading

import pytest
from django.db import connection
from model_bakery import baker

from lightbus_django import listens_to
from lightbus_django.exceptions import DatabaseUnavailable, SequenceBehind
from lightbus_django.listening.keys import AlreadyHandled, Keys
from lightbus_django.models import FailedEvent, ProcessedEvent
from tests.app.models import Effect
from tests.conftest import eventually
from tests.listening.handling import (
    KEY,
    at_first,
    deliver,
    deliveries,
    effects,
    execute,
    fire_orders,
    handle_all,
    handled,
    inbox,
    listen,
    of_postgresql,
    run_side_by_side,
    set_isolation_level,
)

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
    pytest.mark.usefixtures("listeners"),
]


class TestTheKey:
    def test_that_can_t_be_inserted_with_a_failure_leaves_the_event(self, monkeypatch):
        @listens_to("shop.order_placed")
        def handler(event, number):
            raise ValueError

        insert, calls = Keys.insert, []

        def refuse_the_second(*args, **kwargs):
            calls.append(args)
            if len(calls) > 1:
                raise AlreadyHandled
            return insert(*args, **kwargs)

        monkeypatch.setattr(Keys, "insert", refuse_the_second)
        with pytest.raises(DatabaseUnavailable, match="was not inserted, and is not there"):
            inbox().handle([deliver(1)])
        assert not FailedEvent.objects.exists()

    @of_postgresql
    def test_is_no_duplicate_because_a_sequence_is_behind(self):
        """As after a restore: without a target each conflict would look like a key."""

        @listens_to("shop.order_placed")
        def handler(event, number):
            Effect.objects.create(number=number)

        for number in range(5):
            baker.make(ProcessedEvent, event_id=f"old-{number}")
        first = ProcessedEvent.objects.order_by("id").first().pk
        execute(f"SELECT setval(pg_get_serial_sequence('{ProcessedEvent._meta.db_table}', 'id'), {first}, false)")
        box, left, refused = inbox(), [deliver(1), deliver(2)], 0
        while left:
            try:
                left = left[box.handle(left) :]
            except SequenceBehind:
                refused += 1
        assert refused == 5
        assert effects() == [1, 2]

    def test_that_is_neither_inserted_nor_there_is_an_error(self, monkeypatch):
        @listens_to("shop.order_placed")
        def handler(event, number):
            Effect.objects.create(number=number)

        def refuse(*args, **kwargs):
            raise AlreadyHandled

        monkeypatch.setattr(Keys, "insert", refuse)
        with pytest.raises(DatabaseUnavailable, match="was not inserted, and is not there"):
            inbox().handle([deliver(1)])
        assert effects() == []


def test_two_processes_that_have_one_event_at_a_time_make_its_effects_once():
    inside, other_waits = threading.Event(), threading.Event()

    @listens_to("shop.order_placed")
    def handler(event, number):
        inside.set()
        other_waits.wait(0.3)
        Effect.objects.create(number=number)

    one = deliver(1)

    def run():
        try:
            box = inbox()
            while True:
                try:
                    return box.handle([one])
                except DatabaseUnavailable:
                    pass  # busy or deadlocked: nobody's fault, again
        finally:
            connection.close()

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert effects() == [1]


def test_ids_of_third_parties_may_be_of_any_length_and_differ_in_case_only():
    @listens_to("shop.order_placed")
    def handler(event, number):
        Effect.objects.create(number=number)

    ids = ["x" * 5000, "x" * 5001, "Abc", "abc", "ABC ", "ABC", "\x00", "ünï"]
    box = inbox()
    for _ in range(2):
        handle_all(box, [deliver(number, event_id=event_id) for number, event_id in enumerate(ids)])
    assert effects() == list(range(len(ids)))


@of_postgresql
@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_an_event_that_two_processes_have_at_a_time_whatever_the_isolation(level, r, listeners, consume, lightbus):
    """As when it was published twice: the second one waits for the first one's key."""

    def wait_for_the_other_one(number):
        with connection.cursor() as cursor:
            eventually(lambda: is_waiting(cursor))

    lightbus(BATCH_SIZE=1)
    listen(before=wait_for_the_other_one)
    consumers = [consume(process_name=name) for name in ("worker-1", "worker-2")]
    fire_orders(1)
    ((_, fields),) = r.xrange(KEY)
    r.xadd(KEY, fields)
    run_side_by_side(*consumers, before=lambda: set_isolation_level(level))
    assert handled() == at_first(1)
    assert ProcessedEvent.objects.count() == 1
    assert not FailedEvent.objects.exists()
    assert deliveries(r) == []


def is_waiting(cursor):
    cursor.execute("SELECT 1 FROM pg_locks WHERE NOT granted")
    return cursor.fetchone()


@pytest.fixture
def latin1():
    """Have names in a character set that lacks most characters, as MariaDB's own default does before 11.6."""
    change = "ALTER TABLE lightbus_django_processedevent MODIFY event_name varchar(200) CHARACTER SET {} NOT NULL"
    with connection.cursor() as cursor:
        cursor.execute(change.format("latin1"))
        yield
        cursor.execute(change.format("utf8mb4"))


@pytest.mark.skipif(connection.vendor != "mysql", reason="only MariaDB has a character set for each column")
def test_an_event_whose_key_is_refused_holds_nobody_up(r, listeners, consume, latin1):
    listen()
    consumer = consume()
    r.xadd(KEY, {"id": "1", "api_name": b"\xff"})
    fire_orders(2)
    for _ in range(10):
        consumer.step(block=0)
    consumer.reader.flush()
    assert handled() == at_first(2)
    assert FailedEvent.objects.count() == 1
    assert deliveries(r) == []
