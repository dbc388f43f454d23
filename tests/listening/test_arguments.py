"""What may be a handler: any callable whose arguments can be told."""

import functools
from datetime import date
from decimal import Decimal

import pytest
from django.core.checks import run_checks
from django.core.management import call_command

from lightbus_django import ConfigurationError, EventMessage, fire, listens_to
from lightbus_django.listening.registry import registry
from tests.app.models import Effect

pytestmark = pytest.mark.usefixtures("listeners")

got = []


@pytest.fixture(autouse=True)
def nothing_yet():
    got.clear()


def handle(event, price: Decimal, currency="EUR", **kwargs):
    got.append((price, currency, kwargs))


async def handle_async(event, price: Decimal, **kwargs):
    got.append((price, kwargs))


def handle_with(config, event, price: Decimal, **kwargs):
    got.append((config, price, kwargs))


class Importer:
    price: date  # not what the handler's argument of this name is

    def __init__(self, name="importer"):
        self.name = name

    def __call__(self, event, price: Decimal, **kwargs):
        got.append((self.name, price, kwargs))

    def method(self, event, price: Decimal, **kwargs):
        got.append((self.name, price, kwargs))

    def positional(self, event, /, price: Decimal, **kwargs):
        got.append((price, kwargs))

    @classmethod
    def of_class(cls, event, price: Decimal, **kwargs):
        got.append((cls.__name__, price, kwargs))

    @staticmethod
    def static(event, price: Decimal):
        got.append(price)


class AsyncImporter:
    async def __call__(self, event, price: Decimal):
        got.append(price)


def call(**payload):
    """Call the only handler as a consumer does."""
    (listener,) = registry.select()
    listener.call(EventMessage(id="1", api_name="a", event_name="b", payload=payload))


price = Decimal("9.99")


@pytest.mark.parametrize(
    ("handler", "path", "calls"),
    [
        (functools.partial(handle), "handle", [(price, "EUR", {"self": 1, "cls": 2, "config": 3})]),
        (functools.partial(handle, currency="USD"), "handle", [(price, "USD", {"self": 1, "cls": 2, "config": 3})]),
        (functools.partial(handle_async), "handle_async", [(price, {"self": 1, "cls": 2, "config": 3})]),
        (functools.partial(handle_with, "a config"), "handle_with", [("a config", price, {"self": 1, "cls": 2})]),
        (functools.partial(Importer().method), "Importer.method", [("importer", price, {"cls": 2, "config": 3})]),
        (functools.partial(Importer()), "Importer.__call__", [("importer", price, {"cls": 2, "config": 3})]),
        (Importer(), "Importer.__call__", [("importer", price, {"cls": 2, "config": 3})]),
        (Importer().method, "Importer.method", [("importer", price, {"cls": 2, "config": 3})]),
        (Importer().positional, "Importer.positional", [(price, {"self": 1, "cls": 2, "config": 3})]),
        (Importer.of_class, "Importer.of_class", [("Importer", price, {"self": 1, "config": 3})]),
        (Importer.static, "Importer.static", [price]),
        (staticmethod(Importer.static), "Importer.static", [price]),
        (staticmethod(handle_async), "handle_async", [(price, {"self": 1, "cls": 2, "config": 3})]),
        (AsyncImporter(), "AsyncImporter.__call__", [price]),
        (AsyncImporter().__call__, "AsyncImporter.__call__", [price]),
        (lambda event, price: got.append(price), "<lambda>", ["9.99"]),
    ],
)
def test_callables_of_all_kinds(handler, path, calls):
    assert listens_to("a.b", listener_name="importer")(handler) is handler
    (listener,) = registry
    assert listener.path.startswith("tests.listening.test_arguments.")
    assert listener.path.endswith(path)
    assert run_checks(tags=["lightbus"]) == []
    call(price="9.99", self=1, cls=2, config=3)
    assert got == calls


@pytest.mark.parametrize("name", ["of_class", "method", "static"])
def test_a_method_names_its_listener(name):
    listens_to("a.b")(getattr(Importer(), name))
    (listener,) = registry
    assert listener.listener_name == name


@pytest.mark.parametrize(
    "handler", [functools.partial(handle), Importer(), lambda event: None], ids=lambda handler: type(handler).__name__
)
def test_a_handler_without_a_name_needs_a_listener_name(handler):
    with pytest.raises(
        ConfigurationError, match=r"tests\.listening\.test_arguments\..* is a .* without a name: pass listener_name="
    ):
        listens_to("a.b")(handler)
    assert not list(registry)


@pytest.mark.parametrize(
    "handler", [None, "a.b", classmethod(handle), property(handle)], ids=lambda handler: type(handler).__name__
)
def test_what_can_not_be_called_is_no_handler(handler):
    with pytest.raises(ConfigurationError, match="can't be called"):
        listens_to("a.b", listener_name="importer")(handler)


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize(
    "handler",
    [functools.partial(handle, None, None, None), max, functools.partial(list.append, [], 1)],
    ids=lambda handler: type(handler).__name__,
)
def test_a_handler_that_takes_no_event_is_named(handler, batch):
    listens_to("a.b", listener_name="importer", batch=batch)(handler)
    with pytest.raises(ConfigurationError):
        registry.select()
    assert [message.id for message in run_checks(tags=["lightbus"])] == ["lightbus_django.E100"]


@pytest.mark.parametrize("kind", ["generator", "async generator"])
def test_a_callable_that_yields_is_no_handler(kind):
    class Generator:
        def __call__(self, event):
            yield

    class AsyncGenerator:
        async def __call__(self, event):
            yield

    listens_to("a.b", listener_name="importer")(Generator() if kind == "generator" else AsyncGenerator())
    with pytest.raises(ConfigurationError, match="is a generator"):
        registry.select()


@pytest.mark.django_db(transaction=True, databases=["default", "other"])
def test_they_run_in_a_worker(r):
    class Writer:
        def __init__(self, name):
            self.name = name

        def __call__(self, events):
            Effect.objects.bulk_create([Effect(name=self.name, number=event.payload["number"]) for event in events])

        def one(self, event, number):
            self([event])

    listens_to("shop.order_placed", listener_name="batch", batch=True, start="beginning")(Writer("batch"))
    listens_to("shop.order_placed", start="beginning")(Writer("one").one)
    listens_to("shop.order_placed", listener_name="partial", start="beginning")(
        functools.partial(Writer.one, Writer("partial"))
    )
    fire("shop.order_placed", number=1)
    call_command("lightbus_listen", "--burst")
    assert sorted(Effect.objects.values_list("name", flat=True)) == ["batch", "one", "partial"]
