"""The Failures page: groups by cause, and what is done to a whole group."""

import re
from datetime import timedelta

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from model_bakery import baker

from lightbus_django import listens_to
from lightbus_django.admin import bulk
from lightbus_django.events.codec import dump_fields
from lightbus_django.models import FailedEvent, ProcessedEvent, RetryRequest, new_retry_request

from .conftest import GROUP

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])

FAILURES = reverse("admin:lightbus_django_failures")
DISCARD = reverse("admin:lightbus_django_discard_failures")
LIST = reverse("admin:lightbus_django_failedevent_changelist")
CAUSE = {
    "database": "default",
    "group": GROUP,
    "type": "shop.errors.NoSuchArticle",
    "place": "shop/listeners.py:12",
}
FIELDS = {b"id": b"1", b"api_name": b"shop", b"event_name": b"order_placed", b"version": b"1", b":number": b"1"}


@pytest.fixture
def listener(listeners):
    @listens_to("shop.order_placed")
    def book(event, number: int):
        pass


def fail(count=1, using="default", **values):
    """Make failed events of CAUSE, dead letters by default."""
    values = {
        "event_name": "shop.order_placed",
        "consumer_group": GROUP,
        "exception": CAUSE["type"],
        "place": CAUSE["place"],
        "stream_id": "1-0",
        "fields": dump_fields(FIELDS),
        "error": "NoSuchArticle: 17\nmore",
        "attempts": 5,
        "next_attempt_at": None,
        "history": None,
        **values,
    }
    return baker.make(FailedEvent, _quantity=count, _using=using, _bulk_create=True, **values)


def shown(client, url=FAILURES, **parameters):
    response = client.get(url, parameters)
    assert response.status_code == 200
    return " ".join(response.content.decode().split())


def post(client, url=FAILURES, **data):
    response = client.post(url, {**CAUSE, **data}, follow=True)
    return " ".join(str(message) for message in response.context["messages"])


def test_shows_groups_by_cause_the_largest_first(admin_client, listener):
    fail(2, exception="builtins.KeyError", place="shop/stock.py:3", error="KeyError: 'size'", failed_at=timezone.now())
    fail(1234, first_failed_at=timezone.now() - timedelta(hours=3), failed_at=timezone.now() - timedelta(minutes=5))
    fail(1, next_attempt_at=timezone.now())
    text = shown(admin_client)
    assert text.index("<strong>shop.errors.NoSuchArticle") < text.index("<strong>builtins.KeyError")
    assert ">1,235</a>" in text
    assert 'data-label="Dead letters">1,234<' in text
    assert ">3 h ago</time>" in text
    assert ">NoSuchArticle: 17</a>" in text
    assert "shop/listeners.py:12" in text


def test_links_to_the_events_of_a_group(admin_client, listener):
    fail(3)
    fail(2, exception="builtins.KeyError")
    fail(4, exception="", place="")
    urls = [url.replace("&amp;", "&") for url in re.findall(rf'href="({LIST}\?[^"]*)"', shown(admin_client))]
    counts = [len(re.findall(r'class="action-select"', shown(admin_client, url))) for url in urls]
    assert counts == [4, 3, 2]


def test_the_list_links_to_it(admin_client):
    assert f'href="{FAILURES}"' in shown(admin_client, LIST)


def test_takes_as_many_queries_for_many_groups_as_for_one(admin_client, listener, django_assert_max_num_queries):
    fail(1)
    with django_assert_max_num_queries(20) as queries:
        shown(admin_client)
    for number in range(20):
        fail(3, place=f"shop/listeners.py:{number}")
    with django_assert_max_num_queries(len(queries)):
        shown(admin_client)


def test_nothing_that_failed(admin_client, r):
    assert "There are no failed events." in shown(admin_client)


def test_texts_are_escaped(admin_client, listener):
    fail(error="<script>alert(1)</script>", exception="<b>", place='"><i>')
    text = shown(admin_client)
    assert "<script>alert(1)" not in text
    assert "<b>" not in text
    assert "<i>" not in text


def test_one_is_retried_first(admin_client, listener):
    fail(3)
    sample = re.search(r'name="failed" value="(\d+)"', shown(admin_client))[1]
    assert post(admin_client, failed=sample) == "1 event is due for a retry."
    assert FailedEvent.objects.get(next_attempt_at__lte=timezone.now()).pk == int(sample)
    assert "They are due already" in post(admin_client, failed=sample)


