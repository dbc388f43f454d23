"""Lightbus is a neighbour: its services fire to us and listen to us, as they are.

Each test has a real Lightbus service beside it, the one in bus_service/. It has an API, `my_company.shop`,
and listens to an API of ours, `prices`.
"""

import json
import logging
import sys
from datetime import date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from django.db import transaction
from django.utils import timezone

from lightbus_django import EventMessage, fire, listens_to, on_commit
from lightbus_django.bus.consumer_group import GroupConsumer
from lightbus_django.conf import get_settings
from lightbus_django.firing.relay import GRACE, Relay
from lightbus_django.models import FailedEvent, ProcessedEvent
from tests.conftest import drain

from .bus_service.samples import ON_THE_BUS, VALUES, Details, Money, Size
from .conftest import PRICES, SHOP

pytestmark = [pytest.mark.real_lightbus, pytest.mark.django_db(transaction=True)]

per_api_and_per_event = pytest.mark.parametrize("stream_use", ["per_api", "per_event"])


def finished(r, stream: str, group: str) -> bool:
    """Whether the group was given all entries of the stream and has acknowledged them."""
    (row,) = [row for row in r.xinfo_groups(stream) if row["name"] == group]
    return row["pending"] == 0 and row["last-delivered-id"] == r.xinfo_stream(stream)["last-generated-id"]


# --- Lightbus fires ---------------------------------------------------------------------------


@per_api_and_per_event
def test_we_handle_what_lightbus_fires(lightbus_service, stream_use, r, listeners, consume):
    handled, messages = [], []

    @listens_to("my_company.shop.order_placed")
    def send_parcel(
        event: EventMessage,
        number: int,
        price: Decimal,
        changed_at: datetime,
        local_time: datetime,
        day: date,
        offer: UUID,
        size: Size,
        total: Money,
        picture: bytes,
        text: str,
        is_sale: bool,
        nothing: None,
        details: Details,
    ) -> None:
        messages.append(event)
        handled.append(
            [number, price, changed_at, local_time, day, offer, size, total, picture, text, is_sale, nothing, details]
        )

    consumer = consume()
    lightbus_service.execute("bus.my_company.shop.order_placed.fire(**VALUES)")
    drain(consumer)

    # By their repr, which tells Decimal("9.990") from Decimal("9.99") and True from 1.
    assert repr(handled) == repr([list(VALUES.values())])
    (message,) = messages
    assert message.name == "my_company.shop.order_placed"
    assert message.payload == ON_THE_BUS
    assert finished(r, SHOP[stream_use], consumer.group)
    assert not FailedEvent.objects.exists()


@per_api_and_per_event
def test_other_events_of_its_api_do_not_concern_us(lightbus_service, stream_use, r, listeners, consume):
    handled = []

    @listens_to("my_company.shop.order_placed")
    def send_parcel(event: EventMessage, number: int, **kwargs: Any) -> None:
        handled.append((event.name, number))

    consumer = consume()
    lightbus_service.execute(
        "bus.my_company.shop.order_cancelled.fire(number=1)\n"
        "bus.my_company.shop.order_placed.fire(**VALUES | {'number': 2})\n"
        "bus.my_company.shop.order_cancelled.fire(number=3)"
    )
    drain(consumer)

    assert handled == [("my_company.shop.order_placed", 2)]
    assert finished(r, SHOP[stream_use], consumer.group)
    assert not FailedEvent.objects.exists()


# --- We fire ----------------------------------------------------------------------------------


def fire_on_commit(name: str, **payload: Any) -> EventMessage:
    with transaction.atomic():
        return on_commit(name, **payload)


@per_api_and_per_event
@pytest.mark.parametrize("publish", [fire, fire_on_commit])
def test_lightbus_handles_what_we_fire(publish, lightbus_service, stream_use, r):
    lightbus_service.run()

    message = publish("prices.changed", **VALUES)

    lightbus_service.wait_until(lambda: lightbus_service.handled)
    (line,) = lightbus_service.handled
    assert (line["id"], line["name"], line["version"]) == (message.id, "prices.changed", 1)
    types = {name: type(value).__name__ for name, value in VALUES.items()}
    if sys.version_info >= (3, 13):
        types["price"] = "str"  # there Lightbus itself casts no Decimal, whoever fires
    assert line["types"] == types
    assert line["values"] == ON_THE_BUS
    # It acknowledges the event, and lives to handle another.
    lightbus_service.wait_until(lambda: finished(r, PRICES[stream_use], lightbus_service.group))
    publish("prices.changed", **VALUES | {"number": 2})
    lightbus_service.wait_until(lambda: finished(r, PRICES[stream_use], lightbus_service.group))
    assert [line["values"]["number"] for line in lightbus_service.handled] == [1, 2]
    assert lightbus_service.is_running()


def test_what_we_fire_fits_the_schema_that_lightbus_published(lightbus_service, r):
    lightbus_service.run()
    assert "order_placed" in json.loads(r.get("schema:my_company.shop"))["events"]

    message = fire("my_company.shop.order_placed", **VALUES)

    lightbus_service.wait_until(lambda: finished(r, "my_company.shop.*:stream", lightbus_service.group))
    assert [line["id"] for line in lightbus_service.handled] == [message.id]


