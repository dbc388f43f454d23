"""Where a consumer group started and how far it was is in the database, for Redis may lose it."""

from datetime import UTC, datetime, timedelta

import pytest
from django.core.management import call_command
from django.db import InterfaceError, OperationalError, ProgrammingError, connection
from django.utils import timezone

from lightbus_django import fire, listens_to
from lightbus_django.bus import streams
from lightbus_django.listening import group_records
from lightbus_django.models import ConsumerGroup, FailedEvent, OutboxEvent, ProcessedEvent
from tests.app.models import Effect
from tests.conftest import drain

KEY = "shop.*:stream"
GROUP = "price-monitor-record"
TABLE = ConsumerGroup._meta.db_table

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
    pytest.mark.usefixtures("listeners", "r"),
]


def declare(events="shop.order_placed", **options):
    @listens_to(events, listener_name="record", **options)
    def record(event, number: int):
        Effect.objects.create(number=number)


def effects():
    return list(Effect.objects.order_by("id").values_list("number", flat=True))


def refusing(error):
    """Let nothing be read from the table of groups, nor written into it."""

    def execute(execute, sql, *arguments):
        if TABLE in sql:
            raise error
        return execute(sql, *arguments)

    return execute


def test_there_is_a_row_for_each_stream(r, consume):
    first = fire("shop.order_placed", number=1)
    declare(["shop.order_placed", "shop.order_paid", "billing.invoice_sent"])
    before = timezone.now()
    consumer = consume()
    rows = {row.stream: row for row in ConsumerGroup.objects.all()}
    assert set(rows) == {KEY, "billing.*:stream"}
    row = rows[KEY]
    assert (row.service_name, row.listener_name, row.consumer_group) == ("price-monitor", "record", consumer.group)
    assert row.event_names == "shop.order_placed\nshop.order_paid"
    assert (row.start_id, row.position) == (first.stream_id, first.stream_id)
    assert before - timedelta(seconds=1) < row.starts_at < timezone.now() + timedelta(seconds=1)
    assert before <= row.began_at <= row.seen_at <= timezone.now()
    assert rows["billing.*:stream"].start_id == "0-0"


@pytest.mark.parametrize(
    ("start", "start_id", "starts_at"),
    [
        ("beginning", "0", None),
        ("1767225600000-5", "1767225600000-5", datetime(2026, 1, 1, tzinfo=UTC)),
        (datetime(2026, 1, 1, tzinfo=UTC), f"1767225599999-{2**64 - 1}", datetime(2026, 1, 1, tzinfo=UTC)),
    ],
)
def test_it_says_where_it_starts(consume, start, start_id, starts_at):
    declare(start=start)
    consume()
    row = ConsumerGroup.objects.get()
    assert (row.start_id, row.starts_at) == (start_id, starts_at)


def test_of_two_processes_that_start_at_once_the_first_decides(r, consume):
    declare()
    first, second = (consume(process_name=name, join=False) for name in ("first", "second"))
    event = fire("shop.order_placed", number=0)
    for records in (first.offsets.records, second.offsets.records):
        records.load()
        end = streams.last_id_and_time(first.client, KEY)
        start = records.save_start(KEY, group_records.Start.of(records.listener, *end))
        assert start.id == event.stream_id
        fire("shop.order_placed", number=1)
    drain(second)
    drain(first)
    assert effects() == [1, 1]


@pytest.mark.parametrize("idempotent", [True, False])
class TestALossWhileNoProcessRuns:
    def work(self, consume):
        consumer = consume(process_name=f"worker-{ProcessedEvent.objects.count()}")
        drain(consumer)
        consumer.stop()

    def test_of_everything(self, r, consume, idempotent):
        declare(idempotent=idempotent)
        self.work(consume)
        fire("shop.order_placed", number=1)
        self.work(consume)
        r.flushdb()
        fire("shop.order_placed", number=2)
        self.work(consume)
        assert effects() == [1, 2]

    def test_of_the_group(self, r, consume, idempotent):
        """What was before its start is not for it, and what it had handled is not handled again."""
        fire("shop.order_placed", number=0)
        declare(idempotent=idempotent)
        self.work(consume)
        fire("shop.order_placed", number=1)
        self.work(consume)
        r.xgroup_destroy(KEY, GROUP)
        fire("shop.order_placed", number=2)
        self.work(consume)
        assert effects() == [1, 2]

    def test_that_comes_before_any_event(self, r, consume, idempotent):
        declare(idempotent=idempotent)
        self.work(consume)
        r.flushdb()
        fire("shop.order_placed", number=1)
        self.work(consume)
        assert effects() == [1]

    def test_of_everything_and_of_the_clock(self, r, consume, idempotent):
        declare(idempotent=idempotent)
        self.work(consume)
        fire("shop.order_placed", number=1)
        self.work(consume)
        ((_, fields),) = r.xrange(KEY)
        r.flushdb()
        r.xadd(KEY, {**fields, "id": "another", ":number": "2"}, id="5-1")
        self.work(consume)
        assert effects() == [1, 2]

    def test_after_which_the_stream_is_an_older_one(self, r, consume, idempotent):
        """As after a start from a snapshot that was taken before the group was made."""
        old = fire("shop.order_placed", number=0)
        declare(idempotent=idempotent)
        self.work(consume)
        fire("shop.order_placed", number=1)
        self.work(consume)
        fields = r.xrange(KEY)[0][1]
        r.flushdb()
        r.xadd(KEY, fields, id=old.stream_id)
        fire("shop.order_placed", number=2)
        self.work(consume)
        assert effects() == [1, 2]


