"""docs/guide.md is true: its examples run, and do what it says about them."""

import shlex
import unittest
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.apps import apps
from django.core import mail
from django.core.cache import cache
from django.core.management import CommandError, call_command
from django.db import ConnectionHandler, connection, transaction
from django.utils import timezone

from lightbus_django import EventMessage, aon_commit, fire, listens_to, on_commit
from lightbus_django.bus import sandbox
from lightbus_django.conf import find_problems
from lightbus_django.listening.registry import registry
from lightbus_django.models import FailedEvent, OutboxEvent, ProcessedEvent
from lightbus_django.testing import real_bus

from .conftest import SECTIONS, TESTED, Example, of

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")

NOWHERE = "redis://localhost:1/0"


def model(name: str) -> Any:
    return apps.all_models["bookkeeping"].get(name.lower()) or apps.all_models["shop"][name.lower()]


def bookings(**lookups: Any) -> list[tuple[int, Decimal, str]]:
    rows = model("Booking").objects.filter(**lookups).order_by("pk")
    return [(row.order_number, row.total, row.text) for row in rows]


def fired(r: Any, stream: str = "shop.*:stream") -> list[str]:
    """The names of the events in a stream."""
    return [f"{fields['api_name']}.{fields['event_name']}" for _, fields in r.xrange(stream)]


def deliver_again(r: Any, stream: str = "shop.*:stream") -> None:
    """Put a stream's last event on the bus a second time."""
    [(_, fields)] = r.xrevrange(stream, count=1)
    r.xadd(stream, fields)


def retry_now() -> None:
    for failed in FailedEvent.objects.all():
        failed.retry_now()


# --- The guide as a whole ---------------------------------------------------------------------


def test_every_example_is_run():
    with_examples = {heading for heading, section in SECTIONS.items() if section.code("python")}
    assert with_examples == TESTED


# --- Set up -----------------------------------------------------------------------------------


@of("Set up")
def test_set_up(example: Example):
    guide = example.run()
    assert find_problems(guide.LIGHTBUS) == []
    assert set(guide.INSTALLED_APPS) <= {config.name for config in apps.get_app_configs()}


# --- Events -----------------------------------------------------------------------------------


@of("fire")
def test_fire(example: Example, r):
    guide = example.run()
    [(stream_id, fields)] = r.xrange("competitor_prices.*:stream")
    assert (stream_id, fields["id"]) == (guide.event.stream_id, guide.event.id)
    assert guide.fire("competitor_prices.changed").id > guide.event.id
    example.run()
    assert [event.id for event in guide.events] == [
        fields["id"] for _, fields in r.xrange("competitor_prices.*:stream")[2:]
    ]


@of("on_commit_many")
def test_on_commit_many(example: Example, r):
    example.run().raise_prices(["A-1", "A-2"], Decimal("9.99"))
    skus = [fields[":sku"] for _, fields in r.xrange("competitor_prices.*:stream")]
    assert skus == ['"A-1"', '"A-2"']


@of("on_commit")
def test_on_commit(example: Example, r, lightbus, lightbus_url, work):
    guide = example.run()
    order = guide.place_order("ann@example.com", Decimal("9.99"))
    [(_, fields)] = r.xrange("shop.*:stream")
    assert fields[":number"] == str(order.pk)

    with pytest.raises(ZeroDivisionError), transaction.atomic():
        guide.place_order("bob@example.com", Decimal("9.99"))
        assert r.xlen("shop.*:stream") == 1, "nothing is published before the commit"
        1 / 0  # noqa: B018
    with transaction.atomic(), pytest.raises(ZeroDivisionError), transaction.atomic():  # a savepoint
        guide.place_order("bob@example.com", Decimal("9.99"))
        1 / 0  # noqa: B018
    assert r.xlen("shop.*:stream") == 1

    lightbus(URL=NOWHERE)
    guide.place_order("cy@example.com", Decimal("9.99"))
    lightbus(URL=lightbus_url)
    work()
    assert r.xlen("shop.*:stream") == 1, "the relay comes after ten seconds"
    left = OutboxEvent.objects.get(published_at=None)
    assert left.due_at - left.created_at == pytest.approx(timedelta(seconds=10), abs=timedelta(seconds=1))
    OutboxEvent.objects.filter(pk=left.pk).update(due_at=timezone.now())
    work()
    assert r.xlen("shop.*:stream") == 2