def test_our_entries_hold_what_those_of_lightbus_hold(lightbus_service, r, lightbus, lightbus_url, redis_client):
    lightbus(URL="redis://localhost:1/0")  # nobody there: the event waits for the relay
    relayed = fire_on_commit("my_company.shop.order_placed", **VALUES)
    lightbus(URL=lightbus_url)
    Relay("default", redis_client, get_settings()).step(timezone.now() + GRACE)
    committed = fire_on_commit("my_company.shop.order_placed", **VALUES)
    fired = fire("my_company.shop.order_placed", **VALUES)
    lightbus_service.execute("bus.my_company.shop.order_placed.fire(**VALUES)")

    *ours, theirs = [fields for _, fields in r.xrange("my_company.shop.*:stream")]

    assert [fields.pop("id") for fields in ours] == [relayed.id, committed.id, fired.id]
    assert theirs.pop("id")
    for fields in ours:
        assert fields.keys() == {"api_name", "event_name", "version", *(f":{name}" for name in VALUES)}
        assert read(fields) == read(theirs)


def read(fields: dict[str, str]) -> dict[str, Any]:
    """What the fields of an entry mean; a UTC time may be written with "Z" or with "+00:00"."""
    values = {name: json.loads(value) if name.startswith(":") else value for name, value in fields.items()}
    return values | {":changed_at": datetime.fromisoformat(values[":changed_at"])}


# --- Side by side -----------------------------------------------------------------------------


def test_each_kind_of_service_gets_each_event_once(lightbus_service, r, listeners, consume):
    handled = []

    @listens_to(["prices.changed", "my_company.shop.order_placed"])
    def note(event: EventMessage, number: int, **kwargs: Any) -> None:
        handled.append(number)

    consumer = consume()
    lightbus_service.run()
    for number in (1, 2):
        fire("prices.changed", **VALUES | {"number": number})
    lightbus_service.execute("for n in (3, 4): bus.my_company.shop.order_placed.fire(**VALUES | {'number': n})")
    drain(consumer)

    streams = ["prices.*:stream", "my_company.shop.*:stream"]
    lightbus_service.wait_until(lambda: all(finished(r, stream, lightbus_service.group) for stream in streams))
    assert all(finished(r, stream, consumer.group) for stream in streams)
    assert sorted(handled) == [1, 2, 3, 4]
    assert sorted(line["values"]["number"] for line in lightbus_service.handled) == [1, 2, 3, 4]


@pytest.mark.parametrize("numbers_before", [[], [1]], ids=["handled_nothing_yet", "handled_one"])
def test_the_start_of_a_lightbus_service_leaves_our_group_alone(
    numbers_before, lightbus_service, r, listeners, consume
):
    handled = []

    @listens_to("prices.changed")
    def note(event: EventMessage, number: int, **kwargs: Any) -> None:
        handled.append(number)

    consumer = consume()
    for number in numbers_before:
        fire("prices.changed", **VALUES | {"number": number})
    drain(consumer)
    r.xgroup_create("prices.*:stream", "without-consumers", "$")

    lightbus_service.run()

    # Lightbus has made its round: it deletes the groups that have no consumers, whosever they are.
    groups = {group["name"] for group in r.xinfo_groups("prices.*:stream")}
    assert groups == {"price-monitor-note", lightbus_service.group}
    assert [row["name"] for row in r.xinfo_consumers("prices.*:stream", "price-monitor-note")] == ["worker"]
    fire("prices.changed", **VALUES | {"number": 2})
    drain(consumer)
    lightbus_service.wait_until(lambda: finished(r, "prices.*:stream", lightbus_service.group))
    assert handled == [*numbers_before, 2]
    assert [line["values"]["number"] for line in lightbus_service.handled] == [2]


def test_nor_does_it_take_a_group_that_was_made_just_now(lightbus_service, listeners, consume, redis_client):
    handled = []

    @listens_to("prices.changed")
    def note(event: EventMessage, number: int, **kwargs: Any) -> None:
        handled.append(number)

    GroupConsumer(redis_client, "price-monitor-note", "worker").join("prices.*:stream", "$")
    lightbus_service.run()
    fire("prices.changed", **VALUES)

    drain(consume())

    assert handled == [1]


@per_api_and_per_event
def test_noop_entries_of_lightbus_pass_in_silence(lightbus_service, stream_use, r, listeners, consume, caplog):
    handled = []

    @listens_to("prices.changed", start="beginning")
    def note(event: EventMessage, number: int, **kwargs: Any) -> None:
        handled.append(number)

    # A Lightbus service that listens to a stream that isn't there makes one, with an entry that says nothing.
    lightbus_service.run()
    assert [fields for _, fields in r.xrange(PRICES[stream_use])] == [{"": ""}]

    consumer = consume()
    drain(consumer)

    assert finished(r, PRICES[stream_use], consumer.group)
    assert not FailedEvent.objects.exists()
    assert not ProcessedEvent.objects.exists()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    fire("prices.changed", **VALUES)
    drain(consumer)
    assert handled == [1]


def test_a_listener_that_moves_over_from_lightbus_goes_on_where_it_was(lightbus_service, r, listeners, consume):
    handled = []

    @listens_to("prices.changed", consumer_group="stock_service-write_down")
    def write_down(event: EventMessage, number: int, **kwargs: Any) -> None:
        handled.append(number)

    lightbus_service.run()
    fire("prices.changed", **VALUES | {"number": 1})
    lightbus_service.wait_until(lambda: finished(r, "prices.*:stream", lightbus_service.group))
    lightbus_service.kill()
    fire("prices.changed", **VALUES | {"number": 2})

    # Under its process's name too, for Redis may have given the event to the process that was killed just now.
    drain(consume(process_name="stock-1"))

    assert handled == [2]
