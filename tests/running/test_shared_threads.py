"""More listeners than threads."""

import logging
import threading
import time
from collections import defaultdict

import pytest
from django.db import connection

from lightbus_django import fire, fire_many, listens_to
from lightbus_django.bus.stream_watch import StreamWatch
from lightbus_django.conf import get_settings
from lightbus_django.listening.consumer import Consumer
from lightbus_django.listening.registry import registry
from lightbus_django.listening.state import State
from lightbus_django.models import FailedEvent, ProcessedEvent
from lightbus_django.operating.pausing import pause, resume
from lightbus_django.running.health import Health
from lightbus_django.running.turn import Turn
from lightbus_django.running.worker import Worker
from tests.app.models import Effect
from tests.conftest import eventually
from tests.listening.handling import of_postgresql
from tests.servers import Server
from tests.workers import running_worker

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])

LONG = 3600.0
"""Seconds that no test waits: what happens earlier was not left to the clock."""


@pytest.fixture(autouse=True)
def no_clock(monkeypatch, lightbus):
    """Consumers have no steps that are due by time."""
    monkeypatch.setattr("lightbus_django.running.turn.MAX_IDLE", LONG)
    lightbus(RECLAIM_INTERVAL=LONG)


@pytest.fixture
def run(run_worker):
    """Run a worker with so many threads."""

    def run(threads, *, is_joined=True):
        return run_worker("shop", is_joined=is_joined, threads=threads)

    return run


def listen(name, event="shop.order_placed", handler=None, **options):
    """Declare a listener that keeps the numbers of its events; return their list."""
    numbers = []

    def handle(event, number, **kwargs):
        if handler:
            handler(number)
        numbers.append(number)

    listens_to(event, listener_name=name, **options)(handle)
    return numbers


def test_events_reach_all_listeners_without_waiting_for_the_clock(r, run):
    seen = [listen(f"listener_{number}", f"api{number % 3}.happened") for number in range(12)]
    run(2)
    for number in range(20):
        for api in range(3):
            fire(f"api{api}.happened", number=number)
        eventually(lambda number=number: all(number in numbers for numbers in seen))
    assert seen == [list(range(20))] * 12


def test_an_event_that_comes_just_before_its_stream_is_watched(r, run, monkeypatch):
    add, late = StreamWatch.add, []

    def fire_and_add(watch, streams):
        if seen:
            late.append(1000 + len(late))
            fire("shop.order_placed", number=late[-1])
        add(watch, streams)

    monkeypatch.setattr(StreamWatch, "add", fire_and_add)
    seen = listen("book", handler=lambda number: time.sleep(0.001))
    listen("another", handler=lambda number: time.sleep(0.001))
    run(1)
    for number in range(100):  # while all are busy, the stream is not watched
        fire("shop.order_placed", number=number)
    eventually(lambda: late and {*range(100), *late} <= set(seen))


def test_a_listener_has_one_thread_at_a_time_and_keeps_the_order(r, run):
    inside, crowds = defaultdict(int), []

    def handler(name):
        def handle(number):
            inside[name] += 1
            if inside[name] > 1:
                crowds.append(name)
            time.sleep(0.0001)
            inside[name] -= 1

        return handle

    seen = [listen(f"listener_{n}", handler=handler(n), start="beginning", idempotent=False) for n in range(8)]
    fire_many(("shop.order_placed", {"number": number}) for number in range(300))
    run(3)
    eventually(lambda: all(len(numbers) == 300 for numbers in seen))
    assert seen == [list(range(300))] * 8
    assert not crowds


def test_a_slow_listener_takes_one_thread_and_nobody_starves(r, run):
    held = threading.Event()
    listen("slow", handler=lambda number: held.wait(60), start="beginning", idempotent=False)
    seen = [listen(f"listener_{n}", start="beginning", idempotent=False) for n in range(100)]
    fire_many(("shop.order_placed", {"number": number}) for number in range(200))
    try:
        run(4, is_joined=False)
        eventually(lambda: all(len(numbers) == 200 for numbers in seen))
        fire("shop.order_placed", number=200)
        eventually(lambda: all(numbers[-1] == 200 for numbers in seen))
    finally:
        held.set()


def test_all_listeners_get_on_while_there_is_a_backlog(r, run):
    """No listener is done with all of its events before another one has begun."""
    order = []
    for n in range(6):
        listen(f"listener_{n}", handler=lambda number, n=n: order.append(n) or time.sleep(0.001), idempotent=False)
    worker = run(2)
    for consumer in worker.consumers:
        consumer.pause.begin("the test")
    eventually(lambda: all(consumer.state is State.PAUSED for consumer in worker.consumers))
    fire_many(("shop.order_placed", {"number": number}) for number in range(400))
    for consumer in worker.consumers:
        consumer.pause.end()
    eventually(lambda: len(order) == 2400)
    last_first = max(order.index(n) for n in range(6))
    first_done = min(len(order) - 1 - order[::-1].index(n) for n in range(6))
    assert last_first < first_done


