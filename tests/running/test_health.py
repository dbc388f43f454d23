"""Work that keeps failing although the server answers needs attention: that is an error, with what to do."""

import logging
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
import redis
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection, connections

from lightbus_django import BusUnavailable, fire, listens_to, on_commit
from lightbus_django.bus.client import RedisClient
from lightbus_django.exceptions import BusForbidden, DatabaseUnavailable
from lightbus_django.listening.registry import Registry
from lightbus_django.models import OutboxEvent, ProcessedEvent
from lightbus_django.running.health import GRACE_PERIOD, REMINDER_INTERVAL, Health
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


class TestHealth:
    def test_an_outage_is_one_warning(self, logs: pytest.LogCaptureFixture) -> None:
        with closing(RedisClient("redis://127.0.0.1:1/0", timeout=1)) as redis_client:
            health = Health("shop-book", redis_client)
            for now in range(0, 1000, 10):
                health.failed(BusUnavailable("away"), now)
            assert levels(logs) == ["WARNING"]
            assert not health.needs_attention
            health.succeeded()
            health.succeeded()
        assert [record.message for record in logs.records] == [
            "shop-book: interrupted, retrying: away",
            "shop-book: resumed",
        ]

    @pytest.mark.parametrize("error", [BusUnavailable("READONLY"), DatabaseUnavailable("x"), DatabaseError("x")])
    def test_a_failure_while_the_server_answers_is_a_repeated_error(
        self, error: Exception, redis_client: RedisClient, logs: pytest.LogCaptureFixture
    ) -> None:
        health = Health("shop-book", redis_client)
        health.failed(error, 0)
        health.failed(error, 10)
        health.failed(error, 9 + GRACE_PERIOD)
        assert levels(logs) == ["WARNING"]
        for now in range(round(10 + GRACE_PERIOD), round(REMINDER_INTERVAL)):
            health.failed(error, now)
        assert levels(logs) == ["WARNING", "ERROR"]
        assert health.needs_attention
        assert "needs attention" in logs.text
        assert "so this is not an outage" in logs.text
        health.failed(error, 10 + GRACE_PERIOD + REMINDER_INTERVAL)
        assert levels(logs) == ["WARNING", "ERROR", "ERROR"]

    def test_a_server_that_has_come_back_gets_a_new_grace_period(self, logs: pytest.LogCaptureFixture) -> None:
        with Server() as server, closing(RedisClient(server.url, timeout=1)) as redis_client:
            health = Health("shop-book", redis_client)
            for now in (0, 10, 20):
                health.failed(BusUnavailable("away"), now)
            server.kill()
            health.failed(BusUnavailable("away"), 30)
            server.start()
            for now in (40, 50, 39 + GRACE_PERIOD):
                health.failed(BusUnavailable("away"), now)
            assert levels(logs) == ["WARNING"]
            health.failed(BusUnavailable("away"), 40 + GRACE_PERIOD)
            assert levels(logs) == ["WARNING", "ERROR"]

    def test_whether_a_server_answers(self) -> None:
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

    def test_a_missing_permission_is_an_error_at_once(
        self, redis_client: RedisClient, logs: pytest.LogCaptureFixture
    ) -> None:
        health = Health("trim", redis_client)
        for now in range(100):
            health.failed(BusForbidden("no xtrim"), now)
        assert levels(logs) == ["ERROR"]


# --- Workers ----------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, r: redis.Redis, run_worker: Callable[..., Worker]) -> Callable[[], Worker]:
    """Run a worker with a short grace period in a thread."""
    monkeypatch.setattr("lightbus_django.running.health.GRACE_PERIOD", 0.2)
    monkeypatch.setattr("lightbus_django.running.health.PROBE_INTERVAL", 0.1)
    return run_worker


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


def test_missing_tables(run: Callable[[], None], logs: pytest.LogCaptureFixture) -> None:
    @listens_to("shop.order_placed", start="beginning", listener_name="book")
    def book(event: object, number: int) -> None:
        Effect.objects.create(number=number)

    fire("shop.order_placed", number=1)
    with without_table():
        with pytest.raises(CommandError, match=r"manage\.py migrate"):
            call_command("lightbus_listen", "--burst")
        run()
        eventually(lambda: "price-monitor-book: needs attention" in logs.text)
        assert "manage.py migrate" in logs.text
    eventually(lambda: "price-monitor-book: resumed" in logs.text)
    eventually(Effect.objects.exists)


def test_an_event_that_never_gets_through(run: Callable[[], None], logs: pytest.LogCaptureFixture) -> None:
    """Something between Django and the driver is broken: each event loses its connection."""

    @listens_to("shop.order_placed", start="beginning", listener_name="book")
    def book(event: object, number: int) -> None:
        connections.close_all()

    fire("shop.order_placed", number=1)
    run()
    eventually(lambda: "price-monitor-book: needs attention" in logs.text)
    assert "so this is not an outage" in logs.text


def test_an_event_that_never_gets_through_ends_a_burst(run: Callable[[], None]) -> None:
    @listens_to("shop.order_placed", start="beginning", listener_name="book")
    def book(event: object, number: int) -> None:
        connections.close_all()

    fire("shop.order_placed", number=1)
    with pytest.raises(CommandError, match="database 'default'"):
        call_command("lightbus_listen", "--burst")


class TestBurst:
    """Work that could not be done is an error of the command."""

    def test_a_periodic_job(self, lightbus: Callable[..., None], listeners: Registry, logs: Any) -> None:
        @listens_to("shop.order_placed")
        def handler(event: object) -> None: ...

        with Server() as server, server.client() as client:
            client.execute_command(*"ACL SETUSER me on >secret ~* +@all -xtrim".split())
            client.xadd(KEY, {"a": "b"})
            lightbus(URL=server.url_of("me", "secret"), STREAM_RETENTION=0)
            with pytest.raises(CommandError, match="xtrim"):
                call_command("lightbus_listen", "--burst")
        assert "trim: needs attention" in logs.text

    def test_refused_events(self, lightbus: Callable[..., None], listeners: Registry) -> None:
        with Server() as server, server.client() as client:
            client.execute_command(*"ACL SETUSER me on >secret ~* +@all -xadd".split())
            lightbus(URL=server.url_of("me", "secret"))
            on_commit("shop.order_placed", number=1)
            for _ in range(2):  # the first one postpones the event
                OutboxEvent.objects.filter(error="").update(due_at="2000-01-01T00:00Z")
                with pytest.raises(CommandError, match=r"outbox: 1 events could not be published; .* denies its user"):
                    call_command("lightbus_listen", "--burst")
            client.execute_command(*"ACL SETUSER me +xadd".split())
            OutboxEvent.objects.update(due_at="2000-01-01T00:00Z")
            call_command("lightbus_listen", "--burst")
            assert client.xlen(KEY) == 1
