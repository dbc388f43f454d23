"""The lists and the page of a failed event in a real browser: on a desk, on a phone and in the dark."""

from datetime import timedelta

import pytest
from django.urls import reverse
from django.utils import timezone
from model_bakery import baker

from lightbus_django.models import FailedEvent, OutboxEvent, ProcessedEvent

from .test_lists import TRACEBACK
from .test_pages import LISTS, failed

pytest.importorskip("selenium.webdriver", reason="selenium is not installed")

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])

GROUPS = ["billing-write-invoice", "billing-send-a-reminder-to-the-customer", "stock-count"]
EVENTS = ["shop.order_placed", "competitor_prices.changed", "warehouse.parcel_handed_over_to_carrier"]
ERRORS = [
    ("shop.errors.NoSuchArticle", "NoSuchArticle: 17"),
    ("django.db.utils.IntegrityError", 'IntegrityError: duplicate key value violates unique constraint "x"\nDETAIL: y'),
    ("requests.exceptions.ConnectionError", f"ConnectionError: {'x' * 200}"),
]


@pytest.fixture
def rows():
    now = timezone.now()
    for number in range(30):
        event_id = f"01a2086e-c511-75a9-81d5-bdb21ea576{number:02}"
        common = {"event_id": event_id, "event_name": EVENTS[number % 3], "consumer_group": GROUPS[number % 3]}
        baker.make(
            ProcessedEvent,
            **common,
            processed_at=now - timedelta(seconds=17**number % 10**6),
            process_name="billing-web-7d9f6bc5b-x2x7q",
            attempts=1,
            discarded=number % 7 == 0,
        )
        baker.make(
            OutboxEvent,
            id=event_id,
            event_name=EVENTS[number % 3],
            payload="{}",
            created_at=now - timedelta(minutes=number),
            due_at=None if number % 4 else now,
            published_at=now - timedelta(minutes=number) if number % 4 else None,
            error="" if number % 8 else "OOM command not allowed when used memory > 'maxmemory'.",
        )
        if number % 2:
            exception, error = ERRORS[number % 3]
            failed(
                **common,
                exception=exception,
                place=f"shop/listeners.py:{number}",
                error=error,
                attempts=number % 5 + 1,
                failed_at=now - timedelta(hours=number),
                next_attempt_at=now + timedelta(minutes=number) if number % 3 else None,
                traceback=TRACEBACK,
                history=[
                    {"at": now.isoformat(), "process": "billing-web-7d9f6bc5b-x2x7q", "seconds": 0.25, "error": error},
                    {"at": now.isoformat(), "process": "worker", "seconds": None, "error": error},
                ],
            )


@pytest.mark.parametrize("model", LISTS)
def test_a_list_fits_on_every_screen(model, logged_in, live_server, look, rows):
    look(LISTS[model], f"list-{model.__name__}")
    assert logged_in.execute_script(
        "const list = document.querySelector('.results'); return list.scrollWidth <= list.clientWidth"
    )
    heights = logged_in.execute_script(
        "return [...document.querySelectorAll('.field-state_and_attempts')].map(cell => {"
        "const text = document.createRange(); text.selectNodeContents(cell);"
        "return text.getBoundingClientRect().height / parseFloat(getComputedStyle(cell).lineHeight); })"
    )
    assert all(height < 2.5 for height in heights)  # two lines: the state, and after how many attempts


def test_the_page_of_a_failed_event(logged_in, look, rows):
    look(reverse("admin:lightbus_django_failedevent_change", args=[FailedEvent.objects.latest("pk").pk]), "failed")
    assert logged_in.execute_script(
        "const right = document.querySelector('#content').getBoundingClientRect().right;"
        "return [...document.querySelectorAll('.readonly')].every(e => e.getBoundingClientRect().right <= right)"
    )
    summary = logged_in.find_element("css selector", ".field-folded_traceback summary")
    assert "obj.save()" not in logged_in.find_element("tag name", "body").text
    summary.send_keys("\n")
    assert "obj.save()" in logged_in.find_element("tag name", "body").text