@of("on_commit", "Async code")
def test_async_code(example: Example, r):
    example.run()
    guide = example.run()
    event = async_to_sync(guide.report_price)("A-1", Decimal("9.99"))
    assert r.xrange("competitor_prices.*:stream")[0][0] == event.stream_id

    guide = example.run()
    number = async_to_sync(guide.checkout)("ann@example.com", Decimal("9.99"))
    assert r.xrange("shop.*:stream")[0][1][":number"] == str(number)

    async_to_sync(aon_commit)("shop.order_placed")
    assert r.xlen("shop.*:stream") == 2


@of("Several databases")
def test_several_databases(example: Example, r, housekeeping):
    guide = example.run()
    guide.copy_booking(7, Decimal("9.99"))
    housekeeping().relay()
    assert OutboxEvent.objects.using("other").get().published_at
    assert fired(r, "bookkeeping.*:stream") == ["bookkeeping.booking_copied"]

    with transaction.atomic(using="other"):
        on_commit("shop.order_placed")
    assert (OutboxEvent.objects.count(), OutboxEvent.objects.using("other").count()) == (0, 2)
    with transaction.atomic(), transaction.atomic(using="other"):
        on_commit("shop.order_placed")
    on_commit("shop.order_placed")
    assert (OutboxEvent.objects.count(), OutboxEvent.objects.using("other").count()) == (2, 2)
    with transaction.atomic(using="other"):
        async_to_sync(aon_commit.using("other"))("shop.order_placed")
    assert OutboxEvent.objects.using("other").count() == 3


@of("Arguments")
def test_arguments(example: Example, work):
    guide = example.run()
    work()
    line = guide.Line("A-1", 2, Decimal("1.50"))  # a dataclass, there and back
    fire("shop.order_confirmed", number=7, placed_at=timezone.now(), lines=[line], color="an unknown key")
    work()
    assert bookings() == [(7, Decimal("3.00"), "A-1")]

    fire("shop.order_confirmed", number=8, placed_at=timezone.now())
    fire("shop.order_confirmed", number=8, placed_at="yesterday", lines=[])
    work()
    errors = [(failed.is_dead_letter, failed.error) for failed in FailedEvent.objects.order_by("pk")]
    assert [dead for dead, _ in errors] == [True, True]
    assert "'lines' is missing" in errors[0][1]
    assert "'placed_at' can't be converted" in errors[1][1]


@of("Errors")
def test_errors(example: Example, lightbus, lightbus_url, caplog):
    guide = example.run()
    guide.report_crawl("A-1", Decimal("9.99"))
    assert not caplog.records
    lightbus(URL=NOWHERE)
    guide.report_crawl("A-1", Decimal("9.99"))
    assert "The price of A-1 was not reported" in caplog.text


# --- Listening --------------------------------------------------------------------------------


def test_listeners_py_is_found():
    assert any(listener.path.startswith("tests.app.listeners.") for listener in registry)


@of("Listening")
def test_listening(example: Example, work):
    guide = example.run()
    work()
    fire("shop.order_placed", number=7, total=Decimal("9.99"), currency="EUR")
    work()
    work(process_name="another")
    assert bookings() == [(7, Decimal("9.99"), "")]
    [listener] = registry
    assert (listener.handler, listener.listener_name) == (guide.book_order, "book_order")


@of("Other callables")
def test_other_callables(example: Example, work):
    example.run()
    work()
    fire("shop.order_placed", number=7, total=Decimal("9.99"))
    work()
    assert bookings() == [(7, Decimal("9.99"), "")]


@of("Several events")
def test_several_events(example: Example, work):
    example.run()
    work()
    for name in ("order_placed", "order_cancelled", "order_sent"):
        fire(f"shop.{name}", number=7)
    work()
    assert bookings() == [(7, 0, "order_placed"), (7, 0, "order_cancelled")]


@of("Batch handlers")
def test_batch_handlers(example: Example, work):
    example.run()
    work()
    for number in range(3):
        fire("shop.order_placed", number=number, total=Decimal("9.99"))
    work()
    assert bookings() == [(number, Decimal("9.99"), "") for number in range(3)]


