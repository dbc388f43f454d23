"""`on_commit_many`: many events in one transaction, written with few statements."""

from contextlib import suppress
from uuid import UUID

import pytest
from asgiref.sync import async_to_sync
from django.db import IntegrityError, connection, transaction

from lightbus_django import InvalidEventName, InvalidPayload, aon_commit_many, on_commit, on_commit_many
from lightbus_django.events.ids import uuid7
from lightbus_django.firing import outbox as outbox_module
from lightbus_django.models import OutboxEvent
from tests.app.models import Effect
from tests.bus.test_confirmations import queries_of
from tests.firing.helpers import KEY, numbers

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])


def orders(*given):
    return [("shop.order_placed", {"number": number}) for number in given]


def test_publishes_all_in_order_after_the_commit(r):
    with transaction.atomic():
        on_commit("shop.order_placed", number=0)
        events = on_commit_many(("shop.order_placed", {"number": number}) for number in range(1, 1500))
        on_commit("shop.order_placed", number=1500)
        assert not r.exists(KEY)
    assert numbers(r) == list(range(1501))
    assert [fields["id"] for _, fields in r.xrange(KEY)][1:-1] == [event.id for event in events]
    assert events[0].payload == {"number": 1}


def test_writes_them_with_few_statements(r):
    def work():
        with transaction.atomic():
            on_commit_many(orders(*range(100)))

    assert queries_of(work).count("INSERT") <= (2 if connection.vendor == "sqlite" else 1)
    assert numbers(r) == list(range(100))


def test_limits_each_statement_by_bytes(r, monkeypatch):
    monkeypatch.setattr(outbox_module, "INSERT_BYTES", 1000)

    def work():
        with transaction.atomic():
            on_commit_many([("shop.order_placed", {"number": number, "text": "x" * 400}) for number in range(5)])

    assert queries_of(work).count("INSERT") == 3
    assert numbers(r) == list(range(5))


def test_of_none_does_nothing(r):
    assert on_commit_many([]) == []
    assert not OutboxEvent.objects.exists()


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (("nodot", {}), InvalidEventName),
        (("shop.order_placed", {"number": object()}), InvalidPayload),
        (("shop.order_placed", {"text": "x" * 2_000_000}), InvalidPayload),
    ],
)
def test_writes_nothing_if_one_can_t_be(r, wrong, error):
    with transaction.atomic():
        Effect.objects.create(name="before")
        with pytest.raises(error):
            on_commit_many([*orders(1), wrong, *orders(2)])
    assert Effect.objects.count() == 1
    assert not OutboxEvent.objects.exists()
    assert not r.exists(KEY)


def test_outside_of_a_transaction_writes_all_or_none(r, monkeypatch):
    (event, *_) = on_commit_many(orders(*range(3)))
    assert numbers(r) == [0, 1, 2]
    monkeypatch.setattr(outbox_module, "INSERT_SIZE", 2)
    ids = iter([uuid7(), uuid7(), UUID(event.id)])
    monkeypatch.setattr("lightbus_django.events.message.uuid7", lambda: next(ids))
    with pytest.raises(IntegrityError):
        on_commit_many(orders(5, 6, 7))
    assert OutboxEvent.objects.count() == 3
    assert numbers(r) == [0, 1, 2]


def test_a_savepoint_that_is_rolled_back_takes_them_with_it(r):
    with transaction.atomic():
        on_commit_many(orders(1, 2))
        with suppress(ZeroDivisionError), transaction.atomic():
            on_commit_many(orders(3, 4))
            raise ZeroDivisionError
        on_commit_many(orders(5))
    assert numbers(r) == [1, 2, 5]


def test_for_a_database_that_is_named(r):
    with transaction.atomic(using="other"):
        on_commit_many.using("other")(orders(1))
        assert not r.exists(KEY)
    assert OutboxEvent.objects.using("other").count() == 1
    assert not OutboxEvent.objects.exists()
    assert numbers(r) == [1]


def test_from_async_code(r):
    async def work():
        await aon_commit_many(orders(1, 2))
        return await aon_commit_many.using("other")(orders(3))

    (event,) = async_to_sync(work)()
    assert numbers(r) == [1, 2, 3]
    assert str(OutboxEvent.objects.using("other").get().pk) == event.id
