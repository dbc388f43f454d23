"""After an outage of Redis: which process publishes what, in which order, and what is logged."""

import logging
import time

import pytest
from django.db import transaction
from django.utils import timezone

from lightbus_django import on_commit
from lightbus_django.bus.client import RedisClient, get_client
from lightbus_django.conf import get_settings
from lightbus_django.firing import relay as relay_module
from lightbus_django.firing.publisher import GRACE
from lightbus_django.firing.relay import Relay
from lightbus_django.models import OutboxEvent
from tests.firing.helpers import numbers, waiting
from tests.servers import Server

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])


@pytest.fixture
def server(lightbus):
    with Server("appendonly yes") as server:
        lightbus(URL=server.url, REDIS_TIMEOUT=0.5)
        yield server


def place_orders(*given):
    for number in given:
        with transaction.atomic():
            on_commit("shop.order_placed", number=number)


def redis_client() -> RedisClient:
    settings = get_settings()
    return get_client(settings.url, settings.redis_timeout)


def go_away(server):
    """Kill the server; the process knows it, and will not ask again before it is told to."""
    server.kill()
    place_orders(1)
    redis_client()._try_at = time.monotonic() + 3600


def end_the_pause():
    assert redis_client().is_down
    redis_client()._try_at = time.monotonic()


def relay_all(server):
    relay = Relay("default", RedisClient(server.url, timeout=5, retries=0), get_settings())
    while relay.step(timezone.now()):
        pass
    relay._client.close()


def test_a_process_publishes_itself_again_after_a_pause(server):
    go_away(server)
    server.start()
    place_orders(2)  # it doesn't know yet
    end_the_pause()
    place_orders(3)
    assert not redis_client().is_down
    with server.client() as client:
        assert numbers(client) == [3]
    OutboxEvent.objects.update(due_at=timezone.now() - GRACE)
    relay_all(server)
    with server.client() as client:
        assert numbers(client) == [3, 1, 2]


def test_what_is_committed_while_redis_is_known_to_be_down_is_the_relays_at_once(server):
    go_away(server)
    place_orders(2, 3)
    assert OutboxEvent.objects.filter(due_at__lte=timezone.now()).count() == 2
    server.start()
    relay_all(server)
    with server.client() as client:
        assert numbers(client) == [2, 3]


def test_a_process_leaves_its_events_to_a_relay_that_is_at_work(server):
    """So they don't overtake those that were committed before."""
    go_away(server)
    place_orders(2)
    server.start()
    now = timezone.now()
    assert OutboxEvent.objects.order_by("-pk")[0].due_at <= now
    OutboxEvent.objects.filter(due_at__lte=now).claim(now, now + GRACE)  # a relay's, just now
    end_the_pause()
    place_orders(3)
    assert not redis_client().is_down
    with server.client() as client:
        assert numbers(client) == []
    OutboxEvent.objects.update(claimed_until=None, due_at=now)
    relay_all(server)
    with server.client() as client:
        assert numbers(client) == [1, 2, 3]


def test_outside_of_a_transaction_either_the_process_or_a_relay_publishes(server):
    go_away(server)
    server.start()
    end_the_pause()
    on_commit("shop.order_placed", number=2)
    assert OutboxEvent.objects.order_by("-pk")[0].claimed_until > timezone.now()
    with server.client() as client:
        assert numbers(client) == [2]
    relay_all(server)
    with server.client() as client:
        assert numbers(client) == [2]


class TestTheRelay:
    def left(self, *given):
        for _ in given:
            OutboxEvent.objects.create(event_name="shop.order_placed", payload='{"number":1}', due_at=timezone.now())

    def test_collects_what_comes_in_one_by_one(self, r, housekeeping):
        keeper = housekeeping()
        self.left(1)
        assert keeper.step(now=100.0)
        self.left(2)
        keeper.step(now=100.2)
        assert waiting() == 1
        keeper.step(now=101.0)
        assert waiting() == 0

    @pytest.mark.parametrize("limit", ["relay.RELAY_SIZE", "rows.PIPELINE_BYTES"])
    def test_goes_on_at_once_while_there_is_more(self, r, housekeeping, monkeypatch, limit):
        monkeypatch.setattr(f"lightbus_django.firing.{limit}", 1)
        keeper = housekeeping()
        self.left(1, 2, 3)
        for _ in range(3):
            keeper.step(now=100.0)
        assert waiting() == 0

    def test_says_what_it_did_in_few_lines(self, r, housekeeping, monkeypatch, caplog):
        caplog.set_level(logging.INFO, "lightbus_django")
        monkeypatch.setattr(relay_module, "RELAY_SIZE", 1)
        keeper = housekeeping()
        self.left(*range(5))
        while keeper.relay():
            pass
        lines = [record.message for record in caplog.records if record.message.startswith("relay: ")]
        assert lines == ["relay: published 1 events left in the outbox of 'default'"]
        (database,) = [each for each in keeper.databases if each.alias == "default"]
        database._log_relayed_at = 0.0
        keeper.relay()
        lines = [record.message for record in caplog.records if record.message.startswith("relay: ")]
        assert lines[1:] == ["relay: published 4 events left in the outbox of 'default'"]
