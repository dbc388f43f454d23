"""Each event is handled once, in one transaction with its key, and its neighbors are left alone."""

import asyncio
import contextlib
from datetime import timedelta
from pathlib import Path

import pytest
from django.db import Error, IntegrityError, connection, connections, transaction
from django.utils import timezone

from lightbus_django import BusUnavailable, fire, listens_to, on_commit
from lightbus_django.bus.group_reads import Entry
from lightbus_django.events.codec import load_fields
from lightbus_django.listening.delivery import Delivery
from lightbus_django.models import FailedEvent, OutboxEvent, ProcessedEvent
from tests.app.models import Child, Effect
from tests.listening.handling import (
    deliver,
    effects,
    handle_all,
    inbox,
    kill_from_within,
    of_servers,
)

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("listeners")]


def test_key_and_effects_are_committed_together():
    @listens_to("shop.order_placed")
    def handler(event, number):
        assert connection.in_atomic_block
        assert ProcessedEvent.objects.filter(event_id=event.id).exists()
        Effect.objects.create(number=number)

    assert inbox().handle([deliver(1), deliver(2)]) == 2
    assert effects() == [1, 2]
    assert ProcessedEvent.objects.filter(consumer_group="group", event_name="shop.order_placed").count() == 2


def test_duplicates_are_left_alone_wherever_they_stand():
    @listens_to("shop.order_placed")
    def handler(event, number):
        Effect.objects.create(number=number)

    box = inbox()
    one, two, three = deliver(1), deliver(2), deliver(3)
    assert box.handle([one]) == 1
    assert box.handle([one]) == 1
    assert box.handle([two, one, two, three, three]) == 5
    assert effects() == [1, 2, 3]


def test_what_takes_long_is_settled_before_the_rest_is_handled(monkeypatch):
    monkeypatch.setattr("lightbus_django.listening.commit_gate.WINDOW", -1)

    @listens_to("shop.order_placed")
    def handler(event, number):
        Effect.objects.create(number=number)

    box = inbox()
    one, two, three = deliver(1), deliver(2), deliver(3)
    assert box.handle([one, two, three]) == 1
    assert set(ProcessedEvent.objects.values_list("event_id", flat=True)) == {one.key}
    handle_all(box, [two, three, one])
    assert effects() == [1, 2, 3]


def test_a_stop_ends_the_batch_behind_the_event_in_hand():
    @listens_to("shop.order_placed")
    def handler(event, number):
        Effect.objects.create(number=number)

    assert inbox().handle([deliver(1), deliver(2)], stopping=lambda: True) == 1
    assert effects() == [1]


@pytest.mark.parametrize("idempotent", [True, False])
@pytest.mark.parametrize("error", [ValueError, SystemExit, asyncio.CancelledError, IntegrityError, BaseException])
def test_a_handler_that_raises_leaves_a_failed_event_and_its_neighbours_alone(idempotent, error):
    calls = []

    @listens_to("shop.order_placed", idempotent=idempotent)
    def handler(event, number):
        calls.append(number)
        with transaction.atomic():
            Effect.objects.create(number=number)
            if number == 2:
                raise error("no such article")

    assert inbox().handle([deliver(1), deliver(2), deliver(3)]) == 3
    assert effects() == [1, 3]
    assert calls == [1, 2, 3]
    failed = FailedEvent.objects.get()
    assert failed.error == f"{error.__name__}: no such article"
    assert "in handler" in failed.traceback
    assert failed.attempts == 1
    assert timedelta(seconds=4) < failed.next_attempt_at - timezone.now() <= timedelta(seconds=10)
    assert failed.message().payload == {"number": 2}


def test_a_handler_that_catches_a_database_error_fails_instead_of_losing_its_batch():
    """Its transaction would be rolled back in the end, without a word and with the others' effects."""

    @listens_to("shop.order_placed")
    def handler(event, number):
        Effect.objects.create(number=number)
        if number == 2:
            with contextlib.suppress(IntegrityError), transaction.atomic(savepoint=False):
                raise IntegrityError

    box = inbox()
    handle_all(box, [deliver(1), deliver(2), deliver(3)])
    assert effects() == [1, 3]
    assert "can only be rolled back" in FailedEvent.objects.get().error


