import threading

import pytest
from django.core.checks import run_checks
from django.db import connection
from django.test import override_settings
from model_bakery import baker

from lightbus_django import ConfigurationError, listens_to
from lightbus_django.conf import get_settings
from lightbus_django.listening.registry import registry
from lightbus_django.models import ConsumerGroup
from lightbus_django.running.worker import Worker


def check(lightbus, *, debug=True):
    with override_settings(LIGHTBUS=lightbus, DEBUG=debug):
        return [message.id for message in run_checks(tags=["lightbus"])]


def test_good_settings_pass():
    assert check({"SERVICE_NAME": "shop", "PROCESS_NAME": "{hostname}"}, debug=False) == []


def test_settings_errors_are_checks():
    assert check(None) == ["lightbus_django.E001"]
    assert check({"PROCESS_NAME": 5, "X": 1}) == [
        "lightbus_django.E002",
        "lightbus_django.E004",
        "lightbus_django.E003",
    ]


def test_a_random_process_name_is_a_warning_in_production():
    assert check({"SERVICE_NAME": "shop"}, debug=False) == ["lightbus_django.W001"]
    assert check({"SERVICE_NAME": "shop"}, debug=True) == []


def test_a_random_service_name_is_an_error():
    assert check({"SERVICE_NAME": "shop-{random4}"}) == ["lightbus_django.E005"]


def test_a_handler_that_cannot_take_an_event_is_an_error(listeners):
    @listens_to("a.b")
    def no_event() -> None: ...

    @listens_to("a.b")
    def unknown_annotation(event, x: "Nowhere"): ...  # noqa: F821

    @listens_to("a.b")
    def positional(event, x, /): ...

    @listens_to("a.b")
    def no_json_makes_one(event, x: list[threading.Thread]): ...

    @listens_to("a.b")
    def generator(event):
        yield

    @listens_to("a.b", using="moon")
    def nowhere(event): ...

    assert check({"SERVICE_NAME": "shop"}) == ["lightbus_django.E100"] * 5 + ["lightbus_django.E101"]


def test_a_consumer_group_that_is_another_listeners_by_its_name_is_an_error(listeners):
    @listens_to("a.b", listener_name="x")
    def one(event): ...

    @listens_to("a.b", consumer_group="shop-x")
    def two(event): ...

    assert check({"SERVICE_NAME": "shop"}) == ["lightbus_django.E102"]
    assert check({"SERVICE_NAME": "stock"}) == []


@pytest.mark.django_db
def test_a_database_that_commits_nothing_by_itself_is_an_error(listeners, monkeypatch):
    """Django's atomic() would not commit there, and the event would be acknowledged."""

    @listens_to("a.b")
    def handler(event): ...

    monkeypatch.setitem(connection.settings_dict, "AUTOCOMMIT", False)
    assert check({"SERVICE_NAME": "shop"}) == ["lightbus_django.E103"]
    worker = Worker(registry, service_name="shop", process_name="web", settings=get_settings())
    with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
        worker.check_databases()


@pytest.mark.django_db
def test_a_group_of_this_service_without_a_listener_is_a_warning(listeners):
    listens_to("shop.order_placed", listener_name="book")(lambda event: None)
    for service, group in (("price-monitor", "price-monitor-book"), ("price-monitor", "gone"), ("another", "another")):
        baker.make(ConsumerGroup, key=group, service_name=service, consumer_group=group)
    (message,) = run_checks(tags=["database"], databases=["default"])
    assert message.id == "lightbus_django.W002"
    assert message.msg == "No listener of this service has the consumer group gone, so its events wait."
    assert (
        "lightbus_retire gone --move-to LISTENER; if it was removed, run manage.py lightbus_retire gone."
        in message.hint
    )
    baker.make(ConsumerGroup, key="lost", service_name="price-monitor", consumer_group="lost")
    (message,) = run_checks(tags=["database"], databases=["default"])
    assert message.msg == "No listener of this service has the consumer groups gone, lost, so their events wait."