def test_all_are_retried(admin_client, listener):
    fail(bulk.CHUNK + 5)
    fail(1, next_attempt_at=timezone.now() + timedelta(hours=1))
    other = fail(1, exception="builtins.KeyError")[0]
    assert post(admin_client) == f"{bulk.CHUNK + 6} events are due for a retry."
    assert FailedEvent.objects.filter(attempts=0, next_attempt_at__lte=timezone.now()).count() == bulk.CHUNK + 6
    assert FailedEvent.objects.get(exception=other.exception).is_dead_letter
    assert LogEntry.objects.filter(change_message__contains="Retry now").count() == bulk.CHUNK + 6


def test_what_can_not_succeed_is_not_retried(admin_client, listener):
    fail(2, fields=dump_fields({**FIELDS, b":number": b'"many"'}))
    fail(1)
    text = post(admin_client)
    assert "1 event is due for a retry." in text
    assert "2 events were not retried, because that can't succeed: " in text
    assert FailedEvent.objects.filter(next_attempt_at=None).count() == 2


def test_a_group_without_a_listener_is_not_retried(admin_client, listener):
    fail(3, consumer_group="price-monitor-gone")
    text = shown(admin_client)
    assert "this service has no listener for the consumer group price-monitor-gone" in text
    assert "Retry" not in text.partition("</thead>")[2].replace("A retry", "")
    assert "3 events were not retried" in post(admin_client, group="price-monitor-gone")


def test_what_to_consider_before_a_retry(admin_client, listeners):
    listens_to("shop.order_placed", listener_name="book", idempotent=False)(lambda event, number: None)
    fail()
    assert "Before a retry: the listener is not idempotent" in shown(admin_client)


def test_a_limited_number_is_retried_at_a_time(admin_client, listener, monkeypatch):
    monkeypatch.setattr(bulk, "LIMIT", 3)
    monkeypatch.setattr(bulk, "CHUNK", 3)
    fail(5)
    assert "There are more: retry all again" in post(admin_client)
    assert "2 events are due" in post(admin_client)


def test_discarding_shows_the_count_and_asks_for_a_reason(admin_client, listener):
    fail(1234)
    kept = fail(1, place="elsewhere.py:1")[0]
    text = shown(admin_client, DISCARD, **CAUSE)
    assert "Discard 1,234 failed events?" in text
    assert 'name="reason"' in text
    assert FailedEvent.objects.count() == 1235
    assert post(admin_client, DISCARD, reason=" bad data ") == "1,234 events discarded."
    assert FailedEvent.objects.get().place == kept.place
    discarded = ProcessedEvent.objects.filter(discarded=True, discarded_by="admin", discard_reason="bad data")
    assert discarded.count() == 1234
    assert LogEntry.objects.first().get_change_message() == "Discard: bad data"
    assert "no failed events any more" in admin_client.get(DISCARD, CAUSE, follow=True).content.decode()


def test_a_listener_with_a_database_of_its_own(admin_client, listeners):
    listens_to("shop.order_placed", listener_name="book", using="other")(lambda event, number: None)
    fail(2, using="other")
    text = shown(admin_client)
    assert "database other" in text
    assert f'href="{LIST}?' not in text
    assert "2 events are due" in post(admin_client, database="other")
    assert "2 events discarded" in post(admin_client, DISCARD, database="other")
    assert ProcessedEvent.objects.using("other").filter(discarded=True).count() == 2


def test_an_unknown_database(admin_client, listener):
    assert admin_client.get(DISCARD, {**CAUSE, "database": "none"}).status_code == 404
    assert admin_client.post(FAILURES, {**CAUSE, "database": "none"}).status_code == 404


