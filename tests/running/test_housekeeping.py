"""Periodic jobs: a job that fails doesn't keep the others from running."""

from contextlib import closing, contextmanager

import pytest
from django.core.management import call_command
from django.db import ConnectionHandler, OperationalError, connections
from django.utils import timezone
from model_bakery import baker

from lightbus_django import fire, listens_to, on_commit
from lightbus_django.models import FailedEvent, OutboxEvent, ProcessedEvent
from lightbus_django.signals import listener_late
from tests.app.models import Effect
from tests.conftest import drain

KEY = "shop.*:stream"

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
    pytest.mark.usefixtures("listeners", "r"),
]


@pytest.fixture
def record(listeners):
    @listens_to("shop.order_placed", start="beginning")
    def record(event, number: int):
        Effect.objects.create(number=number)

    return record


@contextmanager
def connected(receiver, signal):
    signal.connect(receiver)
    try:
        yield
    finally:
        signal.disconnect(receiver)


def refuse(execute, sql, *arguments):
    raise OperationalError("away")


def test_retries_are_flagged_although_another_database_is_down(listeners, record, consume, housekeeping):
    @listens_to("shop.order_placed", using="other")
    def elsewhere(event): ...

    here, there = (consume(listener) for listener in listeners)
    baker.make(FailedEvent, consumer_group=here.group, next_attempt_at=timezone.now())
    keeper = housekeeping(there, here)
    with connections["other"].execute_wrapper(refuse):
        keeper.step()
    assert here.retries_due.is_set()


def test_streams_are_trimmed_although_one_key_is_not_a_stream(record, consume, housekeeping, lightbus, r):
    lightbus(STREAM_RETENTION=0)
    consumer = consume()
    for number in range(300):
        fire("shop.order_placed", number=number)
    drain(consumer)
    baker.make(OutboxEvent, event_name="a.b", due_at=None)
    r.set("a.*:stream", "in the way")
    keeper = housekeeping(consumer)
    for hour in range(3):
        keeper.step(now=3600.0 * hour)
    assert r.xlen(KEY) <= 100


def test_a_key_that_is_not_a_stream_fails_no_job(record, consume, housekeeping, r, caplog, listeners):
    @listens_to(["bad.happened", "shop.parcel_delivered"])
    def elsewhere(event): ...

    r.set("shop.order_placed:stream", "in the way of the other STREAM_USE")
    with connected(lambda **kwargs: None, listener_late):
        consumers = [consume(listener) for listener in listeners]
        r.delete("bad.*:stream")
        r.set("bad.*:stream", "in the way")
        keeper = housekeeping(*consumers)
        keeper.step()
    assert keeper.problems() == []
    assert [jobs.describe_problems() for jobs in keeper.all_jobs()] == [[]] * 3
    (text,) = {record.getMessage() for record in caplog.records}
    assert text.startswith("bad.*:stream: interrupted, retrying: ")
    assert text.endswith("the key 'bad.*:stream' holds something other than a stream; rename or delete it")
    r.delete("bad.*:stream")
    keeper.redis.trim()
    assert "bad.*:stream: resumed" in caplog.text


def test_nothing_is_trimmed_before_each_listener_of_the_service_has_its_group(
    listeners, record, consume, housekeeping, lightbus, r
):
    """Another process may run it."""
    lightbus(STREAM_RETENTION=0)

    @listens_to("shop.order_placed", start="beginning")
    def elsewhere(event): ...

    first, second = listeners
    consumer = consume(first)
    for number in range(300):
        fire("shop.order_placed", number=number)
    drain(consumer)
    keeper = housekeeping(consumer)
    keeper.redis.trim()
    assert r.xlen(KEY) == 300
    drain(consume(second))
    keeper.redis.trim()
    assert r.xlen(KEY) <= 100


def test_listeners_that_no_process_runs_are_reported_after_six_hours(listeners, record, consume, housekeeping, caplog):
    """They may not have started yet, or run in another process with --listener."""
    for name in ("one", "two"):

        @listens_to(["shop.order_placed", "crm.customer_moved"], listener_name=name)
        def elsewhere(event): ...

    first, second, _ = listeners
    keeper = housekeeping(consume(first))

    def look(hour):
        caplog.clear()
        while keeper.step(now=3600.0 * hour):
            pass
        return [record.getMessage() for record in caplog.records if "no process" in record.getMessage()]

    assert look(0) == []
    assert look(5) == []
    text = "no process has run these listeners in the last 6 hours: {}; until one does, {} can't be trimmed"
    assert look(6) == [text.format("price-monitor-one, price-monitor-two", "crm.*:stream, shop.*:stream")]
    consume(second)
    assert look(12) == [text.format("price-monitor-two", "crm.*:stream, shop.*:stream")]
    for listener in listeners:
        consume(listener)
    assert look(18) == []


def test_a_worker_that_starts_first_says_nothing_of_missing_groups(record, caplog):
    call_command("lightbus_listen", "--burst", "--listener", "record")
    assert "no process" not in caplog.text


def test_an_outage_and_its_end_are_logged_once(housekeeping, caplog):
    keeper = housekeeping()
    keeper.relay()  # finds the outbox
    with connections["default"].execute_wrapper(refuse):
        for second in range(60):
            keeper.step(now=float(second))
    assert caplog.text.count("relay of 'default': interrupted") == 1
    keeper.step(now=100.0)
    keeper.step(now=101.0)
    assert caplog.text.count("relay of 'default': resumed") == 1


def test_an_empty_default_database(housekeeping, monkeypatch, settings):
    """Django accepts an empty dict, with a router that never chooses it."""

    class Router:
        def allow_migrate(self, db, app_label, **hints):
            return None

        def db_for_write(self, model, **hints):
            return "other"

    settings.DATABASE_ROUTERS = [Router()]
    baker.make(OutboxEvent, _using="other", event_name="shop.order_placed", payload="{}", due_at=timezone.now())
    some = ConnectionHandler({"default": {}, "other": connections["other"].settings_dict})
    with closing(some["other"]):
        monkeypatch.setattr("lightbus_django.running.housekeeping.connections", some)
        housekeeping().relay()
    assert OutboxEvent.objects.using("other").get().due_at is None


def test_times_without_time_zones(record, consume, housekeeping, settings, r, capsys, caplog):
    settings.USE_TZ = False
    on_commit("shop.order_placed", number=1)
    consumer = consume()
    drain(consumer)
    r.xgroup_create(KEY, "old", "0")
    keeper = housekeeping(consumer)
    while keeper.step(now=1e9):
        pass
    assert "interrupted" not in caplog.text
    assert "group old of shop.*:stream has not been read" in caplog.text
    assert ProcessedEvent.objects.count() == 1
    call_command("lightbus_republish", "--since", "2020-03-01T12:00")
    call_command("lightbus_retire")
    assert "1 events published again" in capsys.readouterr().out
