"""The admin pages: what they say, how many queries they take, and that they only show."""

import re
from datetime import timedelta

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission
from django.db import connection
from django.urls import reverse
from django.utils import timezone
from model_bakery import baker

from lightbus_django.events.codec import dump_fields
from lightbus_django.models import FailedEvent, OutboxEvent, ProcessedEvent

pytestmark = pytest.mark.django_db

LISTS = {
    model: reverse(f"admin:lightbus_django_{model.__name__.lower()}_changelist")
    for model in (ProcessedEvent, FailedEvent, OutboxEvent)
}
NASTY = "<script>alert('x')</script>"


def page(client, url, **parameters):
    response = client.get(url, parameters)
    assert response.status_code == 200
    return response.content.decode()


def states(client, model):
    return re.findall(r'class="lightbus-state[^>]*>([^<]*)<', page(client, LISTS[model]))


def failed(**values):
    fields = {b"id": b"1", b":name": f'"{NASTY}"'.encode(), b"\xff": b"\x00"}
    return baker.make(
        FailedEvent,
        **{
            "fields": dump_fields(fields),
            "event_name": "shop.order_placed",
            "consumer_group": "billing-book",
            "error": f"ValueError: {NASTY}",
            "traceback": f"Traceback {NASTY}",
            **values,
        },
    )


@pytest.mark.parametrize("model", LISTS)
def test_a_list_takes_as_many_queries_for_many_rows_as_for_one(model, admin_client, django_assert_max_num_queries):
    baker.make(model, event_name="a.b", _quantity=1)
    with django_assert_max_num_queries(12) as one:
        page(admin_client, LISTS[model])
    baker.make(model, event_name="c.d", _quantity=50)
    with django_assert_max_num_queries(len(one)):
        page(admin_client, LISTS[model])


def test_rows_are_looked_for_once_and_never_all_of_them(admin_client, django_assert_max_num_queries):
    baker.make(ProcessedEvent, consumer_group="billing-book", _quantity=3)
    with django_assert_max_num_queries(12) as queries:
        page(admin_client, LISTS[ProcessedEvent], consumer_group="billing-book")
    of_rows = [
        query["sql"]
        for query in queries
        if f"FROM {connection.ops.quote_name(ProcessedEvent._meta.db_table)}" in query["sql"]
    ]
    by_key, others = [sql for sql in of_rows if " IN (" in sql], [sql for sql in of_rows if " IN (" not in sql]
    assert len(by_key) == 1
    assert len([sql for sql in others if "billing-book" in sql]) == 1
    assert all("LIMIT" in sql for sql in others)
    assert not any("COUNT(" in sql or "EXISTS" in sql for sql in others)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_pages_are_in_order_and_complete(number, admin_client, monkeypatch):
    monkeypatch.setattr("lightbus_django.admin.base.EventAdmin.list_per_page", 2)
    for name in ("a", "b", "c", "d", "e"):
        failed(event_id=name)
    shown = re.findall(r'title="([a-e])"', page(admin_client, LISTS[FailedEvent], p=number))
    assert shown == [["e", "d"], ["c", "b"], ["a"]][number - 1]
    assert re.findall(r'title="([a-e])"', page(admin_client, LISTS[FailedEvent], all="")) == ["e", "d", "c", "b", "a"]


def test_filters_by_listener_event_and_date(admin_client):
    baker.make(ProcessedEvent, event_id="one", consumer_group="billing-book", event_name="shop.order_placed")
    baker.make(ProcessedEvent, event_id="two", consumer_group="stock-count", event_name="shop.parcel_delivered")
    baker.make(ProcessedEvent, event_id="old", processed_at=timezone.now() - timedelta(days=400))

    def shown(**parameters):
        text = page(admin_client, LISTS[ProcessedEvent], **parameters)
        return {event_id for event_id in ("one", "two", "old") if f">{event_id}<" in text}

    assert shown() == {"one", "two", "old"}
    assert shown(consumer_group="billing-book") == {"one"}
    assert shown(event_name="shop.parcel_delivered") == {"two"}
    assert shown(consumer_group="gone") == set()
    assert shown(processed_at__gte=(timezone.now() - timedelta(days=7)).isoformat()) == {"one", "two"}