def test_permissions(client, django_user_model, listener):
    fail(3)
    user = django_user_model.objects.create_user("eva", is_staff=True)
    client.force_login(user)
    for url in (FAILURES, DISCARD):
        assert client.get(url, CAUSE).status_code == 403
        assert client.post(url, CAUSE).status_code == 403
    user.user_permissions.add(Permission.objects.get(codename="view_failedevent"))
    text = shown(client)
    assert "Retry all" not in text
    assert "Discard all" not in text
    assert client.post(FAILURES, CAUSE).status_code == 403
    assert client.get(DISCARD, CAUSE).status_code == 403
    assert client.post(DISCARD, CAUSE).status_code == 403
    assert FailedEvent.objects.filter(next_attempt_at=None).count() == 3
    user.user_permissions.add(Permission.objects.get(codename="retry_failedevent"))
    assert "Retry all" in shown(client)
    assert "3 events are due" in post(client)
    user.user_permissions.add(Permission.objects.get(codename="discard_failedevent"))
    assert "Discard all" in shown(client)
    assert "3 events discarded" in post(client, DISCARD)


class TestOutcome:
    def test_is_shown_after_a_retry_and_survives_a_reload(self, admin_client, listener):
        fail(42)
        post(admin_client)
        assert "<strong>42 retried:</strong> 0 done, 42 still to come" in shown(admin_client)
        pks = list(FailedEvent.objects.values_list("pk", flat=True))
        FailedEvent.objects.filter(pk__in=pks[:40]).delete()
        FailedEvent.objects.filter(pk__in=pks[40:]).update(failed_at=timezone.now())
        for _ in range(2):
            text = shown(admin_client)
            assert '40 done, <span class="lightbus-act">2 failed again</span> <span' in text
            assert "(by admin, <time" in text

    def test_the_fragment_has_nothing_else(self, admin_client, listener):
        fail(2)
        assert "retried" not in shown(admin_client, fragment="1")
        post(admin_client)
        text = shown(admin_client, fragment="1")
        assert text.startswith("<section")
        assert "2 still to come" in text
        assert "data-settled" not in text
        assert "refresh.js" in shown(admin_client)
        FailedEvent.objects.all().delete()
        assert "data-settled" in shown(admin_client, fragment="1")
        assert "refresh.js" not in shown(admin_client)

    def test_of_several_databases(self, admin_client, listeners):
        listens_to("shop.order_placed", listener_name="book", using="other")(lambda event, number: None)
        fail(3, using="other")
        post(admin_client, database="other")
        assert "<strong>3 retried:</strong> 0 done, 3 still to come" in shown(admin_client)

    def test_names_are_escaped(self, admin_client, listener):
        FailedEvent.objects.filter(pk=fail()[0].pk).request_retry(new_retry_request("default", "<i>eva"))
        assert "by &lt;i&gt;eva, <time" in shown(admin_client)

    def test_takes_as_many_queries_for_five_as_for_one(self, admin_client, listener, django_assert_max_num_queries):
        fail(1)
        post(admin_client)
        with django_assert_max_num_queries(20) as queries:
            shown(admin_client, fragment="1")
        count = len(queries)  # other requests forget them
        for number in range(5):
            fail(1, place=f"{number}.py")
            post(admin_client, place=f"{number}.py")
        with django_assert_max_num_queries(count):
            assert shown(admin_client, fragment="1").count("<li>") == 5


class TestCsrf:
    @pytest.mark.parametrize("url", [FAILURES, DISCARD])
    def test_is_required(self, url, admin_user, listener):
        fail(2)
        client = Client(enforce_csrf_checks=True)
        client.force_login(admin_user)
        assert client.post(url, CAUSE).status_code == 403
        assert FailedEvent.objects.filter(next_attempt_at=None).count() == 2


def test_looking_changes_nothing(admin_client, listener):
    fail(2)
    before = list(FailedEvent.objects.values())
    for url in (FAILURES, DISCARD):
        admin_client.get(url, {**CAUSE, "all": "1", "reason": "x", "confirmed": "1"})
    assert list(FailedEvent.objects.values()) == before
    assert not RetryRequest.objects.exists()


def test_what_fails_after_the_page_was_shown_is_not_acted_upon(admin_client, listener):
    shown_last = fail(2)[-1].pk or FailedEvent.objects.latest("pk").pk
    fail(1)
    assert f'name="last" value="{shown_last + 1}"' in shown(admin_client)
    assert post(admin_client, last=shown_last) == "2 events are due for a retry."
    assert "Discard 2 failed events?" in shown(admin_client, DISCARD, **CAUSE, last=shown_last)
    assert post(admin_client, DISCARD, last=shown_last) == "2 events discarded."
    assert FailedEvent.objects.count() == 1
