"""Whatever a handler does to its transaction concerns its own event, and is noticed."""

import contextlib
import threading

import pytest
from django.db import OperationalError, connection, connections, transaction
from django.utils import timezone

from lightbus_django import BusUnavailable, listens_to
from lightbus_django.exceptions import DatabaseUnavailable
from lightbus_django.listening.failures import Failures
from lightbus_django.listening.handler_runner import HandlerRunner
from lightbus_django.models import FailedEvent, ProcessedEvent
from tests.app.models import Child, Effect
from tests.listening.handling import (
    deliver,
    effects,
    execute,
    handle_all,
    inbox,
    of_postgresql,
    of_servers,
)

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("listeners")]


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
        assert "handler committed the transaction of its event" in record.getMessage()

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
        box = inbox()
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

        box = inbox()
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


@of_servers
@pytest.mark.parametrize("way", ["at first", "in a retry", "in a batch"])
def test_a_handler_that_commits_and_raises_as_the_database_goes_away_has_failed(way, monkeypatch):
    """Its key is found when it is handled again, and looks like that of an event that was handled."""
    state = "raise" if way == "in a retry" else "commit"
    is_committed = HandlerRunner._is_committed

    def is_committed_once_the_database_is_back(self, handling):
        nonlocal state
        if state == "away":
            state = "back"
            connection.close()
            raise OperationalError("away")
        return is_committed(self, handling)

    def handle(*args, **kwargs):
        nonlocal state
        if state == "commit":
            Effect.objects.create(number=1)
            execute("COMMIT")
            state = "away"
        raise ValueError

    monkeypatch.setattr(HandlerRunner, "_is_committed", is_committed_once_the_database_is_back)
    listens_to("shop.order_placed", batch=way == "in a batch")(handle)
    box = inbox()
    box.handle([deliver(1)])
    if way == "in a retry":
        state = "commit"
        assert box.retry(FailedEvent.objects.get().next_attempt_at)
    assert effects() == [1]
    failed = FailedEvent.objects.get()
    assert failed.error.startswith("TransactionEnded: the handler committed")
    assert failed.is_dead_letter
