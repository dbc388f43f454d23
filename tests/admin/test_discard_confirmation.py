"""The list action "Discard": it asks for a reason, and does nothing before that."""

import re

import pytest
from django.contrib.admin.models import LogEntry
from django.test import Client

from lightbus_django.models import FailedEvent, ProcessedEvent

from .test_failures import LIST, fail

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])


def ask(client: Client, keys: list[int], *, across: bool = False) -> str:
    data = {"action": "discard", "_selected_action": keys, "select_across": "1" if across else "0"}
    response = client.post(LIST, data)
    assert response.status_code == 200
    return response.content.decode()


def confirm(client: Client, page: str, **data: str) -> str:
    """Send the form of the page; return what is told afterwards."""
    fields: dict[str, list[str]] = {}
    for name, value in re.findall(r'<input type="hidden" name="([^"]*)" value="([^"]*)"', page):
        fields.setdefault(name, []).append(value)
    response = client.post(LIST, {**fields, **data}, follow=True)
    return " ".join(str(message) for message in response.context["messages"])


def keys() -> list[int]:
    return list(FailedEvent.objects.order_by("pk").values_list("pk", flat=True))


def test_asks_for_a_reason_first(admin_client: Client) -> None:
    fail(3)
    chosen = keys()[:2]
    page = ask(admin_client, chosen)
    assert "Discard 2 failed events?" in page
    assert re.search(r'<input type="text"[^>]* name="reason"[^>]* required>', page)
    assert FailedEvent.objects.count() == 3
    assert confirm(admin_client, page, reason=" bad data ") == "2 events discarded."
    assert not FailedEvent.objects.filter(pk__in=chosen).exists()
    discarded = ProcessedEvent.objects.filter(discarded=True, discarded_by="admin", discard_reason="bad data")
    assert discarded.count() == 2
    assert {entry.change_message for entry in LogEntry.objects.all()} == {"Discard: bad data"}


def test_what_failed_since_is_not_discarded(admin_client: Client) -> None:
    fail(3)
    page = ask(admin_client, keys()[:1], across=True)
    assert "Discard 3 failed events?" in page
    fail(1)
    assert confirm(admin_client, page, reason="bad data") == "3 events discarded."
    assert FailedEvent.objects.count() == 1


def test_what_is_gone_meanwhile(admin_client: Client) -> None:
    fail(1)
    chosen = keys()
    FailedEvent.objects.all().delete()
    response = admin_client.post(LIST, {"action": "discard", "_selected_action": chosen}, follow=True)
    assert "They are no failed events any more." in response.content.decode()
