"""The transaction of one event: whatever its handler does to it stays its own, and is noticed."""

import contextlib
import threading
import time

import pytest
from django.db import OperationalError, connection, connections, transaction
from django.utils import timezone
from model_bakery import baker

from lightbus_django import BusUnavailable, listens_to
from lightbus_django.conf import get_settings
from lightbus_django.exceptions import DatabaseUnavailable, EventContended, SequenceBehind
from lightbus_django.listening.consumer import ASIDE
from lightbus_django.listening.failures import Failures
from lightbus_django.listening.handler_runner import HandlerRunner
from lightbus_django.listening.inbox import Inbox
from lightbus_django.listening.registry import registry
from lightbus_django.models import FailedEvent, ProcessedEvent
from tests.app.models import Child, Effect
from tests.listening.test_inbox import deliver, effects, handle_all, inbox

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("listeners")]

of_postgresql = pytest.mark.skipif(connection.vendor != "postgresql", reason="only PostgreSQL has it")
of_servers = pytest.mark.skipif(connection.vendor == "sqlite", reason="SQLite has no connection to lose")


def execute(*statements):
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


def value(sql):
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0]


def truncate():
    execute("CREATE TABLE IF NOT EXISTS tests_scratch (number integer)", "TRUNCATE TABLE tests_scratch")


COMMITS = {"COMMIT": lambda: execute("COMMIT"), "COMMIT, then a query": lambda: execute("COMMIT", "SELECT 1")}
ROLLBACKS = {"ROLLBACK": lambda: execute("ROLLBACK"), "ROLLBACK, then a query": lambda: execute("ROLLBACK", "SELECT 1")}
if connection.vendor == "mysql":
    COMMITS |= {"TRUNCATE": truncate, "TRUNCATE, then a query": lambda: (truncate(), execute("SELECT 1"))}


