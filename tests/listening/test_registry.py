from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from typing import Any, NamedTuple, TypedDict
from uuid import UUID

import pytest

from lightbus_django import ConfigurationError, EventMessage, InvalidEventName, UnreadableEvent, listens_to
from lightbus_django.listening.registry import registry

pytestmark = pytest.mark.usefixtures("listeners")


class Colour(Enum):
    RED = "red"


@dataclass
class Line:
    sku: str
    price: Decimal


class Address(TypedDict):
    street: str


@dataclass
class Money:
    amount: int

    @classmethod
    def __from_bus__(cls, value):
        return cls(int(value))


class Point(NamedTuple):
    x: int
    y: Decimal = Decimal(0)


def call(handler, **payload):
    """Call a registered handler as a consumer does."""
    (listener,) = (item for item in registry if item.handler is handler)
    listener.call(EventMessage(id="1", api_name="a", event_name="b", payload=payload))


def test_the_function_comes_back_unchanged():
    def handler(event: EventMessage) -> str:
        return "called"

    assert listens_to("a.b")(handler) is handler
    assert handler(None) == "called"
    (listener,) = registry
    assert (listener.listener_name, listener.events) == ("handler", ("a.b",))


def test_the_consumer_group_is_service_and_listener_with_hyphens():
    @listens_to("a.b", listener_name="send_price_alerts")
    def first(event): ...

    @listens_to(["a.b", "c.d", "a.b"], consumer_group="price_monitor-update_db")
    def second(event): ...

    assert [item.group("price_monitor") for item in registry] == [
        "price-monitor-send-price-alerts",
        "price_monitor-update_db",
    ]
    assert list(registry)[1].events == ("a.b", "c.d")


def test_values_are_converted_to_the_annotations():
    got: list[Any] = []

    @listens_to("a.b")
    def handler(
        event: EventMessage,
        when: datetime,
        day: date,
        price: Decimal,
        uid: UUID,
        colour: Colour,
        lines: list[Line],
        address: Address,
        number: int,
        maybe: int | None,
        raw: bytes,
        point: Point,
        points: list[Point | None],
        money: dict[str, Money],
        anything,
        old_style: int = None,  # noqa: RUF013
        absent: str = "default",
        **kwargs: Any,
    ) -> None:
        got.extend(
            [
                when,
                day,
                price,
                uid,
                colour,
                lines,
                address,
                number,
                maybe,
                raw,
                point,
                points,
                money,
                anything,
                old_style,
                absent,
                kwargs,
            ]
        )

    call(
        handler,
        when="2026-01-02T03:04:05Z",
        day="2026-01-02",
        price="9.99",
        uid="00000000-0000-0000-0000-000000000005",
        colour="red",
        lines=[{"sku": "A", "price": "1.50", "new_field": 1}],
        address={"street": "Main"},
        number="5",
        maybe=None,
        raw="/wA=",
        point={"x": 1, "y": "2.5", "new_field": 1},
        old_style=None,
        points=[{"x": 1}, None],
        money={"eur": "5"},
        anything={"x": [1]},
        other=1,
    )
    assert got == [
        datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        date(2026, 1, 2),
        Decimal("9.99"),
        UUID(int=5),
        Colour.RED,
        [Line("A", Decimal("1.50"))],
        {"street": "Main"},
        5,
        None,
        b"\xff\x00",
        Point(1, Decimal("2.5")),
        [Point(1), None],
        {"eur": Money(5)},
        {"x": [1]},
        None,
        "default",
        {"other": 1},
    ]


def test_a_handler_gets_the_keys_that_it_names():
    got = []

    @listens_to("a.b")
    def handler(event, sku):
        got.append((sku, event.payload))

    call(handler, sku="A", a_new_field_of_the_producer=1)
    assert got == [("A", {"sku": "A", "a_new_field_of_the_producer": 1})]


def test_a_payload_key_named_like_the_first_argument_is_in_the_payload_only():
    got = []

    @listens_to("a.b")
    def handler(event, **kwargs):
        got.append((event.payload["event"], kwargs))

    @listens_to("a.b")
    def positional(event, /, **kwargs):
        got.append(kwargs)

    call(handler, event="party", self="x")
    call(positional, event="party")
    assert got == [("party", {"self": "x"}), {"event": "party"}]


def test_types_of_ones_own_are_converted_by_lightbus_hook():
    class Money:
        def __init__(self, amount):
            self.amount = amount

        @classmethod
        def __from_bus__(cls, value):
            return cls(value["amount"])

    got = []

    @listens_to("a.b")
    def handler(event, money: Money):
        got.append(money.amount)

    call(handler, money={"amount": 5})
    assert got == [5]


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        ({}, "argument 'price' is missing from the event"),
        ({"price": "much"}, "the event's 'price' can't be converted for the handler: Invalid decimal"),
        ({"price": None}, "'price' can't be converted for the handler"),
    ],
)
def test_an_event_that_does_not_fit_says_why(payload, reason):
    @listens_to("a.b")
    def handler(event, price: Decimal): ...

    with pytest.raises(UnreadableEvent, match=reason):
        call(handler, **payload)


def test_two_listeners_of_one_consumer_group_are_an_error_that_names_both():
    @listens_to("a.b", listener_name="update_db")
    def one(event): ...

    with pytest.raises(ConfigurationError, match=r"one and .*other have the same consumer group"):

        @listens_to("c.d", listener_name="Update-DB")
        def other(event): ...

    assert [item.handler for item in registry] == [one]


@pytest.mark.parametrize(
    "arguments",
    [
        {"events": []},
        {"events": "a.b", "listener_name": " "},
        {"events": "a.b", "listener_name": "x" * 101},
        {"events": "a.b", "consumer_group": "a\nb"},
        {"events": "a.b", "start": "yesterday"},
    ],
)
def test_arguments_that_cannot_work(arguments):
    with pytest.raises(ConfigurationError):
        listens_to(**arguments)


def test_an_event_name_that_cannot_be():
    with pytest.raises(InvalidEventName):
        listens_to("nodot")


@pytest.mark.parametrize(
    ("start", "start_id"),
    [
        ("new", "$"),
        ("beginning", "0"),
        ("1700000000000-5", "1700000000000-5"),
        (datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC), f"1699999999999-{2**64 - 1}"),
        (datetime(2023, 11, 14, 22, 13, 20), f"1699999999999-{2**64 - 1}"),  # noqa: DTZ001
    ],
)
def test_where_a_new_group_starts(start, start_id, settings):
    settings.TIME_ZONE = "UTC"

    @listens_to("a.b", start=start)
    def handler(event): ...

    (listener,) = registry
    assert listener.start_id == start_id


def test_listeners_are_selected_by_name():
    @listens_to("a.b")
    def one(event): ...

    @listens_to("a.b")
    def two(event): ...

    assert [item.handler for item in registry.select()] == [one, two]
    assert [item.handler for item in registry.select(["two", "two"])] == [two]
    with pytest.raises(ConfigurationError, match=r"no listener 'three'\. Known: one, two"):
        registry.select(["three"])


def test_object_takes_anything(listeners):
    taken = []

    @listens_to("shop.order_placed")
    def handler(event, **kwargs: object):
        taken.append(kwargs)

    (listener,) = listeners
    listener.call(EventMessage(id="1", api_name="shop", event_name="order_placed", payload={"number": 1, "lines": []}))
    assert taken == [{"number": 1, "lines": []}]
