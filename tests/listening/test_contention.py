"""An event that doesn't get through is set aside for others, and fails in the end if it is the cause itself."""

import contextlib
import threading
import time

import pytest
from django.db import connection, connections, transaction
from model_bakery import baker

from lightbus_django import fire, listens_to
from lightbus_django.database.connections import fetch
from lightbus_django.exceptions import EventContended
from lightbus_django.listening.processor import ASIDE
from lightbus_django.listening.state import State
from lightbus_django.models import FailedEvent, ProcessedEvent
from tests.app.models import Effect, Parent
from tests.conftest import drain, eventually
from tests.listening.handling import (
    KEY,
    at_first,
    deliver,
    deliveries,
    effects,
    execute,
    fire_orders,
    handled,
    in_thread,
    inbox,
    kill_from_within,
    listen,
    of_postgresql,
    of_servers,
)

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
    pytest.mark.usefixtures("listeners"),
]


@contextlib.contextmanager
def key_held(event_id, group):
    """Let another process have a key in a transaction that stays open for the block, and is rolled back."""
    held, release = threading.Event(), threading.Event()

    def hang():
        with transaction.atomic():
            baker.make(ProcessedEvent, event_id=event_id, consumer_group=group)
            held.set()
            release.wait(60)
            transaction.set_rollback(True)

    thread = in_thread(hang)
    assert held.wait(10)
    try:
        yield
    finally:
        release.set()
        thread.join(30)


@pytest.mark.parametrize("batch", [False, True])
def test_an_event_whose_handler_closes_its_connection_fails_and_says_so(
    batch, r, listeners, consume, monkeypatch, caplog
):
    monkeypatch.setattr("lightbus_django.listening.contention.PATIENCE", 0.5)

    @listens_to("shop.order_placed", start="beginning", batch=batch)
    def record(events, **kwargs):
        numbers = [event.payload["number"] for event in (events if batch else [events])]
        if min(numbers) < 2:
            connections.close_all()
        for number in numbers:
            Effect.objects.create(number=number, name="attempt 1")

    consumer = consume()
    fire_orders(3)
    eventually(lambda: consumer.step(block=0) and FailedEvent.objects.count() == 2)
    for failed in FailedEvent.objects.all():
        assert failed.error == "EventContended: the handler closed its connection to the database 'default'"
    assert "the handler closed its connection to the database 'default'" in caplog.text
    drain(consumer)
    assert handled() == [(2, "attempt 1")]


@of_servers
class TestAnEventThatCanNotGetThrough:
    """Somebody holds a row that it wants, and others get through: it is set aside, and they pass."""

    @pytest.fixture
    def row(self):
        """Hold a row until told to let it go."""
        Parent.objects.create(name="held")
        held, release = threading.Event(), threading.Event()

        def hold():
            with transaction.atomic():
                Parent.objects.select_for_update().get()
                held.set()
                release.wait(60)

        thread = in_thread(hold)
        assert held.wait(10)
        yield release
        release.set()
        thread.join(30)

    @pytest.fixture
    def consumer(self, r, row, listeners, consume):
        listen(before=lambda number: number == 1 and Parent.objects.select_for_update(nowait=True).get())
        consumer = consume()
        fire_orders(4)
        eventually(lambda: consumer.step(block=0) and len(handled()) == 3)
        return consumer

    def test_the_others_pass_and_it_follows_with_no_attempt_counted(self, r, row, consumer, caplog):
        assert handled() == [(number, "attempt 1") for number in (0, 2, 3)]
        assert any("is set aside for 1 s" in record.getMessage() for record in caplog.get_records("setup"))
        consumer.step(block=0)
        consumer.reader.flush()
        assert deliveries(r) == [1]
        row.set()
        drain(consumer)
        assert handled() == at_first(4)
        assert not FailedEvent.objects.exists()
        assert deliveries(r) == []

    def test_nor_do_many_of_them_hold_up_what_comes_behind_for_long(self, r, row, listeners, consume, monkeypatch):
        """Though no other transaction succeeds meanwhile, for nothing else is read: recording the failure does."""
        monkeypatch.setattr("lightbus_django.listening.processor.MAX_ASIDE", 3)
        monkeypatch.setattr("lightbus_django.listening.contention.PATIENCE", 0.5)
        listen(before=lambda number: number < 5 and Parent.objects.select_for_update(nowait=True).get())
        consumer = consume()
        for number in range(7):
            fire("shop.order_placed", number=number)
            consumer.step(block=0)
        eventually(lambda: consumer.step(block=0) and [number for number, _ in handled()] == [5, 6])
        assert FailedEvent.objects.filter(error__startswith="EventContended").exists()

    @of_postgresql
    def test_though_its_tries_take_longer_than_it_is_aside(self, r, row, listeners, consume):
        calls = []

        @listens_to("shop.order_placed", start="beginning")
        def record(event, number):
            calls.append(number)
            if number == 0:
                with connection.cursor() as cursor:
                    cursor.execute("SET LOCAL lock_timeout = '800ms'")
                    Parent.objects.select_for_update().get()

        consumer = consume()
        fire_orders(3)
        eventually(lambda: consumer.step(block=0) and {1, 2} <= set(calls))
        consumer.stop()

    @of_postgresql
    def test_nor_does_one_whose_key_another_process_holds_hold_up_what_comes_with_it(
        self, r, listeners, consume, caplog
    ):
        """It was left by a process that hangs in its transaction."""
        timeouts = []
        listen(before=lambda number: timeouts.append(fetch(connection, "SHOW lock_timeout")[0]))
        consumer = consume()
        fire_orders(4)
        ((_, entries),) = r.xreadgroup(consumer.group, "dead", {KEY: ">"})
        r.xclaim(KEY, consumer.group, "dead", 0, [key for key, _ in entries], idle=3_600_000, justid=True)
        consumer.reclaim_at = 0.0
        with key_held(entries[2][1]["id"], consumer.group):
            eventually(lambda: consumer.step(block=0) and len(handled()) == 3)
            assert handled() == [(number, "attempt 2") for number in (0, 1, 3)]
            assert "is set aside for 1 s" in caplog.text
        drain(consumer)
        assert handled() == [(number, "attempt 2") for number in range(4)]
        assert set(timeouts) == {"0"}
        assert not FailedEvent.objects.exists()

    @of_postgresql
    def test_nor_does_one_that_is_to_be_a_dead_letter(self, r, listeners, consume, lightbus):
        """The process in which it exceeded the timeout last still has its key."""
        lightbus(MAX_ATTEMPTS=2)
        listen()
        consumer = consume()
        fire_orders(2)
        ((_, entries),) = r.xreadgroup(consumer.group, "hangs", {KEY: ">"})
        for (stream_id, _), count in zip(entries, (7, 1), strict=True):
            r.xclaim(KEY, consumer.group, "hangs", 0, [stream_id], idle=3_600_000, retrycount=count, justid=True)
        consumer.reclaim_at = 0.0
        with key_held(entries[0][1]["id"], consumer.group):
            eventually(lambda: consumer.step(block=0) and len(handled()) == 1)
            assert not FailedEvent.objects.exists()
        drain(consumer)
        assert FailedEvent.objects.get().is_dead_letter

    def test_a_stop_hands_it_back(self, r, consumer):
        consumer.stop()
        assert deliveries(r) == [0]

    def test_a_look_back_does_not_take_it_twice(self, r, row, consumer):
        consumer.state = State.OWN_PENDING
        for _ in range(3):
            consumer.step(block=0)
        assert not consumer.in_flight.waiting
        row.set()
        drain(consumer)
        assert handled() == at_first(4)

    def test_what_is_new_waits_while_many_are_aside(self, r, row, listeners, consume, monkeypatch):
        monkeypatch.setattr("lightbus_django.listening.processor.MAX_ASIDE", 3)
        calls = []

        def want(number):
            calls.append(number)
            Parent.objects.select_for_update(nowait=True).get()

        listen(before=want)
        consumer = consume()
        fire_orders(6)
        for _ in range(8):
            consumer.step(block=0)
        assert len(consumer.in_flight.set_aside) >= 3
        fire_orders(2)
        row.set()
        drain(consumer)
        assert sorted(number for number, _ in handled()) == [0, 0, 1, 1, 2, 3, 4, 5]


