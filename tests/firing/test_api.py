"""`fire` and `fire_many`: events are on the bus when they return."""

import asyncio
import time
from datetime import timedelta
from decimal import Decimal

import pytest
from django.utils import timezone

from lightbus_django import (
    BusError,
    BusUnavailable,
    InvalidEventName,
    InvalidPayload,
    afire,
    afire_many,
    fire,
    fire_many,
    on_commit,
)
from lightbus_django.models import OutboxEvent
from tests.firing.helpers import KEY, NOWHERE, numbers

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])


class TestFire:
    def test_publishes_now(self, r):
        message = fire("shop.order_placed", number=5, price=Decimal("9.99"))
        assert r.xrange(KEY) == [
            (
                message.stream_id,
                {
                    "id": message.id,
                    "api_name": "shop",
                    "event_name": "order_placed",
                    "version": "1",
                    ":number": "5",
                    ":price": '"9.99"',
                },
            )
        ]
        assert message.payload == {"number": 5, "price": Decimal("9.99")}
        assert abs(message.published_at - timezone.now()) < timedelta(minutes=1)

    def test_stream_per_event(self, r, lightbus):
        lightbus(STREAM_USE="per_event")
        fire("shop.order_placed", number=1)
        assert numbers(r, "shop.order_placed:stream") == [1]

    def test_takes_any_payload_key(self, r):
        fire("shop.order_placed", name=1, payload=2, self=3, using=4, event=5)
        ((_, fields),) = r.xrange(KEY)
        assert fields.keys() >= {":name", ":payload", ":self", ":using", ":event"}

    def test_from_async_code(self, r):
        message = asyncio.run(afire("shop.order_placed", number=1))
        assert message.stream_id
        assert numbers(r) == [1]

    def test_a_payload_that_is_too_large_is_refused_with_its_size(self, r, lightbus):
        lightbus(MAX_PAYLOAD_SIZE=1000)
        fire("shop.order_placed", text="x" * 998)
        with pytest.raises(InvalidPayload, match="the payload has 1001 bytes, and MAX_PAYLOAD_SIZE allows 1000"):
            fire("shop.order_placed", text="x" * 998, n=1)
        with pytest.raises(InvalidPayload, match="MAX_PAYLOAD_SIZE"):
            on_commit("shop.order_placed", text="x" * 999)
        assert OutboxEvent.objects.count() == 0

    def test_what_cannot_be_fired_is_not(self, r):
        with pytest.raises(InvalidEventName):
            fire("order_placed")
        with pytest.raises(InvalidPayload, match="'number': a value of type object"):
            fire("shop.order_placed", fine=1, number=object())
        assert not r.exists(KEY)

    def test_redis_out_of_reach_is_one_clear_error_without_password_within_2_seconds(self, lightbus):
        lightbus(URL=NOWHERE)
        started = time.monotonic()
        with pytest.raises(BusUnavailable, match=r"127\.0\.0\.1:1") as caught:
            fire("shop.order_placed")
        assert time.monotonic() - started < 2
        assert "secret" not in str(caught.value)
        assert caught.value.__cause__ is None

    def test_a_key_that_is_no_stream_is_named(self, r):
        r.set(KEY, "a string")
        with pytest.raises(BusError, match=r"'shop\.\*:stream' holds something other than a stream"):
            fire("shop.order_placed")


class TestFireMany:
    def test_publishes_in_order_under_ids_of_their_own(self, r):
        events = fire_many(("shop.order_placed", {"number": number}) for number in range(2500))
        assert numbers(r) == list(range(2500))
        assert [event.stream_id for event in events] == [stream_id for stream_id, _ in r.xrange(KEY)]
        assert len({event.id for event in events}) == 2500
        assert events[7].payload == {"number": 7}
        assert fire_many([]) == []

    def test_all_or_nothing_where_one_cannot_be(self, r):
        with pytest.raises(InvalidPayload):
            fire_many([("shop.order_placed", {"number": 1}), ("shop.order_placed", {"number": object()})])
        assert not r.exists(KEY)

    def test_says_that_redis_refused_one(self, r):
        r.set("bad.*:stream", "in the way")
        with pytest.raises(BusError, match="something other than a stream"):
            fire_many([("shop.order_placed", {"number": 1}), ("bad.thing", {})])

    def test_from_async_code(self, r):
        async def work():
            return await afire_many([("shop.order_placed", {"number": 1})])

        (event,) = asyncio.run(work())
        assert r.xrange(KEY)[0][0] == event.stream_id