@of_postgresql
def test_a_process_needs_one_database_connection_more_than_threads(r, run):
    def others():
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        with connection.cursor() as cursor:
            cursor.execute(query)
            return cursor.fetchone()[0]

    before, counts = others(), []
    seen = [listen(f"listener_{n}", handler=lambda n: Effect.objects.create(number=n)) for n in range(20)]
    run(3)
    for number in range(30):
        fire("shop.order_placed", number=number)
        counts.append(others() - before)
    eventually(lambda: all(len(numbers) == 30 for numbers in seen))
    counts.append(others() - before)
    assert 1 <= max(counts) <= 3 + 1


def test_connections_to_redis_are_shared(r, lightbus):
    with Server() as server:
        lightbus(URL=server.url)
        seen = [listen(f"listener_{n}", f"api{n}.happened", idempotent=False) for n in range(40)]
        with running_worker("shop", is_joined=True, threads=3):
            for n in range(40):
                fire(f"api{n}.happened", number=n)
            eventually(lambda: all(seen))
            with server.client() as client:
                # Three threads, the streams, leases, heartbeat, jobs; then this test, which fires and asks.
                assert len(client.client_list()) <= 3 + 1 + 4 + 2


@of_postgresql
def test_before_a_thread_turns_to_another_listener_its_events_are_durable_and_acknowledged(r, redis_client, listeners):
    listen("book", handler=lambda number: Effect.objects.create(number=number), start="beginning")
    (listener,) = registry
    settings = get_settings()
    consumer = Consumer(listener, service_name="shop", process_name="p", settings=settings, client=redis_client)
    turn = Turn(consumer, Health(consumer.group, redis_client))
    turn.take(0)
    fire_many(("shop.order_placed", {"number": number}) for number in range(50))
    while turn.take(0):
        assert not consumer.inbox._gate.unproven
        assert r.xpending("shop.*:stream", "shop-book")["pending"] == 0
    assert ProcessedEvent.objects.count() == 50
    consumer.stop()


def test_retries_and_pauses(r, run, lightbus):
    lightbus(SERVICE_NAME="shop", RETRY_BACKOFF=0.01)
    tried = []

    def fail_once(number):
        tried.append(number)
        if len(tried) == 1:
            raise ValueError("once")

    seen = listen("book", handler=fail_once)
    for n in range(3):
        listen(f"listener_{n}")
    worker = run(2)
    fire("shop.order_placed", number=1)
    eventually(lambda: seen == [1])
    eventually(lambda: not FailedEvent.objects.exists())
    assert pause("book", by="ada")
    book = next(consumer for consumer in worker.consumers if consumer.group == "shop-book")
    eventually(lambda: book.state is State.PAUSED)
    fire("shop.order_placed", number=2)
    assert resume("book")
    eventually(lambda: seen == [1, 2])


def test_a_stream_that_is_none_harms_no_other(r, run, caplog):
    bad = listen("bad", "bad.happened")
    seen = [listen(f"listener_{n}") for n in range(3)]
    r.set("bad.*:stream", "not a stream")
    worker = run(2, is_joined=False)
    eventually(lambda: sum(consumer.has_joined for consumer in worker.consumers) == 3)
    eventually(lambda: "'bad.*:stream' holds something other than a stream" in caplog.text)
    for number in range(3):
        fire("shop.order_placed", number=number)
        eventually(lambda number=number: all(number in numbers for numbers in seen))
    r.delete("bad.*:stream")
    eventually(lambda: r.exists("bad.*:stream"))
    fire("bad.happened", number=1)
    eventually(lambda: bad == [1])


def test_redis_goes_away_and_comes_back(listeners, lightbus, run, caplog):
    caplog.set_level(logging.INFO, "lightbus_django")
    with Server("appendonly yes") as server:
        lightbus(URL=server.url, REDIS_TIMEOUT=0.5)
        seen = [listen(f"listener_{n}") for n in range(5)]
        worker = run(2)
        fire("shop.order_placed", number=1)
        eventually(lambda: seen == [[1]] * 5)
        server.kill()
        eventually(lambda: "interrupted" in caplog.text)
        server.start()
        fire("shop.order_placed", number=2)
        eventually(lambda: seen == [[1, 2]] * 5)
        worker.stop()
        eventually(lambda: "stopped" in caplog.text)


def test_a_stop_names_the_listener_that_hangs_and_stops_the_others(r, listeners, lightbus, caplog):
    caplog.set_level(logging.INFO, "lightbus_django")
    held, entered = threading.Event(), threading.Event()
    listen("hanging", handler=lambda number: entered.set() or held.wait(60), idempotent=False)
    for n in range(4):
        listen(f"listener_{n}")
    worker = Worker(registry, service_name="shop", process_name="worker", settings=get_settings(), threads=2)
    done = []
    thread = threading.Thread(target=lambda: done.append(worker.run(stop_timeout=0.5)))
    thread.start()
    eventually(lambda: all(consumer.has_joined for consumer in worker.consumers))
    fire("shop.order_placed", number=1)
    assert entered.wait(30)
    worker.stop()
    thread.join(40)
    held.set()
    eventually(lambda: not any(thread.name.startswith(("listeners", "streams")) for thread in threading.enumerate()))
    assert done == [False]
    assert "still running 0.5 s after the stop: shop-hanging;" in caplog.text
