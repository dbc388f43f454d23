"""The lists and forms of the admin in a real browser."""

import pytest
from django.utils import timezone
from model_bakery import baker

from lightbus_django.events.codec import dump_fields
from lightbus_django.models import FailedEvent, OutboxEvent, ProcessedEvent

pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver.common.by import By
from selenium.webdriver.support.select import Select

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def rows():
    nasty = "<script>document.title = 'broken into'</script>"
    content = {
        b"id": b"1",
        b"api_name": b"shop",
        b"event_name": b"order_placed",
        b"version": b"1",
        b":note": nasty.encode(),
    }
    for number in range(3):
        baker.make(
            FailedEvent,
            event_id=f"01a2086e-c511-75a9-81d5-bdb21ea576b{number}",
            event_name="shop.order_placed",
            consumer_group="billing-write-invoice",
            stream="shop.*:stream",
            stream_id=f"1795437806865-{number}",
            fields=dump_fields(content),
            error=f"ValueError: no such article {nasty}",
            traceback=f"Traceback (most recent call last):\n  shop/listeners.py, line {number}\nValueError: {nasty}",
            attempts=5,
            next_attempt_at=None if number else timezone.now(),
        )
    baker.make(ProcessedEvent, event_name="shop.order_placed", consumer_group="billing-write-invoice", _quantity=20)
    baker.make(OutboxEvent, event_name="shop.order_placed", payload=f'{{"note": "{nasty}"}}', _quantity=5)


TRACEBACK = f"""Traceback (most recent call last):
  File "/srv/shop/listeners.py", line 12, in book
    Booking.objects.create({"number=number, " * 12})
    ~~~~~~~^^^^^^^^^^^^^^^
ValueError: no such article
{"x" * 500}
"""


@pytest.mark.parametrize("width", [1400, 390], ids=["desk", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_tracebacks_keep_their_indentation_and_stay_within_the_page(
    scheme, width, logged_in, live_server, screen, shoot, rows
):
    FailedEvent.objects.update(traceback=TRACEBACK, error="\n  two lines\n    of an error")
    screen(width, scheme, height=2000)
    for model, row, names in (
        ("failedevent", FailedEvent.objects.first(), ("content", "error")),
        ("outboxevent", OutboxEvent.objects.first(), ("content", "error")),
    ):
        logged_in.get(f"{live_server.url}/admin/lightbus_django/{model}/{row.pk}/change/")
        shoot(f"{model}-{scheme}-{width}")
        for name in names:
            shown = logged_in.find_element(By.CSS_SELECTOR, f".field-{name} .readonly")
            assert shown.value_of_css_property("white-space") == "pre-wrap"
            assert "monospace" in shown.value_of_css_property("font-family")
        assert logged_in.execute_script("return document.documentElement.scrollWidth") <= width
    logged_in.back()
    shown = logged_in.find_element(By.CSS_SELECTOR, ".lightbus-frames")
    assert shown.value_of_css_property("white-space") == "pre-wrap"
    assert "\n    Booking.objects.create(" in shown.text
    assert shown.text.count("\n") == TRACEBACK.strip().count("\n")


def discard_selected(browser):
    Select(browser.find_element(By.NAME, "action")).select_by_visible_text("Discard")
    browser.find_element(By.CSS_SELECTOR, ".actions button").click()


def give_reason(browser):
    browser.find_element(By.NAME, "reason").send_keys("bad data")
    browser.find_element(By.CSS_SELECTOR, ".lightbus-confirm button").click()


def test_failed_events_are_seen_retried_and_discarded(browser, wait_for, shoot, rows, live_server, admin_user):
    browser.get(f"{live_server.url}/admin/lightbus_django/failedevent/")
    browser.find_element(By.NAME, "username").send_keys("admin")
    browser.find_element(By.NAME, "password").send_keys("password")
    browser.find_element(By.CSS_SELECTOR, "[type=submit]").click()
    wait_for("Select failed event")
    shoot("failed-events")
    assert len(browser.find_elements(By.CSS_SELECTOR, "#result_list tbody tr")) == 3

    browser.find_element(By.CSS_SELECTOR, "#result_list tbody th a").click()
    wait_for("View failed event")
    shoot("failed-event")
    assert "ValueError: <script>" in browser.find_element(By.ID, "content").text
    assert browser.title != "broken into"
    browser.back()
    wait_for("Select failed event")

    browser.find_element(By.CSS_SELECTOR, "#result_list tbody .action-select").click()
    Select(browser.find_element(By.NAME, "action")).select_by_visible_text("Retry now")
    browser.find_element(By.CSS_SELECTOR, ".actions button").click()
    wait_for("this service has no listener for the consumer group billing-write-invoice")
    browser.find_element(By.LINK_TEXT, "No, take me back").click()
    wait_for("Select failed event")

    browser.find_element(By.ID, "action-toggle").click()
    discard_selected(browser)
    wait_for("Discard 3 failed events?")
    give_reason(browser)
    wait_for("3 events discarded.")
    shoot("discarded")
    assert not FailedEvent.objects.exists()

    for model in ("processedevent", "outboxevent"):
        browser.get(f"{live_server.url}/admin/lightbus_django/{model}/")
        shoot(model)
        browser.find_element(By.CSS_SELECTOR, "#result_list tbody th a").click()
        shoot(f"{model}-one")
        assert browser.title != "broken into"


def test_all_of_a_page_are_selected_but_not_more_than_can_be_counted(
    logged_in, live_server, wait_for, shoot, rows, monkeypatch
):
    monkeypatch.setattr("lightbus_django.admin.base.COUNT_LIMIT", 2)
    monkeypatch.setattr("lightbus_django.admin.base.EventAdmin.list_per_page", 1)
    logged_in.get(f"{live_server.url}/admin/lightbus_django/failedevent/")
    wait_for("more than 2 failed events")
    assert "To select more than a page" not in logged_in.find_element(By.ID, "content").text
    logged_in.find_element(By.ID, "action-toggle").click()
    wait_for("1 of 1 selected")
    wait_for("To select more than a page, filter the list to 2 or fewer.")
    shoot("more-than-can-be-selected")
    discard_selected(logged_in)
    wait_for("Discard 1 failed event?")
    give_reason(logged_in)
    wait_for("1 event discarded.")


def test_all_of_all_pages_are_selected(logged_in, live_server, wait_for, rows, monkeypatch):
    monkeypatch.setattr("lightbus_django.admin.base.EventAdmin.list_per_page", 2)
    logged_in.get(f"{live_server.url}/admin/lightbus_django/failedevent/")
    logged_in.find_element(By.ID, "action-toggle").click()
    logged_in.find_element(By.LINK_TEXT, "Select all 3 failed events").click()
    wait_for("All 3 selected")
    discard_selected(logged_in)
    wait_for("Discard 3 failed events?")
    give_reason(logged_in)
    wait_for("3 events discarded.")
