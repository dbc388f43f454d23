"""One entry of a stream, and how far groups are with it."""

from datetime import UTC, datetime, timedelta

import pytest
import redis

from lightbus_django import fire
from lightbus_django.bus import entries
from lightbus_django.bus.streams import groups
from lightbus_django.events.times import fired_at

KEY = "shop.*:stream"
NOW = datetime.now(UTC)


def placed(redis_client, name, stream_id):
    (group,) = [group for group in groups(redis_client, KEY) if group.name == name]
    return entries.place(redis_client, group, stream_id)


def test_an_entry_is_read_or_not_there(r, redis_client):
    stream_id = r.xadd(KEY, {"id": "1"})
    assert entries.read_entry(redis_client, KEY, stream_id) == {b"id": b"1"}
    assert entries.read_entry(redis_client, KEY, "1-1") is None
    assert entries.read_entry(redis_client, "nothing.*:stream", "1-1") is None


def test_an_event_is_found_by_its_id_among_later_ones(r, redis_client):
    events = [fire("shop.order_placed", number=number) for number in range(30)]
    stream_id, fields = entries.find_entry(redis_client, KEY, events[20].id, fired_at(events[20].id))
    assert stream_id == r.xrange(KEY)[20][0]
    assert fields[b":number"] == b"20"
    assert entries.find_entry(redis_client, KEY, "other", fired_at(events[20].id)) is None
    assert entries.find_entry(redis_client, KEY, events[0].id, NOW + timedelta(hours=1)) is None


def test_a_search_ends(r, redis_client, monkeypatch):
    events = [fire("shop.order_placed", number=number) for number in range(100)]
    monkeypatch.setattr(entries, "SCAN_SIZE", 20)
    monkeypatch.setattr(entries, "SEARCH_SIZE", 40)
    time = fired_at(events[0].id)
    assert entries.find_entry(redis_client, KEY, events[39].id, time)
    assert entries.find_entry(redis_client, KEY, events[99].id, time) is None


def test_a_scan_reads_any_bytes(r, redis_client, lightbus_url):
    with redis.Redis.from_url(lightbus_url) as raw:
        raw.xadd(KEY, {b"id": b"\xff", b"other": b"x"})
    ((event,),) = entries.scan(redis_client, KEY, NOW - timedelta(minutes=1))
    assert (event.event_id, event.name) == ("\ufffd", ".")


@pytest.mark.parametrize(("limit", "value"), [("SCAN_SIZE", 40), ("SCAN_BYTES", 10_000)])
def test_a_scan_yields_all_events_since_a_time_without_payloads(r, redis_client, monkeypatch, limit, value):
    monkeypatch.setattr(entries, limit, value)
    r.xadd(KEY, {"id": "before", "api_name": "shop", "event_name": "order_placed"}, id="1-0")
    events = [fire("shop.order_placed", text="x" * 500) for _ in range(105)]
    lists = list(entries.scan(redis_client, KEY, NOW - timedelta(minutes=1)))
    assert len(lists) > 2
    found = [event for each in lists for event in each]
    assert [event.event_id for event in found] == [event.id for event in events]
    assert {event.name for event in found} == {"shop.order_placed"}
    assert [event.stream_id for event in found] == [stream_id for stream_id, _ in r.xrange(KEY)[1:]]
    assert list(entries.scan(redis_client, "nothing.*:stream", NOW)) == [[]]


def test_how_far_a_group_is(r, redis_client):
    ids = [r.xadd(KEY, {"id": str(number)}) for number in range(3)]
    r.xgroup_create(KEY, "group", "0")
    r.xreadgroup("group", "web1", {KEY: ">"}, count=2)
    r.xack(KEY, "group", ids[0])
    assert placed(redis_client, "group", ids[0])[:2] == (True, "")
    is_read, consumer, idle, deliveries = placed(redis_client, "group", ids[1])
    assert (is_read, consumer, deliveries) == (True, "web1", 1)
    assert 0 <= idle < 10
    assert placed(redis_client, "group", ids[2])[:2] == (False, "")
    assert entries.are_pending(redis_client, KEY, "group", ids) == [False, True, False]
    assert entries.are_pending(redis_client, KEY, "group", []) == []
    (group,) = groups(redis_client, KEY)
    r.xgroup_destroy(KEY, "group")
    assert entries.place(redis_client, group, ids[0]) is None
