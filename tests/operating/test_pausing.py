"""Pausing and resuming a listener by name."""

import pytest

from lightbus_django import ConfigurationError, listens_to
from lightbus_django.models import ConsumerGroup
from lightbus_django.operating.pausing import find_listener, pause, resume

from .conftest import GROUP

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
    pytest.mark.usefixtures("listeners", "r"),
]


@pytest.mark.parametrize("name", ["record", GROUP])
def test_by_the_name_of_the_listener_or_its_group(record, consume, name):
    consume()
    assert pause(name, "Ada")
    row = ConsumerGroup.objects.get()
    assert (row.paused_by, row.paused_at is not None) == ("Ada", True)
    assert resume(name)
    row.refresh_from_db()
    assert (row.paused_by, row.paused_at) == ("", None)


def test_the_first_pause_counts(record, consume):
    consume()
    assert pause("record", "Ada")
    assert not pause("record", "Grace")
    assert ConsumerGroup.objects.get().paused_by == "Ada"
    assert resume("record")
    assert not resume("record")


def test_all_its_streams_are_paused(consume, listeners):
    @listens_to(["shop.order_placed", "stock.article_ran_out"])
    def record(event): ...

    consume()
    pause("record", "x" * 1000)
    assert ConsumerGroup.objects.filter(paused_at__isnull=False).count() == 2


def test_in_the_listeners_own_database(consume, listeners):
    @listens_to("shop.order_placed", using="other")
    def record(event): ...

    consume()
    pause("record", "Ada")
    assert ConsumerGroup.objects.using("other").get().paused_by == "Ada"


def test_one_that_has_not_run(record):
    with pytest.raises(ConfigurationError, match="'record' has not run yet"):
        pause("record", "Ada")
    assert not resume("record")


def test_one_that_does_not_exist(record):
    for act in (lambda: pause("other", "Ada"), lambda: resume("other")):
        with pytest.raises(ConfigurationError, match="no listener 'other'; known: record"):
            act()


def test_a_name_that_two_have(listeners):
    for group in ("one", "two"):

        @listens_to("shop.order_placed", listener_name="record", consumer_group=group)
        def handler(event): ...

    with pytest.raises(ConfigurationError, match="name one of the groups one, two"):
        find_listener("record")
    assert find_listener("two").consumer_group == "two"