@of("Async handlers")
def test_async_handlers(example: Example, work, r):
    example.run()

    @listens_to("shop.order_placed")
    async def fails(event: EventMessage, number: int, **kwargs: Any) -> None:
        await model("Booking").objects.acreate(order_number=number, text="of the one that fails")
        await aon_commit("bookkeeping.order_booked")
        raise ValueError

    work()
    fire("shop.order_placed", number=7, total=Decimal("9.99"))
    work()
    assert bookings() == [(7, Decimal("9.99"), "")], "the other's calls were in a transaction that was rolled back"
    assert not OutboxEvent.objects.exists()
    deliver_again(r)
    work()
    assert len(bookings()) == 1


@of("Where a new listener starts")
def test_where_a_new_listener_starts(example: Example, work, r):
    @listens_to("shop.order_placed")
    def new(event: EventMessage) -> None:
        model("Booking").objects.create(text="new")

    @listens_to("shop.order_placed", start="1767225600000-0")
    def after(event: EventMessage) -> None:
        model("Booking").objects.create(text="after it")

    example.run()
    fields = {"id": "old", "api_name": "shop", "event_name": "order_placed", "version": "1"}
    r.xadd("shop.*:stream", {**fields, "id": "of 2025"}, id="1767225599999-0")  # the last millisecond of 2025
    r.xadd("shop.*:stream", fields, id="1767225600000-0")
    work()
    assert sorted(text for _, _, text in bookings()) == ["since new year", *["since the beginning"] * 2]
    model("Booking").objects.all().delete()
    fire("shop.order_placed")
    work()
    assert sorted(text for _, _, text in bookings()) == ["after it", "new", "since new year", "since the beginning"]


# --- At least once, and effects once ----------------------------------------------------------


@of("At least once, and effects once")
def test_effects_once(example: Example, work, r):
    example.run()
    work()
    fire("shop.order_paid", number=7)
    work()
    deliver_again(r)
    work(process_name="another")
    assert bookings() == [(7, 0, "paid")]
    assert fired(r, "bookkeeping.*:stream") == ["bookkeeping.payment_booked"]
    assert not r.xpending("shop.*:stream", "bookkeeping-book-payment")["pending"]


@of("Effects outside of the database")
def test_effects_outside(example: Example, work, settings, monkeypatch):
    import payments  # the stand-in

    settings.MAILERS = {
        "default": {"BACKEND": "django.core.mail.backends.locmem.EmailBackend"}
    }  # Django 6.1 asks for it

    for name, value in {"charged": {}, "calls": [], "lost_answers": ["no answer"]}.items():
        monkeypatch.setattr(payments, name, value)
    example.run()
    work()
    event = fire("shop.order_placed", total=Decimal("9.99"), card="1234", number=7, email="ann@example.com")
    work()
    retry_now()
    work()
    assert payments.calls == [event.id, event.id]
    assert payments.charged == {event.id: Decimal("9.99")}

    for listener in list(registry):
        registry.remove(listener)
    example.run()
    work()
    for number, email in enumerate(["ann@example.com", "two\nlines@example.com", "cy@example.com"]):
        fire("shop.order_placed", number=number, email=email)
    work()
    assert [message.to for message in mail.outbox] == [["ann@example.com"], ["cy@example.com"]]
    assert [number for number, _, _ in bookings()] == [0, 1, 2], "an error after the commit is no failure"
    assert not FailedEvent.objects.exists()


@of("Deferred commits")
def test_deferred_commits(example: Example, work):
    example.run()
    booking = model("Booking").objects.create(order_number=7)
    work()
    fire("shop.order_paid", number=7)
    work()
    booking.refresh_from_db()
    assert booking.text == "released"
    [listener] = registry
    assert not listener.defer_commits


@of("idempotent=False")
def test_idempotent_false(example: Example, work, r):
    example.run()
    work()
    cache.set("price-A-1", "old")
    fire("prices.price_changed", sku="A-1", price=Decimal("9.99"))
    work()
    assert cache.get("price-A-1") is None
    cache.set("price-A-1", "old")
    deliver_again(r, "prices.*:stream")
    work()
    assert cache.get("price-A-1") is None, "it ran again"
    assert not ProcessedEvent.objects.exists()


