"""An UPDATE that gives each row its own value."""

from datetime import UTC, datetime

import pytest
from django.db.models import CharField, DateTimeField

from lightbus_django.database.values_by_key import LIMIT, ValuesByKey
from lightbus_django.events.ids import uuid7
from lightbus_django.models import OutboxEvent
from tests.app.models import Effect

NOW = datetime(2026, 3, 1, 12, 0, 0, 123000, tzinfo=UTC)

pytestmark = pytest.mark.django_db


def outbox(count):
    ids = [uuid7() for _ in range(count)]
    OutboxEvent.objects.bulk_create(
        [OutboxEvent(id=each, event_name="shop.order_placed", payload="{}") for each in ids]
    )
    return ids


@pytest.mark.parametrize("count", [1, LIMIT])
def test_each_row_gets_its_own_and_the_others_an_empty_text(count):
    ids = outbox(count + 1)
    values = {row_id: f"{number}-0" for number, row_id in enumerate(ids[1:])}
    assert OutboxEvent.objects.update(stream_id=ValuesByKey(values, CharField())) == count + 1
    assert dict(OutboxEvent.objects.values_list("pk", "stream_id")) == {ids[0]: "", **values}


def test_without_values_all_are_empty():
    outbox(1)
    OutboxEvent.objects.update(stream_id="1-0")
    OutboxEvent.objects.update(stream_id=ValuesByKey({}, CharField()))
    assert OutboxEvent.objects.get().stream_id == ""


def test_text_is_a_parameter_and_not_sql():
    first = Effect.objects.create(name="a")
    second = Effect.objects.create(name="b")
    strange = "100% 'x' \\ %s; --"
    Effect.objects.update(name=ValuesByKey({first.pk: strange, second.pk: "é"}, CharField()))
    assert list(Effect.objects.order_by("pk").values_list("name", flat=True)) == [strange, "é"]


def test_other_types_are_null_for_other_keys():
    first, second = outbox(2)
    OutboxEvent.objects.update(published_at=ValuesByKey({first: NOW}, DateTimeField()))
    assert dict(OutboxEvent.objects.values_list("pk", "published_at")) == {first: NOW, second: None}
