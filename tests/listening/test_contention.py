"""Databases that go away, lock, or can't decide: nobody's fault, so no attempt is counted and nothing is lost."""

import contextlib
import signal
import sqlite3
import threading

import pytest
from django.db import DatabaseError, OperationalError, connection, connections, transaction
from model_bakery import baker

from lightbus_django import fire, listens_to
from lightbus_django.conf import get_settings
from lightbus_django.database.connections import fetch
from lightbus_django.database.errors import is_transient
from lightbus_django.exceptions import DatabaseUnavailable
from lightbus_django.listening.registry import registry
from lightbus_django.models import FailedEvent, ProcessedEvent
from lightbus_django.running.worker import Worker
from tests.app.models import Effect, Parent
from tests.conftest import drain, eventually

KEY = "shop.*:stream"

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])

of_servers = pytest.mark.skipif(connection.vendor == "sqlite", reason="SQLite has no connection to lose")
of_sqlite = pytest.mark.skipif(connection.vendor != "sqlite", reason="only SQLite is locked as a whole")
of_postgresql = pytest.mark.skipif(connection.vendor != "postgresql", reason="only PostgreSQL is this strict")
with_and_without_keys = pytest.mark.parametrize("idempotent", [True, False])


def handled():
    """The numbers of the events that were handled and the attempt at which they were, in order."""
    return list(Effect.objects.order_by("number").values_list("number", "name"))


def at_first(count):
    return [(number, "attempt 1") for number in range(count)]


def deliveries(r, group="price-monitor-record"):
    """How often each event that is pending was delivered."""
    return [row["times_delivered"] for row in r.xpending_range(KEY, group, "-", "+", 1000)]


def fire_orders(count):
    for number in range(count):
        fire("shop.order_placed", number=number)


def retry_at_once():
    FailedEvent.objects.update(next_attempt_at="2000-01-01T00:00Z")


@pytest.fixture
def listen(listeners):
    """Declare a listener that writes down what it handled, in between of what a test has it do."""

    def declare(before=lambda number: None, after=lambda number: None, idempotent=True):
        @listens_to("shop.order_placed", idempotent=idempotent, start="beginning")
        def record(event, number: int):
            before(number)
            Effect.objects.create(name=f"attempt {event.attempt}", number=number)
            after(number)

    return declare


@pytest.fixture
def work(r, listeners):
    """Run a worker in a thread; it is stopped with the test."""
    stack = contextlib.ExitStack()

    def start():
        worker = Worker(registry, service_name="price-monitor", process_name="worker", settings=get_settings())
        thread = threading.Thread(target=worker.run)
        thread.start()
        stack.callback(thread.join, 40)
        stack.callback(worker.stop)

    with stack:
        yield start


def in_thread(work):
    """Start a thread that does some work in the database."""

    def run():
        try:
            work()
        finally:
            connection.close()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


# --- Connections that are killed ----------------------------------------------------------------


def kill_this_connection():
    """End this thread's connection from the server's side, and let it find out by itself."""
    if connection.vendor == "postgresql":
        command = f"SELECT pg_terminate_backend({connection.connection.info.backend_pid}, 10000)"
    else:
        command = f"KILL {connection.connection.thread_id()}"

    def kill():
        with connection.cursor() as cursor:
            cursor.execute(command)

    in_thread(kill).join()


def kill_other_connections():
    """End all connections to this database but this thread's."""
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            return
        cursor.execute("SELECT id FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()")
        for (number,) in cursor.fetchall():
            with contextlib.suppress(DatabaseError):  # it has ended meanwhile
                cursor.execute(f"KILL {number}")


@of_servers
class TestKilledConnections:
    @with_and_without_keys
    def test_while_idle(self, idempotent, r, listen, consume):
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
    def test_in_a_handler_that_raises_another_error_then(self, count, idempotent, r, listen, consume):
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
    def test_at_the_commit(self, side, r, listen, consume, monkeypatch):
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

    def test_in_a_retry_which_is_then_made_again_as_the_same_attempt(self, r, listen, consume):
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
        retry_at_once()
        consumer.retries_due.set()
        drain(consumer)
        assert len(calls) == 3
        assert handled() == [(0, "attempt 2")]
        assert not FailedEvent.objects.exists()

    def test_again_and_again_wherever_a_worker_is(self, r, listen, work, caplog):
        listen()
        work()
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