LOCK = "SELECT * FROM tests_effect WHERE number = -1 FOR UPDATE NOWAIT"


@contextlib.contextmanager
def lock_held(statement):
    """Hold the lock that a statement takes while in this block."""
    held, release = threading.Event(), threading.Event()

    def hold():
        with transaction.atomic():
            execute(statement)
            held.set()
            release.wait(60)

    thread = in_thread(hold)
    assert held.wait(10)
    try:
        yield
    finally:
        release.set()
        thread.join(30)


@of_servers
class TestTroubleOfOneEvent:
    """The database answers, and other events get through."""

    def listen(self, do):
        calls = []

        @listens_to("shop.order_placed")
        def handler(event, number):
            calls.append(number)
            Effect.objects.create(number=number)
            if number == 1:
                do()

        return calls

    def end(self, box, delivery, others=True):
        """Have it handled again and again, as a consumer does; return how many seconds it took."""
        began_at = time.monotonic()
        while time.monotonic() - began_at < 30:
            try:
                box.handle([delivery])
            except EventContended:
                if others:
                    box.handle([deliver(2)])
            else:
                break
            time.sleep(ASIDE)
        return time.monotonic() - began_at

    @pytest.mark.parametrize("way", ["close_all", "close", "killed"])
    def test_which_loses_its_connection_is_its_failure_within_seconds(self, way):
        def lose():
            if way == "close_all":
                connections.close_all()
            elif way == "close":
                connection.close()
            else:
                kill_from_within()

        calls = self.listen(lose)
        assert self.end(inbox(), deliver(1), others=False) < 10
        assert FailedEvent.objects.get().stream_id == "2-0"
        assert len(calls) < 20
        assert effects() == []

    def test_which_waits_for_a_lock_is_its_failure_if_others_succeed_meanwhile(self):
        Effect.objects.create(number=-1)
        calls = self.listen(lambda: execute(LOCK))
        with lock_held("UPDATE tests_effect SET name = 'held' WHERE number = -1"):
            assert self.end(inbox(), deliver(1)) < 10
        assert FailedEvent.objects.get().stream_id == "2-0"
        assert calls.count(1) < 20

    def test_is_nobodys_fault_while_no_other_one_succeeds(self, monkeypatch):
        monkeypatch.setattr("lightbus_django.listening.contention.PATIENCE", 0.1)
        Effect.objects.create(number=-1)
        self.listen(lambda: execute(LOCK))
        box = inbox()
        with lock_held("UPDATE tests_effect SET name = 'held' WHERE number = -1"):
            for _ in range(6):
                with pytest.raises(EventContended):
                    box.handle([deliver(1)])
                time.sleep(0.05)
        assert not FailedEvent.objects.exists()
        assert box.handle([deliver(1)]) == 1
