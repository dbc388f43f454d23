"""The Bus page: what it shows, to whom, and how listeners are paused there."""

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from django.contrib.auth.models import Permission
from django.test import Client
from django.urls import reverse
from model_bakery import baker

from lightbus_django import listens_to
from lightbus_django.bus import figures
from lightbus_django.models import ConsumerGroup, FailedEvent, OutboxEvent, ProcessedEvent

from .conftest import GROUP

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])

BUS = reverse("admin:lightbus_django_consumergroup_changelist")
PAUSE = reverse("admin:lightbus_django_pause")
FAILED = reverse("admin:lightbus_django_failedevent_changelist")


def shown(client, url=BUS, **parameters):
    response = client.get(url, parameters)
    assert response.status_code == 200
    return " ".join(response.content.decode().split())


def dead_letters(count):
    return baker.make(
        FailedEvent,
        consumer_group=GROUP,
        event_name="shop.order_placed",
        next_attempt_at=None,
        fields="{}",
        _quantity=count,
        _bulk_create=True,
    )


def user_with(django_user_model, *codenames):
    user = django_user_model.objects.create_user("eva", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=codenames))
    return user


def test_is_the_first_entry_of_the_app(admin_client, r):
    text = shown(admin_client, reverse("admin:app_list", args=["lightbus_django"]))
    assert text.index(f'href="{BUS}"') < text.index(f'href="{FAILED}"')
    assert f'<a href="{BUS}">Bus</a>' in text


def test_shows_the_listener_its_figures_and_its_process(admin_client, book):
    text = shown(admin_client)
    assert "All is well" in text
    assert "50 in all, at most 50 in a minute" in text
    assert "<polyline points=" in text
    assert 'data-label="Per minute">10<' in text
    assert 'data-label="p50">0.02' in text
    assert "host1, pid 4711" in text
    assert "shop.*:stream" in text


def test_shows_the_figures_of_its_process(admin_client, book, redis_client):
    counts = {GROUP: Counter({figures.HANDLED: 35})}
    at = datetime.now(UTC) - timedelta(minutes=2)
    figures.add(redis_client, counts, at, process=("price-monitor", "worker"))
    text = shown(admin_client).partition('id="lightbus-processes"')[2]
    assert 'data-label="Per minute">7<' in text
    assert "35 in all, at most 35 in a minute" in text


def test_plots_the_last_hour_of_all_listeners_or_of_one(admin_client, book):
    text = shown(admin_client)
    plots = text.partition('id="lightbus-plots"')[2].partition("</section>")[0]
    assert '<title id="plot-title-handled">Handled per minute. book: 50 in all, at most 50 in a minute</title>' in plots
    assert '<title id="plot-title-latency">' in plots
    assert f'href="?listener={GROUP}#lightbus-plots"' in plots
    assert "Show all listeners" not in plots
    for fragment in ({}, {"fragment": "1"}):
        text = shown(admin_client, listener=GROUP, **fragment)
        assert "Last hour of book" in text
        assert "Show all listeners" in text


def test_without_figures_it_says_so(admin_client, listeners, r, lightbus):
    @listens_to("shop.order_placed")
    def book(event): ...

    assert "No event was handled." in shown(admin_client)
    lightbus(URL="redis://localhost:1/0")
    assert "The figures are not known." in shown(admin_client)


def test_without_any_listener_process_or_redis(admin_client, listeners, lightbus):
    lightbus(URL="redis://localhost:1/0")
    text = shown(admin_client)
    assert "This service has no listeners." in text
    assert "No process has a heartbeat." in text
    assert "Needs attention" in text


def test_what_waits_is_unknown_without_redis(admin_client, book, lightbus):
    lightbus(URL="redis://127.0.0.1:1", REDIS_TIMEOUT=1)
    text = " ".join(admin_client.get(BUS).content.decode().split())
    assert 'data-label="Waiting">unknown<' in text
    assert "not run yet" not in text


def test_problems_come_first_with_the_way_out(admin_client, book):
    dead_letters(1234)
    text = shown(admin_client)
    problem = text.index("1234 dead letters")
    assert problem < text.index('id="lightbus-listeners"')
    url = f"{FAILED}?consumer_group={GROUP}&amp;state=dead"
    assert text.count(f'href="{url}"') == 2
    assert ">1,234</a>" in text
    assert "1234 failed events" in shown(admin_client, FAILED, consumer_group=GROUP, state="dead")


def test_takes_as_many_queries_for_many_rows_as_for_one(admin_client, book, django_assert_max_num_queries):
    dead_letters(1)
    baker.make(OutboxEvent, event_name="a.b")
    with django_assert_max_num_queries(20) as queries:
        shown(admin_client)
    dead_letters(50)
    baker.make(OutboxEvent, event_name="a.b", _quantity=50)
    baker.make(ProcessedEvent, _quantity=50)
    with django_assert_max_num_queries(len(queries)):
        shown(admin_client)


def test_the_fragment_is_a_part_of_the_page(admin_client, book):
    text = shown(admin_client, fragment="1")
    assert "<html" not in text
    assert "All is well" in text
    assert "Pause" in text


def test_a_listener_is_paused_and_resumed(admin_client, admin_user, book):
    assert f"The listener {GROUP} rests within seconds." in post(admin_client, "pause")
    row = ConsumerGroup.objects.get()
    assert row.paused_at is not None
    assert row.paused_by == admin_user.get_username()
    assert "Paused by admin" in shown(admin_client)
    assert "is paused already" in post(admin_client, "pause")
    assert f"The listener {GROUP} goes on within seconds." in post(admin_client, "resume")
    assert ConsumerGroup.objects.get().paused_at is None
    assert "is not paused" in post(admin_client, "resume")


def post(client, action, group=GROUP):
    response = client.post(PAUSE, {"group": group, "action": action}, follow=True)
    return " ".join(str(message) for message in response.context["messages"])


def test_a_listener_that_is_unknown_can_not_be_paused(admin_client, book):
    assert "This service has no listener" in post(admin_client, "pause", "nonsense")


def test_pausing_takes_a_post_with_a_token(admin_client, admin_user, book):
    assert admin_client.get(PAUSE).status_code == 405
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(admin_user)
    assert strict.post(PAUSE, {"group": GROUP, "action": "pause"}).status_code == 403
    assert ConsumerGroup.objects.get().paused_at is None


def test_permissions(client, django_user_model, book):
    user = user_with(django_user_model, "view_failedevent")
    client.force_login(user)
    assert client.get(BUS).status_code == 403
    user.user_permissions.add(Permission.objects.get(codename="view_consumergroup"))
    assert "Pause" not in shown(client)
    assert client.post(PAUSE, {"group": GROUP, "action": "pause"}).status_code == 403
    assert ConsumerGroup.objects.get().paused_at is None
    user.user_permissions.add(Permission.objects.get(codename="change_consumergroup"))
    assert "Pause" in shown(client)
    post(client, "pause")
    assert ConsumerGroup.objects.get().paused_by == "eva"


def test_a_row_can_only_be_looked_at(admin_client, book):
    url = reverse("admin:lightbus_django_consumergroup_change", args=[ConsumerGroup.objects.get().pk])
    assert GROUP in shown(admin_client, url)
    assert admin_client.post(url, {"paused_by": "x"}).status_code == 403
