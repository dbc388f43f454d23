"""A group with a live consumer is never retired, whatever the consumer waits for, on every kind of server."""

import threading
import time
from contextlib import closing
from functools import partial

import pytest
from django.core.management import CommandError, call_command

from lightbus_django import fire, listens_to
from lightbus_django.bus import streams
from lightbus_django.bus.client import RedisClient
from lightbus_django.conf import get_settings
from lightbus_django.listening.consumer import Consumer
from lightbus_django.listening.registry import registry
from tests.conftest import eventually
from tests.servers import Server, redis_server, valkey

KEY = "shop.*:stream"
GROUP = "price-monitor-book"

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])


@pytest.fixture(params=[valkey, redis_server], ids=["valkey", "redis"])
def client(request, lightbus, listeners):
    """A client of a server. Redis before 7.2 does not count a read that finds nothing as activity."""
    with Server(binary=request.param()) as server, server.client() as client:
        lightbus(URL=server.url, REDIS_TIMEOUT=5)
        yield client


@pytest.fixture
def work(run_worker):
    return partial(run_worker, is_joined=True)


def hurry(monkeypatch):
    monkeypatch.setattr("lightbus_django.listening.leases.ALIVE_INTERVAL", 0.2)
    monkeypatch.setattr("lightbus_django.running.lease_renewal.ALIVE_INTERVAL", 0.2)
    monkeypatch.setattr("lightbus_django.bus.streams.RETIRE_AFTER", 3.0)


def idle(client):
    return client.xinfo_consumers(KEY, GROUP)[0]["idle"] / 1000


def is_refused():
    with pytest.raises(CommandError, match=r"is in use: one of its consumers was active"):
        call_command("lightbus_retire", GROUP, "--no-input", "--idle", "0")
    return True


def test_a_process_that_waits_for_events(client, work, lightbus, monkeypatch):
    hurry(monkeypatch)
    lightbus(RECLAIM_INTERVAL=3600)

    @listens_to("shop.order_placed", listener_name="book")
    def book(event): ...

    work()
    began = time.monotonic()
    eventually(lambda: is_refused() and time.monotonic() - began > 4.5)
    assert [group["name"] for group in client.xinfo_groups(KEY)] == [GROUP]


def test_a_process_whose_handler_takes_long(client, work, lightbus, monkeypatch):
    hurry(monkeypatch)
    lightbus(ACKNOWLEDGEMENT_TIMEOUT=0.4)
    done, begun = threading.Event(), threading.Event()

    @listens_to("shop.order_placed", listener_name="book", start="beginning", idempotent=False)
    def book(event):
        begun.set()
        done.wait(60)

    fire("shop.order_placed")
    work()
    assert begun.wait(30)
    began = time.monotonic()
    try:
        eventually(lambda: is_refused() and time.monotonic() - began > 4.5)
    finally:
        done.set()
    assert [group["name"] for group in client.xinfo_groups(KEY)] == [GROUP]


class TestSignsOfLife:
    @pytest.fixture
    def consumer(self, client):
        @listens_to("shop.order_placed", listener_name="book", start="beginning")
        def book(event): ...

        settings = get_settings()
        with closing(RedisClient(settings.url, timeout=5)) as redis_client:
            consumer = Consumer(
                next(iter(registry)),
                service_name="price-monitor",
                process_name="worker",
                settings=settings,
                client=redis_client,
                leave=True,
            )
            consumer.step(block=0)
            yield consumer

    def test_are_given_beside_the_consumers_own_thread_now_and_then(self, client, consumer):
        eventually(lambda: idle(client) > 0.2)
        consumer.renew(now=1e9)
        assert idle(client) < 0.2
        eventually(lambda: idle(client) > 0.2)
        consumer.renew(now=1e9 + 1)
        assert idle(client) > 0.2
        consumer.renew(now=1e9 + 60)
        assert idle(client) < 0.2

    def test_deliver_nothing(self, client, consumer):
        """An event delivered by accident would count an attempt."""
        stream_id = fire("shop.order_placed").stream_id
        client.xadd(KEY, {"strange": "id"}, id=f"{2**64 - 2}-{2**64 - 1}")
        client.xreadgroup(GROUP, "worker", {KEY: ">"})
        consumer.renew(now=1e9)
        rows = client.xpending_range(KEY, GROUP, "-", "+", 10)
        assert [row["times_delivered"] for row in rows] == [1, 1]
        assert rows[0]["message_id"] == stream_id

    def test_end_with_the_consumer(self, client, consumer):
        consumer.stop()
        consumer.renew(now=1e9)
        assert [row["name"] for row in client.xinfo_consumers(KEY, GROUP)] == ["nobody"]

    def test_need_no_group(self, client, consumer):
        client.flushall()
        consumer.renew(now=1e9)


def test_a_group_without_consumers_is_retired_at_once(client, monkeypatch):
    client.xgroup_create(KEY, GROUP, "0", mkstream=True)
    call_command("lightbus_retire", GROUP, "--no-input", "--idle", "20")
    assert client.xinfo_groups(KEY) == []
    assert streams.RETIRE_AFTER > 65  # consumers of the previous version may be silent for that long
