"""Thousands of values in a filter."""

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from model_bakery import baker

from lightbus_django.database.many_values import many
from lightbus_django.events.ids import uuid7
from lightbus_django.models import OutboxEvent, ProcessedEvent

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize("ids", [[], ["a"], ["a", 'quote"s', "it's", "back\\slash", "{com,ma}", "NULL", "%s"]])
def test_are_texts(ids):
    for event_id in [*ids, "other"]:
        baker.make(ProcessedEvent, event_id=event_id, consumer_group="g")
    rows = ProcessedEvent.objects.filter(event_id__in=many(ids, ProcessedEvent._meta.get_field("event_id"), "default"))
    assert sorted(rows.values_list("event_id", flat=True)) == sorted(ids)
    assert not rows.exclude(consumer_group="g").exists()


def test_are_uuids_in_one_query():
    ids = [baker.make(OutboxEvent, payload="{}").pk for _ in range(3)]
    values = many([uuid7() for _ in range(2000)] + ids[:2], OutboxEvent._meta.pk, "default")
    with CaptureQueriesContext(connection) as queries:
        found = set(OutboxEvent.objects.filter(pk__in=values).values_list("pk", flat=True))
    assert found == set(ids[:2])
    assert len(queries) == 1
    if connection.vendor == "postgresql":
        assert "unnest" in queries[0]["sql"]
