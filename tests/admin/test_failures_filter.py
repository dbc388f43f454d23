"""The filters of the Failures page: groups, and what is done to them, are of the events that are shown."""

import re
from datetime import UTC, datetime

import pytest
from django.utils import timezone

from lightbus_django import listens_to
from lightbus_django.models import FailedEvent, ProcessedEvent

from .test_failures import CAUSE, DISCARD, FAILURES, LIST, fail, listener, shown  # noqa: F401

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
    pytest.mark.usefixtures("listener"),
]


def causes(client, **filters):
    return re.findall(r"<strong>([^<]*)</strong> <div>", shown(client, **filters).partition("<tbody")[2])


def at(day, hour=12):
    return datetime(2026, 3, day, hour, tzinfo=UTC)


@pytest.mark.parametrize(
    "filters",
    [
        {"exception": "builtins.KeyError"},
        {"exception": "KeyError"},
        {"listener": "other"},
        {"event": "shop.parcel_delivered"},
        {"since": "2026-03-03"},
        {"since": "2026-03-03", "until": "2026-03-03", "event": "shop.parcel_delivered"},
    ],
    ids=str,
)
def test_groups_are_of_what_fits(filters, admin_client):
    listens_to("shop.order_placed", listener_name="other")(lambda event: None)
    fail(2, failed_at=at(2, 23))
    fail(
        exception="builtins.KeyError",
        consumer_group="price-monitor-other",
        event_name="shop.parcel_delivered",
        failed_at=at(3, 0),
    )
    assert causes(admin_client) == ["shop.errors.NoSuchArticle", "builtins.KeyError"]
    assert causes(admin_client, **filters) == ["builtins.KeyError"]


def test_until_a_day_includes_it(admin_client):
    fail(failed_at=at(2, 23))
    assert len(causes(admin_client, until="2026-03-02")) == 1
    assert "No failed events fit these filters." in shown(admin_client, until="2026-03-01")


def test_days_are_those_of_the_time_zone(admin_client, settings):
    settings.TIME_ZONE = "Asia/Tokyo"
    with timezone.override("Asia/Tokyo"):
        fail(failed_at=at(2, 23))
        assert causes(admin_client, until="2026-03-02") == []
        assert len(causes(admin_client, since="2026-03-03")) == 1


def test_one_group_may_have_others(admin_client):
    """The same cause fails before and after: a retry is of those that are shown only."""
    old = fail(3, failed_at=at(1))
    fail(2, failed_at=at(5))
    url = f"{FAILURES}?since=2026-03-05"
    assert 'data-label="Dead letters">2<' in shown(admin_client, since="2026-03-05")
    response = admin_client.post(url, CAUSE)
    assert response.url == url
    assert FailedEvent.objects.filter(next_attempt_at=None).count() == len(old)
    assert "2 events are due for a retry." in admin_client.get(response.url).content.decode()


def test_a_discard_is_of_what_fits_and_leads_back(admin_client):
    fail(3, failed_at=at(1))
    fail(2, failed_at=at(5))
    text = shown(admin_client, since="2026-03-05", listener="book")
    url = re.search(rf'href="({DISCARD}\?[^"]*)"', text)[1].replace("&amp;", "&")
    text = shown(admin_client, url)
    assert "Discard 2 failed events?" in text
    assert "<dt>Filter: Failed from</dt><dd>2026-03-05</dd>" in text
    back = f"{FAILURES}?listener=book&since=2026-03-05"
    assert f'href="{back.replace("&", "&amp;")}"' in text
    data = dict(re.findall(r'type="hidden" name="([^"]*)" value="([^"]*)"', text))
    assert admin_client.post(url, {**data, "reason": "bad"}).url == back
    assert FailedEvent.objects.count() == 3
    assert ProcessedEvent.objects.filter(discarded=True).count() == 2


def test_the_list_of_a_group_shows_the_same(admin_client):
    fail(3, failed_at=at(1))
    fail(2, failed_at=at(5))
    text = shown(admin_client, since="2026-03-05", until="2026-03-06", event="shop.order_placed")
    url = re.search(rf'href="({LIST}\?[^"]*)"', text)[1].replace("&amp;", "&")
    assert shown(admin_client, url).count('class="action-select"') == 2


@pytest.mark.parametrize("filters", [{"since": "yesterday"}, {"until": "9999-12-31"}, {"since": "0001-01-01"}], ids=str)
def test_what_is_no_date_is_named_and_nothing_is_done(filters, admin_client):
    fail(2)
    text = shown(admin_client, **filters)
    assert "errorlist" in text
    assert "Retry all" not in text
    url = f"?{next(iter(filters))}={next(iter(filters.values()))}"
    assert admin_client.post(FAILURES + url, CAUSE).status_code == 400
    assert admin_client.post(DISCARD + url, CAUSE).status_code == 400
    assert FailedEvent.objects.filter(next_attempt_at=None).count() == 2


def test_choices_are_from_the_records_and_the_registry(admin_client):
    listens_to("shop.parcel_delivered", listener_name="never_failed", using="other")(lambda event: None)
    fail(consumer_group="price-monitor-gone", event_name="shop.gone")
    fail(exception="other.Error", using="other", consumer_group="price-monitor-never-failed")
    text = shown(admin_client, exception="chosen.<Error>")
    choices = {
        name: re.findall(r'<option value="([^"]*)"', options)
        for name, options in re.findall(r'<select name="(\w+)".*?>(.*?)</select>', text)
    }
    assert choices == {
        "listener": ["", "book", "never_failed", "price-monitor-gone"],
        "event": ["", "shop.gone", "shop.order_placed", "shop.parcel_delivered"],
        "exception": ["", "chosen.&lt;Error&gt;", "other.Error", "shop.errors.NoSuchArticle"],
    }
    assert '<option value="chosen.&lt;Error&gt;" selected>' in text
