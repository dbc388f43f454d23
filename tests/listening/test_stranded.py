"""Events that wait in the streams of the other STREAM_USE are told of."""

from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
import redis

from lightbus_django import fire, listens_to
from lightbus_django.bus.client import RedisClient
from lightbus_django.listening.consumer import Consumer
from lightbus_django.listening.registry import Registry, registry
from lightbus_django.listening.stranded import report_stranded
from tests.app.models import Effect
from tests.conftest import drain
from tests.servers import Server

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])

STREAMS = {"per_api": "shop.*:stream", "per_event": "shop.order_placed:stream"}
SWITCHES = [("per_api", "per_event"), ("per_event", "per_api")]


@pytest.fixture
def report(
    listeners: Registry,
    consume: Callable[..., Consumer],
    housekeeping: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
) -> Callable[[], str]:
    """Let a process of the service report; return its warnings."""

    @listens_to(["shop.order_placed", "shop.parcel_sent"], listener_name="book")
    def book(event: object, number: int) -> None:
        Effect.objects.create(number=number)

    def report() -> str:
        caplog.clear()
        housekeeping(consume()).redis.check_for_stale_groups()
        return caplog.text

    return report


@pytest.mark.parametrize(("before", "after"), SWITCHES)
def test_events_that_nobody_reads_after_a_switch(
    before: str, after: str, r: redis.Redis, report: Any, consume: Any, lightbus: Callable[..., None]
) -> None:
    lightbus(STREAM_USE=before)
    consume()
    assert "STREAM_USE" not in report()
    fire("shop.order_placed", number=1)
    lightbus(STREAM_USE=after)
    text = report()
    assert f"price-monitor-book: 1 unread and 0 pending events in {STREAMS[before]}" in text
    assert f"with STREAM_USE {before!r} until" in text
    assert f"lightbus_retire price-monitor-book --stream '{STREAMS[before]}'" in text

    r.xreadgroup("price-monitor-book", "worker", {STREAMS[before]: ">"})
    assert f"0 unread and 1 pending events in {STREAMS[before]}" in report()

    lightbus(STREAM_USE=before)
    drain(consume())
    assert [effect.number for effect in Effect.objects.all()] == [1]
    lightbus(STREAM_USE=after)
    assert "STREAM_USE" not in report()


def test_where_redis_can_not_count_them(
    r: redis.Redis, report: Any, consume: Any, lightbus: Callable[..., None]
) -> None:
    consume()
    for number in range(3):
        fire("shop.order_placed", number=number)
    (_, (second, _), _) = r.xrange("shop.*:stream")
    r.xdel("shop.*:stream", second)
    (group,) = r.xinfo_groups("shop.*:stream")
    assert group["lag"] is None
    lightbus(STREAM_USE="per_event")
    assert "price-monitor-book: some unread and 0 pending events" in report()
    r.xgroup_setid("shop.*:stream", "price-monitor-book", "$")
    assert "STREAM_USE" not in report()


def test_groups_of_others_do_not_matter(r: redis.Redis, report: Any, lightbus: Callable[..., None]) -> None:
    fire("shop.order_placed", number=1)
    r.xgroup_create("shop.*:stream", "another", "0")
    lightbus(STREAM_USE="per_event")
    assert "STREAM_USE" not in report()


def test_a_user_that_may_not_look_there(report: Any, lightbus: Callable[..., None]) -> None:
    """Nor could it have read there."""
    with Server() as server, server.client() as client:
        client.execute_command(*r"ACL SETUSER me on >secret ~shop.order_placed:stream +@all".split())
        (listener,) = registry
        with closing(RedisClient(server.url_of("me", "secret"), timeout=5)) as redis_client:
            report_stranded(redis_client, listener, "price-monitor-book", "per_event")
        assert client.acl_log()
