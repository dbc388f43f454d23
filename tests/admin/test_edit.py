"""The page where a payload is edited: who may, what it refuses without losing anything, and what it leaves."""

import html
import json
import re

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from lightbus_django import listens_to
from lightbus_django.events.codec import dump_fields
from lightbus_django.models import FailedEvent, ProcessedEvent

from .test_failures import FAILURES, FIELDS, fail, listener, shown  # noqa: F401

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
    pytest.mark.usefixtures("listener", "r"),
]


@pytest.fixture
def event():
    fields = {**FIELDS, b":number": b'"many"', b":name": '"<b>Ünï"'.encode()}
    fail(event_id="01a2086e-c511-75a9-81d5-bdb21ea576b0", fields=dump_fields(fields))
    return FailedEvent.objects.get()


def page_of(event, using="default"):
    return reverse("admin:lightbus_django_edit_failed_event", args=[using, event.pk])


def written(text):
    """The text in the form, and the version with it."""
    payload = re.search(r"<textarea[^>]*>\n?(.*?)</textarea>", text, re.DOTALL)[1]
    version = re.search(r'name="version" value="([^"]*)"', text)[1]
    return {"payload": html.unescape(payload), "version": version}


def open_form(client, event, using="default"):
    return written(client.get(page_of(event, using)).content.decode())


def save(client, event, payload, using="default"):
    text = payload if isinstance(payload, str) else json.dumps(payload)
    return client.post(page_of(event, using), {**open_form(client, event, using), "payload": text})


def test_shows_the_payload_and_what_stands_in_the_way(admin_client, event):
    assert json.loads(open_form(admin_client, event)["payload"]) == {"number": "many", "name": "<b>Ünï"}
    text = shown(admin_client, page_of(event))
    assert "Only price-monitor-book gets the edited payload." in text
    assert "can&#x27;t be converted for the handler" in text
    assert "<b>Ünï" not in text


def test_what_is_saved_is_due_and_its_outcome_shown(admin_client, event):
    response = save(admin_client, event, {"number": 3})
    assert response.url == FAILURES
    text = shown(admin_client)
    assert "The payload is edited, and the event is due for a retry." in text
    assert "<strong>1 retried:</strong> 0 done, 1 still to come" in text
    event.refresh_from_db()
    assert event.message().payload == {"number": 3}
    assert (event.attempts, event.edited_by) == (0, "admin")
    assert event.next_attempt_at <= timezone.now()
    entry = LogEntry.objects.get().get_change_message()
    assert entry == (
        'Edit the payload for price-monitor-book and retry. Before: {"number": "many", "name": "<b>Ünï"} '
        'After: {"number": 3}'
    )


def test_the_page_of_the_event_shows_the_history_and_what_was_fired(admin_client, event):
    url = reverse("admin:lightbus_django_failedevent_change", args=[event.pk])
    assert "as fired" not in shown(admin_client, url).lower()
    save(admin_client, event, {"number": 3})
    text = shown(admin_client, url)
    assert "admin edited the payload." in text
    assert "<code>{&quot;number&quot;: 3}</code>" in text
    assert "Content as fired" in text
    assert ":number = &quot;many&quot;" in text
    assert ":number = 3" in text
    assert "<b>Ünï" not in text
    assert f'href="{page_of(event)}"' in text


def test_the_event_page_links_to_it_and_says_that_it_was_edited(admin_client, event):
    url = reverse("admin:lightbus_django_event", args=[event.event_id])
    assert f'href="{page_of(event)}"' in shown(admin_client, url)
    save(admin_client, event, {"number": 3})
    text = shown(admin_client, url)
    assert "This listener gets a payload that admin edited" in text
    assert "&quot;number&quot;: &quot;many&quot;" in text
    assert "This is what was fired." in text


def test_the_event_page_shows_the_edits_of_what_was_handled(admin_client, event, client, django_user_model):
    url = reverse("admin:lightbus_django_event", args=[event.event_id])
    save(admin_client, event, {"number": 3})
    save(admin_client, event, {"number": 4})
    assert "admin edited the payload <" not in shown(admin_client, url)  # it is on the page of the failed event
    columns = "event_id", "consumer_group", "event_name", "edited_by"
    event.refresh_from_db()
    ProcessedEvent.objects.create(**{name: getattr(event, name) for name in columns})
    event.delete()
    text = shown(admin_client, url)
    assert "with a payload that admin edited" in text
    assert text.count("admin edited the payload <") == 2
    assert "<code>Before: {&quot;number&quot;: 3} After: {&quot;number&quot;: 4}</code>" in text
    assert text.index("After: {&quot;number&quot;: 3}") < text.index("After: {&quot;number&quot;: 4}")
    assert "<b>Ünï" not in text
    client.force_login(django_user_model.objects.create_user("eva", is_staff=True))
    assert client.get(url).status_code == 403


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"number": 1,}', "this is not JSON"),
        ("[1, 2]", "a payload is a JSON object"),
        ('"text"', "a payload is a JSON object"),
        ("", "This field is required."),
        ('{"number": "some"}', "can't be converted for the handler"),
        ('{"other": 1}', "the handler's argument 'number' is missing"),
        ('{"number": 1, "number": 2}', "'number' is there twice"),
        ('{"number": 1, "": 2}', "can't be a field on the bus"),
        ('{"number": 1, "x": "<script>alert(1)</script>"', "this is not JSON"),
    ],
)
def test_mistakes_are_shown_and_nothing_is_lost(text, problem, admin_client, event):
    response = save(admin_client, event, text)
    assert response.status_code == 200
    found = response.content.decode()
    assert problem in html.unescape(found)
    assert written(found)["payload"] == text
    assert "<script>alert(1)" not in found
    assert 'aria-invalid="true"' in found
    before = event.fields
    event.refresh_from_db()
    assert (event.fields, event.attempts) == (before, 5)


