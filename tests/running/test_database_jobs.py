"""Databases that don't answer: a worker continues its work in the others."""

import contextlib
import signal
import socket
import threading

import pytest
from django.db import connections
from django.utils import timezone
from model_bakery import baker

from lightbus_django import fire, listens_to
from lightbus_django.conf import get_settings
from lightbus_django.events.codec import dump_fields
from lightbus_django.listening.registry import registry
from lightbus_django.models import FailedEvent, OutboxEvent
from lightbus_django.running.worker import Worker
from tests.app.models import Effect
from tests.conftest import drain, eventually
from tests.proxies import Proxy

KEY = "shop.*:stream"
GROUP = "price-monitor-record"

pytestmark = [pytest.mark.django_db(transaction=True, databases=["default", "other"])]


@contextlib.contextmanager
def silent_port():
    """Yield a port that accepts connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(100)
        yield server.getsockname()[1]


@contextlib.contextmanager
def refusing_port():
    """Yield a port that refuses connections, and that no other process can listen on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        yield server.getsockname()[1]


@pytest.fixture(params=["silent", "refusing"])
def away(request):
    """The port of a server that does not answer, or refuses."""
    pytest.importorskip("psycopg")
    with (silent_port if request.param == "silent" else refusing_port)() as port:
        yield port


@pytest.fixture
def record(listeners):
    @listens_to("shop.order_placed", start="beginning")
    def record(event, number: int):
        Effect.objects.create(number=number)

    return record


@pytest.fixture
def point_to(monkeypatch):
    """Let the connections to the database `other` that are opened from now on go to a port."""

    def point(port, **settings):
        connections["other"].close()
        there = {**connections["other"].settings_dict, "ENGINE": "django.db.backends.postgresql", "NAME": "elsewhere"}
        there |= {"USER": "somebody", "HOST": "127.0.0.1", "PORT": port, "OPTIONS": {}, **settings}
        monkeypatch.setitem(connections.settings, "other", there)

    return point


@pytest.fixture
def work(r, record):
    """Run a worker in a thread; returns what `run` returned when it is stopped."""
    results = []

    @contextlib.contextmanager
    def running(**options):
        worker = Worker(registry, service_name="price-monitor", process_name="worker", settings=get_settings())
        thread = threading.Thread(target=lambda: results.append(worker.run(**options)))
        thread.start()
        try:
            yield results
        finally:
            worker.stop()
            thread.join(40)
            assert not thread.is_alive()

    return running


def leave_in_the_outbox():
    return baker.make(
        OutboxEvent, event_name="shop.order_placed", payload='{"number": 1}', due_at=timezone.now(), error=""
    )


def leave_a_retry(r):
    """An event of which the first attempt has failed."""
    fields = {b"id": b"a", b"api_name": b"shop", b"event_name": b"order_placed", b"version": b"1", b":number": b"2"}
    return baker.make(
        FailedEvent,
        event_id="a",
        event_name="shop.order_placed",
        consumer_group=GROUP,
        stream=KEY,
        stream_id="1-1",
        fields=dump_fields(fields),
        attempts=1,
        next_attempt_at=timezone.now(),
    )


def test_due_work_is_done_and_a_stop_is_clean(away, r, manage, lightbus_url):
    port = away
    leave_in_the_outbox()
    process = manage("lightbus_listen", OTHER_DATABASE_URL=f"postgres://somebody@127.0.0.1:{port}/elsewhere")
    eventually(lambda: r.exists(KEY) and r.xlen(KEY))
    eventually(Effect.objects.count)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=40)
    assert process.returncode == 0, output
    assert "stopped" in output


def test_retries_and_trimming_continue(away, r, lightbus, consume, record, point_to, work, monkeypatch):
    monkeypatch.setattr("lightbus_django.running.jobs.STUCK_AFTER", 1)
    lightbus(STREAM_RETENTION=0)
    for number in range(300):
        fire("shop.order_placed", number=number)
    drain(consume())  # streams are trimmed when the worker starts, and then once a minute
    leave_a_retry(r)
    point_to(away)
    with work():
        eventually(lambda: Effect.objects.count() == 301)
        eventually(lambda: r.xlen(KEY) <= 100)
    assert not FailedEvent.objects.exists()


