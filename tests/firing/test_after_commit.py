"""The commit hooks of events: each publishes its own events, whatever runs it and when."""

from contextlib import contextmanager, suppress

import pytest
from django.db import connection, transaction
from django.test import TestCase

from lightbus_django import on_commit
from lightbus_django.bus.client import RedisClient
from lightbus_django.firing.publisher import GRACE
from lightbus_django.models import OutboxEvent
from tests.app.models import Effect
from tests.firing.helpers import KEY, numbers, waiting

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])

capture = TestCase.captureOnCommitCallbacks


def place(number):
    on_commit("shop.order_placed", number=number)


@contextmanager
def taken_back():
    """A transaction, or a savepoint, that is rolled back."""
    with suppress(ZeroDivisionError), transaction.atomic():
        yield
        raise ZeroDivisionError


@pytest.fixture
def sends(monkeypatch):
    """The number of events in each round trip."""
    sizes = []
    send = RedisClient.send

    def count(self, commands, **options):
        sizes.append(len(commands))
        return send(self, commands, **options)

    monkeypatch.setattr(RedisClient, "send", count)
    return sizes


class TestInATestCase:
    """The test's transaction stays open, and the test runs its hooks."""

    @pytest.fixture(autouse=True)
    def transaction_of_the_class(self, r):
        with transaction.atomic():
            place(0)  # as in setUpTestData
            with taken_back():
                yield

    def test_only_what_was_captured_is_published(self, r):
        with capture(execute=True):
            place(1)
            place(2)
        assert numbers(r) == [1, 2]

    def test_each_block_publishes_its_own(self, r):
        with capture(execute=True):
            place(1)
            with capture(execute=True):
                place(2)
            assert numbers(r) == [2]
            place(3)
        assert numbers(r) == [2, 1, 3]
        with capture(execute=True):
            place(4)
        assert numbers(r) == [2, 1, 3, 4]

    def test_each_callback_publishes_its_own_event_once(self, r):
        with capture() as callbacks:
            for number in (1, 2, 3):
                place(number)
        assert not r.exists(KEY)
        callbacks[1]()
        assert numbers(r) == [2]
        callbacks[1]()
        callbacks[2]()
        callbacks[0]()
        callbacks[2]()
        assert numbers(r) == [2, 3, 1]

    def test_an_event_that_a_hook_fires_is_captured_too(self, r):
        with capture(execute=True) as callbacks:
            transaction.on_commit(lambda: place(2))
            place(1)
        assert numbers(r) == [1, 2]
        assert len(callbacks) == 3

    @pytest.mark.parametrize("robust", [True, False])
    def test_a_hook_that_raises_takes_nothing_away(self, r, robust):
        def fail():
            raise ZeroDivisionError

        with suppress(ZeroDivisionError), capture(execute=True):
            place(1)
            transaction.on_commit(fail, robust=robust)
            place(2)
        assert numbers(r) == ([1, 2] if robust else [1])

    def test_a_callback_of_a_savepoint_that_was_rolled_back_publishes_nothing(self, r):
        with taken_back(), capture() as callbacks:
            place(1)
        with capture() as others:
            place(2)
        for callback in callbacks + others:
            callback()
        assert numbers(r) == [2]

    def test_an_event_of_another_savepoint_that_was_rolled_back_is_not_published(self, r):
        with capture(execute=True):
            place(1)
            with taken_back():
                place(2)
            place(3)
        assert numbers(r) == [1, 3]


class TestCallbacksThatWereKept:
    """Callbacks that are called after their transaction has ended."""

    def test_publish_nothing_once_it_is_rolled_back(self, r):
        with taken_back(), capture() as callbacks:
            place(1)
            place(2)
        for callback in callbacks:
            callback()
        assert not r.exists(KEY)

    def test_publish_nothing_once_it_is_rolled_back_within_another_one_either(self, r):
        with taken_back():
            place(1)
            kept = list(connection.run_on_commit)
        with transaction.atomic():
            place(2)
            for _, callback, _ in kept:
                callback()
            assert not r.exists(KEY)
        assert numbers(r) == [2]

    def test_publish_nothing_though_a_hook_raised_in_a_transaction_before(self, r):
        with suppress(ZeroDivisionError), transaction.atomic():
            transaction.on_commit(lambda: 1 / 0)
        with taken_back():
            place(1)
            kept = list(connection.run_on_commit)
        for _, callback, _ in kept:
            callback()
        assert not r.exists(KEY)

    def test_publish_nothing_of_a_savepoint_after_the_commit(self, r):
        with transaction.atomic():
            place(1)
            with taken_back(), capture() as callbacks:
                place(2)
            place(3)
        for callback in callbacks:
            callback()
        assert numbers(r) == [1, 3]

    def test_publish_nothing_twice(self, r):
        with transaction.atomic(), capture() as callbacks:
            place(1)
        for callback in callbacks:
            callback()
        assert numbers(r) == [1]

    def test_publish_what_django_left_when_another_hook_raised(self, r):
        with suppress(ZeroDivisionError), transaction.atomic(), capture() as callbacks:
            transaction.on_commit(lambda: 1 / 0)
            place(1)
        callbacks[1]()
        assert numbers(r) == [1]


