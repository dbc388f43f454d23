"""What a group has ahead of it: only the events its listener wants, counted without sending them."""

from datetime import UTC, datetime, timedelta

import pytest

from lightbus_django.bus import backlog
from lightbus_django.bus.backlog import count_unread, read_backlog, read_positions, stream_size

KEY = "shop.*:stream"
GROUP = "shop-mail"
WANTED = ["shop.order_placed"]


def add(r, count=1, event="order_placed", stream_id="*", size=1):
    fields = {"id": "1", "api_name": "shop", "event_name": event, ":x": "y" * size}
    return [r.xadd(KEY, fields, id=stream_id) for _ in range(count)]


def test_wanted_events_wait_others_do_not(r, redis_client):
    add(r, 3, "parcel_delivered")
    r.xgroup_create(KEY, GROUP, "0")
    (first, *_) = add(r, 2)
    add(r, 50, "parcel_delivered")
    found = read_backlog(redis_client, KEY, GROUP, WANTED)
    assert (found.waiting, found.is_exact, found.pending, found.last_delivered_id) == (2, True, 0, "0-0")
    assert found.oldest == datetime.fromtimestamp(int(first.partition("-")[0]) / 1000, UTC)
    assert read_backlog(redis_client, KEY, GROUP, []).waiting == 0


def test_pending_events_are_the_oldest(r, redis_client):
    (first, *_) = add(r, 5)
    r.xgroup_create(KEY, GROUP, "0")
    r.xreadgroup(GROUP, "web1", {KEY: ">"}, count=3)
    found = read_backlog(redis_client, KEY, GROUP, WANTED)
    assert (found.waiting, found.pending) == (2, 3)
    assert found.oldest == datetime.fromtimestamp(int(first.partition("-")[0]) / 1000, UTC)
    ((name, pending, idle),) = found.consumers
    assert (name, pending) == ("web1", 3)
    assert 0 <= idle < 10


def test_nothing_ahead(r, redis_client):
    add(r)
    r.xgroup_create(KEY, GROUP, "$")
    found = read_backlog(redis_client, KEY, GROUP, WANTED)
    assert (found.waiting, found.pending, found.oldest, found.consumers) == (0, 0, None, ())


def test_no_group_and_no_stream(r, redis_client):
    assert read_backlog(redis_client, KEY, GROUP, WANTED) is None
    add(r)
    assert read_backlog(redis_client, KEY, GROUP, WANTED) is None


@pytest.mark.parametrize(("limit", "value", "size"), [("LOOK_AT", 100, 1), ("MAX_BYTES", 50_000, 500)])
def test_a_long_backlog_is_estimated_from_its_beginning(r, redis_client, monkeypatch, limit, value, size):
    monkeypatch.setattr(backlog, limit, value)
    r.xgroup_create(KEY, GROUP, "0", mkstream=True)
    for _ in range(250):
        add(r, size=size)
        add(r, event="parcel_delivered", size=size)
    found = read_backlog(redis_client, KEY, GROUP, WANTED)
    assert found.waiting == 250
    assert not found.is_exact


def test_an_id_ahead_of_the_clock_tells_no_age(r, redis_client):
    ahead = round((datetime.now(UTC) + timedelta(days=9)).timestamp() * 1000)
    add(r, stream_id=f"{ahead}-0")
    r.xgroup_create(KEY, GROUP, "0")
    found = read_backlog(redis_client, KEY, GROUP, WANTED)
    assert (found.waiting, found.oldest) == (1, None)


def test_events_up_to_an_entry_are_counted(r, redis_client):
    ids = add(r, 10)
    found = count_unread(redis_client, KEY, ids[2], WANTED, last=ids[5])
    assert (found.looked_at, found.wanted, found.first_id, found.is_complete) == (3, 3, ids[3], True)
    assert count_unread(redis_client, KEY, ids[9], WANTED).first_id is None


def test_positions(r, redis_client):
    ids = add(r, 5)
    for group in ("new", "reading", "done"):
        r.xgroup_create(KEY, group, "0")
    r.xreadgroup("reading", "web1", {KEY: ">"}, count=4)
    r.xack(KEY, "reading", ids[0], ids[1], ids[3])
    r.xgroup_setid(KEY, "done", ids[4])
    found = read_positions(redis_client, KEY, ["new", "reading", "done", "missing"])
    assert found["new"] == ("0-0", "0-0")
    assert found["done"] == (ids[4], ids[4])
    assert found["reading"].last_delivered_id == ids[3]
    assert ids[1] <= found["reading"].done_with < ids[2]
    assert "missing" not in found
    assert read_positions(redis_client, "nothing.*:stream", ["done"]) == {}


def test_the_size_of_a_stream(r, redis_client):
    assert stream_size(redis_client, KEY) is None
    ids = add(r, 3)
    found = stream_size(redis_client, KEY)
    assert (found.length, found.first_id, found.last_id) == (3, ids[0], ids[2])
    assert found.memory > 100
    r.xtrim(KEY, 0)
    found = stream_size(redis_client, KEY)
    assert (found.length, found.first_id, found.last_id) == (0, None, ids[2])