def test_one_that_hangs_is_named_for_as_long_as_it_does(r, point_to, work, caplog, monkeypatch):
    monkeypatch.setattr("lightbus_django.running.jobs.STUCK_AFTER", 0.2)
    monkeypatch.setattr("lightbus_django.running.jobs.REMINDER_INTERVAL", 0.2)
    pytest.importorskip("psycopg")
    with silent_port() as port:
        point_to(port)
        with work() as results:
            eventually(lambda: caplog.text.count("database 'other' has not answered for") >= 3)
        assert results == [True]
    (stop,) = [record for record in caplog.records if "not waiting for" in record.getMessage()]
    assert "'other'" in stop.getMessage()
    assert {record.levelname for record in caplog.records if "has not answered" in record.getMessage()} == {"WARNING"}


def test_one_that_refuses_is_named_once(r, point_to, work, caplog):
    pytest.importorskip("psycopg")
    with refusing_port() as port:
        point_to(port)
        with work() as results:
            eventually(lambda: "interrupted, retrying: database 'other'" in caplog.text)
        assert results == [True]
    assert caplog.text.count("database 'other'") <= 2


def test_a_burst_skips_it(away, r, record, point_to, monkeypatch, caplog):
    monkeypatch.setattr("lightbus_django.running.worker.DATABASE_TIMEOUT", 2)
    row = leave_in_the_outbox()
    fire("shop.order_placed", number=2)
    point_to(away)
    Worker(registry, service_name="price-monitor", process_name="worker", settings=get_settings()).run_burst()
    row.refresh_from_db()
    assert row.due_at is None
    assert Effect.objects.count() == 2
    assert "database 'other'" in caplog.text
    assert "skipping this database" in caplog.text


def test_one_without_our_tables_is_checked_rarely_and_never_if_the_router_excludes_it(
    r, listeners, housekeeping, settings, monkeypatch
):
    looks = []
    monkeypatch.setattr("lightbus_django.running.database_jobs.has_outbox", lambda alias: looks.append(alias) and False)
    keeper = housekeeping()
    looks.clear()
    for second in range(601):
        keeper.step(now=1e6 + second)
    assert sorted(looks) == ["default"] * 3 + ["other"] * 3

    class Router:
        def allow_migrate(self, db, app_label, **hints):
            return db == "default"

    settings.DATABASE_ROUTERS = [Router()]
    assert [database.alias for database in housekeeping().databases] == ["default"]


def test_one_of_ours_that_hangs_holds_up_neither_the_relay_nor_the_retries_of_another(
    postgresql, r, record, point_to, work, caplog, monkeypatch
):
    """It has an outbox and a listener, and stops to answer in the midst of it."""
    monkeypatch.setattr("lightbus_django.running.jobs.STUCK_AFTER", 1)

    @listens_to("shop.parcel_delivered", using="other", start="beginning")
    def elsewhere(event): ...

    caplog.set_level("INFO")
    with Proxy(postgresql.url) as proxy:
        point_to(proxy.port, NAME="postgres", USER="postgres")
        with work() as results:
            postgresql.query(LEFT_IN_THE_OUTBOX)
            eventually(lambda: "left in the outbox of 'other'" in caplog.text)
            eventually(lambda: postgresql.query("SELECT 1 FROM lightbus_django_consumergroup"))
            proxy.silence(new=True)
            leave_in_the_outbox()
            leave_a_retry(r)
            eventually(lambda: Effect.objects.count() == 3)
            eventually(lambda: "database 'other' has not answered" in caplog.text)
        assert results == [True]


LEFT_IN_THE_OUTBOX = """
INSERT INTO lightbus_django_outboxevent (id, event_name, version, payload, created_at, due_at, error)
VALUES (gen_random_uuid(), 'shop.order_placed', 1, '{"number": 7}', now(), now(), '') RETURNING 1
"""
