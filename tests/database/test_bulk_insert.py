"""A table whose sequence is behind its rows, as after a restore: said with what mends it, and nothing is lost."""

import logging
import threading

import pytest
from django.core.management import CommandError, call_command
from django.db import connection, connections

from lightbus_django import fire, listens_to
from lightbus_django.conf import get_settings
from lightbus_django.exceptions import SequenceBehind
from lightbus_django.listening.registry import registry
from lightbus_django.models import FailedEvent, ProcessedEvent
from lightbus_django.running.worker import Worker
from tests.app.models import Effect
from tests.conftest import drain
from tests.waiting import eventually

KEY = "shop.*:stream"

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
    pytest.mark.skipif(connection.vendor != "postgresql", reason="only PostgreSQL has sequences that can be behind"),
]


def set_back(model):
    """Let the sequence of a table be behind a row that is there."""
    values = {"event_id": "restored", "consumer_group": "restored", "event_name": "shop.order_placed"}
    first = model.objects.create(**values)
    table = model._meta.db_table
    with connection.cursor() as cursor:
        # So far behind that tries alone, each of which takes a number, don't mend it.
        cursor.execute(f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), %s)", [first.pk])
        extra = ", processed_at, discarded" if model is ProcessedEvent else FAILED_COLUMNS
        filling = ", now(), false" if model is ProcessedEvent else FAILED_VALUES
        cursor.execute(
            f"INSERT INTO {table} (id, event_id, consumer_group, event_name{extra})"
            f" SELECT %s + n, 'restored' || n, 'restored', 'shop.order_placed'{filling} FROM generate_series(1, 500) n",
            [first.pk],
        )


FAILED_COLUMNS = ", stream, stream_id, fields, error, traceback, attempts, failed_at"
FAILED_VALUES = ", '', '', '[]', '', '', 1, now()"


def mend(text):
    """Do what an error says."""
    statement = text[text.index("SELECT setval(") :].partition(";")[0]
    with connection.cursor() as cursor:
        cursor.execute(statement)


@pytest.fixture(params=["single", "batch", "without keys"])
def kind(request):
    return request.param


@pytest.fixture
def listen(listeners, kind):
    def declare(fails=lambda: False):
        def handle(number):
            Effect.objects.create(number=number)
            if fails():
                raise ValueError

        if kind == "batch":

            @listens_to("shop.order_placed", batch=True, listener_name="book", start="beginning")
            def book_all(events):
                for event in events:
                    handle(event.payload["number"])
        else:

            @listens_to("shop.order_placed", idempotent=kind == "single", start="beginning")
            def book(event, number):
                handle(number)

    return declare


def is_written(kind, model):
    return model is FailedEvent or kind != "without keys"


@pytest.mark.parametrize("model", [ProcessedEvent, FailedEvent])
def test_says_what_to_do_and_goes_on_by_itself(model, kind, r, listen, consume):
    """Events that fail need both tables."""
    listen(fails=lambda: True)
    consumer = consume()
    set_back(model)
    for number in range(3):
        fire("shop.order_placed", number=number)
    if not is_written(kind, model):
        drain(consumer)
    else:
        for _ in range(3):
            with pytest.raises(SequenceBehind, match=f"sequence of {model._meta.db_table}") as caught:
                consumer.step(block=0)
        assert r.xpending(KEY, "price-monitor-book")["pending"] == 3
        assert not FailedEvent.objects.filter(consumer_group="price-monitor-book").exists()
        mend(str(caught.value))
        drain(consumer)
    failed = FailedEvent.objects.filter(consumer_group="price-monitor-book")
    assert failed.filter(attempts=1).count() == 3
    assert r.xpending(KEY, "price-monitor-book")["pending"] == 0


def test_events_that_succeed(kind, r, listen, consume):
    listen()
    consumer = consume()
    set_back(ProcessedEvent)
    for number in range(3):
        fire("shop.order_placed", number=number)
    if kind != "without keys":
        for _ in range(3):
            with pytest.raises(SequenceBehind) as caught:
                consumer.step(block=0)
        assert not Effect.objects.exists()
        mend(str(caught.value))
    drain(consumer)
    assert sorted(Effect.objects.values_list("number", flat=True)) == [0, 1, 2]
    assert not FailedEvent.objects.filter(consumer_group="price-monitor-book").exists()


def test_a_retry_whose_key_is_gone(kind, r, listen, consume):
    fails = [True]
    listen(fails=lambda: bool(fails))
    consumer = consume()
    fire("shop.order_placed", number=0)
    drain(consumer)
    ProcessedEvent.objects.all().delete()
    FailedEvent.objects.all().retry_now()
    fails.clear()
    set_back(ProcessedEvent)
    consumer.retries_due.set()
    if kind != "without keys":
        for _ in range(3):
            with pytest.raises(SequenceBehind) as caught:
                consumer.step(block=0)
        assert FailedEvent.objects.get().attempts == 1
        mend(str(caught.value))
    drain(consumer)
    assert not FailedEvent.objects.exists()
    assert Effect.objects.count() == (2 if kind == "without keys" else 1)


def test_a_handler_s_own_table_is_its_own_failure(kind, r, listen, consume):
    listen()
    consumer = consume()
    Effect.objects.create(pk=10**6)
    with connection.cursor() as cursor:
        cursor.execute("SELECT setval(pg_get_serial_sequence('tests_effect', 'id'), %s, false)", [10**6])
    fire("shop.order_placed", number=0)
    drain(consumer)
    assert "IntegrityError" in FailedEvent.objects.get().error


def test_a_burst_ends_with_an_error(kind, r, listen):
    listen(fails=lambda: True)
    set_back(FailedEvent)
    fire("shop.order_placed", number=0)
    with pytest.raises(CommandError, match=r"SELECT setval\(pg_get_serial_sequence"):
        call_command("lightbus_listen", "--burst")


def test_a_worker_says_it_as_an_error_and_goes_on(r, listen, kind, caplog):
    listen(fails=lambda: True)
    set_back(FailedEvent)
    worker = Worker(registry, service_name="price-monitor", process_name="worker", settings=get_settings())

    def run():
        try:
            worker.run()
        finally:
            connections.close_all()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        fire("shop.order_placed", number=0)
        eventually(lambda: "SELECT setval(" in caplog.text)
        (record,) = [record for record in caplog.records if "SELECT setval(" in record.getMessage()]
        assert record.levelno == logging.ERROR
        mend(record.getMessage())
        eventually(lambda: FailedEvent.objects.filter(consumer_group="price-monitor-book").exists())
    finally:
        worker.stop()
        thread.join(40)


def test_discarding_says_it_too(admin_client):
    failed = FailedEvent.objects.create(event_id="1", consumer_group="g")
    set_back(ProcessedEvent)
    with pytest.raises(SequenceBehind):
        failed.discard()
    assert FailedEvent.objects.get() == failed
