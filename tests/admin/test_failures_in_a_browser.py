"""The Failures page in a real browser: on a desk, on a phone and in the dark, from one retry to a discard."""

import pytest
from django.urls import reverse

from lightbus_django.models import FailedEvent

from .test_failures import CAUSE, DISCARD, FAILURES, fail, listener  # noqa: F401

pytest.importorskip("selenium.webdriver", reason="selenium is not installed")

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])


def test_looks_fine_everywhere(look, listener):  # noqa: F811
    look(FAILURES, "failures-none")
    fail(300)
    fail(2, exception="django.db.utils.IntegrityError", error=f"IntegrityError: {'duplicate key ' * 40}")
    fail(1, consumer_group="price-monitor-gone", exception="", place="", error="")
    look(FAILURES, "failures")
    look(
        f"{DISCARD}?consumer_group={CAUSE['consumer_group']}&exception={CAUSE['exception']}"
        f"&place={CAUSE['place']}&database=default",
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