def test_an_event_is_found_by_its_id_whatever_that_is(admin_client):
    from lightbus_django.events.ids import event_key

    baker.make(ProcessedEvent, event_id="one")
    baker.make(ProcessedEvent, event_id=event_key("An Id Of Theirs"))
    assert ">one<" in page(admin_client, LISTS[ProcessedEvent], q=" one ")
    assert ">one<" in page(admin_client, LISTS[ProcessedEvent], q="on")
    assert ">one<" not in page(admin_client, LISTS[ProcessedEvent], q="ne")
    assert "sha256:" in page(admin_client, LISTS[ProcessedEvent], q="An Id Of Theirs")
    event = baker.make(OutboxEvent, event_name="shop.order_placed")
    assert str(event.id) in page(admin_client, LISTS[OutboxEvent], q=str(event.id))
    assert str(event.id) in page(admin_client, LISTS[OutboxEvent], q=str(event.id)[:10].upper())
    assert str(event.id) not in page(admin_client, LISTS[OutboxEvent], q="ff")
    assert str(event.id) not in page(admin_client, LISTS[OutboxEvent], q="nonsense")


def test_a_processed_event_that_failed_says_so(admin_client):
    baker.make(ProcessedEvent, event_id="one", consumer_group="billing-book")
    assert states(admin_client, ProcessedEvent) == ["Handled"]
    event = failed(event_id="one", next_attempt_at=timezone.now())
    assert states(admin_client, ProcessedEvent) == ["Retrying"]
    FailedEvent.objects.filter(pk=event.pk).update(next_attempt_at=None)
    assert states(admin_client, ProcessedEvent) == ["Dead letter"]
    assert "<img" not in page(admin_client, LISTS[ProcessedEvent]).partition('id="result_list"')[2]


def test_content_and_traceback_are_escaped(admin_client):
    event = failed()
    for url in (LISTS[FailedEvent], reverse("admin:lightbus_django_failedevent_change", args=[event.pk])):
        text = page(admin_client, url)
        assert NASTY not in text
        assert "&lt;script&gt;" in text
    assert "\\xff = \x00" in text


@pytest.mark.parametrize("payload", ['{"name": "\\u4fa1"}', "no JSON \u4fa1"])
def test_a_payload_is_shown_without_escapes(payload, admin_client):
    event = baker.make(OutboxEvent, payload=payload)
    text = page(admin_client, reverse("admin:lightbus_django_outboxevent_change", args=[event.pk]))
    assert "\u4fa1" in text
    assert "\\u4fa1" not in text


@pytest.mark.parametrize("model", LISTS)
def test_rows_can_be_looked_at_and_nothing_else(model, admin_client):
    row = failed() if model is FailedEvent else baker.make(model)
    name = f"admin:lightbus_django_{model.__name__.lower()}"
    assert admin_client.get(reverse(f"{name}_change", args=[row.pk])).status_code == 200
    assert admin_client.get(reverse(f"{name}_add")).status_code == 403
    assert admin_client.post(reverse(f"{name}_change", args=[row.pk]), {"event_name": "x"}).status_code == 403
    assert admin_client.post(reverse(f"{name}_delete", args=[row.pk]), {"post": "yes"}).status_code == 403
    response = admin_client.post(LISTS[model], {"action": "delete_selected", "_selected_action": [row.pk]}, follow=True)
    assert b"delete" not in response.content.lower()
    assert model.objects.filter(pk=row.pk).exists()


def act(client, action, *events):
    """Do an action that asks first, as if it had asked."""
    data = {"action": action, "confirmed": "1", "reason": "bad data"}
    return client.post(LISTS[FailedEvent], {**data, "_selected_action": [event.pk for event in events]}, follow=True)