class TestTheHooks:
    def test_of_one_transaction_publish_all_at_once_and_in_order(self, r, sends):
        with transaction.atomic():
            place(1)
            transaction.on_commit(lambda: place(9))  # in autocommit mode
            with transaction.atomic():
                place(2)
            with taken_back():
                place(3)
            with transaction.atomic(savepoint=False):
                place(4)
        assert numbers(r) == [1, 2, 4, 9]
        assert sends == [3, 1]

    def test_of_others_may_have_transactions_of_their_own(self, r, sends):
        def hook():
            with transaction.atomic():
                place(1)
            with taken_back():
                place(2)

        with transaction.atomic():
            transaction.on_commit(hook)
            place(3)
            place(4)
        assert numbers(r) == [1, 3, 4]
        assert sends == [1, 2]

    def test_may_stand_beside_methods_of_anything(self, r):
        numbers_seen = [1]
        with transaction.atomic():
            place(1)
            transaction.on_commit(numbers_seen.clear)
            with capture(execute=True):
                place(2)
        assert numbers(r) == [2, 1]
        assert not numbers_seen

    def test_that_somebody_wraps_publish_once(self, r):
        with transaction.atomic():
            for number in (1, 2):
                place(number)
            hooks = connection.run_on_commit
            hooks[:] = [(sids, lambda hook=hook: hook(), robust) for sids, hook, robust in hooks]
            place(3)
        assert numbers(r) == [1, 2, 3]

    def test_of_an_event_that_was_published_early_leave_it_alone(self, r):
        with transaction.atomic():
            place(1)
            with capture(execute=True):
                place(2)
            assert numbers(r) == [2]
            place(3)
        assert numbers(r) == [2, 1, 3]


class TestManualTransactions:
    @pytest.fixture(autouse=True)
    def manual(self, r):
        transaction.set_autocommit(False)
        yield
        if not connection.autocommit:
            transaction.rollback()
            transaction.set_autocommit(True)

    def test_the_relay_publishes_what_is_committed(self, r, housekeeping):
        place(1)
        Effect.objects.create(name="together")
        assert not r.exists(KEY)
        transaction.commit()
        transaction.set_autocommit(True)
        assert waiting() == 1
        assert housekeeping().relay() is True  # without waiting for this process
        assert numbers(r) == [1]
        assert waiting() == 0

    def test_a_rollback_takes_the_events_with_it(self, r, housekeeping):
        place(1)
        transaction.rollback()
        transaction.set_autocommit(True)
        assert not OutboxEvent.objects.exists()

    @pytest.mark.skipif(connection.vendor == "sqlite", reason="commits with the outermost savepoint")
    def test_an_atomic_block_that_is_rolled_back_by_hand_is_not(self, r):
        with transaction.atomic():
            place(1)
        transaction.commit()
        with transaction.atomic():
            place(2)
            kept = list(connection.run_on_commit)
        transaction.rollback()
        transaction.set_autocommit(True)
        assert not r.exists(KEY)  # Django drops both hooks: a relay publishes the first
        for _, callback, _ in kept:
            callback()
        assert numbers(r) == [1]

    def test_an_atomic_block_that_is_committed_by_hand_is_published(self, r):
        with transaction.atomic():
            place(1)
        place(2)
        transaction.commit()
        transaction.set_autocommit(True)
        assert numbers(r) == [1]
        left = OutboxEvent.objects.get(payload__contains="2")
        assert left.due_at < left.created_at + GRACE / 2