def test_a_start_in_the_future_stays_there(r, consume):
    declare(start=timezone.now() + timedelta(days=1))
    consume()
    r.xgroup_destroy(KEY, GROUP)
    fire("shop.order_placed", number=1)
    drain(consume(process_name="later"))
    assert effects() == []


class TestWriting:
    def test_now_and_then_and_never_for_each_event(self, r, consume):
        def work(**times):
            for name, time in times.items():
                setattr(records, name, time)
            consumer.reclaim_at = consumer.offsets_at = 0.0
            drain(consumer)
            return ConsumerGroup.objects.get()

        declare(idempotent=False)
        consumer = consume()
        records = consumer.offsets.records
        before = ConsumerGroup.objects.get()
        for number in range(50):
            fire("shop.order_placed", number=number)
            assert work().seen_at == before.seen_at
        after = work(_save_at=0.0)
        assert after.position == r.xinfo_stream(KEY)["last-generated-id"] != before.position
        assert after.seen_at > before.seen_at
        assert work(_save_at=0.0).seen_at == after.seen_at  # nothing has changed
        assert work(_save_at=0.0, _seen_at=0.0).seen_at > after.seen_at

    def test_what_is_pending_is_not_passed(self, r, consume):
        declare()
        consumer = consume()
        start = ConsumerGroup.objects.get().position
        fire("shop.order_placed", number=1)
        r.xreadgroup(GROUP, "another", {KEY: ">"})
        consumer.stop()
        assert ConsumerGroup.objects.get().position.partition("-")[0] >= start.partition("-")[0]
        assert ConsumerGroup.objects.get().position < r.xinfo_stream(KEY)["last-generated-id"]

    def test_into_the_listeners_own_database(self, consume):
        declare(using="other")
        consume()
        assert not ConsumerGroup.objects.exists()
        assert ConsumerGroup.objects.using("other").count() == 1

    def test_where_the_router_says(self, consume, settings):
        class Router:
            def db_for_write(self, model, **hints):
                return "other" if model is ConsumerGroup else None

        settings.DATABASE_ROUTERS = [Router()]
        declare()
        consume()
        assert ConsumerGroup.objects.using("other").count() == 1

    @pytest.mark.parametrize(
        "error", [ProgrammingError("no such table"), OperationalError("away"), InterfaceError("?")]
    )
    def test_trouble_with_it_stops_no_listener_and_mends_itself(self, r, consume, caplog, error):
        fire("shop.order_placed", number=0)
        declare(idempotent=False)
        r.xgroup_create(KEY, GROUP, "$")
        with connection.execute_wrapper(refusing(error)):
            consumer = consume()
            fire("shop.order_placed", number=1)
            drain(consumer)
        assert effects() == [1]
        assert caplog.text.count("can't read or write the row of this consumer group") == 1
        consumer.offsets.records._save_at = 0.0
        consumer.offsets.save()
        assert ConsumerGroup.objects.get().start_id == ""

    def test_a_new_listener_needs_no_table_and_its_start_is_written_down_later(self, r, consume):
        first = fire("shop.order_placed", number=0)
        declare()
        with connection.execute_wrapper(refusing(ProgrammingError("no such table"))):
            consumer = consume()
            fire("shop.order_placed", number=1)
            drain(consumer)
        assert effects() == [1]
        consumer.stop()
        row = ConsumerGroup.objects.get()
        assert row.start_id == first.stream_id
        assert row.starts_at


PROCESSED = """
INSERT INTO lightbus_django_processedevent (event_id, consumer_group, event_name, processed_at, discarded)
VALUES (%s, %s, %s, %s, %s)
"""
FAILED = """
INSERT INTO lightbus_django_failedevent
(event_id, consumer_group, event_name, stream, stream_id, fields, error, traceback, attempts, failed_at)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
"""


def test_tables_with_rows_are_upgraded(r, consume, transactional_db):
    ConsumerGroup.objects.all().delete()
    handled = fire("shop.order_placed", number=1)
    fire("shop.order_placed", number=2)
    declare(start="beginning")
    OutboxEvent.objects.create(event_name="shop.order_placed", payload="{}", due_at=None)
    call_command("migrate", "lightbus_django", "0002", verbosity=0)
    try:
        with connection.cursor() as cursor:
            now = connection.ops.adapt_datetimefield_value(timezone.now())
            cursor.execute(PROCESSED, [handled.id, GROUP, "shop.order_placed", now, False])
            cursor.execute(FAILED, ["a", GROUP, "shop.order_placed", "s", "1-0", "[]", "it failed", "", 1, now])
    finally:
        call_command("migrate", "lightbus_django", verbosity=0)
    assert (ProcessedEvent.objects.count(), OutboxEvent.objects.count(), FailedEvent.objects.count()) == (1, 1, 1)
    assert (ProcessedEvent.objects.get().process_name, ProcessedEvent.objects.get().attempts) == ("", None)
    assert (FailedEvent.objects.get().exception, FailedEvent.objects.get().history) == ("", None)
    drain(consume(process_name="new"))
    assert effects() == [2]
    assert ProcessedEvent.objects.get(process_name="new").attempts == 1
