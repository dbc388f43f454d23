"""Actions on many events at once: none loads what is large in them, nor goes row by row."""

import threading
from contextlib import closing

import pytest
from django.contrib.admin.models import LogEntry
from django.db import connection, connections, transaction
from django.db.models.signals import post_delete
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone
from model_bakery import baker

from lightbus_django.admin import bulk
from lightbus_django.admin.base import CHUNK
from lightbus_django.events.codec import dump_fields
from lightbus_django.models import FailedEvent, OutboxEvent, ProcessedEvent
from tests.waiting import eventually

pytestmark = pytest.mark.django_db(transaction=True)

FAILED = reverse("admin:lightbus_django_failedevent_changelist")
OUTBOX = reverse("admin:lightbus_django_outboxevent_changelist")
LARGE = ("fields", "traceback", "payload", "error")


FIELDS = {b"id": b"1", b"api_name": b"shop", b"event_name": b"order_placed", b"version": b"1", b":number": b"1"}


def fail(count, first=0):
    values = {"event_name": "shop.order_placed", "consumer_group": "price-monitor-book", "attempts": 5}
    values |= {"fields": dump_fields(FIELDS), "stream_id": "1-0", "next_attempt_at": None}
    rows = [baker.prepare(FailedEvent, event_id=f"{number:06}", **values) for number in range(first, first + count)]
    FailedEvent.objects.bulk_create(rows)


def publish(count, first=0):
    rows = [
        baker.prepare(OutboxEvent, event_name="shop.order_placed", due_at=None, published_at=timezone.now())
        for _ in range(count)
    ]
    OutboxEvent.objects.bulk_create(rows)


def act_on_all(client, action):
    """Do an action on all events across the pages; return the queries that it took."""
    url, model = (OUTBOX, OutboxEvent) if action == "publish_again" else (FAILED, FailedEvent)
    data = {
        "action": action,
        "select_across": "1",
        "_selected_action": [model.objects.latest("pk").pk],
        "confirmed": "1",
    }
    with CaptureQueriesContext(connection) as queries:
        assert client.post(url, data).status_code == 302
    return [query["sql"] for query in queries]


@pytest.mark.parametrize("action", ["retry", "discard", "publish_again"])
def test_takes_a_few_queries_and_selects_nothing_large(action, admin_client):
    # What is retried is checked first, in small chunks, for which its content is needed.
    large = ("traceback", "payload") if action == "retry" else LARGE
    chunk = CHUNK if action == "publish_again" else bulk.CHUNK
    make = publish if action == "publish_again" else fail
    make(1)
    few = act_on_all(admin_client, action)
    FailedEvent.objects.all().delete()
    OutboxEvent.objects.all().delete()
    LogEntry.objects.all().delete()
    make(chunk * 3)
    many = act_on_all(admin_client, action)
    assert len(many) <= 3 * len(few)
    for sql in few + many:
        selected = sql.partition(" FROM ")[0] if sql.startswith("SELECT") else ""
        assert not any(f"{quote}{name}{quote}" in selected for name in large for quote in '"`')
    assert LogEntry.objects.count() == chunk * 3
    assert len(set(LogEntry.objects.values_list("object_id", flat=True))) == chunk * 3
    if action == "discard":
        assert not FailedEvent.objects.exists()
        assert ProcessedEvent.objects.filter(discarded=True).count() == chunk * 3
    elif action == "retry":
        assert FailedEvent.objects.filter(attempts=0, next_attempt_at__lte=timezone.now()).count() == chunk * 3
    else:
        assert OutboxEvent.objects.filter(due_at__lte=timezone.now()).count() == chunk * 3


def test_receivers_of_signals_get_nothing_large_either(admin_client):
    deleted = []

    def note(instance, **kwargs):
        deleted.append(instance.get_deferred_fields())

    fail(3)
    post_delete.connect(note, FailedEvent)
    try:
        act_on_all(admin_client, "discard")
    finally:
        post_delete.disconnect(note, FailedEvent)
    assert len(deleted) == 3
    assert all({"fields", "traceback", "error"} <= fields for fields in deleted)


def test_discarding_many_leaves_what_the_keys_say_but_for_that():
    fail(3)
    before = timezone.now()
    ProcessedEvent.objects.create(
        event_id="000001", consumer_group="price-monitor-book", event_name="as.it_was", processed_at="2020-01-01T00:00Z"
    )
    other = ProcessedEvent.objects.create(event_id="000001", consumer_group="another", event_name="as.it_was")
    assert FailedEvent.objects.filter(event_id__lt="000002").discard() == 2
    assert FailedEvent.objects.get().event_id == "000002"
    keys = ProcessedEvent.objects.filter(consumer_group="price-monitor-book").order_by("event_id")
    assert list(keys.values_list("event_id", "event_name", "discarded")) == [
        ("000000", "shop.order_placed", True),
        ("000001", "as.it_was", True),
    ]
    assert all(key.processed_at >= before for key in keys)
    other.refresh_from_db()
    assert not other.discarded


def test_discarding_none():
    assert FailedEvent.objects.all().discard() == 0
    assert FailedEvent.objects.none().discard() == 0


def test_discarding_what_is_sliced_ordered_and_annotated_by_state():
    fail(3)
    assert FailedEvent.objects.order_by("-failed_at", "pk").filter(next_attempt_at=None).discard() == 3


def test_discarding_is_all_or_nothing():
    fail(3)
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        FailedEvent.objects.all().discard()
        raise ZeroDivisionError
    assert FailedEvent.objects.count() == 3
    assert not ProcessedEvent.objects.exists()


@pytest.mark.skipif(connection.vendor == "sqlite", reason="there nobody else can write meanwhile")
def test_what_a_running_retry_mends_is_not_discarded():
    """Many are discarded while one of them is retried: that waits for it, and neither deadlocks with it."""
    fail(5)
    ProcessedEvent.objects.create(
        event_id="000002", consumer_group="price-monitor-book", event_name="shop.order_placed"
    )
    counts = []

    def discard():
        with closing(connections["default"]):
            counts.append(FailedEvent.objects.all().discard())

    thread = threading.Thread(target=discard)
    with transaction.atomic():
        FailedEvent.objects.filter(event_id="000002").delete()
        thread.start()
        eventually(is_waited_for)
        ProcessedEvent.objects.filter(event_id="000002").update(processed_at=timezone.now())
    thread.join(30)
    assert counts == [4]
    assert not ProcessedEvent.objects.get(event_id="000002").discarded
    assert ProcessedEvent.objects.filter(discarded=True).count() == 4


def is_waited_for():
    """Whether somebody waits for a lock of ours, or is about to."""
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SELECT 1 FROM pg_locks WHERE NOT granted")
        else:
            cursor.execute(
                "SELECT 1 FROM information_schema.processlist"
                " WHERE db = DATABASE() AND id <> CONNECTION_ID() AND info LIKE '%FOR UPDATE'"
            )
        return cursor.fetchone() is not None
