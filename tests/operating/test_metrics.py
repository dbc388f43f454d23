"""Metrics for Prometheus: what a scrape of a real server returns."""

import socket
import threading
import urllib.request

import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError, connection
from django.utils import timezone
from model_bakery import baker

from lightbus_django import fire, listens_to, on_commit
from lightbus_django.bus import heartbeats
from lightbus_django.bus.heartbeats import ProcessSign
from lightbus_django.listening.registry import registry
from lightbus_django.models import FailedEvent, OutboxEvent
from tests.app.models import Effect
from tests.conftest import drain, eventually

metrics = pytest.importorskip("lightbus_django.operating.metrics")
from prometheus_client.parser import text_string_to_metric_families  # noqa: E402

GROUP = "price-monitor-record"

pytestmark = [pytest.mark.django_db(transaction=True, databases=["default", "other"]), pytest.mark.usefixtures("r")]


@pytest.fixture
def record(listeners):
    @listens_to("shop.order_placed", start="beginning")
    def record(event, number: int):
        Effect.objects.create(number=number)
        if number == 1:
            raise ValueError

    return record


@pytest.fixture
def scrape():
    """Return the samples that the server of the block returns: values by name and label."""
    with metrics.serving(0, registry, service_name="price-monitor", process_name="worker") as port:
        yield lambda: samples(port)


def samples(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items(), reverse=True))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_counts_and_times_of_this_process(record, scrape, consume):
    assert scrape()["lightbus_events_handled_total", "record"] == 0
    for number in range(4):
        fire("shop.order_placed", number=number)
    drain(consume())
    found = scrape()
    assert found["lightbus_events_handled_total", "record"] == 3
    assert found["lightbus_events_failed_total", "record"] == 1
    assert found["lightbus_events_dead_lettered_total", "record"] == 0
    assert found["lightbus_events_lost_total", "record"] == 0
    assert found["lightbus_event_latency_seconds_count", "record"] == 3
    assert found["lightbus_event_latency_seconds_bucket", "record", "300.0"] == 3
    assert found["lightbus_handler_duration_seconds_count", "record"] == 3
    assert 0 < found["lightbus_handler_duration_seconds_sum", "record"] < 30


def test_what_is_lost_is_counted(record, scrape, consume, r):
    consumer = consume()
    fire("shop.order_placed", number=0)
    drain(consumer)
    for number in range(2, 6):
        fire("shop.order_placed", number=number)
    r.xtrim("shop.*:stream", maxlen=1, approximate=False)
    consumer.offsets.update()
    assert scrape()["lightbus_events_lost_total", "record"] == 3


def test_what_is_ahead_of_the_listeners(record, scrape, consume):
    consume()
    for number in range(3):
        fire("shop.order_placed", number=number)
    fire("shop.order_paid")
    baker.make(FailedEvent, consumer_group=GROUP, next_attempt_at=timezone.now())
    baker.make(FailedEvent, consumer_group=GROUP, next_attempt_at=None, _quantity=2, event_id=iter("ab"))
    found = scrape()
    assert found["lightbus_waiting_events", "record"] == 3
    assert found["lightbus_pending_events", "record"] == 0
    assert 0 < found["lightbus_oldest_event_age_seconds", "record"] < 60
    assert found["lightbus_retrying_events", "record"] == 1
    assert found["lightbus_dead_letters", "record"] == 2
    assert found["lightbus_listener_paused", "record"] == 0


def test_the_outboxes(record, scrape, lightbus, lightbus_url):
    lightbus(URL="redis://127.0.0.1:1/0")
    on_commit("shop.order_placed", number=1)
    baker.make(OutboxEvent, event_name="shop.order_placed", due_at=timezone.now(), error="refused")
    lightbus(URL=lightbus_url)
    found = scrape()
    assert found["lightbus_outbox_unpublished", "default"] == 2
    assert found["lightbus_outbox_refused", "default"] == 1
    assert found["lightbus_outbox_oldest_age_seconds", "default"] > 0
    assert found["lightbus_outbox_unpublished", "other"] == 0


def test_a_process_is_healthy_if_its_heartbeat_says_so(record, scrape, redis_client):
    assert scrape()["lightbus_process_healthy", "worker"] == 0
    sign = ProcessSign(service_name="price-monitor", process_name="worker")
    heartbeats.beat(redis_client, "start", sign)
    assert scrape()["lightbus_process_healthy", "worker"] == 1
    sign.stuck_jobs = ["relay: it hangs"]
    heartbeats.beat(redis_client, "start", sign)
    assert scrape()["lightbus_process_healthy", "worker"] == 0


def test_without_redis_there_are_no_gauges_that_claim_to_know(record, scrape, lightbus):
    lightbus(URL="redis://127.0.0.1:1/0")
    found = scrape()
    assert found["lightbus_process_healthy", "worker"] == 0
    assert ("lightbus_waiting_events", "record") not in found
    assert found["lightbus_dead_letters", "record"] == 0
    assert found["lightbus_events_handled_total", "record"] == 0


def test_a_scrape_does_not_wait_for_one_that_hangs(record, scrape, monkeypatch):
    monkeypatch.setattr(metrics, "PATIENCE", 0.1)
    entered, leave = threading.Event(), threading.Event()

    def hang(**arguments):
        entered.set()
        leave.wait(30)
        raise OperationalError("away")

    monkeypatch.setattr(metrics, "read_status", hang)
    thread = threading.Thread(target=scrape)
    thread.start()
    assert entered.wait(30)
    found = scrape()
    leave.set()
    thread.join(30)
    assert found["lightbus_process_healthy", "worker"] == 0
    assert ("lightbus_events_handled_total", "record") in found
    connection.close()


# --- The command --------------------------------------------------------------------------------


def free_ports(count):
    """Return the first of so many free ports in a row."""
    for first in range(20000, 60000, 7):
        try:
            for port in range(first, first + count):
                with socket.socket() as server:
                    server.bind(("", port))
        except OSError:
            continue
        return first
    raise AssertionError


def test_each_of_several_processes_has_a_port_of_its_own(manage, r):
    port = free_ports(2)
    manage("lightbus_listen", "--processes=2", "--process-name=p", f"--metrics-port={port}", "--listener=book")

    def healthy(number):
        try:
            return samples(port + number - 1)["lightbus_process_healthy", f"p-{number}"]
        except OSError:
            return 0

    for number in 1, 2:
        assert eventually(lambda number=number: healthy(number))
    for number in range(20):
        fire("shop.order_placed", number=number)
    handled = "lightbus_events_handled_total", "book"
    assert eventually(lambda: sum(samples(each)[handled] for each in (port, port + 1)) == 20)


def test_a_port_that_is_taken_is_an_error(record):
    with socket.socket() as server:
        server.bind(("", 0))
        server.listen()
        port = server.getsockname()[1]
        with pytest.raises(CommandError, match=f"Can't serve metrics at port {port}: .*in use"):
            call_command("lightbus_listen", "--burst", f"--metrics-port={port}")
