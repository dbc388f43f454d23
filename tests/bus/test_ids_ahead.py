"""Someone added an entry whose id is far ahead of the clock, so all later ids are ahead as well."""

from datetime import UTC, datetime, timedelta

import pytest
from django.core.management import call_command
from django.utils import timezone
from model_bakery import baker

from lightbus_django import EventMessage, fire, listens_to, on_commit
from lightbus_django.bus import streams
from lightbus_django.conf import get_settings
from lightbus_django.models import OutboxEvent, ProcessedEvent
from lightbus_django.running import pruning
from tests.app.models import Effect
from tests.conftest import drain

KEY = "shop.*:stream"
GROUP = "price-monitor-record"
AHEAD = "9000000000000-0"
"""In the year 2255."""

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
    pytest.mark.usefixtures("listeners", "r"),
]


@pytest.fixture
def record(listeners, lightbus):
    lightbus(STREAM_RETENTION=3600)

    @listens_to("shop.order_placed", start="beginning", idempotent=False)
    def record(event, number: int):
        Effect.objects.create(number=number)
        times.append(event.published_at)

    times = []
    return times


def entry(number=0, event_id="theirs"):
    return {"id": event_id, "api_name": "shop", "event_name": "order_placed", "version": "1", ":number": str(number)}


def fill(count, first=0):
    return [fire("shop.order_placed", number=number).stream_id for number in range(first, first + count)]


def trim(housekeeping):
    while housekeeping.redis.trim():
        pass


def old_entries(r, count=300):
    long_ago = int((timezone.now() - timedelta(hours=2)).timestamp() * 1000)
    for number in range(count):
        r.xadd(KEY, entry(number, f"old-{number}"), id=f"{long_ago}-{number}")


class TestTrimming:
    def test_goes_on(self, r, record, consume, housekeeping):
        consumer = consume()
        old_entries(r)
        r.xadd(KEY, entry(), id=AHEAD)
        fill(1000)
        drain(consumer)
        trim(housekeeping(consumer))
        assert r.xlen(KEY) <= 101
        fill(500)
        drain(consumer)
        trim(housekeeping(consumer))
        assert r.xlen(KEY) <= 101
        assert Effect.objects.count() == 1801

    def test_removes_nothing_that_a_group_has_not_finished(self, r, record, consume, housekeeping):
        consumer = consume()
        r.xadd(KEY, entry(), id=AHEAD)
        ids = fill(1000)
        drain(consumer)
        r.xgroup_create(KEY, "stock_service-write_down", ids[449])
        trim(housekeeping(consumer))
        assert [stream_id for stream_id, _ in r.xrange(KEY)][-550:] == ids[450:]
        assert r.xlen(KEY) <= 650

    def test_keeps_what_is_young_by_its_id(self, r, record, consume, housekeeping):
        consumer = consume()
        old_entries(r)
        ids = fill(100)
        r.xadd(KEY, entry(), id=AHEAD)
        fill(300)
        drain(consumer)
        trim(housekeeping(consumer))
        kept = [stream_id for stream_id, _ in r.xrange(KEY)]
        assert kept[-401:-301] == ids
        assert len(kept) <= 501

    def test_keeps_the_newest(self, r, record, consume, housekeeping, lightbus):
        lightbus(STREAM_MIN_LENGTH=640)
        consumer = consume()
        r.xadd(KEY, entry(), id=AHEAD)
        fill(1000)
        drain(consumer)
        trim(housekeeping(consumer))
        assert 640 <= r.xlen(KEY) <= 740

    def test_ids_that_are_ahead_by_less_than_clocks_may_be_are_ids_like_any_other(
        self, r, record, consume, housekeeping
    ):
        consumer = consume()
        r.xadd(KEY, entry(), id=f"{int((timezone.now() + timedelta(minutes=50)).timestamp() * 1000)}-0")
        fill(300)
        drain(consumer)
        trim(housekeeping(consumer))
        assert r.xlen(KEY) == 301


