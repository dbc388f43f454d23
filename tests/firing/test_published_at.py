"""The outbox records when an event was published. Listeners that existed by then get it if it is published again."""

from datetime import timedelta

import pytest
from django.db import transaction
from django.utils import timezone

from lightbus_django import on_commit, on_commit_many
from lightbus_django.bus import confirmations
from lightbus_django.database.values_by_key import LIMIT
from lightbus_django.events.times import fired_at, stream_time
from lightbus_django.firing import publisher
from lightbus_django.firing.publisher import GRACE
from lightbus_django.models import OutboxEvent
from tests.bus.test_confirmations import CONFIRMED, grow_old, place_orders
from tests.conftest import eventually
from tests.firing.helpers import KEY, NOWHERE, waiting

DELAY = timedelta(milliseconds=100)

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])


@pytest.fixture
def keeper(r, housekeeping):
    return housekeeping()


def test_it_is_the_time_of_redis(r, keeper):
    with transaction.atomic():
        for number in range(10):
            on_commit("shop.order_placed", number=number)
        eventually(lambda: timezone.now() > fired_at(str(OutboxEvent.objects.latest("pk").pk)) + DELAY)
    keeper.relay()
    assert r.keys("*:published:*") == []
    times = {fields["id"]: stream_time(stream_id) for stream_id, fields in r.xrange(KEY)}
    for row in OutboxEvent.objects.all():
        assert row.published_at > row.created_at + DELAY / 2
        assert abs(row.published_at - times[str(row.pk)]) < DELAY / 2


def test_it_is_the_time_of_redis_if_the_relay_publishes(r, keeper, lightbus, lightbus_url):
    lightbus(URL=NOWHERE)
    place_orders(1, 2)
    lightbus(URL=lightbus_url)
    grow_old()
    keeper.relay()
    times = [stream_time(stream_id) for stream_id, _ in r.xrange(KEY)]
    assert list(OutboxEvent.objects.order_by("pk").values_list("published_at", flat=True)) == times


@pytest.mark.parametrize("is_relayed", [False, True], ids=["confirmed", "relayed"])
def test_of_many_rows_each_gets_its_own_stream_id(r, keeper, is_relayed, lightbus, lightbus_url):
    """They are marked with a few statements, each for many rows."""
    if is_relayed:
        lightbus(URL=NOWHERE)
    with transaction.atomic():
        on_commit_many(("shop.order_placed", {"number": number}) for number in range(2 * LIMIT + 50))
    if is_relayed:
        lightbus(URL=lightbus_url)
        grow_old()
    keeper.relay()
    assert waiting() == 0
    stream_ids = {fields["id"]: stream_id for stream_id, fields in r.xrange(KEY)}
    assert len(stream_ids) == 2 * LIMIT + 50
    for row in OutboxEvent.objects.all():
        assert row.stream_id == stream_ids[str(row.pk)]
        assert row.published_at == stream_time(row.stream_id)


@pytest.mark.parametrize("size", [2, 1000])
def test_it_is_about_the_time_of_the_call_if_the_previous_version_confirmed_it(r, keeper, monkeypatch, size):
    """Its relays leave the stream ids behind, which are not needed any more."""
    monkeypatch.setattr(confirmations, "CONFIRMATIONS_SIZE", size)
    monkeypatch.setattr(publisher, "CONFIRMATIONS_SIZE", size)
    place_orders(*range(5))
    r.delete(f"{CONFIRMED}:times")
    place_orders(*range(5))
    keeper.relay()
    assert waiting() == 0
    assert r.keys("*:published:*") == []
    place_orders(6)
    r.delete(CONFIRMED)
    OutboxEvent.objects.update(due_at=None, published_at=timezone.now())
    before = set(OutboxEvent.objects.values_list("pk", "published_at"))
    keeper.relay()
    assert r.keys("*:published:*") == [f"{CONFIRMED}:times"]  # nothing was fired since
    place_orders(7)
    keeper.relay()
    assert r.keys("*:published:*") == []
    assert before < set(OutboxEvent.objects.values_list("pk", "published_at"))


def test_it_is_never_ahead_of_the_clock(r, keeper, lightbus, lightbus_url):
    r.xadd(KEY, {"strange": "id"}, id="9000000000000-0")
    place_orders(1)
    lightbus(URL=NOWHERE)
    place_orders(2)
    lightbus(URL=lightbus_url)
    OutboxEvent.objects.filter(pk=OutboxEvent.objects.latest("pk").pk).update(due_at=timezone.now() - GRACE)
    keeper.relay()
    assert waiting() == 0
    assert all(row.published_at <= timezone.now() for row in OutboxEvent.objects.all())
