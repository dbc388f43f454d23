"""The heartbeat of a worker: what it says, and that it stops nothing."""

import logging
import re
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial

import pytest

from lightbus_django import fire, listens_to
from lightbus_django.bus import figures, heartbeats
from lightbus_django.conf import get_settings
from lightbus_django.listening.registry import registry
from lightbus_django.models import ConsumerGroup
from lightbus_django.running import heartbeat
from lightbus_django.running.worker import Worker
from tests.app.models import Effect
from tests.conftest import eventually
from tests.servers import Server, valkey

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])

NAME = "{lightbus_django}:process:price-monitor/worker"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeats, "INTERVAL", 0.2)


@pytest.fixture
def record(listeners):
    @listens_to("shop.order_placed")
    def record(event, number):
        Effect.objects.create(number=number)


@pytest.fixture
def run(run_worker):
    return partial(run_worker, "price-monitor")


def seen(redis_client, condition=lambda process: True):
    """Return the heartbeat of the only process once it is so."""

    def find():
        found = [each for each in heartbeats.read(redis_client) if condition(each.process)]
        return found[0] if found else None

    return eventually(find)


def test_a_worker_says_who_it_is_and_what_its_listeners_do(r, redis_client, listeners, run, lightbus):
    lightbus(CODE_VERSION="abc123", ACKNOWLEDGEMENT_TIMEOUT=45)
    go_on = threading.Event()

    @listens_to("shop.order_placed", listener_name="slow", start="beginning")
    def slow(event):
        go_on.wait(20)

    run()
    found = seen(redis_client, lambda process: process.listeners and process.listeners[0].read is not None).process
    assert (found.service_name, found.process_name, found.code_version) == ("price-monitor", "worker", "abc123")
    assert found.pid > 0
    assert found.host
    assert found.version
    assert found.timeout == 45
    (listener,) = found.listeners
    assert (listener.group, listener.listener, listener.in_flight) == ("price-monitor-slow", "slow", 0)
    assert listener.stepped < 20

    message = fire("shop.order_placed")
    (listener,) = seen(redis_client, lambda process: process.listeners[0].event_id).process.listeners
    assert (listener.event_id, listener.doing, listener.in_flight) == (message.id, "running the handler", 1)
    go_on.set()
    (listener,) = seen(redis_client, lambda process: process.listeners[0].settled is not None).process.listeners
    assert (listener.doing, listener.problem) == ("", "")


def test_figures_are_added_while_it_runs_and_as_it_ends(r, redis_client, record, run):
    worker = run()
    eventually(lambda: worker.consumers[0].has_joined)
    fire("shop.order_placed", number=1)

    def handled():
        return figures.read(redis_client, ["price-monitor-record"])["price-monitor-record"].handled

    eventually(lambda: handled() == 1)
    fire("shop.order_placed", number=2)
    eventually(lambda: Effect.objects.count() == 2)
    worker.stop()
    eventually(lambda: handled() == 2)


def test_a_process_goes_on_with_its_figures_after_a_restart(r, redis_client, record, run):
    def handled():
        return {name: sum(counts) for name, counts in figures.read_processes(redis_client, "price-monitor").items()}

    for number in (1, 2):
        worker = run()
        eventually(lambda worker=worker: worker.consumers[0].has_joined)
        fire("shop.order_placed", number=number)
        eventually(lambda number=number: handled() == {"worker": number})
        worker.stop()
        eventually(lambda: not heartbeats.read(redis_client))


def test_it_ends_with_the_worker(r, redis_client, record, run):
    worker = run()
    seen(redis_client)
    worker.stop()
    eventually(lambda: not heartbeats.read(redis_client))


def test_a_burst_writes_one_too(r, redis_client, listeners):
    names = []

    @listens_to("shop.order_placed", start="beginning")
    def handler(event):
        names.append(seen(redis_client).process.process_name)

    fire("shop.order_placed")
    Worker(registry, service_name="price-monitor", process_name="b", settings=get_settings()).run_burst()
    assert names == ["b"]
    assert heartbeats.read(redis_client) == []


