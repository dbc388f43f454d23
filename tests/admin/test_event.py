"""The Event page: what it tells, what can be done there, and how an event is found."""

import pytest
from django.contrib.admin import site
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission
from django.db import transaction
from django.urls import reverse
from django.utils import timezone
from model_bakery import baker

from lightbus_django import listens_to, on_commit
from lightbus_django.admin.links import event_url
from lightbus_django.events.codec import dump_fields
from lightbus_django.events.ids import event_key
from lightbus_django.models import FailedEvent, OutboxEvent, ProcessedEvent

from .conftest import GROUP

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])

FIND = reverse("admin:lightbus_django_find_event")
VIEWS = ["view_processedevent", "view_failedevent", "view_outboxevent"]


@pytest.fixture
def event_id(book):
    """An event with a long text that `book` has not read yet."""
    with transaction.atomic():
        on_commit("shop.order_placed", number=1, note="<script>alert(1)</script>")
    return str(OutboxEvent.objects.latest("pk").pk)


def page_of(event_id):
    return event_url(site, event_id)


def shown(client, event_id):
    response = client.get(page_of(event_id))
    assert response.status_code == 200
    return " ".join(response.content.decode().split())


def fail(event_id, **values):
    fields = {b"id": event_id.encode(), b"api_name": b"shop", b"event_name": b"order_placed", b"version": b"1"}
    return baker.make(
        FailedEvent,
        **{
            "event_id": event_id,
            "event_name": "shop.order_placed",
            "consumer_group": GROUP,
            "stream": "shop.*:stream",
            "stream_id": "1-0",
            "fields": dump_fields({**fields, b":number": b"1"}),
            "error": "ValueError: no such article",
            "attempts": 5,
            "next_attempt_at": None,
            **values,
        },
    )


def act(client, event_id, action, **data):
    response = client.post(page_of(event_id), {"action": action, "database": "default", **data}, follow=True)
    return " ".join(str(message) for message in response.context["messages"])


def test_tells_origin_outcomes_and_payload(admin_client, event_id):
    text = shown(admin_client, event_id)
    assert "Fired with on_commit() by price-monitor" in text
    assert "a relay has not marked its row yet" in text
    assert "Not read yet" in text
    assert GROUP in text
    assert "&quot;number&quot;: 1" in text
    assert "<script>alert(1)" not in text
    assert "<details>" not in text


def test_a_long_payload_is_collapsed(admin_client, book):
    with transaction.atomic():
        on_commit("shop.order_placed", number=list(range(100)))
    text = shown(admin_client, str(OutboxEvent.objects.latest("pk").pk))
    assert "<details><summary>Show all" in text


def test_takes_as_many_queries_for_many_listeners_as_for_one(admin_client, event_id, django_assert_max_num_queries):
    fail(event_id)
    with django_assert_max_num_queries(30) as queries:
        shown(admin_client, event_id)
    for number in range(20):
        listens_to("shop.order_placed", listener_name=f"other_{number}")(lambda event: None)
        fail(event_id, consumer_group=f"price-monitor-other-{number}")
    with django_assert_max_num_queries(len(queries)):
        text = shown(admin_client, event_id)
    assert text.count("Dead letter since") == 21


def test_an_event_that_no_record_mentions(admin_client, r):
    assert admin_client.get(page_of("01a2086e-c511-75a9-81d5-bdb21ea576b0")).status_code == 404


@pytest.mark.parametrize("event_id", ["a/b", "../x", "a.b:c_d*-1", "sha256:" + "0" * 64])
def test_any_id_can_be_in_the_address(event_id, admin_client, r):
    fail(event_id)
    assert "/../" not in page_of(event_id)
    assert "no such article" in shown(admin_client, event_id)


@pytest.mark.parametrize("event_id", ["An Id", "a?b#c", "é", "%2F"])
def test_an_id_that_the_database_has_as_its_digest(event_id, admin_client, r):
    fail(event_key(event_id))
    assert "no such article" in shown(admin_client, event_id)
    assert admin_client.get(FIND, {"q": event_id}).url == page_of(event_id)


def test_a_dead_letter_is_retried(admin_client, event_id):
    failed = fail(event_id)
    assert "Dead letter since" in shown(admin_client, event_id)
    assert "is due for a retry" in act(admin_client, event_id, "retry", failed=failed.pk)
    failed.refresh_from_db()
    assert failed.next_attempt_at <= timezone.now()
    assert failed.attempts == 0
    assert LogEntry.objects.get().get_change_message() == "Retry now"


