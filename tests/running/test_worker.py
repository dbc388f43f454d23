"""Workers, and the command that runs them."""

import logging
import signal
import threading
import time
from functools import partial

import pytest
from django.core.management import CommandError, call_command
from django.db import connections
from django.db.backends.signals import connection_created
from django.test import override_settings
from django.test.utils import CaptureQueriesContext

from lightbus_django import fire, listens_to, on_commit
from lightbus_django.conf import get_settings
from lightbus_django.listening.consumer import Consumer
from lightbus_django.listening.registry import registry
from lightbus_django.models import FailedEvent, OutboxEvent
from lightbus_django.running.worker import Worker
from tests.app.models import Effect
from tests.conftest import eventually
from tests.workers import running_worker

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])


@pytest.fixture
def run(run_worker):
    return partial(run_worker, "shop")


def burst(*arguments):
    call_command("lightbus_listen", "--burst", *arguments)


class TestBurst:
    def test_handles_retries_and_relays_until_nothing_is_left(self, r, listeners, lightbus, lightbus_url):
        @listens_to("shop.order_placed", start="beginning")
        def place(event, number):
            Effect.objects.create(name="placed", number=number)
            on_commit("shop.parcel_delivered", number=number)
            if number == 1 and not FailedEvent.objects.exists() and event.attempt == 1 and not r.incr("tries") > 1:
                raise ValueError("the first time")

        @listens_to("shop.parcel_delivered", start="beginning")
        def deliver(event, number):
            Effect.objects.create(name="delivered", number=number)

        fire("shop.order_placed", number=0)
        fire("shop.order_placed", number=1)
        burst()
        FailedEvent.objects.retry_now()
        lightbus(URL="redis://127.0.0.1:1")
        on_commit("shop.order_placed", number=2)
        lightbus(URL=lightbus_url)
        OutboxEvent.objects.exclude(due_at=None).update(due_at="2000-01-01T00:00Z")
        burst()
        assert sorted(Effect.objects.values_list("name", "number")) == [
            (name, number) for name in ("delivered", "placed") for number in range(3)
        ]
        assert r.xpending("shop.*:stream", "price-monitor-place")["pending"] == 0

    def test_queries_the_databases_now_and_then_not_after_each_batch(self, r, listeners, lightbus, monkeypatch):
        monkeypatch.setattr("lightbus_django.running.burst.QUERY_INTERVAL", 600)
        lightbus(BATCH_SIZE=10)
        handled = []

        @listens_to("shop.order_placed", start="beginning", idempotent=False)
        def place(event, number):
            handled.append(number)

        for number in range(500):
            fire("shop.order_placed", number=number)
        with CaptureQueriesContext(connections["default"]) as queries:
            burst()
        assert handled == list(range(500))
        assert len(queries) < 50

    def test_fails_when_redis_is_down(self, listeners, lightbus):
        @listens_to("shop.order_placed")
        def handler(event): ...

        lightbus(URL="redis://:secret@127.0.0.1:1/0")
        with pytest.raises(CommandError, match=r"Redis at redis://127\.0\.0\.1:1/0 is not available") as caught:
            burst()
        assert "secret" not in str(caught.value)

    def test_runs_the_listeners_that_are_named(self, r, listeners):
        for name in ("one", "two"):

            @listens_to("shop.order_placed", listener_name=name, start="beginning")
            def handler(event, name=name):
                Effect.objects.create(name=name)

        fire("shop.order_placed")
        burst("--listener", "two")
        assert [effect.name for effect in Effect.objects.all()] == ["two"]
        with pytest.raises(CommandError, match="There is no listener 'three'"):
            burst("--listener", "three")

    def test_service_and_process_names_can_be_given(self, r, listeners, caplog):
        @listens_to("shop.order_placed")
        def handler(event): ...

        caplog.set_level(logging.INFO, "lightbus_django")
        burst("--service-name", "other_shop", "--process-name", "p-{hostname}")
        (group,) = r.xinfo_groups("shop.*:stream")
        assert group["name"] == "other-shop-handler"
        (consumer,) = r.xinfo_consumers("shop.*:stream", "other-shop-handler")
        assert consumer["name"].startswith("p-")
        assert "handler listens to shop.order_placed in group other-shop-handler" in caplog.text
        assert "service other_shop, process p-" in caplog.text


def test_the_command_needs_good_settings():
    with override_settings(LIGHTBUS={}), pytest.raises(CommandError, match="SERVICE_NAME"):
        burst()


def test_a_worker_without_listeners_relays(r, listeners, run):
    OutboxEvent.objects.create(event_name="shop.order_placed", payload='{"a":1}', due_at="2000-01-01T00:00Z")
    worker = run()
    eventually(lambda: r.exists("shop.*:stream"))
    assert "no listeners" in worker.describe()[-1]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_dies_ends_the_worker(r, listeners, monkeypatch):
    @listens_to("shop.order_placed")
    def handler(event): ...

    worker = Worker(registry, service_name="shop", process_name="worker", settings=get_settings())

    def die():
        raise SystemExit

    monkeypatch.setattr(worker.consumers[0], "step", die)
    assert worker.run() is False


def test_missing_tables_are_an_error(listeners, monkeypatch):
    monkeypatch.setattr("lightbus_django.running.database_jobs.has_outbox", lambda alias: False)
    with pytest.raises(CommandError, match=r"run manage\.py migrate"):
        burst()


