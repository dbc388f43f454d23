"""The catalogue of events: names, payloads, who fires and who listens."""

import pytest

from lightbus_django import fire, listens_to, on_commit
from lightbus_django.bus import heartbeats
from lightbus_django.bus.heartbeats import ListenerSign, ProcessSign
from lightbus_django.operating.catalogue import Subscriber, read_catalogue

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])


def catalogue():
    return {event.name: event for event in read_catalogue()}


def test_events_with_payloads_producers_and_listeners_of_all_services(r, listeners, redis_client):
    listens_to("shop.order_placed", listener_name="book")(lambda event, **payload: None)
    on_commit("shop.order_placed", number=1, note=None)
    on_commit("shop.order_placed", number=2.5, note="x", lines=[{"sku": "a"}])
    heartbeats.beat(
        redis_client,
        "one",
        ProcessSign(
            service_name="mailer",
            process_name="web",
            listeners=[ListenerSign(group="mailer-send", listener="send", events=["shop.order_placed"])],
            fires=["mail.sent"],
        ),
    )
    events = catalogue()
    assert events.keys() == {"shop.order_placed", "mail.sent"}
    order = events["shop.order_placed"]
    assert order.payload == {"lines": "list", "note": "null or text", "number": "number"}
    assert order.fired_by == ["price-monitor"]
    assert order.subscribers == [
        Subscriber("mailer", "send", "mailer-send"),
        Subscriber("price-monitor", "book", "price-monitor-book"),
    ]
    assert order.last_at is not None
    assert (events["mail.sent"].fired_by, events["mail.sent"].subscribers) == (["mailer"], [])


def test_an_event_that_nobody_is_known_to_fire_is_in_it_if_its_stream_is(r, listeners):
    listens_to("shop.order_placed", listener_name="book")(lambda event, **payload: None)
    fire("shop.order_lost", number=1)
    r.xadd("shop.*:stream", {"not": "an event"})
    assert catalogue()["shop.order_lost"].fired_by == []


def test_an_empty_bus_has_an_empty_catalogue(r, listeners):
    assert catalogue() == {}