def test_discard_removes_them_and_counts_them_as_processed(admin_client):
    assert b"1 event discarded." in act(admin_client, "discard", failed(event_id="one")).content
    assert not FailedEvent.objects.exists()
    processed = ProcessedEvent.objects.get()
    assert (processed.event_id, processed.discarded) == ("one", True)
    assert (processed.discarded_by, processed.discard_reason) == ("admin", "bad data")
    assert states(admin_client, ProcessedEvent) == ["Discarded"]
    assert LogEntry.objects.get().get_change_message() == "Discard: bad data"


def test_the_actions_need_permissions_of_their_own(client, django_user_model):
    user = django_user_model.objects.create_user("eva", is_staff=True)
    client.force_login(user)
    user.user_permissions.add(Permission.objects.get(codename="view_failedevent"))
    event = failed(next_attempt_at=None)
    assert "Retry now" not in page(client, LISTS[FailedEvent])
    act(client, "discard", event)
    assert FailedEvent.objects.exists()
    user.user_permissions.add(Permission.objects.get(codename="retry_failedevent"))
    text = page(client, LISTS[FailedEvent])
    assert "Retry now" in text
    assert "Discard" not in text


def test_state_filters(admin_client):
    failed(event_id="dead", next_attempt_at=None)
    failed(event_id="retrying", next_attempt_at=timezone.now())
    assert ">dead<" not in page(admin_client, LISTS[FailedEvent], state="retrying")
    assert ">retrying<" not in page(admin_client, LISTS[FailedEvent], state="dead")
    waiting = baker.make(OutboxEvent, due_at=timezone.now())
    published = baker.make(OutboxEvent, due_at=None)
    assert str(published.id) not in page(admin_client, LISTS[OutboxEvent], state="waiting")
    assert str(waiting.id) not in page(admin_client, LISTS[OutboxEvent], state="published")


def test_published_events_can_be_published_again(admin_client, client, django_user_model):
    event = baker.make(OutboxEvent, event_name="shop.order_placed", due_at=None, published_at=timezone.now())
    data = {"action": "publish_again", "_selected_action": [str(event.id)]}
    admin_client.post(LISTS[OutboxEvent], data)
    event.refresh_from_db()
    assert event.due_at <= timezone.now()
    assert "Publish again" in LogEntry.objects.get().change_message
    assert "events are still waiting" in admin_client.post(LISTS[OutboxEvent], data, follow=True).content.decode()

    user = django_user_model.objects.create_user("viewer", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="view_outboxevent"))
    OutboxEvent.objects.update(due_at=None)
    client.force_login(user)
    client.post(LISTS[OutboxEvent], data)
    assert OutboxEvent.objects.get().due_at is None
    user.user_permissions.add(Permission.objects.get(codename="republish_outboxevent"))
    client.post(LISTS[OutboxEvent], data)
    assert OutboxEvent.objects.get().due_at is not None


def test_an_action_works_on_no_more_than_the_page_has_counted(admin_client, monkeypatch):
    monkeypatch.setattr("lightbus_django.admin.base.COUNT_LIMIT", 3)
    events = baker.make(OutboxEvent, event_name="a.b", due_at=None, published_at=timezone.now(), _quantity=5)
    data = {"action": "publish_again", "select_across": "1", "_selected_action": [events[0].pk]}
    response = admin_client.post(LISTS[OutboxEvent], data, follow=True)
    assert "More than 3 events are selected; nothing was changed" in response.content.decode()
    assert not OutboxEvent.objects.exclude(due_at=None).exists()


def test_what_a_retry_has_mended_meanwhile_is_not_discarded():
    baker.make(ProcessedEvent, event_id="a", consumer_group="g")
    event = failed(event_id="a", consumer_group="g")
    FailedEvent.objects.all().delete()
    event.discard()
    assert not ProcessedEvent.objects.get().discarded