def test_idempotent_false_and_an_error(work, stand_ins):
    booking = model("Booking")
    in_transaction = []

    @listens_to("shop.order_placed", idempotent=False)
    def handler(event: EventMessage) -> None:
        in_transaction.append(connection.in_atomic_block)
        booking.objects.create()
        raise ValueError

    work()
    fire("shop.order_placed")
    work()
    retry_now()
    work()
    assert in_transaction == [False, False]
    assert booking.objects.count() == 2, "what it wrote stays"


# --- When a handler fails ---------------------------------------------------------------------


@of("When a handler fails", "In the admin")
def test_when_a_handler_fails(example: Example, work, r):
    example.run()
    work()
    for number, total in enumerate(["1", "-2", "3"]):
        fire("shop.order_placed", number=number, total=Decimal(total))
    work()
    assert [number for number, _, _ in bookings()] == [0, 2]
    failed = FailedEvent.objects.get()
    assert failed.message().payload == {"number": 1, "total": "-2"}
    assert failed.error == "ValueError: the total can't be negative"
    assert "check_order" in failed.traceback
    assert not failed.is_dead_letter
    assert not r.xpending("shop.*:stream", "bookkeeping-check-order")["pending"], "it is acknowledged"

    FailedEvent.objects.update(next_attempt_at=None, attempts=5)
    example.run()
    failed.refresh_from_db()
    assert failed.next_attempt_at <= timezone.now()
    work()
    failed.refresh_from_db()
    assert failed.attempts == 1
    assert not failed.is_dead_letter

    failed.discard()
    deliver_again(r)
    r.xadd("shop.*:stream", r.xrange("shop.*:stream")[1][1])
    work()
    assert not FailedEvent.objects.exists()
    assert len(bookings()) == 2


# --- Service, listener and process names ------------------------------------------------------


@of("Consumer groups")
def test_consumer_groups(example: Example, work, r):
    example.run()
    example.run()
    work(service_name="price-monitor")
    groups = {group["name"] for group in r.xinfo_groups("competitor_prices.*:stream")}
    assert groups == {"price-monitor-send-price-alerts", "price_monitor-update_db"}


# --- Considerations ---------------------------------------------------------------------------


@of("Order")
def test_order(example: Example, work):
    guide = example.run()
    work()
    for day, price in [(2, "2.00"), (1, "1.00"), (3, "3.00"), (2, "2.00")]:
        fire("prices.price_changed", sku="A-1", price=Decimal(price), valid_from=datetime(2026, 3, day, tzinfo=UTC))
    work()
    row = guide.Price.objects.get()
    assert (row.price, row.valid_from) == (Decimal("3.00"), datetime(2026, 3, 3, tzinfo=UTC))


@of("SQLite")
def test_sqlite(example: Example, tmp_path):
    example.module.BASE_DIR = tmp_path
    guide = example.run()
    connections = ConnectionHandler(guide.DATABASES)
    one, two = connections["default"], connections.create_connection("default")
    try:
        assert one.cursor().execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert one.cursor().execute("PRAGMA busy_timeout").fetchone() == (20_000,)
        two.cursor().execute("PRAGMA busy_timeout = 0")
        one.set_autocommit(False, force_begin_transaction_with_broken_autocommit=True)
        with pytest.raises(Exception, match="locked"):  # one has the lock, though it wrote nothing
            two.set_autocommit(False, force_begin_transaction_with_broken_autocommit=True)
        one.rollback()
    finally:
        one.close()
        two.close()


@of("A listener of another database")
def test_a_listener_of_another_database(example: Example, work, r):
    guide = example.run()
    work()
    fire("shop.order_placed", number=7)
    work()
    deliver_again(r)
    work()
    assert guide.Booking.objects.using("other").count() == 1
    assert (ProcessedEvent.objects.count(), ProcessedEvent.objects.using("other").count()) == (0, 1)
    fire("shop.order_placed")
    work()
    assert (FailedEvent.objects.count(), FailedEvent.objects.using("other").count()) == (0, 1)


def commands(section):
    """The lines of a section's consoles that are of manage.py, as arguments."""
    for content, _ in SECTIONS[section].code("console"):
        for line in content.splitlines():
            yield shlex.split(line.removeprefix("python manage.py "))


