"""Connections that are killed and servers that go away cost no attempt and lose no event."""

import contextlib
import signal

import pytest
from django.db import DatabaseError, connection

from lightbus_django import fire
from lightbus_django.exceptions import DatabaseUnavailable
from lightbus_django.models import FailedEvent
from tests.app.models import Effect
from tests.conftest import drain, eventually
from tests.listening.handling import (
    at_first,
    deliveries,
    fire_orders,
    handled,
    kill_other_connections,
    kill_this_connection,
    listen,
    of_servers,
    with_and_without_keys,
)
from tests.own_postgresql import own_postgresql
from tests.workers import running_worker

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])


@of_servers
class TestKilledConnections:
    @with_and_without_keys
    def test_while_idle(self, idempotent, r, listeners, consume):
        listen(idempotent=idempotent)
        consumer = consume()
        Effect.objects.count()
        kill_this_connection()
        fire_orders(2)
        with contextlib.suppress(DatabaseUnavailable):
            drain(consumer)
        drain(consumer)
        assert handled() == at_first(2)
        assert deliveries(r) == []

    @with_and_without_keys
    @pytest.mark.parametrize("count", [1, 3])
    def test_in_a_handler_that_raises_another_error_then(self, count, idempotent, r, listeners, consume):
        """The failure can't be written down, so it is none."""
        killed = []

        def translate_the_error(number):
            if number == 0 and not killed:
                killed.append(number)
                kill_this_connection()
                try:
                    Effect.objects.count()
                except DatabaseError as error:
                    raise ValueError("no such article") from error

        listen(before=translate_the_error, idempotent=idempotent)
        consumer = consume()
        fire_orders(count)
        drain(consumer)
        assert killed
        assert not FailedEvent.objects.exists()
        assert handled() == at_first(count)

    @pytest.mark.parametrize("side", ["before", "after"])
    def test_at_the_commit(self, side, r, listeners, consume, monkeypatch):
        """Behind it nobody can tell whether it was committed, but by the key."""
        commit, armed = connection._commit, []

        def commit_on_a_connection_that_dies():
            if not armed:
                return commit()
            armed.clear()
            if side == "after":
                commit()
            kill_this_connection()
            with connection.wrap_database_errors, connection.connection.cursor() as cursor:
                cursor.execute("SELECT 1")

        def arm(number):
            if number == 2 and number not in calls:
                armed.append(number)
            calls.append(number)

        listen(after=arm)
        calls = []
        monkeypatch.setattr(connection, "_commit", commit_on_a_connection_that_dies)
        consumer = consume()
        fire_orders(3)
        drain(consumer)
        assert calls == ([0, 1, 2] if side == "after" else [0, 1, 2, 2])
        assert handled() == at_first(3)
        assert not FailedEvent.objects.exists()
        assert deliveries(r) == []

    def test_in_a_retry_which_is_then_made_again_as_the_same_attempt(self, r, listeners, consume):
        calls = []

        def fail_and_then_lose_the_connection(number):
            calls.append(number)
            if len(calls) == 1:
                raise ValueError
            if len(calls) == 2:
                kill_this_connection()

        listen(before=fail_and_then_lose_the_connection)
        consumer = consume()
        fire_orders(1)
        drain(consumer)
        FailedEvent.objects.update(next_attempt_at="2000-01-01T00:00Z")
        consumer.retries_due.set()
        drain(consumer)
        assert len(calls) == 3
        assert handled() == [(0, "attempt 2")]
        assert not FailedEvent.objects.exists()

    def test_again_and_again_wherever_a_worker_is(self, r, listeners, caplog):
        listen()
        with running_worker():
            for first in range(0, 200, 20):
                for number in range(first, first + 20):
                    fire("shop.order_placed", number=number)
                eventually(lambda first=first: Effect.objects.filter(number__gte=first).exists())
                kill_other_connections()
            eventually(lambda: Effect.objects.count() >= 200)
            eventually(lambda: not deliveries(r))
        assert handled() == at_first(200)
        assert not FailedEvent.objects.exists()
        assert "unexpected error" not in caplog.text


@pytest.fixture(scope="module")
def postgresql():
    """A PostgreSQL of our own that has our tables, and room for a few connections only."""
    with own_postgresql() as server:
        server.start(**FEW_CONNECTIONS)
        server.migrate()
        yield server


FEW_CONNECTIONS = {"max_connections": 8, "superuser_reserved_connections": 0}


@pytest.fixture
def work_there(postgresql, manage):
    """Start a worker process that has its database there, where nothing has been handled yet."""
    for table in ("tests_effect", "lightbus_django_processedevent", "lightbus_django_failedevent"):
        postgresql.query(f"DELETE FROM {table} RETURNING 1")
    return lambda: manage("lightbus_listen", "--listener", "fragile", **postgresql.urls)


def says(process, text):
    """Wait until the process has logged the text."""
    return any(text in line for line in process.stdout)


def handled_there(postgresql):
    numbers = [number for (number,) in postgresql.query("SELECT number FROM tests_effect ORDER BY number")]
    assert postgresql.query("SELECT count(*) FROM lightbus_django_failedevent") == [(0,)]
    return numbers


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGQUIT], ids=["stopped", "crashed"])
def test_a_worker_outlives_its_database_server(signum, postgresql, work_there, r, tmp_path):
    started = tmp_path / "started"
    fire("shop.parcel_delivered", number=0, sleep=0.5, once=str(started))
    for number in range(1, 5):
        fire("shop.parcel_delivered", number=number)
    process = work_there()
    eventually(started.exists)
    started.unlink()  # that it sleeps the next time too
    postgresql.stop(signum)
    assert says(process, "price-monitor-fragile: interrupted, retrying: database 'default'")
    fire("shop.parcel_delivered", number=5)
    assert set(deliveries(r, "price-monitor-fragile")) == {1}
    postgresql.start(**FEW_CONNECTIONS)
    assert says(process, "price-monitor-fragile: resumed")
    eventually(lambda: not deliveries(r, "price-monitor-fragile") and len(handled_there(postgresql)) >= 6)
    assert handled_there(postgresql) == list(range(6))
    assert process.poll() is None


def test_a_worker_waits_while_there_are_too_many_connections(postgresql, work_there, r):
    import psycopg

    with contextlib.ExitStack() as hoard:
        with pytest.raises(psycopg.OperationalError, match="too many clients"):
            while True:
                hoard.enter_context(contextlib.closing(postgresql.connect()))
        for number in range(3):
            fire("shop.parcel_delivered", number=number)
        process = work_there()
        assert says(process, "price-monitor-fragile: interrupted, retrying: database 'default'")
    assert says(process, "price-monitor-fragile: resumed")
    eventually(lambda: not deliveries(r, "price-monitor-fragile"))
    assert handled_there(postgresql) == [0, 1, 2]
