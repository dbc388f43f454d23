"""The Event page in a real browser: on a desk, on a phone and in the dark, and its forms."""

import pytest
from django.db import transaction
from django.urls import reverse

from lightbus_django import listens_to, on_commit
from lightbus_django.models import FailedEvent, OutboxEvent, ProcessedEvent

from .test_event import event_id, fail, page_of  # noqa: F401

pytest.importorskip("selenium.webdriver", reason="selenium is not installed")

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])


def test_looks_fine_everywhere(look, event_id):  # noqa: F811
    @listens_to("shop.order_placed", listener_name="send_a_confirmation_to_the_customer")
    def mail(event):
        pass

    fail(event_id)
    fail(event_id, consumer_group="price-monitor-gone", error=f"ValueError: {'no such article ' * 20}")
    look(page_of(event_id), "event")
    with transaction.atomic():
        on_commit("shop.order_placed", number=1, note="word " * 2000, link="x" * 500)
    look(page_of(str(OutboxEvent.objects.latest("pk").pk)), "event-long")


def test_the_ids_that_are_found(look, r):
    for number in range(60):
        fail(f"01a2086e-c511-75a9-81d5-bdb21ea576{number:02}")
    look(reverse("admin:lightbus_django_find_event") + "?q=01a2", "event-search")


def test_is_found_retried_and_discarded_with_the_keyboard(logged_in, live_server, wait_for, event_id):  # noqa: F811
    fail(event_id)
    logged_in.get(live_server.url + reverse("admin:lightbus_django_consumergroup_changelist"))
    logged_in.find_element("name", "q").send_keys(event_id[:30], "\n")
    wait_for("Dead letter since")
    logged_in.find_element("css selector", "button[value=retry]").send_keys("\n")
    wait_for("The event is due for a retry")
    assert FailedEvent.objects.get().next_attempt_at is not None
    discard = logged_in.find_element("css selector", "button[value=discard]")
    assert not discard.is_displayed()
    logged_in.find_element("css selector", ".lightbus-actions summary").send_keys("\n")
    logged_in.find_element("name", "reason").send_keys("bad data")
    discard.send_keys("\n")
    wait_for("Discarded by admin")
    assert ProcessedEvent.objects.get(event_id=event_id).discard_reason == "bad data"


def test_a_long_payload_is_opened(logged_in, live_server, book):
    with transaction.atomic():
        on_commit("shop.order_placed", numbers=list(range(100)))
    logged_in.get(live_server.url + page_of(str(OutboxEvent.objects.latest("pk").pk)))
    payload = logged_in.find_element("css selector", ".lightbus-code")
    assert not payload.is_displayed()
    logged_in.find_element("css selector", "section:last-of-type summary").click()
    assert "\n    99\n" in payload.text