def test_a_slow_listener_does_not_slow_the_others(r, listeners, run):
    release = threading.Event()

    @listens_to("shop.order_placed", start="beginning", idempotent=False)
    def slow(event):
        assert release.wait(30)

    @listens_to("shop.order_placed", start="beginning")
    def quick(event):
        Effect.objects.create(name="quick")

    for _ in range(3):
        fire("shop.order_placed")
    run()
    try:
        eventually(lambda: Effect.objects.count() == 3)
    finally:
        release.set()


def test_logs_that_redis_is_down_and_resumes_by_itself(r, listeners, lightbus, caplog, tmp_path):
    from lightbus_django.embedded import _free_port, embedded_server

    @listens_to("shop.order_placed", start="beginning")
    def handler(event):
        Effect.objects.create()

    port = _free_port()
    lightbus(URL=f"redis://localhost:{port}")
    with running_worker("shop"):
        line = f"shop-handler: interrupted, retrying: Redis at redis://localhost:{port}/0 is not available"
        eventually(lambda: line in caplog.text)
        with embedded_server(port=port):
            fire("shop.order_placed")
            eventually(Effect.objects.count)
            eventually(lambda: "shop-handler: resumed" in caplog.text)
    assert caplog.text.count("shop-handler: interrupted") <= 2


def test_sigterm_ends_a_worker_and_its_processes(r, manage):
    for options in ([], ["--processes", "2"]):
        process = manage("lightbus_listen", "--process-name", "p", *options)
        fire("shop.order_placed", number=1)
        eventually(lambda: r.exists("shop.*:stream") and len(r.xinfo_groups("shop.*:stream")) == 2)
        names = {"p"} if not options else {"p-1", "p-2"}
        eventually(
            lambda names=names: {c["name"] for c in r.xinfo_consumers("shop.*:stream", "price-monitor-book")} >= names
        )
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=30)
        assert process.returncode == 0, output
        assert "service price-monitor, process p" in output


@pytest.mark.parametrize("how", ["run", "run_burst"])
def test_leases_are_renewed_until_the_last_event_is_done(r, listeners, lightbus, redis_client, how):
    """In a burst and during a stop: no other process takes over the events in hand."""
    lightbus(ACKNOWLEDGEMENT_TIMEOUT=0.5, RECLAIM_INTERVAL=0.05)
    started = []

    @listens_to("shop.order_placed", start="beginning", idempotent=False)
    def slow(event, number):
        started.append(number)
        if number == 0 and how == "run":
            worker.stop()
        time.sleep(0.45)

    def stay_eager():
        while not done.is_set():
            consumer.step(block=0)
            done.wait(0.02)
        connections.close_all()

    for number in range(3):
        fire("shop.order_placed", number=number)
    worker = Worker(registry, service_name="shop", process_name="worker", settings=get_settings())
    (listener,) = registry
    consumer = Consumer(
        listener, service_name="shop", process_name="eager", settings=get_settings(), client=redis_client
    )
    done = threading.Event()
    eager = threading.Thread(target=stay_eager)
    eager.start()
    try:
        getattr(worker, how)()
        eventually(lambda: len(started) == 3)
    finally:
        done.set()
        eager.join()
    assert sorted(started) == [0, 1, 2]


class TestTheLogOfQueries:
    """With DEBUG on, Django keeps it, and clears it with each request."""

    @pytest.fixture
    def longest(self, settings):
        """The longest log that each thread had when it executed a query, and how many queries that were."""
        settings.DEBUG = True
        longest, counts = {}, {}

        def measure(execute, sql, params, many, context):
            name = threading.current_thread().name
            longest[name] = max(longest.get(name, 0), len(context["connection"].queries_log))
            counts[name] = counts.get(name, 0) + 1
            return execute(sql, params, many, context)

        def install(connection, **kwargs):
            connection.execute_wrappers.append(measure)

        connections.close_all()
        connection_created.connect(install)
        yield longest, counts
        connection_created.disconnect(install)
        for each in connections.all():
            each.execute_wrappers.clear()

    @pytest.mark.parametrize("options", [{}, {"idempotent": False}, {"batch": True}], ids=repr)
    def test_is_cleared_with_each_event(self, r, listeners, longest, run, lightbus, options):
        lightbus(BATCH_SIZE=10)

        @listens_to("shop.order_placed", listener_name="place", start="beginning", **options)
        def place(events, **kwargs):
            Effect.objects.create(name="placed")

        for number in range(300):
            fire("shop.order_placed", number=number)
        worker = run()
        for jobs in worker.housekeeping.all_jobs():
            for job in jobs._jobs:
                job.interval = 0.01
        longest, counts = longest
        eventually(lambda: Effect.objects.count() >= (30 if options.get("batch") else 300))
        thread = "jobs of database 'default'"
        eventually(lambda: counts.get(thread, 0) > 150)
        assert longest["shop-place"] < 60
        assert longest[thread] < 60

    def test_is_cleared_in_a_burst(self, r, listeners, longest, lightbus):
        lightbus(BATCH_SIZE=1)

        @listens_to("shop.order_placed", start="beginning")
        def place(event, number):
            if number < 200:
                on_commit("shop.order_placed", number=number + 1)

        fire("shop.order_placed", number=0)
        burst()
        longest, counts = longest
        assert counts["MainThread"] > 400
        assert longest["MainThread"] < 60
