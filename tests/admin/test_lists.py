"""The lists and the page of a failed event: states, times, errors, ids, and how many rows there are."""

import re
from datetime import timedelta

import pytest
from django.contrib.auth.models import Permission
from django.urls import reverse
from django.utils import timezone
from model_bakery import baker

from lightbus_django.models import FailedEvent, OutboxEvent, ProcessedEvent

from .test_pages import LISTS, failed, page, states

pytestmark = pytest.mark.django_db

EVENT_ID = "01a2086e-c511-75a9-81d5-bdb21ea576b0"
TRACEBACK = """Traceback (most recent call last):
  File "/srv/shop/listeners.py", line 12, in book
    Booking.objects.create(
    ~~~~~~~^^^^
  File "/usr/lib/python3/site-packages/django/db/models/query.py", line 1, in create
    obj.save()
  File "/usr/lib/python3/site-packages/django/db/models/base.py", line 2, in save
    self.save_base()
ValueError: no such article
"""


def cells(text, name):
    """Return the texts of a column."""
    found = re.findall(rf'<t[dh] class="[^"]*field-{name}[ "][^>]*>(.*?)</t[dh]>', text)
    return [re.sub("<[^>]*>", "", cell) for cell in found]


@pytest.mark.parametrize("model", LISTS)
def test_ids_link_to_the_page_of_the_event(model, admin_client):
    values = {"id": EVENT_ID} if model is OutboxEvent else {"event_id": EVENT_ID}
    row = failed(**values) if model is FailedEvent else baker.make(model, **values)
    url = reverse("admin:lightbus_django_event", args=[EVENT_ID])
    change = reverse(f"admin:lightbus_django_{model.__name__.lower()}_change", args=[row.pk])
    text = page(admin_client, LISTS[model])
    assert f'<a href="{url}" title="{EVENT_ID}">01a2086e…a576b0</a>' in text
    assert f'<a href="{change}">' in text
    assert f'<a href="{url}">' in page(admin_client, change)


def test_ids_are_no_links_for_those_who_may_not_see_the_event(client, django_user_model):
    failed(event_id=EVENT_ID)
    user = django_user_model.objects.create_user("eva", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="view_failedevent"))
    client.force_login(user)
    text = page(client, LISTS[FailedEvent])
    assert "01a2086e…a576b0" in text
    assert "/event/" not in text


def test_states_of_failed_events(admin_client):
    now = timezone.now()
    failed(next_attempt_at=None, attempts=1)
    failed(next_attempt_at=now + timedelta(minutes=10), attempts=3)
    failed(next_attempt_at=now - timedelta(minutes=10), attempts=0)
    assert states(admin_client, FailedEvent) == ["Retry is due", "Retrying", "Dead letter"]
    found = cells(page(admin_client, LISTS[FailedEvent]), "state_and_attempts")
    assert found == ["Retry is due", "Retrying in 10 min after 3 attempts", "Dead letter after 1 attempt"]


def test_a_processed_event_says_which_process_and_attempt_it_was(admin_client):
    baker.make(ProcessedEvent, process_name="", attempts=None)
    baker.make(ProcessedEvent, process_name="web-1", attempts=3)
    text = page(admin_client, LISTS[ProcessedEvent])
    assert cells(text, "state_and_attempt") == ["Handled in attempt 3", "Handled"]
    assert cells(text, "process") == ["web-1", "-"]


def test_states_of_the_outbox(admin_client):
    now = timezone.now()
    values = {"event_name": "a.b", "error": ""}
    for number, (due_at, error) in enumerate(
        [(None, ""), (now + timedelta(hours=1), ""), (now, ""), (now + timedelta(hours=1), "too large")]
    ):
        baker.make(
            OutboxEvent, id=f"01a2086e-c511-75a9-81d5-bdb21ea576b{number}", due_at=due_at, **values | {"error": error}
        )
    assert states(admin_client, OutboxEvent) == ["Refused", "Due", "Waiting", "Published"]
    text = page(admin_client, LISTS[OutboxEvent], state="refused")
    assert cells(text, "state") == ["Refused"]
    assert cells(text, "error_line") == ["too large"]


