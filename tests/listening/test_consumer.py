"""One listener's loop, stepped by hand on a real server."""

import threading

import pytest
from django.db import connection

from lightbus_django import BusError, BusUnavailable, fire, listens_to
from lightbus_django.listening.registry import registry
from lightbus_django.listening.state import State
from lightbus_django.models import FailedEvent, ProcessedEvent
from tests.app.models import Child, Effect
from tests.conftest import drain
from tests.listening.streams import KEY, effects, fetch, pending

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("listeners")]


def test_events_are_handled_in_order_and_acknowledged_with_the_next_read(r, record, consume):
    consumer = consume()
    for number in range(5):
        fire("shop.order_placed", number=number)
    assert consumer.step(block=0) is True
    assert effects() == [0, 1, 2, 3, 4]
    assert pending(r) == 5
    assert consumer.step(block=0) is False
    assert pending(r) == 0


def test_every_listener_gets_every_event_and_processes_share_them(r, listeners, consume):
    @listens_to("shop.order_placed")
    def one(event, number):
        Effect.objects.create(name="one", number=number)

    @listens_to("shop.order_placed")
    def two(event, number):
        Effect.objects.create(name="two", number=number)

    consumers = [consume(listener, process_name=name) for listener in registry for name in ("p1", "p2")]
    for number in range(20):
        fire("shop.order_placed", number=number)
    for consumer in consumers:
        drain(consumer)
    for name in ("one", "two"):
        assert sorted(Effect.objects.filter(name=name).values_list("number", flat=True)) == list(range(20))


def test_events_of_others_in_the_stream_are_passed_over(r, record, consume):
    consumer = consume()
    fire("shop.parcel_delivered", number=1)
    fire("shop.order_placed", number=2)
    drain(consumer)
    assert effects() == [2]
    assert ProcessedEvent.objects.count() == 1
    assert pending(r) == 0


def test_one_listener_can_have_events_of_several_streams(r, listeners, consume):
    @listens_to(["shop.order_placed", "stock.article_ran_out"])
    def record(event, number):
        Effect.objects.create(name=event.name, number=number)

    consumer = consume()
    fire("shop.order_placed", number=1)
    fire("stock.article_ran_out", number=2)
    drain(consumer)
    assert set(Effect.objects.values_list("name", "number")) == {
        ("shop.order_placed", 1),
        ("stock.article_ran_out", 2),
    }
    assert pending(r) == pending(r, key="stock.*:stream") == 0


def test_a_group_of_somebody_elses_may_have_any_name(r, record, consume):
    r.xgroup_create(KEY, b"a\xff", "0", mkstream=True)
    consumer = consume()
    fire("shop.order_placed", number=1)
    drain(consumer)
    assert effects() == [1]


class TestAnyBytes:
    """What stands in a stream that anybody may write to."""

    def add(self, r, **fields):
        r.xadd(KEY, fields)

    @pytest.fixture
    def consumer(self, r, record, consume):
        return consume()

    def test_what_cannot_be_read_is_a_dead_letter_and_the_rest_is_handled(self, r, consumer, lightbus_url):
        good = {"id": "1", "api_name": "shop", "event_name": "order_placed", "version": "1", ":number": "1"}
        fire("shop.order_placed", number=1)
        for change in [{"version": "2.0"}, {":number": "{"}, {"id": ""}, {":number": '"much"'}]:
            r.xadd(KEY, {**good, **change})
        r.xadd(KEY, {":number": b'"\xff\xfe"', **{k: v for k, v in good.items() if k != ":number"}})
        for name in ("id", "api_name", "event_name", "version", ":number"):
            r.xadd(KEY, {key: value for key, value in good.items() if key != name})
        r.xadd(KEY, {"": "x"})
        r.xadd(KEY, {b"\xff": b"\x00"})
        fire("shop.order_placed", number=2)
        drain(consumer)
        assert effects() == [1, 2]
        # The two whose metadata is good, and the id the same, are one event that failed once.
        assert FailedEvent.objects.count() == 11
        assert all(failed.is_dead_letter for failed in FailedEvent.objects.all())
        assert pending(r) == 0

    def test_what_is_too_large_for_a_row_is_a_dead_letter_without_it(self, r, consumer):
        """MariaDB would refuse it each time."""
        r.xadd(KEY, {"api_name": "shop", "event_name": "order_placed", "junk": b"\xff" * 2_000_000})
        fire("shop.order_placed", number=1)
        drain(consumer)
        assert effects() == [1]
        failed = FailedEvent.objects.get()
        assert failed.is_dead_letter
        assert "too large to keep" in failed.error
        assert len(failed.fields) < 1000

    def test_noop_entries_are_acknowledged_silently(self, r, consumer, caplog):
        r.xadd(KEY, {"": ""})
        drain(consumer)
        assert pending(r) == 0
        assert not FailedEvent.objects.exists()
        assert not caplog.records

    def test_an_entry_that_was_trimmed_is_a_loss_said_loudly(self, r, consumer, caplog):
        fire("shop.order_placed", number=1)
        (stream_id,) = fetch(r, "worker")
        r.xtrim(KEY, maxlen=0, approximate=False)
        consumer.state = State.OWN_PENDING
        drain(consumer)
        assert f"lost {stream_id}" in caplog.text
        assert pending(r) == 0


