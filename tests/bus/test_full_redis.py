"""A full Redis refuses new events, but it can be drained, even by a process that has just started."""

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from lightbus_django import BusUnavailable, fire, listens_to, on_commit
from lightbus_django.bus import streams
from lightbus_django.bus.client import RedisClient
from lightbus_django.conf import get_settings
from lightbus_django.listening.registry import Registry
from lightbus_django.models import FailedEvent, OutboxEvent, ProcessedEvent
from tests.app.models import Effect
from tests.servers import Server, redis_server, valkey

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])

KEY = "shop.*:stream"
GROUP = "price-monitor-book"


@pytest.fixture(params=[valkey, redis_server], ids=["valkey", "redis"])
def server(request: pytest.FixtureRequest, lightbus: Callable[..., None]) -> Iterator[Server]:
    with Server("stream-node-max-entries 1", "maxmemory-policy noeviction", binary=request.param()) as server:
        lightbus(URL=server.url, STREAM_RETENTION=0)
        yield server


@pytest.fixture
def admin(server: Server) -> Iterator[Any]:
    with server.client() as client:
        yield client


@pytest.fixture
def fill(admin: Any, listeners: Registry) -> Callable[[], None]:
    """Set up a listener with five unread events, two pending ones of a crashed process, and no memory left."""

    @listens_to("shop.order_placed", listener_name="book")
    def book(event: object, number: int) -> None:
        Effect.objects.create(number=number)
        if number == 3:
            raise ValueError("the third")

    def fill() -> None:
        burst("--process-name", "before")
        for number in range(7):
            fire("shop.order_placed", number=number)
        admin.xreadgroup(GROUP, "died", {KEY: ">"}, count=2)
        ((_, (first, second)),) = admin.xreadgroup(GROUP, "died", {KEY: "0"})
        admin.xclaim(KEY, GROUP, "died", 0, [first[0], second[0]], idle=10_000_000, justid=True)
        admin.config_set("maxmemory", 1)

    return fill


def burst(*arguments: str) -> None:
    call_command("lightbus_listen", "--burst", *arguments)


def handled() -> list[int]:
    return sorted(Effect.objects.values_list("number", flat=True))


@pytest.mark.parametrize("name", ["before", "another", "{random4}"])
def test_a_process_that_starts_drains_it(name: str, fill: Callable[[], None], admin: Any) -> None:
    fill()
    with pytest.raises(BusUnavailable, match="is full"):
        fire("shop.order_placed", number=8)
    burst("--process-name", name)
    assert handled() == [0, 1, 2, 4, 5, 6]
    assert FailedEvent.objects.get().event_name == "shop.order_placed"
    assert ProcessedEvent.objects.count() == 7
    (group,) = admin.xinfo_groups(KEY)
    assert group["pending"] == 0
    assert group["last-delivered-id"] == admin.xinfo_stream(KEY)["last-generated-id"]
    with closing(RedisClient(get_settings().url, timeout=5)) as redis_client:
        streams.trim(redis_client, KEY, required_groups=[GROUP], keep_since=timezone.now(), keep_length=0, limit=100)
    assert admin.xlen(KEY) <= 1
    left = {row["name"] for row in admin.xinfo_consumers(KEY, GROUP)}
    assert left == {"before", "died"} | ({name} - {"{random4}"})


def test_the_last_consumer_leaves(fill: Callable[[], None], admin: Any) -> None:
    """If it is the only one, the group keeps the consumer named "nobody"."""
    fill()
    admin.config_set("maxmemory", 0)
    burst()
    for name in ("before", "died", "worker"):
        admin.xgroup_delconsumer(KEY, GROUP, name)
    admin.config_set("maxmemory", 1)
    burst("--leave")
    assert {row["name"] for row in admin.xinfo_consumers(KEY, GROUP)} == {"nobody"}


def test_what_needs_memory_is_named(fill: Callable[[], None], listeners: Registry) -> None:
    fill()

    @listens_to("shop.order_placed", listener_name="new")
    def new(event: object, number: int) -> None: ...

    with pytest.raises(CommandError, match=r"the consumer group 'price-monitor-new' of 'shop\.\*:stream'.* is full"):
        burst()
    assert handled() == [0, 1, 2, 4, 5, 6]


def test_events_that_wait_in_the_outbox_do_not_stop_it(fill: Callable[[], None]) -> None:
    fill()
    on_commit("shop.order_placed", number=8)
    OutboxEvent.objects.exclude(due_at=None).update(due_at="2000-01-01T00:00Z")
    with pytest.raises(CommandError, match="is full"):
        burst()
    assert handled() == [0, 1, 2, 4, 5, 6]
    assert OutboxEvent.objects.exclude(due_at=None).exists()