def test_without_a_change_it_is_a_plain_retry(admin_client):
    fail()
    event = FailedEvent.objects.get()
    assert save(admin_client, event, {"number": 1}).url == FAILURES
    event.refresh_from_db()
    assert (event.attempts, event.is_edited, event.history) == (0, False, None)


def test_an_edit_by_somebody_else_is_not_lost(admin_client, event):
    mine = {**open_form(admin_client, event), "payload": '{"number": 1}'}
    save(admin_client, event, {"number": 2})
    response = admin_client.post(page_of(event), mine)
    text = response.content.decode()
    assert "Nothing was saved: the event has been edited or retried since" in text
    assert "&quot;number&quot;: 2" in text
    assert written(text)["payload"] == '{"number": 1}'
    event.refresh_from_db()
    assert event.message().payload == {"number": 2}
    assert admin_client.post(page_of(event), written(text)).url == FAILURES
    event.refresh_from_db()
    assert event.message().payload == {"number": 1}


def test_a_version_that_was_not_sent_saves_nothing(admin_client, event):
    response = admin_client.post(page_of(event), {"payload": '{"number": 1}'})
    assert "Nothing was saved" in response.content.decode()


def test_an_event_that_is_gone_meanwhile(admin_client, event):
    form = open_form(admin_client, event)
    FailedEvent.objects.all().delete()
    response = admin_client.post(page_of(event), {**form, "payload": '{"number": 12345}'})
    assert response.status_code == 409
    assert "no failed event any more" in response.content.decode()
    assert "12345" in response.content.decode()
    assert admin_client.get(page_of(event)).url == FAILURES


@pytest.mark.parametrize("fields", [{b"id": b"\xff"}, {**FIELDS, b":number": b"{"}, {}, {b"": b""}], ids=str)
def test_what_cannot_be_read_gets_a_clear_answer(fields, admin_client):
    fail(fields=dump_fields(fields))
    event = FailedEvent.objects.get()
    text = shown(admin_client, page_of(event))
    assert "This payload can't be edited: " in text
    assert "<textarea" not in text
    response = admin_client.post(page_of(event), {"payload": "{}", "version": "x"})
    assert response.status_code == 200
    event.refresh_from_db()
    assert event.attempts == 5


def test_in_another_database(admin_client, listeners):
    listens_to("shop.order_placed", listener_name="elsewhere", using="other")(lambda event, number: None)
    fail(using="other", consumer_group="price-monitor-elsewhere")
    event = FailedEvent.objects.using("other").get()
    assert save(admin_client, event, {"number": 3}, "other").url == FAILURES
    event.refresh_from_db()
    assert event.message().payload == {"number": 3}
    assert admin_client.get(page_of(event, "none")).status_code == 404


def test_looking_changes_nothing(admin_client, event):
    before = list(FailedEvent.objects.values())
    admin_client.get(page_of(event), {"payload": '{"number": 1}'})
    assert list(FailedEvent.objects.values()) == before


def test_permissions_and_token(client, django_user_model, admin_user, event):
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(admin_user)
    assert strict.post(page_of(event), {"payload": '{"number": 1}'}).status_code == 403
    user = django_user_model.objects.create_user("eva", is_staff=True)
    client.force_login(user)
    form = {"payload": '{"number": 1}'}
    change = reverse("admin:lightbus_django_failedevent_change", args=[event.pk])
    for codename in ("view_failedevent", "retry_failedevent", "discard_failedevent"):
        user.user_permissions.add(Permission.objects.get(codename=codename))
        assert client.get(page_of(event)).status_code == 403
        assert client.post(page_of(event), form).status_code == 403
        assert page_of(event) not in shown(client, change)
    user.user_permissions.set(Permission.objects.filter(codename="edit_failedevent"))
    assert client.get(page_of(event)).status_code == 403
    user.user_permissions.add(Permission.objects.get(codename="view_failedevent"))
    assert page_of(event) in shown(client, change)
    assert save(client, event, {"number": 1}).status_code == 302
    event.refresh_from_db()
    assert event.edited_by == "eva"
