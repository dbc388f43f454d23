"""The list action "Retry now": its preview, and what is done once it is confirmed."""

import re
from datetime import timedelta

import pytest
from django.contrib.admin import site
from django.contrib.auth.models import Permission
from django.test import Client
from django.utils import timezone

from lightbus_django import listens_to
from lightbus_django.admin import bulk
from lightbus_django.admin.links import edit_url
from lightbus_django.events.codec import dump_fields
from lightbus_django.models import FailedEvent

from .test_failures import FAILURES, FIELDS, LIST, fail, listener  # noqa: F401

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
    pytest.mark.usefixtures("listener"),
]


def preview(client, url=LIST, *, across=False, keys=None):
    keys = list(FailedEvent.objects.values_list("pk", flat=True)) if keys is None else keys
    data = {"action": "retry", "_selected_action": keys[:100], "select_across": "1" if across else "0"}
    response = client.post(url, data)
    assert response.status_code == 200
    return " ".join(response.content.decode().split())


def confirm(client, text, url=LIST):
    """Send the form of a preview; return where it leads."""
    data = {}
    for name, value in re.findall(r'<input type="hidden" name="([^"]*)" value="([^"]*)"', text):
        data.setdefault(name, []).append(value)
    return client.post(url, {**data, "confirmed": "1"})


def messages(client, response):
    return " ".join(str(message) for message in client.get(response.url).context["messages"])


def due():
    return FailedEvent.objects.filter(attempts=0, next_attempt_at__lte=timezone.now())


def test_says_what_would_happen_and_changes_nothing(admin_client, listeners):
    listens_to("shop.parcel_delivered", listener_name="twice", idempotent=False)(lambda event: None)
    fail(3)
    fail(2, fields=dump_fields({**FIELDS, b":number": b'"many"'}))
    fail(1, consumer_group="price-monitor-gone")
    fail(4, consumer_group="price-monitor-twice", event_name="shop.parcel_delivered")
    fail(1, error="TransactionEnded: it committed")
    fail(1, next_attempt_at=timezone.now() - timedelta(minutes=1))
    before = list(FailedEvent.objects.values())
    text = preview(admin_client)
    assert "<h1>Retry 8 failed events?</h1>" in text
    assert "Retry 8 events</button>" in text
    assert "<strong>2</strong>: the event&#x27;s &#x27;number&#x27; can&#x27;t be converted" in text
    assert "<strong>1</strong>: this service has no listener for the consumer group price-monitor-gone" in text
    assert "<strong>4</strong>: the listener is not idempotent" in text
    assert "<strong>1</strong>: the handler ended its transaction" in text
    assert "1 of the selected events is due already, or being retried at this moment." in text
    assert list(FailedEvent.objects.values()) == before
    response = confirm(admin_client, text)
    assert response.url == FAILURES
    said = messages(admin_client, response)
    assert "8 events are due for a retry." in said
    assert "2 events were not retried" in said
    assert due().count() == 8
    assert "<strong>8 retried:</strong>" in admin_client.get(FAILURES).content.decode()


def test_only_what_was_selected(admin_client):
    fail(3)
    keys = list(FailedEvent.objects.values_list("pk", flat=True))[:2]
    text = preview(admin_client, keys=keys)
    confirm(admin_client, text)
    assert sorted(due().values_list("pk", flat=True)) == sorted(keys)


def test_all_across_the_pages_within_the_filters(admin_client, django_assert_max_num_queries):
    fail(bulk.CHUNK * 3)
    fail(2, exception="builtins.KeyError")
    url = f"{LIST}?exception=shop.errors.NoSuchArticle"
    with django_assert_max_num_queries(22):
        text = preview(admin_client, url, across=True)
    assert text.count('name="_selected_action"') == 1
    assert f"Retry {bulk.CHUNK * 3} events</button>" in text
    fail(1)  # after the page was shown
    confirm(admin_client, text, url)
    assert due().count() == bulk.CHUNK * 3
    assert FailedEvent.objects.filter(next_attempt_at=None).count() == 3


def test_a_limited_number_is_looked_at(admin_client, monkeypatch):
    monkeypatch.setattr(bulk, "LIMIT", 3)
    monkeypatch.setattr(bulk, "CHUNK", 3)
    fail(5)
    text = preview(admin_client, across=True)
    assert "3 events are looked at and retried at a time" in text
    assert "There are more" in messages(admin_client, confirm(admin_client, text))
    assert due().count() == 3


def test_what_is_being_retried_is_left_out(admin_client):
    soon = timezone.now() + timedelta(minutes=1)
    fail(2, next_attempt_at=soon, claimed_until=soon)
    fail(1)
    text = preview(admin_client)
    assert "Retry 1 event</button>" in text
    assert "2 of the selected events are due already, or being retried at this moment." in text
    confirm(admin_client, text)
    assert due().count() == 1
    assert "Being retried" in admin_client.get(LIST).content.decode()


def test_nothing_can_be_retried(admin_client):
    fail(2, consumer_group="price-monitor-gone")
    text = preview(admin_client)
    assert "There is nothing to retry" in text
    assert "confirmed" not in text


def test_leads_to_the_page_where_the_payload_is_edited(admin_client, client, django_user_model):
    wrong, other, _ = fail(3, fields=dump_fields({**FIELDS, b":number": b'"many"'}))
    FailedEvent.objects.filter(pk=other.pk).update(fields=dump_fields({**FIELDS, b":number": b"[]"}))
    text = preview(admin_client, keys=[wrong.pk])
    link = f'<a href="{edit_url(site, "default", wrong.pk)}">Edit the payload and retry</a>'
    assert "There is nothing to retry" in text
    assert link in text
    assert f'<a href="{edit_url(site, "default", wrong.pk)}">Edit the payload of the first one' in preview(admin_client)
    user = django_user_model.objects.create_user("eva", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=["view_failedevent", "retry_failedevent"]))
    client.force_login(user)
    assert "Edit the payload" not in preview(client)
    FailedEvent.objects.update(consumer_group="price-monitor-gone")
    assert "Edit the payload" not in preview(admin_client)


def test_nothing_is_there_any_more(admin_client):
    keys = [event.pk or 0 for event in fail(1)]
    FailedEvent.objects.all().delete()
    assert admin_client.post(LIST, {"action": "retry", "_selected_action": keys}).status_code == 302


def test_needs_the_permission_and_the_token(client, django_user_model, admin_user):
    fail(2)
    user = django_user_model.objects.create_user("eva", is_staff=True)
    client.force_login(user)
    user.user_permissions.add(Permission.objects.get(codename="view_failedevent"))
    keys = list(FailedEvent.objects.values_list("pk", flat=True))
    client.post(LIST, {"action": "retry", "_selected_action": keys, "confirmed": "1"})
    assert not due().exists()
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(admin_user)
    assert strict.post(LIST, {"action": "retry", "_selected_action": keys, "confirmed": "1"}).status_code == 403
    user.user_permissions.add(Permission.objects.get(codename="retry_failedevent"))
    assert confirm(client, preview(client)).url == FAILURES
    assert due().count() == 2
