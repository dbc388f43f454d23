"""Transient errors, such as locks and deadlocks, cost no attempt and lose no event."""

import contextlib
import sqlite3
import threading

import pytest
from django.db import OperationalError, connection

from lightbus_django import listens_to
from lightbus_django.database.errors import is_transient
from lightbus_django.exceptions import DatabaseUnavailable
from lightbus_django.listening.registry import registry
from lightbus_django.models import FailedEvent
from tests.app.models import Effect, Parent
from tests.conftest import drain, eventually
from tests.listening.handling import (
    at_first,
    deliveries,
    fire_orders,
    handled,
    listen,
    of_postgresql,
    of_servers,
    run_side_by_side,
    set_isolation_level,
    with_and_without_keys,
)
from tests.workers import running_worker

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])


of_sqlite = pytest.mark.skipif(connection.vendor != "sqlite", reason="only SQLite is locked as a whole")


@contextlib.contextmanager
def locked():
    """Hold the lock of the database's file, as another program may."""
    with contextlib.closing(sqlite3.connect(connection.settings_dict["NAME"], isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield


@pytest.fixture
def impatient(monkeypatch):
    """Let connections that are opened from now on wait for a lock no longer than a moment."""
    connection.close()
    monkeypatch.setitem(connection.settings_dict["OPTIONS"], "timeout", 0.05)
    yield
    connection.close()


@of_sqlite
@pytest.mark.usefixtures("impatient")
class TestLockedFile:
    @with_and_without_keys
    @pytest.mark.parametrize("mode", ["IMMEDIATE", None])
    def test_costs_no_attempt(self, mode, idempotent, r, listeners, consume, monkeypatch):
        monkeypatch.setattr(connection, "transaction_mode", mode)
        listen(idempotent=idempotent)
        consumer = consume()
        fire_orders(3)
        with locked():
            for _ in range(3):
                with pytest.raises(DatabaseUnavailable, match="locked"):
                    consumer.step(block=0)
            assert deliveries(r) == [1, 1, 1]
        drain(consumer)
        assert handled() == at_first(3)
        assert not FailedEvent.objects.exists()
        assert deliveries(r) == []

    def test_nor_does_it_if_the_failure_can_t_be_written_down(self, r, listeners, consume):
        failing = [True]

        def fail(number):
            if failing:
                raise ValueError

        listen(before=fail, idempotent=False)
        consumer = consume()
        fire_orders(1)
        with locked(), pytest.raises(DatabaseUnavailable, match="locked"):
            consumer.step(block=0)
        failing.clear()
        drain(consumer)
        assert handled() == at_first(1)
        assert not FailedEvent.objects.exists()

    def test_nor_a_retry(self, r, listeners, consume):
        failing = [True]

        def fail(number):
            if failing:
                raise ValueError

        listen(before=fail)
        consumer = consume()
        fire_orders(1)
        drain(consumer)
        failing.clear()
        FailedEvent.objects.update(next_attempt_at="2000-01-01T00:00Z")
        consumer.retries_due.set()
        with locked(), pytest.raises(DatabaseUnavailable, match="locked"):
            consumer.step(block=0)
        assert FailedEvent.objects.get().attempts == 1
        drain(consumer)
        assert handled() == [(0, "attempt 2")]

    def test_a_worker_waits_and_goes_on(self, r, listeners, caplog):
        listen()
        with contextlib.ExitStack() as stack:
            with locked():
                stack.enter_context(running_worker())
                fire_orders(3)
                eventually(lambda: "price-monitor-record: interrupted, retrying: database 'default'" in caplog.text)
                assert "price-monitor-record: resumed" not in caplog.text
                assert deliveries(r) in ([1], [1, 1, 1])
            eventually(lambda: not deliveries(r) and Effect.objects.count() == 3)
            assert handled() == at_first(3)
            assert "price-monitor-record: resumed" in caplog.text
            assert not FailedEvent.objects.exists()


@of_servers
def test_handlers_that_deadlock_are_made_again(r, listeners, consume, caplog):
    for name in ("a", "b"):
        Parent.objects.create(name=name)
    both = threading.Barrier(2)
    met = {"there": [], "back": []}

    def lock(rows, direction):
        Parent.objects.filter(name=rows[0]).update(name=rows[0])
        if not met[direction]:
            met[direction].append(True)
            both.wait(20)
        Parent.objects.filter(name=rows[1]).update(name=rows[1])

    def declare(rows, direction):
        @listens_to("shop.order_placed", listener_name=direction)
        def handler(event, number):
            Effect.objects.create(name=f"{direction}, attempt {event.attempt}", number=number)
            if number == 1:
                lock(rows, direction)

    declare("ab", "there")
    declare("ba", "back")
    consumers = [consume(listener) for listener in registry]
    fire_orders(3)
    caplog.set_level("INFO")
    run_side_by_side(*consumers)
    assert "again: " in caplog.text
    assert "deadlock" in caplog.text.lower()
    assert sorted(handled()) == [(n, f"{name}, attempt 1") for n in range(3) for name in ("back", "there")]
    assert not FailedEvent.objects.exists()


@of_postgresql
@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_handlers_whose_transactions_cannot_be_serialized_are_made_again(level, r, listeners, consume, caplog):
    Parent.objects.create(name="stock")
    both = threading.Barrier(2)
    met = {"one": [], "two": []}

    def declare(name):
        @listens_to("shop.order_placed", listener_name=name)
        def handler(event, number):
            Effect.objects.count()
            if not met[name]:
                met[name].append(True)
                both.wait(20)
            if level == "REPEATABLE READ":  # each changes the row of which both have a picture
                Parent.objects.update(name=name)
            # Serializable: each writes what the other has not seen.
            Effect.objects.create(name=f"{name}, attempt {event.attempt}", number=number)

    declare("one")
    declare("two")
    consumers = [consume(listener) for listener in registry]
    fire_orders(3)
    caplog.set_level("INFO")
    run_side_by_side(*consumers, before=lambda: set_isolation_level(level))
    assert "could not serialize access" in caplog.text
    assert sorted(handled()) == [(n, f"{name}, attempt 1") for n in range(3) for name in ("one", "two")]
    assert not FailedEvent.objects.exists()


def test_what_a_handler_makes_of_a_lost_connection_is_no_failure_either():
    locked = sqlite3.OperationalError("database is locked")
    locked.sqlite_errorcode = sqlite3.SQLITE_BUSY
    origin = OperationalError("database is locked")
    origin.__cause__ = locked
    for chain in ("__cause__", "__context__"):
        own = ValueError("can't book")
        setattr(own, chain, origin)
        if chain == "__context__":
            own.__suppress_context__ = False
        assert is_transient(own, "default")
    assert not is_transient(ValueError("can't book"), "default")
    own.__cause__ = own  # raise error from error
    assert not is_transient(own, "default")