@pytest.mark.parametrize(
    ("model", "field", "column"),
    [
        (ProcessedEvent, "processed_at", "processed"),
        (FailedEvent, "failed_at", "failed"),
        (OutboxEvent, "created_at", "created"),
    ],
)
def test_times_are_relative_with_the_exact_ones_as_titles(model, field, column, admin_client):
    at = timezone.now() - timedelta(minutes=5)
    failed(failed_at=at) if model is FailedEvent else baker.make(model, **{field: at})
    text = page(admin_client, LISTS[model])
    assert cells(text, column) == ["5 min ago"]
    assert f'title="{at:%Y-%m-%d %H:%M:%S} UTC"' in text


def test_the_error_is_one_line_and_its_type_a_column(admin_client):
    failed(error="NoSuchArticle: 17 <b>\nmore", exception="shop.errors.NoSuchArticle")
    failed(error="ValueError: of an earlier version", exception="")
    text = page(admin_client, LISTS[FailedEvent])
    assert cells(text, "exception_type") == ["-", "NoSuchArticle"]
    assert cells(text, "error_line") == ["ValueError: of an earlier version", "17 &lt;b&gt;"]
    assert 'title="shop.errors.NoSuchArticle"' in text


def test_failed_events_are_filtered_by_exception_and_place(admin_client):
    failed(event_id="one", exception="shop.errors.NoSuchArticle", place="shop/listeners.py:12")
    failed(event_id="two", exception="KeyError", place="shop/stock.py:3")
    failed(event_id="old", exception="", place="")

    def shown(**parameters):
        return sorted(cells(page(admin_client, LISTS[FailedEvent], **parameters), "event_link"))

    assert shown() == ["old", "one", "two"]
    assert shown(exception="KeyError") == ["two"]
    assert shown(place="shop/listeners.py:12") == ["one"]
    assert shown(exception="") == ["old"]
    assert "(unknown)" in page(admin_client, LISTS[FailedEvent])


@pytest.mark.parametrize(
    ("rows", "text"), [(2, "2 failed events"), (3, "3 failed events"), (4, "more than 3 failed events")]
)
def test_the_paginator_says_more_than(rows, text, admin_client, monkeypatch):
    monkeypatch.setattr("lightbus_django.admin.base.COUNT_LIMIT", 3)
    monkeypatch.setattr("lightbus_django.admin.base.EventAdmin.list_per_page", 2)
    for _ in range(rows):
        failed()
    found = " ".join(page(admin_client, LISTS[FailedEvent]).split())
    paginator = re.sub("<[^>]*>", "", found.partition('class="paginator"')[2].partition("</form>")[0])
    assert text in paginator
    assert ("more than" in text) == ("more than" in paginator)
    assert ("?p=2" in found) == (rows > 2)


def limit(monkeypatch, count):
    monkeypatch.setattr("lightbus_django.admin.base.COUNT_LIMIT", count)
    monkeypatch.setattr("lightbus_django.admin.base.EventAdmin.list_per_page", 2)


@pytest.mark.parametrize(("rows", "result"), [(3, "3 results"), (4, "More than 3 results")])
def test_a_search_says_more_than(rows, result, admin_client, monkeypatch, settings):
    settings.USE_THOUSAND_SEPARATOR = True
    limit(monkeypatch, 3)
    for number in range(rows):
        failed(event_id=f"{EVENT_ID[:-1]}{number}")
    for search in ({"consumer_group": "billing-book"}, {"state": "dead"}):
        text = " ".join(page(admin_client, LISTS[FailedEvent], **search).split())
        assert re.findall(r"(?:More than )?\d+ results?", text) == [result]
        assert text.count('(<a href="?">Show all</a>)') == 1


@pytest.mark.parametrize(("rows", "can_select_all"), [(3, True), (4, False)])
def test_all_are_selected_only_if_it_is_known_how_many_they_are(rows, can_select_all, admin_client, monkeypatch):
    limit(monkeypatch, 3)
    for _ in range(rows):
        failed()
    text = page(admin_client, LISTS[FailedEvent])
    assert ("Select all 3 failed events" in text) == can_select_all
    assert ("All 3 selected" in text) == can_select_all
    assert ("To select more than a page, filter the list to 3 or fewer." in text) == (not can_select_all)


