"""Connections between two batches: Django's own rules hold, and a pool that is too small is shared."""

import contextlib
import threading

import pytest
from django.db import connection, connections

from lightbus_django import fire, listens_to
from lightbus_django.conf import get_settings
from lightbus_django.database.connections import release_connections
from lightbus_django.listening.registry import registry
from lightbus_django.models import ProcessedEvent
from lightbus_django.running.worker import Worker
from tests.app.models import Effect
from tests.conftest import drain, eventually

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])

of_postgresql = pytest.mark.skipif(connection.vendor != "postgresql", reason="only PostgreSQL has pools, and names")
of_servers = pytest.mark.skipif(connection.vendor == "sqlite", reason="SQLite has no connection to lose")


@pytest.fixture
def consumer(r, listeners, consume):
    @listens_to("shop.order_placed", start="beginning")
    def record(event, number: int):
        Effect.objects.create(number=number)

    connection.close()
    return consume()


@pytest.fixture
def keep_for(monkeypatch):
    """Set CONN_MAX_AGE, and further settings, for connections that are opened from now on."""

    def keep(seconds, **settings):
        for key, value in {"CONN_MAX_AGE": seconds, **settings}.items():
            monkeypatch.setitem(connection.settings_dict, key, value)
        connection.close()

    yield keep
    connection.close()


def handle(consumer, number):
    """Let the consumer handle one event; return the driver's connection that it has then."""
    fire("shop.order_placed", number=number)
    consumer.step(block=1)
    assert connection.connection is not None
    return connection.connection


class TestAListener:
    def test_keeps_its_connection_while_events_come_and_gives_it_back_then(self, consumer, keep_for):
        keep_for(0)
        assert handle(consumer, 1) is handle(consumer, 2)
        consumer.step(block=0.01)
        assert connection.connection is None
        assert handle(consumer, 3)

    def test_keeps_it_when_idle_for_as_long_as_the_settings_say(self, consumer, keep_for):
        keep_for(None)
        first = handle(consumer, 1)
        consumer.step(block=0.01)
        assert connection.connection is first
        keep_for(600)
        second = handle(consumer, 2)
        consumer.step(block=0.01)
        assert handle(consumer, 3) is second
        connection.close_at = 0.0
        assert handle(consumer, 4) is not second

    def test_keeps_it_while_what_it_has_handled_is_not_durable(self, consumer, keep_for, lightbus):
        keep_for(0)
        for number in range(250):
            fire("shop.order_placed", number=number)
        drain(consumer)
        assert Effect.objects.count() == ProcessedEvent.objects.count() == 250

    @of_servers
    def test_checks_its_health_if_asked_to(self, consumer, keep_for, caplog):
        from tests.listening.handling import kill_this_connection

        keep_for(None, CONN_HEALTH_CHECKS=True)
        handle(consumer, 1)
        kill_this_connection()
        fire("shop.order_placed", number=2)
        caplog.set_level("INFO")
        consumer.step(block=1)
        assert Effect.objects.count() == 2
        assert "handling " not in caplog.text

    def test_nothing_is_closed_within_a_transaction(self, consumer, keep_for):
        from django.db import transaction

        keep_for(0)
        with transaction.atomic():
            Effect.objects.create(number=1)
            release_connections(idle=True)
        assert Effect.objects.count() == 1


@contextlib.contextmanager
def working():
    worker = Worker(registry, service_name="price-monitor", process_name="worker", settings=get_settings())
    results = []
    thread = threading.Thread(target=lambda: results.append(worker.run()))
    thread.start()
    try:
        yield
    finally:
        worker.stop()
        thread.join(60)
    assert results == [True]


@pytest.fixture
def six_listeners(r, listeners):
    for index in range(6):

        @listens_to("shop.order_placed", listener_name=f"number_{index}", start="beginning")
        def record(event, number: int, index=index):
            Effect.objects.create(name=str(index), number=number)


@pytest.fixture
def configure(monkeypatch):
    """Give OPTIONS to the connections of other threads."""

    def options(**options):
        monkeypatch.setitem(connections.settings, "default", {**connection.settings_dict, "OPTIONS": options})

    return options


@of_postgresql
class TestAWorker:
    def test_works_with_a_pool_that_is_too_small_and_says_so(self, six_listeners, configure, caplog):
        pytest.importorskip("psycopg_pool")
        configure(pool={"min_size": 1, "max_size": 2, "timeout": 10})
        try:
            with working():
                for number in range(50):
                    fire("shop.order_placed", number=number)
                eventually(lambda: Effect.objects.count() == 300)
        finally:
            there = connections.create_connection("default")
            there.close_pool()
        (warning,) = [text for text in map(str, caplog.messages) if "the pool of database 'default'" in text]
        assert "at most 2 connections for 7 threads" in warning
        assert "interrupted" not in caplog.text

    def test_has_no_connections_for_idle_listeners(self, six_listeners, configure):
        configure(application_name="listeners")
        with working():
            fire("shop.order_placed", number=1)
            eventually(lambda: Effect.objects.count() == 6)
            eventually(lambda: count("listeners") <= 1)  # that of its periodic jobs


def count(name):
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name = %s", [name])
        return cursor.fetchone()[0]
