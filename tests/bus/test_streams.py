"""Trimming removes what every group has finished with, and nothing else."""

import pytest
from django.utils import timezone

from lightbus_django import fire, listens_to, on_commit
from lightbus_django.bus import streams
from lightbus_django.models import OutboxEvent
from tests.app.models import Effect
from tests.conftest import drain, eventually

KEY = "shop.*:stream"
GROUP = "price-monitor-record"

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
    pytest.mark.usefixtures("listeners"),
]


@pytest.fixture
def record(listeners, lightbus):
    lightbus(STREAM_RETENTION=0)

    @listens_to("shop.order_placed", start="beginning")
    def record(event, number: int):
        Effect.objects.create(number=number)

    return record


def fill(r, count):
    """Fire events; return their stream ids. A node of a stream holds 100 entries."""
    return [fire("shop.order_placed", number=number).stream_id for number in range(count)]


def trim(housekeeping):
    while housekeeping.redis.trim():
        pass


def test_what_every_group_has_finished_with_is_trimmed(r, record, consume, housekeeping):
    consumer = consume()
    fill(r, 1000)
    trim(housekeeping(consumer))
    assert r.xlen(KEY) == 1000
    drain(consumer)
    trim(housekeeping(consumer))
    assert r.xlen(KEY) <= 100
    assert Effect.objects.count() == 1000


def test_not_what_another_group_has_not_read(r, record, consume, housekeeping):
    consumer = consume()
    ids = fill(r, 1000)
    drain(consumer)
    r.xgroup_create(KEY, "stock_service-write_down", ids[449])
    trim(housekeeping(consumer))
    remaining = [stream_id for stream_id, _ in r.xrange(KEY)]
    assert remaining[-550:] == ids[450:]
    assert len(remaining) <= 650


def test_not_what_is_pending_though_all_else_is_done(r, record, consume, housekeeping):
    """With the last delivered id alone, a pending event would be trimmed."""
    consumer = consume()
    ids = fill(r, 1000)
    r.xreadgroup(GROUP, "other", {KEY: ">"}, count=300)
    drain(consumer)
    r.xack(KEY, GROUP, *ids[:250])
    trim(housekeeping(consumer))
    remaining = [stream_id for stream_id, _ in r.xrange(KEY)]
    assert remaining[-750:] == ids[250:]
    assert len(remaining) <= 850
    r.xack(KEY, GROUP, *ids[250:300])
    trim(housekeeping(consumer))
    assert r.xlen(KEY) <= 100


def test_nothing_while_one_of_our_groups_is_missing(r, record, consume, housekeeping):
    """It is about to be created, and may start at the beginning."""
    consumer = consume()
    fill(r, 1000)
    drain(consumer)
    r.xgroup_destroy(KEY, GROUP)
    trim(housekeeping(consumer))
    assert r.xlen(KEY) == 1000
    drain(consumer)
    trim(housekeeping(consumer))
    assert r.xlen(KEY) <= 100


def test_what_is_young_or_among_the_newest_is_kept(r, record, consume, housekeeping, lightbus):
    consumer = consume()
    fill(r, 1000)
    drain(consumer)
    lightbus(STREAM_RETENTION=3600)
    trim(housekeeping(consumer))
    assert r.xlen(KEY) == 1000
    lightbus(STREAM_RETENTION=0, STREAM_MIN_LENGTH=640)
    trim(housekeeping(consumer))
    assert 640 <= r.xlen(KEY) <= 740


def test_stream_ids_are_compared_as_numbers(r, record, consume, housekeeping, redis_client):
    """Other services may choose any id: 9 comes before 10, and 2**53 before 2**53 + 1."""
    r.xgroup_create(KEY, "late", "0", mkstream=True)
    for number in range(2**53 - 500, 2**53 + 500):
        r.xadd(KEY, {"a": 1}, id=f"1-{number}")
    r.xgroup_setid(KEY, "late", f"1-{2**53 + 1}")
    streams.trim(redis_client, KEY, required_groups=[], keep_since=timezone.now(), keep_length=0, limit=100_000)
    kept = {stream_id for stream_id, _ in r.xrange(KEY)}
    assert {f"1-{number}" for number in range(2**53 + 2, 2**53 + 500)} <= kept
    assert len(kept) <= 600
    r.delete(KEY)
    r.xgroup_create(KEY, "late", "0", mkstream=True)
    for number in range(1, 1001):
        r.xadd(KEY, {"a": 1}, id=f"1-{number}")
    r.xgroup_create(KEY, "later", "1-500")
    r.xgroup_setid(KEY, "late", "1-99")
    streams.trim(redis_client, KEY, required_groups=[], keep_since=timezone.now(), keep_length=0, limit=100_000)
    assert r.xlen(KEY) == 1000  # 1-99 is in the first node
    r.delete(KEY)
    r.xgroup_create(KEY, "late", "0", mkstream=True)
    for number in range(1, 1001):
        r.xadd(KEY, {"a": 1}, id=f"{number}-0")
    r.xgroup_setid(KEY, "late", "9-0")
    streams.trim(redis_client, KEY, required_groups=[], keep_since=timezone.now(), keep_length=0, limit=100_000)
    assert r.xlen(KEY) == 1000  # 9-0 is in the first node


def test_a_stream_that_does_not_exist_yet(r, record, redis_client, consume):
    options = {"required_groups": [], "keep_since": timezone.now(), "keep_length": 0, "limit": 10}
    assert streams.trim(redis_client, "no:stream", **options) == 0
    assert streams.groups(redis_client, "no:stream") == []
    assert streams.oldest_time(redis_client, "no:stream") is None


def test_streams_to_which_the_outbox_fired_are_trimmed_too(r, record, consume, housekeeping):
    for number in range(300):
        on_commit("billing.invoice_sent", number=number)
    keeper = housekeeping(consume())
    for database in keeper.databases:
        database.detect_outbox()
        database.sample_fired_events()
    trim(keeper)
    assert r.xlen("billing.*:stream") <= 100


def test_a_group_that_has_not_been_read_for_long_is_reported(
    r, record, consume, housekeeping, lightbus, caplog, redis_client
):
    lightbus(GROUP_STALE_AFTER=0.01)
    consumer = consume()
    fill(r, 3)
    drain(consumer)
    keeper = housekeeping(consumer)
    r.xgroup_create(KEY, "shop-old_name", "0")
    # It has read everything. A Lightbus service reads once and waits for ever, so its consumer may seem idle.
    r.xgroup_create(KEY, "shop-quiet", "$")
    eventually(lambda: all(group.unread_for() > 0.02 for group in streams.groups(redis_client, KEY)))
    keeper.redis.check_for_stale_groups()
    assert "has not been read for" in caplog.text
    assert "group shop-old_name of shop.*:stream has not been read for" in caplog.text
    assert "3 events are kept" in caplog.text
    assert "lightbus_retire shop-old_name" in caplog.text
    assert "shop-quiet" not in caplog.text
    assert GROUP not in caplog.text
    caplog.clear()
    lightbus(GROUP_STALE_AFTER=60)
    r.xreadgroup("shop-old_name", "somebody", {KEY: ">"}, count=1)
    housekeeping(consumer).redis.check_for_stale_groups()
    assert caplog.text == ""


def test_outbox_rows_with_odd_names_do_not_stop_the_trimming(r, record, consume, housekeeping):
    consumer = consume()
    fill(r, 300)
    drain(consumer)
    OutboxEvent.objects.create(event_name="nonsense", payload="{}", due_at=None)
    trim(housekeeping(consumer))
    assert r.xlen(KEY) <= 100
