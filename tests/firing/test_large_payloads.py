"""Large payloads: pipelines, memory and reads are limited by bytes, and a slow connection is not an outage."""

import tracemalloc
from collections.abc import Iterator
from contextlib import suppress

import pytest
from django.db import transaction
from django.utils import timezone

from lightbus_django import fire, fire_many, listens_to, on_commit
from lightbus_django.bus.client import RedisClient, get_client
from lightbus_django.conf import get_settings
from lightbus_django.firing import after_commit, rows
from lightbus_django.firing.publisher import GRACE
from lightbus_django.firing.relay import Relay, republish
from lightbus_django.listening import reader as reader_module
from lightbus_django.models import OutboxEvent
from tests.app.models import Effect
from tests.conftest import drain
from tests.firing.helpers import KEY, NOWHERE, numbers
from tests.proxies import Proxy

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])

LIMIT = 100_000
MEGABYTE = 1_000_000


@pytest.fixture
def limited(monkeypatch):
    """Limit a pipeline to 100 kB."""
    for module in (rows, after_commit):
        monkeypatch.setattr(module, "PIPELINE_BYTES", LIMIT)


@pytest.fixture
def sent(monkeypatch):
    """The size in bytes of each pipeline."""
    sizes = []
    send = RedisClient.send

    def watch(self, commands, **options):
        sizes.append(sum(len(part) for command in commands for part in command if isinstance(part, bytes)))
        return send(self, commands, **options)

    monkeypatch.setattr(RedisClient, "send", watch)
    return sizes


def orders(count, size):
    return [("shop.order_placed", {"number": number, "text": "x" * size}) for number in range(count)]


class TestPublishing:
    def test_fire_many(self, r, limited, sent):
        fire_many(orders(10, LIMIT // 3))
        assert numbers(r) == list(range(10))
        assert len(sent) == 5
        assert max(sent) < 1.1 * LIMIT

    def test_on_commit(self, r, limited, sent):
        with transaction.atomic():
            for name, payload in orders(10, LIMIT // 3):
                on_commit(name, **payload)
        assert numbers(r) == list(range(10))
        assert len(sent) == 5
        assert max(sent) < 1.1 * LIMIT
        assert r.scard(f"{{{KEY}}}:published:price-monitor:default") == 10

    def test_republish(self, r, limited, sent, redis_client):
        for name, payload in orders(4, LIMIT // 3):
            on_commit(name, **payload)
        OutboxEvent.objects.update(due_at=None, published_at=timezone.now())
        r.flushdb()
        sent.clear()
        assert list(republish(OutboxEvent.objects.all(), redis_client, get_settings())) == [2, 2]
        assert numbers(r) == [0, 1, 2, 3]
        assert max(sent) < 1.1 * LIMIT

    def test_what_is_rolled_back_is_published_neither_if_it_is_not_kept(self, r, limited):
        with transaction.atomic():
            on_commit("shop.order_placed", number=0, text="x" * LIMIT)
            with suppress(ZeroDivisionError), transaction.atomic():
                on_commit("shop.order_placed", number=1, text="x")
                raise ZeroDivisionError
            on_commit("shop.order_placed", number=2, text="x")
        assert numbers(r) == [0, 2]

    def test_a_transaction_of_many_megabytes_is_not_kept_in_memory(self, r, monkeypatch):
        for module in (rows, after_commit):
            monkeypatch.setattr(module, "PIPELINE_BYTES", 2 * MEGABYTE)
        text = "x" * MEGABYTE
        tracemalloc.start()
        try:
            with transaction.atomic():
                for number in range(40):
                    on_commit("shop.order_placed", number=number, text=text)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert r.xlen(KEY) == 40
        assert peak < 20 * MEGABYTE

    def test_the_relay_still_publishes_what_is_left(self, r, limited, lightbus, lightbus_url, redis_client):
        lightbus(URL=NOWHERE)
        with transaction.atomic():
            for name, payload in orders(3, LIMIT):
                on_commit(name, **payload)
        lightbus(URL=lightbus_url)
        OutboxEvent.objects.update(due_at=timezone.now() - GRACE)
        relay = Relay("default", redis_client, get_settings())
        while relay.step(timezone.now()):
            pass
        assert numbers(r) == [0, 1, 2]


@pytest.fixture
def slow_line(lightbus_url, lightbus) -> Iterator[None]:
    with Proxy(lightbus_url, pause=0.01) as proxy:
        lightbus(URL=proxy.url, REDIS_TIMEOUT=1.5)
        yield


class TestASlowLine:
    """The timeout applies to each read and write, not to the whole pipeline: a server that answers is not down."""

    def test_takes_what_needs_longer_than_the_timeout(self, r, slow_line):
        with transaction.atomic():
            for number in range(20):
                on_commit("shop.order_placed", number=number, text="x" * MEGABYTE)
        assert numbers(r) == list(range(20))
        settings = get_settings()
        assert get_client(settings.url, settings.redis_timeout).take_turn()


class TestReading:
    @pytest.fixture
    def reading(self, listeners, consume, monkeypatch):
        """The reader of a consumer, limited to 100 kB per read."""

        @listens_to("shop.order_placed")
        def handler(event, number: int, **kwargs):
            Effect.objects.create(number=number)

        monkeypatch.setattr(reader_module, "READ_BYTES", LIMIT)
        return consume().reader

    def counts(self, reading):
        counts = []
        while entries := reading.read(block=0):
            counts.append(len(entries))
        return counts

    def test_begins_with_few_and_takes_more_while_they_are_small(self, r, reading):
        fire_many(orders(350, 10))
        assert self.counts(reading) == [10, 20, 40, 80, 100, 100]

    def test_takes_few_of_large_ones(self, r, reading):
        fire_many(orders(20, LIMIT // 4))
        assert self.counts(reading) == [10, 3, 3, 3, 1]

    def test_takes_one_at_least(self, r, reading):
        fire_many(orders(13, 2 * LIMIT))
        assert self.counts(reading) == [10, 1, 1, 1]

    def test_takes_more_again_when_they_are_small_again(self, r, reading):
        fire_many([*orders(10, LIMIT), *orders(20, 10)])
        assert self.counts(reading) == [10, 1, 2, 4, 8, 5]

    def test_what_comes_one_by_one_changes_nothing(self, r, reading):
        for number in range(5):
            fire("shop.order_placed", number=number)
            reading.read(block=0)
        assert reading.count == 10

    def test_several_streams_share_the_bytes(self, r, listeners, consume, monkeypatch):
        monkeypatch.setattr(reader_module, "READ_BYTES", LIMIT)

        @listens_to(["shop.order_placed", "billing.invoice_sent"])
        def handler(event, **kwargs):
            pass

        reading = consume().reader
        fire_many(orders(20, LIMIT // 10))
        fire_many([("billing.invoice_sent", {"text": "x" * (LIMIT // 10)})] * 20)
        assert self.counts(reading)[:2] == [20, 8]

    def test_the_rest_is_handled_like_any_other(self, r, reading, consume):
        fire_many(orders(30, LIMIT // 4))
        consumer = consume()
        drain(consumer)
        assert sorted(Effect.objects.values_list("number", flat=True)) == list(range(30))