class TestTwoProcessesUnderOneName:
    def errors(self, caplog):
        return [record for record in caplog.records if record.levelno >= logging.ERROR]

    def test_are_reported_by_both_within_seconds_and_again_later(self, r, record, run, caplog, monkeypatch):
        monkeypatch.setattr(heartbeat, "REMIND_INTERVAL", 0.5)
        monkeypatch.setattr(heartbeat.os, "getpid", threading.get_ident)
        run()
        eventually(lambda: r.hlen(NAME) == 1)
        run()
        eventually(lambda: len(self.errors(caplog)) >= 6, seconds=10)
        pids = {re.search(r"with pid (\d+)", each.getMessage())[1] for each in self.errors(caplog)}
        assert len(pids) == 2
        assert "two processes run under the name worker of service price-monitor" in caplog.text

    def test_one_reminder_a_minute_is_enough(self, r, record, run, caplog):
        run()
        eventually(lambda: r.hlen(NAME) == 1)
        run()
        eventually(lambda: len(self.errors(caplog)) == 2)
        time.sleep(3 * heartbeats.INTERVAL)
        assert len(self.errors(caplog)) == 2

    def test_have_different_names_usually(self, r, record, run, caplog):
        run("one")
        run("two")
        eventually(lambda: r.zcard(heartbeats.INDEX) == 2)
        time.sleep(4 * heartbeats.INTERVAL)
        assert not self.errors(caplog)


def test_a_process_that_is_killed_and_comes_back_is_no_double(r, manage, transactional_db):
    first = manage("lightbus_listen", "--process-name", "worker")
    eventually(lambda: r.hlen(NAME) == 1)
    first.send_signal(signal.SIGKILL)
    first.wait(10)
    second = manage("lightbus_listen", "--process-name", "worker")
    eventually(lambda: r.hlen(NAME) == 2)
    (started,) = [value.split(" ")[0] for value in r.hvals(NAME) if f'"pid":{second.pid},' in value]
    eventually(lambda: any(value.split(" ")[0] == started != value.split(" ")[1] for value in r.hvals(NAME)))
    second.send_signal(signal.SIGTERM)
    output, _ = second.communicate(timeout=30)
    assert "two processes" not in output
    assert second.returncode == 0


class TestARefusal:
    @pytest.fixture
    def server(self, lightbus) -> Iterator[Server]:
        with Server("maxmemory-policy noeviction", binary=valkey()) as server:
            lightbus(URL=server.url)
            yield server

    def test_by_a_user_without_the_right_stops_nothing_and_is_reported(self, server, lightbus, record, run, caplog):
        with server.client() as admin:
            admin.execute_command(*"ACL SETUSER old on >p ~*:stream ~*:republished +@all -hset -zadd".split())
            lightbus(URL=server.url_of("old", "p"))
            worker = run()
            eventually(lambda: worker.consumers[0].has_joined)
            lightbus(URL=server.url)
            fire("shop.order_placed", number=1)
            eventually(lambda: Effect.objects.count() == 1)
            eventually(lambda: "heartbeat: needs attention: " in caplog.text)
            assert caplog.text.count("heartbeat: needs attention: ") == 1
            assert "denies its user access" in caplog.text
            assert admin.keys("{lightbus_django}*") == []

    def test_by_a_full_redis_stops_nothing_and_is_reported(self, server, record, run, caplog):
        with server.client() as admin:
            worker = run()
            eventually(lambda: worker.consumers[0].has_joined)
            eventually(ConsumerGroup.objects.exists)
            ConsumerGroup.objects.pause("the test")
            eventually(lambda: worker.consumers[0].pause.is_wanted)
            fire("shop.order_placed", number=1)
            admin.config_set("maxmemory", 1)
            eventually(lambda: "heartbeat: interrupted, retrying: " in caplog.text)
            ConsumerGroup.objects.resume()
            eventually(lambda: Effect.objects.count() == 1)
            admin.config_set("maxmemory", 0)
            eventually(lambda: "heartbeat: resumed" in caplog.text)
            counted = "{lightbus_django}:figures:price-monitor-record:*"
            eventually(lambda: admin.keys(counted))

    def test_by_an_error_of_ours_is_reported_and_tried_again(self, r, record, run, caplog, monkeypatch):
        with monkeypatch.context() as patched:
            patched.setattr(heartbeats, "beat", None)
            run()
            eventually(lambda: "heartbeat: unexpected error; retrying" in caplog.text)
        eventually(lambda: r.hlen(NAME) == 1)