class TestInfrastructure:
    def test_what_is_settled_is_acknowledged_before_retries_and_what_is_left_of_a_batch(
        self, r, listeners, consume, monkeypatch
    ):
        monkeypatch.setattr("lightbus_django.listening.commit_gate.WINDOW", -1)
        seen = []

        @listens_to("shop.order_placed")
        def record(event, number):
            seen.append(pending(r))

        consumer = consume()
        for number in range(3):
            fire("shop.order_placed", number=number)
        drain(consumer)
        assert seen == [3, 2, 1]

    def test_retries_and_new_events_take_turns(self, r, listeners, consume):
        order = []

        @listens_to("shop.order_placed")
        def record(event, number):
            order.append(number)
            if number < 3 and order.count(number) == 1:
                raise ValueError

        consumer = consume()
        for number in range(3):
            fire("shop.order_placed", number=number)
        drain(consumer)
        FailedEvent.objects.retry_now()
        fire("shop.order_placed", number=9)
        consumer.retries_due.set()
        drain(consumer)
        assert sorted(order[3:]) == [0, 1, 2, 9]
        assert order[4] == 9

    def test_a_key_that_is_no_stream_is_named_and_done_with_when_it_is_gone(self, r, record, consume):
        r.set(KEY, "a string")
        consumer = consume(join=False)
        with pytest.raises(BusError, match="holds something other than a stream"):
            consumer.step(block=0)
        r.delete(KEY)
        consumer.step(block=0)
        fire("shop.order_placed", number=1)
        drain(consumer)
        assert effects() == [1]

    def test_trouble_is_nobodys_fault_and_costs_no_delivery(self, r, listeners, consume):
        trouble = [BusUnavailable("away")] * 3

        @listens_to("shop.order_placed")
        def record(event, number):
            if number == 1 and trouble:
                raise trouble.pop()
            Effect.objects.create(number=number)

        consumer = consume()
        for number in range(3):
            fire("shop.order_placed", number=number)
        for _ in range(2):  # behind another one it is met again first
            with pytest.raises(BusUnavailable):
                while True:
                    consumer.step(block=0)
        assert effects() == [0]
        drain(consumer)
        assert effects() == [0, 1, 2]
        assert not FailedEvent.objects.exists()

    def test_of_a_batch_whose_commit_is_refused_one_event_fails(self, r, listeners, consume):
        @listens_to("shop.order_placed")
        def record(event, number):
            Effect.objects.create(number=number)
            if number == 1:
                Child.objects.create(parent_id=4711)

        consumer = consume()
        for number in range(3):
            fire("shop.order_placed", number=number)
        drain(consumer)
        assert effects() == [0, 2]
        assert "IntegrityError" in FailedEvent.objects.get().error

    def test_retries_that_are_due_are_made_in_the_consumers_own_thread(self, r, listeners, consume, housekeeping):
        threads = []

        @listens_to("shop.order_placed")
        def record(event, number):
            threads.append(threading.get_ident())
            if event.attempt == 1:
                raise ValueError

        consumer = consume()
        fire("shop.order_placed", number=1)
        drain(consumer)
        FailedEvent.objects.retry_now()
        keeper = housekeeping(consumer)

        def flag():
            keeper.flag_due_retries()
            connection.close()

        thread = threading.Thread(target=flag)
        thread.start()
        thread.join()
        drain(consumer)
        # "Retry now" counts from the start, so this was attempt 1 once more.
        assert threads == [threading.get_ident()] * 2