# --- A file that is locked ----------------------------------------------------------------------


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
    def test_costs_no_attempt(self, mode, idempotent, r, listen, consume, monkeypatch):
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

    def test_nor_does_it_if_the_failure_can_t_be_written_down(self, r, listen, consume):
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

    def test_nor_a_retry(self, r, listen, consume):
        failing = [True]

        def fail(number):
            if failing:
                raise ValueError

        listen(before=fail)
        consumer = consume()
        fire_orders(1)
        drain(consumer)
        failing.clear()
        retry_at_once()
        consumer.retries_due.set()
        with locked(), pytest.raises(DatabaseUnavailable, match="locked"):
            consumer.step(block=0)
        assert FailedEvent.objects.get().attempts == 1
        drain(consumer)
        assert handled() == [(0, "attempt 2")]

    def test_a_worker_waits_and_goes_on(self, r, listen, work, caplog):
        listen()
        with locked():
            work()
            fire_orders(3)
            eventually(lambda: "price-monitor-record: interrupted, retrying: database 'default'" in caplog.text)
            assert "price-monitor-record: resumed" not in caplog.text
            assert deliveries(r) in ([1], [1, 1, 1])
        eventually(lambda: not deliveries(r) and Effect.objects.count() == 3)
        assert handled() == at_first(3)
        assert "price-monitor-record: resumed" in caplog.text
        assert not FailedEvent.objects.exists()


# --- Conflicts ----------------------------------------------------------------------------------


def run_side_by_side(*consumers, before=lambda: None):
    """Run consumers, each in a thread, until nothing is left."""

    def run(consumer):
        before()
        drain(consumer)

    threads = [in_thread(lambda consumer=consumer: run(consumer)) for consumer in consumers]
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


def isolate(level):
    with connection.cursor() as cursor:
        cursor.execute(f"SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL {level}")


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
    assert "is tried again" in caplog.text
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
    run_side_by_side(*consumers, before=lambda: isolate(level))
    assert "could not serialize access" in caplog.text
    assert sorted(handled()) == [(n, f"{name}, attempt 1") for n in range(3) for name in ("one", "two")]
    assert not FailedEvent.objects.exists()


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
    def consumer(self, r, row, listen, consume):
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

    def test_nor_do_many_of_them_hold_up_what_comes_behind_for_long(self, r, row, listen, consume, monkeypatch):
        """Though no other transaction succeeds meanwhile, for nothing else is read: recording the failure does."""
        monkeypatch.setattr("lightbus_django.listening.consumer.MAX_ASIDE", 3)
        monkeypatch.setattr("lightbus_django.listening.contention.PATIENCE", 0.5)
        listen(before=lambda number: number < 5 and Parent.objects.select_for_update(nowait=True).get())
        consumer = consume()
        for number in range(7):
            fire("shop.order_placed", number=number)
            consumer.step(block=0)
        eventually(lambda: consumer.step(block=0) and [number for number, _ in handled()] == [5, 6])
        assert FailedEvent.objects.filter(error__startswith="EventContended").exists()

    @pytest.mark.parametrize("batch", [False, True])
    def test_one_whose_handler_closes_its_connection_says_so(self, batch, r, listeners, consume, monkeypatch, caplog):
        monkeypatch.setattr("lightbus_django.listening.contention.PATIENCE", 0.5)

        @listens_to("shop.order_placed", start="beginning", batch=batch)
        def record(events, **kwargs):
            connections.close_all()
            Effect.objects.count()

        consumer = consume()
        fire_orders(2)
        eventually(lambda: consumer.step(block=0) and FailedEvent.objects.count() == 2)
        for failed in FailedEvent.objects.all():
            assert failed.error == "EventContended: the handler closed its connection to the database 'default'"
        assert "the handler closed its connection to the database 'default'" in caplog.text

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
    def test_nor_does_one_whose_key_another_process_holds_hold_up_what_comes_with_it(self, r, listen, consume, caplog):
        """It was left by a process that hangs in its transaction."""
        timeouts = []
        listen(before=lambda number: timeouts.append(fetch(connection, "SHOW lock_timeout")[0]))
        consumer = consume()
        fire_orders(4)
        ((_, entries),) = r.xreadgroup(consumer.group, "dead", {KEY: ">"})
        r.xclaim(KEY, consumer.group, "dead", 0, [key for key, _ in entries], idle=3_600_000, justid=True)
        consumer._reclaim_at = 0.0
        with key_held(entries[2][1]["id"], consumer.group):
            eventually(lambda: consumer.step(block=0) and len(handled()) == 3)
            assert handled() == [(number, "attempt 2") for number in (0, 1, 3)]
            assert "is set aside for 1 s" in caplog.text
        drain(consumer)
        assert handled() == [(number, "attempt 2") for number in range(4)]
        assert set(timeouts) == {"0"}
        assert not FailedEvent.objects.exists()

    @of_postgresql
    def test_nor_does_one_that_is_to_be_a_dead_letter(self, r, listen, consume, lightbus):
        """The process in which it exceeded the timeout last still has its key."""
        lightbus(MAX_ATTEMPTS=2)
        listen()
        consumer = consume()
        fire_orders(2)
        ((_, entries),) = r.xreadgroup(consumer.group, "hangs", {KEY: ">"})
        for (stream_id, _), deliveries in zip(entries, (7, 1), strict=True):
            r.xclaim(KEY, consumer.group, "hangs", 0, [stream_id], idle=3_600_000, retrycount=deliveries, justid=True)
        consumer._reclaim_at = 0.0
        with key_held(entries[0][1]["id"], consumer.group):
            eventually(lambda: consumer.step(block=0) and len(handled()) == 1)
            assert not FailedEvent.objects.exists()
        drain(consumer)
        assert FailedEvent.objects.get().is_dead_letter

    def test_a_stop_hands_it_back(self, r, consumer):
        consumer.stop()
        assert deliveries(r) == [0]

    def test_a_look_back_does_not_take_it_twice(self, r, row, consumer):
        consumer._look_back = True
        for _ in range(3):
            consumer.step(block=0)
        assert not consumer._held
        row.set()
        drain(consumer)
        assert handled() == at_first(4)

    def test_what_is_new_waits_while_many_are_aside(self, r, row, listen, consume, monkeypatch):
        monkeypatch.setattr("lightbus_django.listening.consumer.MAX_ASIDE", 3)
        calls = []

        def want(number):
            calls.append(number)
            Parent.objects.select_for_update(nowait=True).get()

        listen(before=want)
        consumer = consume()
        fire_orders(6)
        for _ in range(8):
            consumer.step(block=0)
        assert len(consumer._aside) >= 3
        fire_orders(2)
        row.set()
        drain(consumer)
        assert sorted(number for number, _ in handled()) == [0, 0, 1, 1, 2, 3, 4, 5]