@of_servers
def test_a_transaction_that_is_lost_with_an_error_that_the_handler_catches_loses_no_event():
    broken = [True]

    @listens_to("shop.order_placed")
    def handler(event, number):
        Effect.objects.create(number=number)
        if number == 2 and broken:
            broken.pop()
            with contextlib.suppress(Error):
                kill_from_within()

    handle_all(inbox(), [deliver(1), deliver(2), deliver(3)])
    assert effects() == [1, 2, 3]


@pytest.mark.django_db(transaction=True, databases=["default", "other"])
def test_a_lost_connection_of_another_database_is_opened_anew():
    if connections["other"].vendor == "sqlite":
        pytest.skip("SQLite has no connection to lose")
    Effect.objects.using("other").count()
    connections["other"].connection.close()

    @listens_to("shop.order_placed")
    def handler(event, number):
        Effect.objects.create(number=Effect.objects.using("other").count())

    assert inbox().handle([deliver(1)]) == 1
    assert effects() == [0]


def test_an_error_without_a_text_is_recorded():
    class Mute(Exception):
        def __str__(self):
            raise RuntimeError

    @listens_to("shop.order_placed")
    def handler(event, number):
        raise Mute

    inbox().handle([deliver(1)])
    assert FailedEvent.objects.get().error == "Mute: its __str__() raised an error"


def test_an_error_that_can_not_be_compared_harms_no_later_record():
    class Incomparable(Exception):
        __hash__ = None

        def __eq__(self, other):
            raise RuntimeError

    @listens_to("shop.order_placed", batch=True)
    def handler(events):
        raise Incomparable

    box = inbox()
    box.handle([deliver(1)])
    box.handle([Delivery.of(Entry("shop.*:stream", "9-0", {b"id": b"unreadable"}, 1))])
    assert FailedEvent.objects.count() == 2


def test_the_place_of_an_error_is_relative_to_a_path_of_any_type(monkeypatch):
    monkeypatch.setattr("sys.path", [Path(__file__).parent])

    @listens_to("shop.order_placed")
    def handler(event, number):
        raise ValueError

    inbox().handle([deliver(1)])
    assert FailedEvent.objects.get().place.startswith("test_inbox.py:")


def test_a_handler_whose_result_nobody_runs_fails():
    async def later(number):
        await Effect.objects.acreate(number=number)

    @listens_to("shop.order_placed")
    def handler(event, number):
        return later(number)

    inbox().handle([deliver(1)])
    assert "returned a coroutine" in FailedEvent.objects.get().error


def test_a_duplicate_of_a_failed_event_changes_nothing():
    calls = []

    @listens_to("shop.order_placed")
    def handler(event, number):
        calls.append(number)
        raise ValueError(len(calls))

    one = deliver(1)
    box = inbox()
    box.handle([one])
    box.handle([one, one])
    assert calls == [1]
    assert FailedEvent.objects.get().error == "ValueError: 1"


def test_a_failing_handler_takes_back_what_it_fired(r):
    @listens_to("shop.order_placed")
    def handler(event, number):
        on_commit("shop.parcel_delivered", number=number)
        if number in {1, 3}:
            raise ValueError

    inbox().handle([deliver(1), deliver(2), deliver(3), deliver(4)])
    assert [row.payload for row in OutboxEvent.objects.all()] == ['{"number":2}', '{"number":4}']
    assert [fields[":number"] for _, fields in r.xrange("shop.*:stream")] == ["2", "4"]


def test_a_constraint_that_is_checked_at_the_commit_fails_its_event_alone():
    @listens_to("shop.order_placed")
    def handler(event, number):
        Effect.objects.create(number=number)
        if number == 2:
            Child.objects.create(parent_id=4711)

    assert inbox().handle([deliver(1), deliver(2), deliver(3)]) == 3
    assert effects() == [1, 3]
    assert "IntegrityError" in FailedEvent.objects.get().error