@pytest.mark.parametrize("defer", [True, False], ids=["chained", "by itself"])
class TestAHandlerThatEndsItsTransaction:
    """It concerns its own event alone, and is said."""

    def listen(self, end, *, raises=False, **options):
        @listens_to("shop.order_placed", **options)
        def handler(event, number):
            Effect.objects.create(name="before", number=number)
            if number == 2:
                end()
                if raises:
                    raise ValueError("too late")
            Effect.objects.create(name="after", number=number)

    def effects_of(self, number):
        return sorted(Effect.objects.filter(number=number).values_list("name", flat=True))

    @pytest.fixture(autouse=True)
    def neighbours(self):
        """Those before and behind it are handled, and the connection is as it was."""
        yield
        for number in (1, 3):
            assert self.effects_of(number) == ["after", "before"]
        assert ProcessedEvent.objects.count() == 3
        assert not connection.in_atomic_block
        assert connection.is_usable()

    @pytest.mark.parametrize("end", COMMITS.values(), ids=COMMITS)
    def test_by_a_commit_and_succeeds_counts_as_processed(self, end, caplog, defer):
        self.listen(end)
        handle_all(inbox(), [deliver(number) for number in (1, 2, 3)], defer=defer)
        assert self.effects_of(2) == ["after", "before"]
        assert not FailedEvent.objects.exists()
        (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
        assert "handler committed its own transaction" in record.getMessage()

    @pytest.mark.parametrize("end", COMMITS.values(), ids=COMMITS)
    def test_by_a_commit_and_raises_is_a_dead_letter_whose_retry_warns(self, end, caplog, defer):
        self.listen(end, raises=True)
        box = inbox()
        handle_all(box, [deliver(number) for number in (1, 2, 3)], defer=defer)
        assert self.effects_of(2) == ["before"]
        failed = FailedEvent.objects.get()
        assert failed.is_dead_letter
        assert failed.may_have_effects
        assert failed.error == "TransactionEnded: the handler committed, then raised ValueError: too late"
        failed.retry_now()
        assert box.retry(timezone.now())
        assert "which may already have left effects" in caplog.text
        failed.refresh_from_db()
        assert failed.is_dead_letter  # its row had gone with the commit

    @pytest.mark.parametrize("end", ROLLBACKS.values(), ids=ROLLBACKS)
    def test_by_a_rollback_is_a_dead_letter(self, end, defer):
        self.listen(end)
        handle_all(inbox(), [deliver(number) for number in (1, 2, 3)], defer=defer)
        assert self.effects_of(2) == ["after"]
        failed = FailedEvent.objects.get()
        assert failed.is_dead_letter
        assert failed.error.startswith("TransactionEnded: the handler rolled back")

    @pytest.mark.parametrize("end", ROLLBACKS.values(), ids=ROLLBACKS)
    def test_by_a_rollback_and_raises_has_failed(self, end, defer):
        self.listen(end, raises=True)
        handle_all(inbox(), [deliver(number) for number in (1, 2, 3)], defer=defer)
        assert self.effects_of(2) == []
        failed = FailedEvent.objects.get()
        assert failed.error == "ValueError: too late"
        assert not failed.is_dead_letter

    @of_postgresql
    def test_by_a_commit_and_meets_trouble_then_is_a_dead_letter_too(self, defer):
        def end():
            execute("COMMIT")
            error = OperationalError("deadlock detected")
            error.__cause__ = type("Cause", (Exception,), {"sqlstate": "40P01"})()
            raise error

        self.listen(end)
        handle_all(inbox(), [deliver(number) for number in (1, 2, 3)], defer=defer)
        assert FailedEvent.objects.get().may_have_effects


@pytest.mark.parametrize("raises", [True, False])
def test_without_keys_nothing_is_acknowledged_that_is_not_committed(raises):
    @listens_to("shop.order_placed", idempotent=False)
    def handler(event, number):
        transaction.set_autocommit(False)
        Effect.objects.create(number=number)
        if raises:
            raise ValueError

    handle_all(inbox(), [deliver(1), deliver(2)])
    connection.close()
    assert effects() == ([] if raises else [1, 2])
    assert FailedEvent.objects.count() == (2 if raises else 0)


@of_postgresql
class TestWhatIsScopedToATransaction:
    """Is gone with it: the next event knows nothing of it."""

    def seen_by_the_next(self, before, look):
        seen = []

        @listens_to("shop.order_placed")
        def handler(event, number):
            seen.append(look())
            before()
            Effect.objects.create(number=number)

        first = look()
        handle_all(inbox(), [deliver(number) for number in range(3)])
        assert effects() == [0, 1, 2]
        assert not FailedEvent.objects.exists()
        assert seen == [first] * 3

    @pytest.mark.parametrize(
        "statement", ["SET LOCAL lock_timeout = '7s'", "SELECT set_config('lock_timeout', '7s', true)"]
    )
    def test_a_setting(self, statement):
        self.seen_by_the_next(lambda: execute(statement), lambda: value("SHOW lock_timeout"))

    def test_a_table(self):
        self.seen_by_the_next(
            lambda: execute("CREATE TEMPORARY TABLE tests_scratch (number integer) ON COMMIT DROP"),
            lambda: value("SELECT to_regclass('pg_temp.tests_scratch')"),
        )

    def test_a_lock(self):
        self.seen_by_the_next(
            lambda: execute("SELECT pg_advisory_xact_lock(4711)"),
            lambda: value("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711"),
        )

    def test_its_time(self):
        times = []

        @listens_to("shop.order_placed")
        def handler(event, number):
            times.append(value("SELECT now()"))

        handle_all(inbox(), [deliver(number) for number in range(3)])
        assert len(set(times)) == 3


class TestTheKey:
    def test_that_can_t_be_inserted_with_a_failure_leaves_the_event(self, monkeypatch):
        from lightbus_django.listening.keys import AlreadyHandled, Keys

        @listens_to("shop.order_placed")
        def handler(event, number):
            raise ValueError

        insert, calls = Keys.insert, []

        def refuse_the_second(*args):
            calls.append(args)
            if len(calls) > 1:
                raise AlreadyHandled
            return insert(*args)

        monkeypatch.setattr(Keys, "insert", refuse_the_second)
        with pytest.raises(DatabaseUnavailable, match="was not inserted, and is not there"):
            inbox().handle([deliver(1)])
        assert not FailedEvent.objects.exists()

    @of_postgresql
    def test_is_no_duplicate_because_a_sequence_is_behind(self):
        """As after a restore: without a target each conflict would look like a key."""

        @listens_to("shop.order_placed")
        def handler(event, number):
            Effect.objects.create(number=number)

        for number in range(5):
            baker.make(ProcessedEvent, event_id=f"old-{number}")
        first = ProcessedEvent.objects.order_by("id").first().pk
        execute(f"SELECT setval(pg_get_serial_sequence('{ProcessedEvent._meta.db_table}', 'id'), {first}, false)")
        box, left, refused = inbox(), [deliver(1), deliver(2)], 0
        while left:
            try:
                left = left[box.handle(left) :]
            except SequenceBehind:
                refused += 1
        assert refused == 5
        assert effects() == [1, 2]

    def test_that_is_neither_inserted_nor_there_is_an_error(self, monkeypatch):
        from lightbus_django.listening.keys import AlreadyHandled, Keys

        @listens_to("shop.order_placed")
        def handler(event, number):
            Effect.objects.create(number=number)

        def refuse(*args):
            raise AlreadyHandled

        monkeypatch.setattr(Keys, "insert", refuse)
        with pytest.raises(DatabaseUnavailable, match="was not inserted, and is not there"):
            inbox().handle([deliver(1)])
        assert effects() == []


LOCK = "SELECT * FROM tests_effect WHERE number = -1 FOR UPDATE NOWAIT"


class TestAFailure:
    """Is recorded, whatever happens meanwhile, and only that of the event that failed."""

    @of_servers
    @pytest.mark.parametrize("batch", [False, True])
    def test_of_a_handler_that_committed_is_not_lost_with_trouble_in_recording_it(self, batch, monkeypatch):
        @listens_to("shop.order_placed", batch=batch)
        def handler(*args, **kwargs):
            Effect.objects.create(number=1)
            execute("COMMIT")
            raise ValueError("too late")

        record, troubles = Failures.record, ["once"]

        def meet_trouble(*args):
            if troubles:
                troubles.pop()
                error = OperationalError(1213, "deadlock")
                error.__cause__ = type("Cause", (Exception,), {"sqlstate": "40P01"})() if postgresql else None
                raise error
            return record(*args)

        postgresql = connection.vendor == "postgresql"
        monkeypatch.setattr(Failures, "record", meet_trouble)
        (listener,) = registry
        box = Inbox(listener, "group", get_settings())
        one = deliver(1)
        with contextlib.suppress(DatabaseUnavailable):
            box.handle([one])
        handle_all(box, [one])
        assert effects() == [1]
        assert FailedEvent.objects.get().error.endswith("raised ValueError: too late")

    @of_servers
    def test_of_a_retry_is_not_that_of_a_commit_because_somebody_discarded_it(self, monkeypatch):
        @listens_to("shop.order_placed")
        def handler(event, number):
            raise ValueError

        box = inbox()
        handle_all(box, [deliver(1)])
        FailedEvent.objects.retry_now()
        is_failure = HandlerRunner.is_failure

        def discard_first(*args):
            def discard():
                try:
                    FailedEvent.objects.get().discard()
                finally:
                    connection.close()

            thread = threading.Thread(target=discard)
            thread.start()
            thread.join()
            return is_failure(*args)

        monkeypatch.setattr(HandlerRunner, "is_failure", discard_first)
        assert box.retry(timezone.now())
        assert not FailedEvent.objects.exists()
        assert ProcessedEvent.objects.get().discarded

    def test_of_a_batch_that_ended_its_transaction_is_none_of_what_was_handled_before(self):
        @listens_to("shop.order_placed", batch=True)
        def handler(events):
            if len(events) > 1:
                execute("ROLLBACK")

        (listener,) = registry
        box = Inbox(listener, "group", get_settings())
        one, two, three = deliver(1), deliver(2), deliver(3)
        assert box.handle([one]) == 1
        assert box.handle([one, two, three]) == 3
        failed = FailedEvent.objects.order_by("stream_id")
        assert [row.stream_id for row in failed] == [two.entry.stream_id, three.entry.stream_id]

    def test_without_keys_leaves_no_transaction_open(self):
        away = [BusUnavailable("away")]

        @listens_to("shop.order_placed", idempotent=False)
        def handler(event, number):
            transaction.set_autocommit(False)
            Effect.objects.create(number=number)
            if away:
                raise away.pop()

        box = inbox()
        with pytest.raises(BusUnavailable):
            box.handle([deliver(1)])
        assert connection.autocommit
        assert box.handle([deliver(1)]) == 1
        assert effects() == [1]

    @pytest.mark.skipif(connection.vendor != "mysql", reason="only there a savepoint tells")
    def test_is_none_if_the_last_statement_meets_a_deadlock(self, monkeypatch):
        """As that of a victim of Galera's does."""

        @listens_to("shop.order_placed")
        def handler(event, number):
            Effect.objects.create(number=number)

        backend = type(connections["default"])
        commit, troubles = backend.savepoint_commit, ["once"]

        def meet_trouble(*args):
            if troubles:
                troubles.pop()
                execute("ROLLBACK")
                raise OperationalError(1213, "Deadlock found when trying to get lock")
            return commit(*args)

        monkeypatch.setattr(backend, "savepoint_commit", meet_trouble)
        handle_all(inbox(), [deliver(1)])
        assert effects() == [1]
        assert not FailedEvent.objects.exists()


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
                kill = {"postgresql": "SELECT pg_terminate_backend(pg_backend_pid())", "mysql": "KILL CONNECTION_ID()"}
                execute(kill[connection.vendor])

        calls = self.listen(lose)
        assert self.end(inbox(), deliver(1), others=False) < 10
        assert FailedEvent.objects.get().stream_id == "2-0"
        assert len(calls) < 20
        assert effects() == []

    def test_which_waits_for_a_lock_is_its_failure_if_others_succeed_meanwhile(self):
        Effect.objects.create(number=-1)
        calls = self.listen(lambda: execute(LOCK))
        with self.somebody_holds("UPDATE tests_effect SET name = 'held' WHERE number = -1"):
            assert self.end(inbox(), deliver(1)) < 10
        assert FailedEvent.objects.get().stream_id == "2-0"
        assert calls.count(1) < 20

    def test_is_nobodys_fault_while_no_other_one_succeeds(self, monkeypatch):
        monkeypatch.setattr("lightbus_django.listening.contention.PATIENCE", 0.1)
        Effect.objects.create(number=-1)
        self.listen(lambda: execute(LOCK))
        box = inbox()
        with self.somebody_holds("UPDATE tests_effect SET name = 'held' WHERE number = -1"):
            for _ in range(6):
                with pytest.raises(EventContended):
                    box.handle([deliver(1)])
                time.sleep(0.05)
        assert not FailedEvent.objects.exists()
        assert box.handle([deliver(1)]) == 1

    @contextlib.contextmanager
    def somebody_holds(self, statement):
        held, release = threading.Event(), threading.Event()

        def hold():
            try:
                with transaction.atomic():
                    execute(statement)
                    held.set()
                    release.wait(60)
            finally:
                connection.close()

        thread = threading.Thread(target=hold)
        thread.start()
        assert held.wait(10)
        try:
            yield
        finally:
            release.set()
            thread.join()


class Traced:
    """What monitoring puts around a driver's connection: not of its type, and keeps what others set on it."""

    def __init__(self, wrapped):
        self.wrapped = wrapped

    @property
    def autocommit(self):
        return self.wrapped.autocommit

    @autocommit.setter
    def autocommit(self, value):
        self.wrapped.autocommit = value

    def __getattr__(self, name):
        return getattr(self.wrapped, name)


@of_postgresql
def test_the_connection_may_be_wrapped():
    @listens_to("shop.order_placed")
    def handler(event, number):
        Effect.objects.create(number=number)
        if number == 1:
            Child.objects.create(parent_id=4711)  # the commit is refused

    connection.ensure_connection()
    driver = connection.connection
    connection.connection = Traced(driver)
    try:
        handle_all(inbox(), [deliver(number) for number in range(3)])
    finally:
        connection.connection = driver
    assert effects() == [0, 2]


@of_postgresql
class TestDeferredCommits:
    """Several events wait for the disk together, before any of them is acknowledged."""

    def handle(self, do=lambda: None, *, count=2, defer=True, **options):
        """Handle events; return whether commits wait for `confirm`."""

        @listens_to("shop.order_placed", **options)
        def handler(event, number):
            do()
            Effect.objects.create(number=number)

        box = inbox()
        assert box.handle([deliver(number) for number in range(count)], defer=defer) == count
        waits = bool(box._gate.unproven)
        assert box.confirm()
        assert not box._gate.unproven
        assert effects() == list(range(count))
        return waits

    def test_they_do(self):
        assert self.handle()
        assert value("SHOW synchronous_commit") == "on"  # for the session, nothing has changed

    def test_not_where_there_is_one(self):
        assert not self.handle(defer=False)

    def test_not_if_the_listener_says_so(self):
        assert not self.handle(defer_commits=False)

    def test_not_if_the_setting_says_so(self, lightbus):
        lightbus(DEFER_COMMITS=False)
        assert not self.handle()

    def test_not_if_something_waits_for_the_commit(self):
        assert not self.handle(lambda: transaction.on_commit(lambda: None))

    def test_not_if_the_handler_is_slow(self, monkeypatch):
        monkeypatch.setattr("lightbus_django.listening.commit_gate.SLOW", 0.01)
        assert not self.handle(lambda: time.sleep(0.02))

    def test_not_after_a_while(self, monkeypatch):
        monkeypatch.setattr("lightbus_django.listening.commit_gate.WINDOW", 0)
        assert not self.handle(count=1)

    @pytest.mark.parametrize("way", ["SET LOCAL", "SET"])
    def test_not_if_the_handler_has_a_setting_of_its_own(self, way):
        try:
            assert not self.handle(lambda: execute(f"{way} synchronous_commit = local"))
        finally:
            execute("RESET synchronous_commit")

    def test_what_a_handler_defers_itself_is_proved_too(self):
        assert self.handle(lambda: execute("SET LOCAL synchronous_commit = off"), defer=False)

    def test_what_follows_a_handler_s_own_commit_waits_for_the_disk(self):
        """Its key would be there, whatever became of that."""
        assert not self.handle(lambda: execute("COMMIT"), count=1)

    def test_what_a_batch_handler_defers_is_proved_too(self):
        @listens_to("shop.order_placed", batch=True)
        def handler(events):
            execute("SET LOCAL synchronous_commit = off")

        (listener,) = registry
        box = Inbox(listener, "group", get_settings())
        assert box.handle([deliver(1), deliver(2)]) == 2
        assert box._gate.unproven
        assert box.confirm()

    def test_what_was_found_is_proved_too(self):
        assert self.handle()
        (listener,) = registry
        box = Inbox(listener, "group", get_settings())
        one = deliver(7)
        box.handle([one])
        assert not box._gate.unproven
        box.handle([one])
        assert box._gate.unproven
        assert box.confirm()

    def test_what_is_lost_is_not_confirmed(self):
        @listens_to("shop.order_placed")
        def handler(event, number):
            Effect.objects.create(number=number)

        box, deliveries = inbox(), [deliver(1), deliver(2)]
        assert box.handle(deliveries, defer=True) == 2
        ProcessedEvent.objects.filter(event_id=deliveries[0].key).delete()  # as a crash does
        Effect.objects.filter(number=1).delete()
        assert not box.confirm()
        assert box.handle(deliveries, defer=True) == 2
        assert box.confirm()
        assert effects() == [1, 2]
