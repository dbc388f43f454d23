"""The Failures page in a real browser: on a desk, on a phone and in the dark, from one retry to a discard."""

from urllib.parse import urlencode

import pytest
from django.urls import reverse
from django.utils import timezone

from lightbus_django.events.codec import dump_fields
from lightbus_django.models import FailedEvent

from .test_failures import CAUSE, DISCARD, FAILURES, FIELDS, LIST, fail, listener  # noqa: F401

pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver.support.select import Select

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])


def test_looks_fine_everywhere(look, listener):  # noqa: F811
    look(FAILURES, "failures-none")
    fail(300)
    fail(2, exception="django.db.utils.IntegrityError", error=f"IntegrityError: {'duplicate key ' * 40}")
    fail(1, consumer_group="price-monitor-gone", exception="", place="", error="")
    look(FAILURES, "failures")
    look(
        f"{DISCARD}?{urlencode(CAUSE)}",
        "failures-discard",
    )


def test_one_is_retried_then_all_and_the_rest_is_discarded(logged_in, live_server, wait_for, listener):  # noqa: F811
    fail(3)
    logged_in.get(live_server.url + reverse("admin:lightbus_django_failedevent_changelist"))
    logged_in.find_element("link text", "Failures by cause".upper()).click()
    wait_for("shop.errors.NoSuchArticle")
    logged_in.find_element("css selector", "button[name=failed]").send_keys("\n")
    wait_for("1 event is due for a retry.")
    logged_in.find_element("css selector", "button[name=all]").send_keys("\n")
    wait_for("2 events are due for a retry.")
    logged_in.find_element("link text", "Discard all").send_keys("\n")
    wait_for("Discard 3 failed events?")
    button = logged_in.find_element("css selector", ".lightbus-confirm button")
    button.click()  # refused by the browser, without a reason
    assert FailedEvent.objects.count() == 3
    logged_in.find_element("name", "reason").send_keys("bad data", "\n")
    wait_for("3 events discarded.")
    wait_for("There are no failed events.")


def test_the_outcome_is_shown_until_all_is_settled(logged_in, live_server, wait_for, screen, listener):  # noqa: F811
    fail(3)
    screen(1440, height=900)
    logged_in.get(live_server.url + FAILURES)
    logged_in.find_element("css selector", "button[name=all]").send_keys("\n")
    wait_for("3 retried: 0 done, 3 still to come")
    assert logged_in.find_element("css selector", ".lightbus-refresh input").is_displayed()
    logged_in.execute_script("window.isTheSamePage = true")
    FailedEvent.objects.filter(pk__in=FailedEvent.objects.values_list("pk", flat=True)[:2]).delete()
    wait_for("3 retried: 2 done, 1 still to come")
    FailedEvent.objects.update(failed_at=timezone.now(), next_attempt_at=None)
    wait_for("3 retried: 2 done, 1 failed again")
    assert "failed again" in logged_in.find_element("id", "lightbus-announcement").get_attribute("textContent")
    assert not logged_in.find_element("css selector", ".lightbus-refresh input").is_displayed()
    assert logged_in.execute_script("return window.isTheSamePage")
    logged_in.find_element("link text", "Show what has failed now").send_keys("\n")
    wait_for("Sample")
    wait_for("3 retried: 2 done, 1 failed again")


def test_filters_are_kept(logged_in, live_server, wait_for, listener):  # noqa: F811
    fail(3)
    fail(2, exception="builtins.KeyError")
    logged_in.get(live_server.url + FAILURES)
    Select(logged_in.find_element("name", "exception")).select_by_visible_text("builtins.KeyError")
    logged_in.find_element("css selector", ".lightbus-filter button").send_keys("\n")
    wait_for("Numbers and buttons below are of the events that fit the filters.")
    logged_in.find_element("css selector", "button[name=all]").send_keys("\n")
    wait_for("2 events are due for a retry.")
    assert "exception=builtins.KeyError" in logged_in.current_url
    assert Select(logged_in.find_element("name", "exception")).first_selected_option.text == "builtins.KeyError"


def test_retry_now_is_previewed(logged_in, live_server, wait_for, look, shoot, screen, listener):  # noqa: F811
    fail(300)
    fail(5, consumer_group="price-monitor-gone")
    fail(2, error="TransactionEnded: it committed")
    for width, scheme in ((390, "light"), (1440, "dark"), (1440, "light")):
        screen(width, scheme)
        logged_in.get(f"{live_server.url}{LIST}")
        logged_in.find_element("id", "action-toggle").send_keys(" ")
        logged_in.find_element("css selector", ".actions .question a").send_keys("\n")
        Select(logged_in.find_element("name", "action")).select_by_visible_text("Retry now")
        logged_in.find_element("css selector", ".actions button").send_keys("\n")
        wait_for("Retry 302 failed events?")
        shoot(f"retry-{scheme}-{width}")
        assert logged_in.execute_script("return document.documentElement.scrollWidth") <= width
    button = logged_in.switch_to.active_element
    assert button.text == "Retry 302 events"
    button.send_keys("\n")
    wait_for("302 retried: 0 done, 302 still to come")
    wait_for("5 events were not retried")
    look(FAILURES, "failures-retried")


def test_a_payload_is_edited(logged_in, live_server, wait_for, look, shoot, screen, listener):  # noqa: F811
    fields = {**FIELDS, b":number": b'"many"', b":text": b'"' + b"long text " * 60 + b'"'}
    fail(event_id="01a2086e-c511-75a9-81d5-bdb21ea576b0", fields=dump_fields(fields))
    event = FailedEvent.objects.get()
    url = reverse("admin:lightbus_django_edit_failed_event", args=["default", event.pk])
    look(url, "edit")
    area = logged_in.switch_to.active_element
    assert area.tag_name == "textarea"
    area.clear()
    area.send_keys('{"number": "more", "text": "ü"}')
    logged_in.find_element("css selector", "form .lightbus-actions button").send_keys("\n")
    wait_for("can't be converted for the handler")
    for width, scheme in ((390, "light"), (1440, "dark"), (1440, "light")):
        screen(width, scheme)
        shoot(f"edit-mistake-{scheme}-{width}")
    area = logged_in.find_element("name", "payload")
    assert area.get_attribute("value") == '{"number": "more", "text": "ü"}'
    FailedEvent.objects.update(attempts=4)
    area.clear()
    area.send_keys('{"number": 3, "text": "ü"}')
    logged_in.find_element("css selector", "form .lightbus-actions button").send_keys("\n")
    wait_for("Nothing was saved")
    shoot("edit-outdated")
    logged_in.find_element("css selector", "form .lightbus-actions button").send_keys("\n")
    wait_for("1 retried: 0 done, 1 still to come")
    look(reverse("admin:lightbus_django_failedevent_change", args=[event.pk]), "edited")