@pytest.mark.parametrize("values", [{"consumer_group": "price-monitor-gone"}, {"fields": dump_fields({b"id": b"1"})}])
def test_a_retry_that_can_not_succeed_is_refused(values, admin_client, event_id):
    failed = fail(event_id, **values)
    text = shown(admin_client, event_id)
    assert "A retry can't succeed:" in text
    assert 'value="retry"' not in text
    assert "Not retried, because that can't succeed" in act(admin_client, event_id, "retry", failed=failed.pk)
    failed.refresh_from_db()
    assert failed.is_dead_letter


def test_what_to_consider_before_a_retry(admin_client, event_id, listeners):
    (listener,) = listeners
    listeners.remove(listener)
    listens_to("shop.order_placed", listener_name="book", idempotent=False)(lambda event, number: None)
    fail(event_id)
    assert "Before a retry: the listener is not idempotent" in shown(admin_client, event_id)


def test_a_failed_event_is_discarded_with_a_reason(admin_client, event_id):
    failed = fail(event_id)
    assert "is discarded" in act(admin_client, event_id, "discard", failed=failed.pk, reason="bad data")
    processed = ProcessedEvent.objects.get(event_id=event_id)
    assert (processed.discarded, processed.discarded_by, processed.discard_reason) == (True, "admin", "bad data")
    assert "Discarded by admin" in shown(admin_client, event_id)
    assert "no failed event any more" in act(admin_client, event_id, "discard", failed=failed.pk)


def test_is_published_again(admin_client, event_id):
    assert "is not published yet" in act(admin_client, event_id, "publish_again")
    OutboxEvent.objects.filter(pk=event_id).update(due_at=None, published_at=timezone.now())
    assert 'value="publish_again"' in shown(admin_client, event_id)
    assert "will be published again" in act(admin_client, event_id, "publish_again")
    assert OutboxEvent.objects.get(pk=event_id).due_at is not None


def test_permissions(client, django_user_model, event_id):
    failed = fail(event_id)
    OutboxEvent.objects.filter(pk=event_id).update(due_at=None, published_at=timezone.now())
    user = django_user_model.objects.create_user("eva", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=VIEWS[:2]))
    client.force_login(user)
    assert client.get(page_of(event_id)).status_code == 403
    assert client.get(FIND).status_code == 403
    user.user_permissions.set(Permission.objects.filter(codename__in=VIEWS))
    text = shown(client, event_id)
    for action, codename in (
        ("retry", "retry_failedevent"),
        ("publish_again", "republish_outboxevent"),
        ("discard", "discard_failedevent"),
    ):
        assert f'value="{action}"' not in text
        data = {"action": action, "database": "default", "failed": failed.pk}
        assert client.post(page_of(event_id), data).status_code == 403
        user.user_permissions.add(Permission.objects.get(codename=codename))
        assert f'value="{action}"' in shown(client, event_id)
        assert client.post(page_of(event_id), data).status_code == 302


@pytest.mark.parametrize("data", [{"database": "none"}, {"failed": "x"}, {"action": "x"}])
def test_nonsense_changes_nothing(data, admin_client, event_id):
    failed = fail(event_id)
    response = admin_client.post(
        page_of(event_id), {"action": "retry", "database": "default", "failed": failed.pk, **data}
    )
    assert response.status_code in (302, 404)
    failed.refresh_from_db()
    assert failed.is_dead_letter


def test_is_found_by_its_first_characters(admin_client, event_id):
    response = admin_client.get(FIND, {"q": f" {event_id[:30]} "})
    assert response.url == page_of(event_id)
    fail("01a2086e-c511-75a9-81d5-bdb21ea576b0")
    fail("01a2086e-c511-75a9-81d5-bdb21ea576b1")
    text = admin_client.get(FIND, {"q": "01a2"}).content.decode()
    assert page_of("01a2086e-c511-75a9-81d5-bdb21ea576b0") in text
    assert page_of("01a2086e-c511-75a9-81d5-bdb21ea576b1") in text
    assert "No record mentions" in admin_client.get(FIND, {"q": "ffffff\n"}).content.decode()
    assert "No record mentions" not in admin_client.get(FIND).content.decode()
