"""Events are found by the beginning of their ids."""

from uuid import UUID

import pytest
from model_bakery import baker

from lightbus_django.events.ids import uuid7
from lightbus_django.models import FailedEvent, OutboxEvent, ProcessedEvent
from lightbus_django.operating import event_ids
from lightbus_django.operating.event_ids import find_ids, uuid_span

pytestmark = pytest.mark.django_db(databases=["default", "other"])


def test_all_records_are_searched_and_each_event_is_there_once():
    handled, failed, fired = (str(uuid7()) for _ in range(3))
    baker.make(ProcessedEvent, event_id=handled, consumer_group="one")
    baker.make(ProcessedEvent, event_id=handled, consumer_group="two")
    baker.make(FailedEvent, event_id=failed)
    OutboxEvent.objects.using("other").create(id=UUID(fired), event_name="shop.order_placed", payload="{}")
    assert find_ids(handled[:8]) == [fired, failed, handled]
    assert find_ids(f" {handled}\n") == [handled]


def test_only_what_begins_so_is_found():
    baker.make(ProcessedEvent, event_id="01970000-aaaa-7000-8000-000000000001")
    baker.make(ProcessedEvent, event_id="01970000-aaab-7000-8000-000000000001")
    baker.make(ProcessedEvent, event_id="02970000-aaaa-7000-8000-000000000001")
    assert find_ids("01970000-aaaa") == ["01970000-aaaa-7000-8000-000000000001"]
    assert find_ids("03") == []
    assert find_ids("%") == []
    assert find_ids("0_97") == []


def test_the_latest_come_first_and_not_too_many(monkeypatch):
    monkeypatch.setattr(event_ids, "FOUND", 5)
    ids = [str(uuid7()) for _ in range(10)]
    for event_id in ids:
        baker.make(ProcessedEvent, event_id=event_id)
    assert find_ids(ids[0][:6]) == ids[:4:-1]


@pytest.mark.parametrize(
    ("prefix", "first", "last"),
    [
        ("0197", "01970000-0000-0000-0000-000000000000", "0197ffff-ffff-ffff-ffff-ffffffffffff"),
        ("01970000-AB", "01970000-ab00-0000-0000-000000000000", "01970000-abff-ffff-ffff-ffffffffffff"),
    ],
)
def test_a_prefix_is_a_span(prefix, first, last):
    assert uuid_span(prefix) == (UUID(first), UUID(last))


@pytest.mark.parametrize("prefix", ["xyz", "0197" * 9, "é"])
def test_other_text_is_none(prefix):
    assert uuid_span(prefix) is None