def test_a_hook_that_raises_after_the_commit_keeps_no_other_hook_from_running(caplog, r):
    ran = []

    @listens_to("shop.order_placed")
    def handler(event, number):
        Effect.objects.create(number=number)
        on_commit("shop.parcel_delivered", number=number)
        transaction.on_commit(lambda: ran.append(1 // (number - 2)))

    assert inbox().handle([deliver(1), deliver(2), deliver(3)]) == 3
    assert effects() == [1, 2, 3]
    assert ran == [-1, 1]
    assert not FailedEvent.objects.exists()
    assert "ZeroDivisionError" in caplog.text
    assert r.xlen("shop.*:stream") == 3


def test_async_handlers_write_in_the_transaction_of_their_key():
    @listens_to("shop.order_placed")
    async def handler(event, number):
        await asyncio.sleep(0)
        await Effect.objects.acreate(number=number)
        if number == 2:
            raise ValueError("two")

    inbox().handle([deliver(1), deliver(2), deliver(3)])
    assert effects() == [1, 3]
    assert FailedEvent.objects.get().error == "ValueError: two"


def test_without_keys_a_handler_runs_each_time_and_in_no_transaction():
    @listens_to("shop.order_placed", idempotent=False)
    def handler(event, number):
        assert not connection.in_atomic_block
        Effect.objects.create(number=number)

    one = deliver(1)
    inbox().handle([one])
    inbox().handle([one])
    assert effects() == [1, 1]
    assert not ProcessedEvent.objects.exists()


@pytest.mark.parametrize("idempotent", [True, False])
def test_the_bus_being_away_is_not_the_handlers_fault(lightbus, lightbus_url, idempotent):
    @listens_to("shop.order_placed", idempotent=idempotent)
    def handler(event, number):
        fire("shop.parcel_delivered", number=number)
        Effect.objects.create(number=number)

    lightbus(URL="redis://127.0.0.1:1")
    box = inbox()
    with pytest.raises(BusUnavailable):
        box.handle([deliver(1), deliver(2)])
    assert not FailedEvent.objects.exists()
    assert not ProcessedEvent.objects.exists()
    lightbus(URL=lightbus_url)
    assert box.handle([deliver(1), deliver(2)]) == 2


@of_servers
@pytest.mark.parametrize("idempotent", [True, False])
def test_a_lost_database_connection_is_not_the_handlers_fault(idempotent):
    broken = [True]

    @listens_to("shop.order_placed", idempotent=idempotent)
    def handler(event, number):
        if broken.pop() if broken else False:
            kill_from_within()
        Effect.objects.create(number=number)

    box = inbox()
    handle_all(box, [deliver(1), deliver(2)])
    assert effects() == [1, 2]
    assert not FailedEvent.objects.exists()


def test_what_a_handler_raises_is_stored_whatever_its_text():
    @listens_to("shop.order_placed")
    def handler(event, number):
        raise ValueError("\x00 \ud800 \U0001f40e" + "x" * 1_000_000)

    inbox().handle([deliver(1)])
    failed = FailedEvent.objects.get()
    assert failed.error.startswith("ValueError: \\x00 \\ud800 \U0001f40e")


class TestUnreadable:
    def test_is_a_dead_letter_with_its_content_and_the_reason(self):
        @listens_to("shop.order_placed")
        def handler(event, number):
            Effect.objects.create(number=number)

        fields = {b"id": b"1", b"api_name": b"shop", b"event_name": b"order\xff\x00", b"version": b"1", b":x": b"{"}
        bad = Delivery.of(Entry("shop.*:stream", "5-0", fields))
        assert inbox().handle([deliver(1), bad, deliver(2)]) == 3
        assert effects() == [1, 2]
        failed = FailedEvent.objects.get()
        assert failed.is_dead_letter
        assert failed.error.startswith("UnreadableEvent: field b'event_name' is not UTF-8")
        assert failed.stream_id == "5-0"
        assert load_fields(failed.fields) == fields

    def test_an_argument_that_is_missing_makes_a_dead_letter_at_once(self):
        @listens_to("shop.order_placed")
        def handler(event, number, price): ...

        inbox().handle([deliver(1)])
        failed = FailedEvent.objects.get()
        assert failed.is_dead_letter
        assert "argument 'price' is missing" in failed.error
