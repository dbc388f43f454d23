"""The filters of the lists know all listeners and events, and look at few rows for it."""

import re
from html import unescape

import pytest
from model_bakery import baker

from lightbus_django import listens_to
from lightbus_django.models import ConsumerGroup, FailedEvent, OutboxEvent, ProcessedEvent

from .test_pages import LISTS, failed, page

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("listeners")]


def choices(client, model, title, **parameters):
    """Return the choices of a filter, and those that are selected."""
    text = page(client, LISTS[model], **parameters)
    found = re.search(rf"<summary>\s*By {title}\s*</summary>(.*?)</details>", text, re.DOTALL)
    items = re.findall(r"<li( class=\"selected\")?>\s*<a[^>]*>([^<]*)</a>", found[1]) if found else []
    return [unescape(name) for _, name in items], [unescape(name) for is_selected, name in items if is_selected]


def row(model, **values):
    if model is OutboxEvent:
        values.pop("consumer_group", None)
    return failed(**values) if model is FailedEvent else baker.make(model, **values)


@pytest.fixture
def known(listeners):
    """A listener, and a record of another one that has been renamed."""

    @listens_to(["shop.order_placed", "shop.order_lost"])
    def write_invoice(event): ...

    baker.make(
        ConsumerGroup,
        key="old",
        consumer_group="price-monitor-old-name",
        event_names="shop.order_placed\nshop.parcel_lost",
    )


@pytest.mark.parametrize("model", [ProcessedEvent, FailedEvent])
def test_groups_are_those_of_listeners_records_and_latest_rows(model, admin_client, known):
    row(model, consumer_group="billing-book", event_name="shop.a")
    found = choices(admin_client, model, "consumer group")
    assert found == (["All", "billing-book", "price-monitor-old-name", "price-monitor-write-invoice"], ["All"])


@pytest.mark.parametrize("model", LISTS)
def test_events_are_those_of_listeners_records_and_latest_rows(model, admin_client, known):
    row(model, event_name="shop.a")
    names = ["shop.a", "shop.order_lost", "shop.order_placed", "shop.parcel_lost"]
    assert choices(admin_client, model, "event") == (["All", *names], ["All"])


def test_listeners_that_have_a_group_of_their_own_choice(admin_client):
    @listens_to("shop.order_placed", consumer_group="Übersee & Co")
    def book(event): ...

    row(ProcessedEvent, consumer_group="other")
    assert choices(admin_client, ProcessedEvent, "consumer group")[0] == ["All", "other", "Übersee & Co"]


@pytest.mark.parametrize("model", LISTS)
def test_an_unknown_value_filters_and_is_shown(model, admin_client):
    row(model, event_name="shop.a")
    names, selected = choices(admin_client, model, "event", event_name="shop.<unknown>")
    assert (names, selected) == (["All", "shop.<unknown>", "shop.a"], ["shop.<unknown>"])
    assert 'id="result_list"' not in page(admin_client, LISTS[model], event_name="shop.<unknown>")


def test_a_filter_keeps_the_others(admin_client, known):
    row(ProcessedEvent, consumer_group="billing-book", event_name="shop.a")
    text = page(admin_client, LISTS[ProcessedEvent], consumer_group="billing-book")
    assert "?consumer_group=billing-book&amp;event_name=shop.order_lost" in text


@pytest.mark.parametrize("model", LISTS)
def test_only_the_latest_rows_are_looked_at(model, admin_client, monkeypatch, django_assert_max_num_queries):
    monkeypatch.setattr("lightbus_django.admin.filters.SAMPLE", 2)
    for name in ("shop.a", "shop.b", "shop.c"):
        row(model, event_name=name)
    latest = sorted(model.objects.order_by("-pk").values_list("event_name", flat=True)[:2])
    with django_assert_max_num_queries(20) as queries:
        assert choices(admin_client, model, "event")[0] == ["All", *latest]
    assert not any("DISTINCT" in query["sql"] for query in queries)


@pytest.mark.parametrize("title", ["exception", "place"])
def test_causes_are_those_of_the_latest_failures(title, admin_client):
    failed(event_id="one", **{title: ""})
    failed(event_id="two", **{title: "shop.errors.NoSuchArticle"})
    names, _ = choices(admin_client, FailedEvent, title)
    assert names == ["All", "(unknown)", "shop.errors.NoSuchArticle"]