@of_postgresql
@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_an_event_that_two_processes_have_at_a_time_whatever_the_isolation(level, r, listen, consume, lightbus):
    """As when it was published twice: the second one waits for the first one's key."""

    def wait_for_the_other_one(number):
        with connection.cursor() as cursor:
            eventually(lambda: is_waiting(cursor))

    lightbus(BATCH_SIZE=1)
    listen(before=wait_for_the_other_one)
    consumers = [consume(process_name=name) for name in ("worker-1", "worker-2")]
    fire_orders(1)
    ((_, fields),) = r.xrange(KEY)
    r.xadd(KEY, fields)
    run_side_by_side(*consumers, before=lambda: isolate(level))
    assert handled() == at_first(1)
    assert ProcessedEvent.objects.count() == 1
    assert not FailedEvent.objects.exists()
    assert deliveries(r) == []


def is_waiting(cursor):
    cursor.execute("SELECT 1 FROM pg_locks WHERE NOT granted")
    return cursor.fetchone()


# --- A key that can't be written ----------------------------------------------------------------


@pytest.fixture
def latin1():
    """Have names in a character set that lacks most characters, as MariaDB's own default does before 11.6."""
    change = "ALTER TABLE lightbus_django_processedevent MODIFY event_name varchar(200) CHARACTER SET {} NOT NULL"
    with connection.cursor() as cursor:
        cursor.execute(change.format("latin1"))
        yield
        cursor.execute(change.format("utf8mb4"))


@pytest.mark.skipif(connection.vendor != "mysql", reason="only MariaDB has a character set for each column")
def test_an_event_whose_key_is_refused_holds_nobody_up(r, listen, consume, latin1):
    listen()
    consumer = consume()
    r.xadd(KEY, {"id": "1", "api_name": b"\xff"})
    fire_orders(2)
    for _ in range(10):
        consumer.step(block=0)
    consumer.reader.flush()
    assert handled() == at_first(2)
    assert FailedEvent.objects.count() == 1
    assert deliveries(r) == []


# --- A server that goes away --------------------------------------------------------------------


POSTGRESQL = {"max_connections": 8, "superuser_reserved_connections": 0}


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
    postgresql.start()
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