class TestReport:
    def test_names_stream_and_id_every_six_hours(self, r, record, consume, housekeeping, caplog):
        consumer = consume()
        fill(1)
        r.xadd(KEY, entry(), id=AHEAD)
        fill(10)
        keeper = housekeeping(consumer)
        for minutes in range(0, 11 * 60, 5):
            keeper.step(now=1e6 + 60.0 * minutes)
        lines = [message for message in caplog.messages if AHEAD in message]
        assert len(lines) == 2
        assert all(KEY in line for line in lines)

    def test_comes_though_the_entry_is_gone(self, r, record, consume, housekeeping, caplog):
        consumer = consume()
        r.xadd(KEY, entry(), id=AHEAD)
        r.xtrim(KEY, maxlen=0, approximate=False)
        housekeeping(consumer).step()
        assert AHEAD in caplog.text

    def test_says_nothing_of_other_streams(self, r, record, consume, housekeeping, caplog):
        consumer = consume()
        fill(10)
        housekeeping(consumer).step()
        assert "ahead" not in caplog.text


class TestPublishedAt:
    def test_is_the_time_of_the_call_where_the_stream_tells_none(self, r, record, consume):
        consumer = consume()
        r.xadd(KEY, entry(), id=AHEAD)
        message = fire("shop.order_placed", number=1)
        drain(consumer)
        assert record[0] is None
        assert abs(record[1] - timezone.now()) < timedelta(minutes=1)
        assert message.published_at == record[1]

    @pytest.mark.parametrize("event_id", ["theirs", "ffffffff-ffff-7fff-bfff-ffffffffffff", ""])
    def test_is_none_where_nothing_tells_it(self, event_id):
        event = EventMessage(id=event_id, api_name="a", event_name="b", payload={}, stream_id=AHEAD)
        assert event.published_at is None

    def test_is_that_of_redis_otherwise(self):
        event = EventMessage(id="theirs", api_name="a", event_name="b", payload={}, stream_id="1767225600000-3")
        assert event.published_at == datetime(2026, 1, 1, tzinfo=UTC)


class TestKeysOfTheInbox:
    """They are kept while the stream has entries of their age."""

    def cutoff(self, redis_client):
        cutoffs = pruning.cutoffs_at(datetime.now(UTC), get_settings(), redis_client)
        return cutoffs.inbox_of.get("shop.order_placed")

    def test_by_the_ids_of_events(self, r, record, redis_client):
        r.xadd(KEY, entry(), id=AHEAD)
        fill(3)
        age = timezone.now() - self.cutoff(redis_client)
        assert timedelta(days=7) <= age <= timedelta(days=7, hours=2)

    def test_which_may_tell_nothing_either(self, r, record, redis_client):
        r.xadd(KEY, entry(), id=AHEAD)
        assert self.cutoff(redis_client) is None

    def test_are_pruned(self, r, record, consume, housekeeping):
        r.xadd(KEY, entry(), id=AHEAD)
        baker.make(ProcessedEvent, event_name="shop.order_placed", processed_at=timezone.now() - timedelta(days=31))
        keeper = housekeeping(consume())
        while keeper.prune():
            pass
        assert not ProcessedEvent.objects.exists()


class TestGroups:
    def test_without_consumers_are_reported(self, r, record, consume, housekeeping, caplog, capsys):
        consumer = consume()
        r.xadd(KEY, entry(), id=AHEAD)
        fill(3)
        r.xgroup_create(KEY, "old", AHEAD)
        housekeeping(consumer).redis.check_for_stale_groups()
        assert "group old of shop.*:stream has not been read for an unknown time" in caplog.text
        call_command("lightbus_retire")
        (line,) = [line for line in capsys.readouterr().out.splitlines() if " old " in line]
        assert "unknown" in line
        call_command("lightbus_retire", "old", "--no-input")
        assert {group.name for group in streams.groups(consumer.client, KEY)} == {GROUP}

    def test_that_start_there_are_new_by_the_clock(self, r, consume, housekeeping, listeners):
        """Republished events reach them if they were first published since then."""
        r.xadd(KEY, entry(), id=AHEAD)
        on_commit("shop.order_placed", number=1)

        @listens_to("shop.order_placed")
        def record(event, number: int):
            Effect.objects.create(number=number)

        consumer = consume()
        on_commit("shop.order_placed", number=2)
        housekeeping().relay()
        assert not OutboxEvent.objects.exclude(due_at=None).exists()
        r.flushdb()
        call_command("lightbus_republish", "--since", "1h")
        drain(consumer)
        assert list(Effect.objects.values_list("number", flat=True)) == [2]
