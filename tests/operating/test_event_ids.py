"""Events are found by the beginning of their ids."""

from uuid import UUID

import pytest
from model_bakery import baker

from lightbus_django import fire, on_commit
from lightbus_django.bus import entries
from lightbus_django.events.ids import uuid7
from lightbus_django.models import FailedEvent, OutboxEvent, ProcessedEvent
from lightbus_django.operating import event_ids
from lightbus_django.operating.event_ids import find_ids, uuid_span

from .conftest import record as record

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
    pytest.mark.usefixtures("listeners", "r"),
]
KEY = "shop.*:stream"


def test_all_records_are_searched_and_each_event_is_there_once():
    handled, failed, fired = (str(uuid7()) for _ in range(3))
    baker.make(ProcessedEvent, event_id=handled, consumer_group="one")
    baker.make(ProcessedEvent, event_id=handled, consumer_group="two")
    baker.make(FailedEvent, event_id=failed)
    OutboxEvent.objects.using("other").create(id=UUID(fired), event_name="shop.order_placed", payload="{}")
    assert find_ids(handled[:8]).ids == [fired, failed, handled]
    assert find_ids(f" {handled}\n").ids == [handled]


def test_only_what_begins_so_is_found():
    baker.make(ProcessedEvent, event_id="01970000-aaaa-7000-8000-000000000001")
    baker.make(ProcessedEvent, event_id="01970000-aaab-7000-8000-000000000001")
    baker.make(ProcessedEvent, event_id="02970000-aaaa-7000-8000-000000000001")
    assert find_ids("01970000-aaaa").ids == ["01970000-aaaa-7000-8000-000000000001"]
    assert find_ids("03").ids == []
    assert find_ids("%").ids == []
    assert find_ids("0_97").ids == []


def test_the_latest_come_first_and_not_too_many(monkeypatch):
    monkeypatch.setattr(event_ids, "FOUND", 5)
    ids = [str(uuid7()) for _ in range(10)]
    for event_id in ids:
        baker.make(ProcessedEvent, event_id=event_id)
    assert find_ids(ids[0][:6]).ids == ids[:4:-1]


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


class TestStreams:
    """Events that were fired with `fire` are in their stream only, until a listener has handled them."""

    def test_of_a_listener(self, record):
        first = fire("shop.order_placed", number=1)
        second = fire("shop.order_placed", number=2)
        fire("other.order_placed", number=3)
        assert find_ids(first.id[:11]) == ([second.id, first.id], [])
        assert find_ids(first.id.upper()) == ([first.id], [])

    def test_that_the_service_fires_to(self):
        event = fire("shop.order_placed", number=1)
        assert find_ids(event.id[:13]).ids == []
        row = on_commit("shop.parcel_sent", number=1)
        assert set(find_ids(event.id[:10]).ids) == {event.id, row.id}

    def test_only_the_time_that_the_text_stands_for_is_searched(self, r, record, monkeypatch):
        monkeypatch.setattr(entries, "SCAN_SIZE", 20)
        monkeypatch.setattr(entries, "SEARCH_CHUNKS", 2)
        fields = {"api_name": "shop", "event_name": "order_placed"}
        ids = [f"0197{minute:04x}-aaaa-7000-8000-000000000001" for minute in range(100)]
        for event_id in ids:
            r.xadd(KEY, {"id": event_id, **fields}, id=f"{uuid_span(event_id)[0].int >> 80}-1")
        assert find_ids(ids[70][:8]) == ([ids[70]], [])
        assert find_ids(ids[99][:8]) == ([ids[99]], [])
        found = find_ids("0197")
        assert found.ids == ids[39::-1]
        assert found.gaps == [f"{KEY} was not searched to the end, because it has too many entries of that time."]

    def test_whose_ids_are_ahead_of_the_clock(self, r, record):
        r.xadd(KEY, {"id": "x"}, id="99999999999999-0")
        event = fire("shop.order_placed", number=1)
        assert find_ids(event.id[:8]).ids == [event.id]

    def test_that_cannot_be_searched(self, record, lightbus):
        row = baker.make(ProcessedEvent, event_id=str(uuid7()))
        lightbus(URL="redis://:secret@127.0.0.1:1", REDIS_TIMEOUT=1)
        found = find_ids(row.event_id[:8])
        assert found.ids == [row.event_id]
        (gap,) = found.gaps
        assert gap.startswith("The streams were not searched: Redis at redis://")
        assert "secret" not in gap