@pytest.mark.parametrize(
    ("said", "is_done"), [("2", False), ("3", True), ("5", True), ("nonsense", True), (None, True)]
)
def test_an_action_on_all_is_on_no_more_than_the_page_said(said, is_done, admin_client):
    events = baker.make(OutboxEvent, event_name="a.b", due_at=None, published_at=timezone.now(), _quantity=3)
    data = {"action": "publish_again", "select_across": "1", "_selected_action": [events[0].pk]}
    if said is not None:
        data["result_count"] = said
    text = admin_client.post(LISTS[OutboxEvent], data, follow=True).content.decode()
    assert ("3 events will be published again." in text) == is_done
    assert ("Meanwhile, 3 events are selected and not 2; nothing was changed." in text) == (not is_done)
    assert OutboxEvent.objects.exclude(due_at=None).count() == (3 if is_done else 0)


def test_the_list_says_how_many_there_are_to_an_action(admin_client):
    for _ in range(3):
        failed()
    assert '<input type="hidden" name="result_count" value="3">' in page(admin_client, LISTS[FailedEvent])


def test_error_and_history_come_first_and_frames_of_libraries_are_folded(admin_client):
    history = [
        {"at": "2026-03-01T12:00:00.000+00:00", "process": "web1", "seconds": 0.25, "error": "ValueError: <b>"},
        {"at": "2026-03-01T13:00:00.000+00:00", "process": "web2", "seconds": None, "error": "ValueError"},
    ]
    event = failed(traceback=TRACEBACK, history=history, exception="ValueError", place="shop/listeners.py:12")
    text = page(admin_client, reverse("admin:lightbus_django_failedevent_change", args=[event.pk]))
    order = ["field-error", "field-past_attempts", "field-content", "field-folded_traceback"]
    assert sorted(order, key=text.index) == order
    assert "web1" in text
    assert "0.25 s" in text
    assert 'title="2026-03-01 12:00:00 UTC"' in text
    assert "ValueError: &lt;b&gt;" in text
    folded = re.findall(r"<details>(.*?)</details>", text, re.DOTALL)
    assert len(folded) == 1
    assert "2 frames of libraries" in folded[0]
    assert "obj.save()" in folded[0]
    assert "Booking.objects.create(" not in folded[0]


def test_without_a_history_or_a_traceback(admin_client):
    event = failed(traceback="", history=None, failed_at=timezone.now() - timedelta(hours=3))
    text = page(admin_client, reverse("admin:lightbus_django_failedevent_change", args=[event.pk]))
    assert ">3 h ago</time>; an earlier version has kept no history" in text


@pytest.mark.parametrize("model", LISTS)
def test_a_list_loads_nothing_large(model, admin_client, django_assert_max_num_queries):
    failed() if model is FailedEvent else baker.make(model)
    with django_assert_max_num_queries(20) as queries:
        page(admin_client, LISTS[model])
    for query in queries:
        selected = query["sql"].partition(" FROM ")[0]
        assert not any(
            f"{quote}{name}{quote}" in selected
            for name in ("fields", "traceback", "payload", "history")
            for quote in '"`'
        )


@pytest.mark.parametrize("model", LISTS)
def test_a_search_for_a_short_text_shows_the_latest_ids(model, admin_client, monkeypatch):
    monkeypatch.setattr("lightbus_django.admin.base.COUNT_LIMIT", 3)
    for number in (3, 1, 5, 2, 4):  # ids are not in the order of rows
        event_id = f"{EVENT_ID[:-1]}{number}"
        values = {"id": event_id} if model is OutboxEvent else {"event_id": event_id}
        failed(**values) if model is FailedEvent else baker.make(model, **values)
    text = page(admin_client, LISTS[model], q="01a2")
    # Of the ids from the fourth latest on, the list shows the latest rows.
    assert [cell[-1] for cell in cells(text, "event_link")] == list("543" if model is OutboxEvent else "425")
    assert "more than 3" in text