def test_streams_and_tables_grow(listeners, work, r, capsys):
    @listens_to("shop.order_placed", listener_name="book_order")
    def handler(event: EventMessage) -> None: ...

    work()
    on_commit("shop.order_placed")
    work()
    r.xgroup_create("shop.*:stream", "bookkeeping-old-name", "0")
    ProcessedEvent.objects.update(processed_at=timezone.now() - timedelta(days=31))
    for arguments in commands("Streams and tables grow"):
        call_command(*arguments, *(["--no-input"] if len(arguments) > 1 else []))
    assert [group["name"] for group in r.xinfo_groups("shop.*:stream")] == ["bookkeeping-book-order"]
    assert ProcessedEvent.objects.count() == 0


def test_redis_keeps_the_events(listeners, work, r, housekeeping):
    got = []

    @listens_to("shop.order_placed")
    def handler(event: EventMessage, number: int) -> None:
        got.append(number)

    work()
    on_commit("shop.order_placed", number=1)
    work()
    on_commit("shop.order_placed", number=2)
    housekeeping().relay()
    r.flushdb()
    for arguments in commands("Redis keeps the events"):
        call_command(*arguments)
    assert r.xlen("shop.*:stream") == 2
    work()
    assert got == [1, 2]


# --- Best practices ---------------------------------------------------------------------------


@of("Name what happened, in the words of the domain")
def test_names(example: Example, r):
    example.run()
    assert fired(r) == ["shop.order_placed"]
    assert fired(r, "shipping.*:stream") == ["shipping.parcel_delivered"]


@of("Order", "Send values that keep their meaning")
def test_values_that_keep_their_meaning(example: Example, work):
    guide = example.run()
    work()
    example.run()  # which the handler above takes
    work()
    row = guide.Price.objects.get()
    assert (row.price, row.valid_from) == (Decimal("9.99"), datetime(2026, 3, 1, tzinfo=UTC))


@of("Arguments", "Send the whole thing")
def test_the_whole_thing(example: Example, work):
    example.run()
    guide = example.run()
    order = guide.Order.objects.create(email="ann@example.com", total=5, currency="EUR")
    order.lines.create(sku="A-1", quantity=2, price=Decimal("1.50"))
    order.lines.create(sku="B-2", quantity=1, price=Decimal("2.00"))
    work()
    guide.announce(order)
    order.lines.all().delete()
    order.delete()
    work()
    assert bookings() == [(guide.Booking.objects.first().order_number, 3, "A-1"), (bookings()[0][0], 2, "B-2")]


@of("Listening", "Add fields, and don't change their meaning")
def test_new_fields_are_additions(example: Example, work, r):
    example.run()
    guide = example.run()
    work()
    fire("shop.order_placed", number=1, total=Decimal(10), currency="EUR")
    fire("shop.order_placed", number=2, total=Decimal(10), currency="EUR", discount=Decimal(1))
    work()
    assert sorted(bookings()) == [(1, 10, ""), (1, 10, ""), (2, 9, ""), (2, 10, "")]

    guide = example.run()
    guide.announce_total(3, Decimal(10), Decimal(2))
    assert fired(r)[-2:] == ["shop.order_placed", "shop.order_placed_with_tax"]
    assert r.xrevrange("shop.*:stream", count=1)[0][1][":total"] == '"12"'


# --- Settings ---------------------------------------------------------------------------------


# --- Tests ------------------------------------------------------------------------------------


def passes(case: type[unittest.TestCase]) -> None:
    result = unittest.defaultTestLoader.loadTestsFromTestCase(case).run(unittest.TestResult())
    assert (result.testsRun, result.errors, result.failures) == (1, [], [])


@of("on_commit", "Fired events")
def test_fired_events(example: Example, r, monkeypatch):
    monkeypatch.setattr(sandbox, "real_buses", [])
    example.run()
    passes(example.run().OrderTests)
    assert not r.keys()


@of("Listening", "Testing a handler")
def test_testing_a_handler(example: Example, r):
    example.run()
    passes(example.run().BookingTests)


@of("Listening", "A real bus")
def test_a_real_bus(example: Example, r, monkeypatch):
    monkeypatch.setattr(sandbox, "real_buses", [])
    example.run()
    guide = example.run()
    guide.ListenerTests.databases = "__all__"
    passes(guide.ListenerTests)
    guide = example.run()
    assert [mark.name for mark in guide.test_orders_are_booked.pytestmark] == ["django_db", "lightbus"]
    with pytest.raises(CommandError, match="real_bus"):
        guide.test_orders_are_booked()
    with real_bus():
        guide.test_orders_are_booked()
    assert not r.keys()
