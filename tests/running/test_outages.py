"""An error that does not go away while the server answers is no outage: it is told as an error, with what to do."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
import redis
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection, connections, transaction

from lightbus_django import BusUnavailable, fire, listens_to, on_commit
from lightbus_django.bus.client import RedisClient
from lightbus_django.conf import get_settings
from lightbus_django.exceptions import BusForbidden, DatabaseUnavailable
from lightbus_django.listening.registry import Registry, registry
from lightbus_django.models import OutboxEvent, ProcessedEvent
from lightbus_django.running.outages import COMPLAIN_INTERVAL, PATIENCE, Outage, advice
from lightbus_django.running.worker import Worker
from tests.app.models import Effect
from tests.conftest import eventually
from tests.servers import Server

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])

KEY = "shop.*:stream"


@pytest.fixture(autouse=True)
def logs(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "lightbus_django")
    return caplog


def levels(logs: pytest.LogCaptureFixture) -> list[str]:
    return [record.levelname for record in logs.records if record.levelno >= logging.WARNING]


class TestOutage:
    def test_an_outage_is_one_warning(self, logs: pytest.LogCaptureFixture) -> None:
        with closing(RedisClient("redis://127.0.0.1:1/0", timeout=1)) as redis_client:
            outage = Outage("shop-book", redis_client)
            for now in range(0, 1000, 10):
                outage.failed(BusUnavailable("away"), now)
            assert levels(logs) == ["WARNING"]
            assert not outage.needs_somebody
            outage.ended()
            outage.ended()
        assert [record.message for record in logs.records] == ["shop-book: waiting: away", "shop-book: going on"]

    @pytest.mark.parametrize("error", [BusUnavailable("READONLY"), DatabaseUnavailable("x"), DatabaseError("x")])
    def test_what_fails_though_the_server_answers_is_an_error_from_time_to_time(
        self, error: Exception, redis_client: RedisClient, logs: pytest.LogCaptureFixture
    ) -> None:
        outage = Outage("shop-book", redis_client)
        outage.failed(error, 0)
        outage.failed(error, 10)
        outage.failed(error, 9 + PATIENCE)
        assert levels(logs) == ["WARNING"]
        for now in range(round(10 + PATIENCE), round(COMPLAIN_INTERVAL)):
            outage.failed(error, now)
        assert levels(logs) == ["WARNING", "ERROR"]
        assert outage.needs_somebody
        assert "can't go on" in logs.text
        assert "so this is no outage" in logs.text
        outage.failed(error, 10 + PATIENCE + COMPLAIN_INTERVAL)
        assert levels(logs) == ["WARNING", "ERROR", "ERROR"]

    def test_a_server_that_comes_back_in_between_is_given_time(self, logs: pytest.LogCaptureFixture) -> None:
        with Server() as server, closing(RedisClient(server.url, timeout=1)) as redis_client:
            outage = Outage("shop-book", redis_client)
            for now in (0, 10, 20):
                outage.failed(BusUnavailable("away"), now)
            server.kill()
            outage.failed(BusUnavailable("away"), 30)
            server.start()
            for now in (40, 50, 39 + PATIENCE):
                outage.failed(BusUnavailable("away"), now)
            assert levels(logs) == ["WARNING"]
            outage.failed(BusUnavailable("away"), 40 + PATIENCE)
            assert levels(logs) == ["WARNING", "ERROR"]

    def test_a_server_that_loads_its_data_or_wants_another_password(self) -> None:
        with Server(password="secret") as server:
            with closing(RedisClient(server.url_of("", "wrong"), timeout=5)) as redis_client:
                assert redis_client.ping()
            with server.client() as client:
                client.config_set("rdbcompression", "no")
                client.mset({f"filler-{number}": "x" * 1000 for number in range(3000)})
                client.save()
                server.kill()
                server.config = ["key-load-delay 10000", "loading-process-events-interval-bytes 1024"]
                server.start()
                with closing(RedisClient(server.url, timeout=5)) as redis_client:
                    assert not redis_client.ping()

    def test_a_right_that_is_denied_is_an_error_at_once(
        self, redis_client: RedisClient, logs: pytest.LogCaptureFixture
    ) -> None:
        outage = Outage("trim", redis_client)
        for now in range(100):
            outage.failed(BusForbidden("no xtrim"), now)
        assert levels(logs) == ["ERROR"]


def test_says_what_to_do() -> None:
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


# --- Workers ----------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, listeners: Registry, r: redis.Redis) -> Iterator[Callable[[], None]]:
    """Run a worker that has little patience in a thread."""
    monkeypatch.setattr("lightbus_django.running.outages.PATIENCE", 0.2)
    monkeypatch.setattr("lightbus_django.running.outages.ASK_INTERVAL", 0.1)
    running = []

    def start() -> None:
        worker = Worker(registry, service_name="price-monitor", process_name="worker", settings=get_settings())
        thread = threading.Thread(target=worker.run)
        thread.start()
        running.append((worker, thread))

    yield start
    for worker, thread in running:
        worker.stop()
        thread.join(40)
        assert not thread.is_alive()


@contextmanager
def without_table() -> Iterator[None]:
    table = ProcessedEvent._meta.db_table
    with connection.schema_editor() as editor:
        editor.alter_db_table(ProcessedEvent, table, "elsewhere")
    try:
        yield
    finally:
        with connection.schema_editor() as editor:
            editor.alter_db_table(ProcessedEvent, "elsewhere", table)


def test_tables_that_are_missing(run: Callable[[], None], logs: pytest.LogCaptureFixture) -> None:
    @listens_to("shop.order_placed", start="beginning", listener_name="book")
    def book(event: object, number: int) -> None:
        Effect.objects.create(number=number)

    fire("shop.order_placed", number=1)
    with without_table():
        with pytest.raises(CommandError, match=r"manage\.py migrate"):
            call_command("lightbus_listen", "--burst")
        run()
        eventually(lambda: "price-monitor-book: can't go on" in logs.text)
        assert "manage.py migrate" in logs.text
    eventually(lambda: "price-monitor-book: going on" in logs.text)
    eventually(Effect.objects.exists)


def test_an_event_that_never_gets_through(run: Callable[[], None], logs: pytest.LogCaptureFixture) -> None:
    """As where something between Django and the driver is broken: each event loses its connection."""

    @listens_to("shop.order_placed", start="beginning", listener_name="book")
    def book(event: object, number: int) -> None:
        connections.close_all()

    fire("shop.order_placed", number=1)
    run()
    eventually(lambda: "price-monitor-book: can't go on" in logs.text)
    assert "so this is no outage" in logs.text


def test_such_an_event_ends_a_burst(run: Callable[[], None]) -> None:
    @listens_to("shop.order_placed", start="beginning", listener_name="book")
    def book(event: object, number: int) -> None:
        connections.close_all()

    fire("shop.order_placed", number=1)
    with pytest.raises(CommandError, match="database 'default'"):
        call_command("lightbus_listen", "--burst")


class TestBurst:
    """What could not be done shows in its exit code."""

    def test_a_periodic_job(self, lightbus: Callable[..., None], listeners: Registry, logs: Any) -> None:
        @listens_to("shop.order_placed")
        def handler(event: object) -> None: ...

        with Server() as server, server.client() as client:
            client.execute_command(*"ACL SETUSER me on >secret ~* +@all -xtrim".split())
            client.xadd(KEY, {"a": "b"})
            lightbus(URL=server.url_of("me", "secret"), STREAM_RETENTION=0)
            with pytest.raises(CommandError, match="xtrim"):
                call_command("lightbus_listen", "--burst")
        assert "trim: can't go on" in logs.text

    def test_events_that_are_refused(self, lightbus: Callable[..., None], listeners: Registry) -> None:
        with Server() as server, server.client() as client:
            client.execute_command(*"ACL SETUSER me on >secret ~* +@all -xadd".split())
            lightbus(URL=server.url_of("me", "secret"))
            on_commit("shop.order_placed", number=1)
            for _ in range(2):  # it is put off by the first one
                OutboxEvent.objects.filter(error="").update(due_at="2000-01-01T00:00Z")
                with pytest.raises(CommandError, match=r"outbox: 1 events can't be published yet.* denies its user"):
                    call_command("lightbus_listen", "--burst")
            client.execute_command(*"ACL SETUSER me +xadd".split())
            OutboxEvent.objects.update(due_at="2000-01-01T00:00Z")
            call_command("lightbus_listen", "--burst")
            assert client.xlen(KEY) == 1
