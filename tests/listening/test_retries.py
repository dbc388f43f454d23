"""Failed events are retried with a backoff, until they succeed or are dead letters."""

import threading
from contextlib import closing, suppress
from datetime import timedelta

import pytest
from django.db import DatabaseError, connection
from django.db.models.signals import pre_delete
from django.utils import timezone

from lightbus_django import BusUnavailable, listens_to
from lightbus_django.bus.group_reads import Entry
from lightbus_django.events.codec import load_fields
from lightbus_django.exceptions import DatabaseUnavailable
from lightbus_django.listening.delivery import Delivery
from lightbus_django.listening.failures import Failures
from lightbus_django.models import FailedEvent, ProcessedEvent, new_retry_request
from lightbus_django.operating.editing import EventChanged, edit_and_retry, with_payload
from tests.app.models import Effect
from tests.listening.handling import deliver, effects, execute, inbox, of_postgresql

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("listeners")]


class TestRetry:
    def fail(self):
        """Handle one event whose handler raises `self.error`; return inbox and failed event."""
        self.error, self.attempts = ValueError("broken"), []

        @listens_to("shop.order_placed")
        def handler(event, number):
            self.attempts.append(event.attempt)
            Effect.objects.create(number=number)
            if self.error:
                raise self.error

        box = inbox()
        box.handle([deliver(1)])
        return box, FailedEvent.objects.get()

    def test_a_retry_that_succeeds_removes_the_failed_event(self):
        box, failed = self.fail()
        self.error = None
        assert box.retry(timezone.now()) is False
        assert box.retry(failed.next_attempt_at) is True
        assert effects() == [1]
        assert self.attempts == [1, 2]
        assert not FailedEvent.objects.exists()
        assert ProcessedEvent.objects.count() == 1

    def test_backs_off_exponentially_until_it_is_a_dead_letter(self, lightbus):
        lightbus(MAX_ATTEMPTS=4, RETRY_BACKOFF=10, RETRY_BACKOFF_MAX=15)
        box, failed = self.fail()
        longest = []
        while not failed.is_dead_letter:
            longest.append((failed.next_attempt_at - timezone.now()).total_seconds())
            assert box.retry(failed.next_attempt_at) is True
            failed.refresh_from_db()
        assert self.attempts == [1, 2, 3, 4]
        for delay, expected in zip(longest, [10, 15, 15], strict=True):
            assert expected / 2 - 1 < delay <= expected
        assert failed.error == "ValueError: broken"
        assert box.retry(timezone.now() + timedelta(days=1)) is False

    def test_an_attempt_is_counted_before_it_runs(self, lightbus):
        lightbus(MAX_ATTEMPTS=2)
        box, failed = self.fail()
        # As a process does that dies in its attempt: claimed, and never heard of again.
        now = failed.next_attempt_at
        assert FailedEvent.objects.claim_due("group", now, now + timedelta(seconds=60)).attempts == 2
        assert box.retry(now) is False
        assert box.retry(now + timedelta(seconds=61)) is True
        failed.refresh_from_db()
        assert failed.is_dead_letter
        assert "its process died" in failed.error
        assert self.attempts == [1]

    def test_without_keys_a_retry_is_in_no_transaction_as_the_first_attempt(self):
        seen = []

        @listens_to("shop.order_placed", idempotent=False)
        def handler(event, number):
            seen.append(connection.in_atomic_block)
            if event.attempt == 1:
                raise ValueError

        box = inbox()
        box.handle([deliver(1)])
        assert box.retry(FailedEvent.objects.get().next_attempt_at) is True
        assert seen == [False, False]
        assert not FailedEvent.objects.exists()

    def test_one_retry_is_made_by_one_process(self):
        box, failed = self.fail()
        self.error = None
        other = FailedEvent.objects.get()
        assert box._retries._handle(failed) is None
        assert box._retries._handle(other) is None
        assert effects() == [1]

    def test_the_bus_being_away_costs_no_attempt(self):
        box, failed = self.fail()
        self.error = BusUnavailable("away")
        with pytest.raises(BusUnavailable):
            box.retry(failed.next_attempt_at)
        box.give_back()
        failed.refresh_from_db()
        assert failed.attempts == 1
        assert failed.next_attempt_at is not None

    def test_a_retry_that_could_not_be_tried_is_tried_again_as_the_same_attempt(self):
        box, failed = self.fail()
        self.error = BusUnavailable("away")
        for _ in range(3):
            with pytest.raises(BusUnavailable):
                box.retry(failed.next_attempt_at)
        self.error = None
        assert box.retry(failed.next_attempt_at) is True
        assert self.attempts == [1, 2, 2, 2, 2]
        assert effects() == [1]

    def test_a_claim_that_another_process_has_taken_over_is_dropped(self):
        box, failed = self.fail()
        self.error = BusUnavailable("away")
        with pytest.raises(BusUnavailable):
            box.retry(failed.next_attempt_at)
        FailedEvent.objects.update(attempts=3)
        self.error = None
        assert box.retry(failed.next_attempt_at) is False
        assert self.attempts == [1, 2]

    def test_retry_now_gives_a_dead_letter_all_its_attempts_again(self, lightbus):
        lightbus(MAX_ATTEMPTS=1)
        box, failed = self.fail()
        assert failed.is_dead_letter
        self.error = None
        FailedEvent.objects.retry_now()
        assert box.retry(timezone.now()) is True
        assert effects() == [1]

    def test_a_discarded_event_counts_as_processed(self):
        box, failed = self.fail()
        self.error = None
        delivery = Delivery.of(Entry(failed.stream, failed.stream_id, load_fields(failed.fields)))
        failed.discard()
        assert not FailedEvent.objects.exists()
        box.handle([delivery])
        assert self.attempts == [1]

    def test_a_stop_records_an_attempt_that_was_made_while_the_database_was_away(self, monkeypatch):
        def refuse(*args):
            raise DatabaseUnavailable("away")

        box, failed = self.fail()
        with monkeypatch.context() as patched, pytest.raises(DatabaseUnavailable):
            patched.setattr(Failures, "record_retry", refuse)
            box.retry(failed.next_attempt_at)
        box.give_back()
        failed.refresh_from_db()
        assert failed.attempts == 2
        assert failed.error == "ValueError: broken"

    @of_postgresql
    def test_a_retry_leaves_nothing_for_the_commit_gate(self):
        box, failed = self.fail()
        self.error = None
        execute("SET synchronous_commit = off")
        try:
            assert box.retry(failed.next_attempt_at)
            ProcessedEvent.objects.all().delete()  # pruned
            box.handle([deliver(2)])
            assert box.confirm()
        finally:
            execute("RESET synchronous_commit")


def test_a_stale_attempt_leaves_the_claim_of_another_process(consume, r):
    @listens_to("shop.order_placed", idempotent=False)
    def handler(event, number):
        raise ValueError

    one, other = inbox(), inbox()
    one.handle([deliver(1)])
    FailedEvent.objects.all().request_retry(new_retry_request("default", "ada"))
    stale = one._retries._claim(timezone.now())
    FailedEvent.objects.update(claimed_until=timezone.now())  # as when it is stuck
    FailedEvent.objects.all().request_retry(new_retry_request("default", "ada"))
    assert other._retries._claim(timezone.now())
    claimed_until = FailedEvent.objects.get().next_attempt_at
    one._retries._failures.record_retry(stale, ValueError("late"))
    assert FailedEvent.objects.get().next_attempt_at == claimed_until


@of_postgresql
@pytest.mark.parametrize("idempotent", [True, False])
def test_an_edit_is_not_lost_to_receivers_of_delete_signals(idempotent):
    """With them, Django reads the row that it is to delete, and then deletes it by its primary key."""
    got, saved = [], []

    @listens_to("shop.order_placed", idempotent=idempotent)
    def handler(event, number):
        got.append(number)
        if len(got) == 1:
            raise ValueError

    def edit():
        with closing(connection), suppress(EventChanged):
            event = FailedEvent.objects.get()
            with connection.cursor() as cursor:
                cursor.execute("SET lock_timeout = '100ms'")
            with suppress(DatabaseError):
                edit_and_retry(event, with_payload(event, {"number": 8}).fields, "default", "ada")
                saved.append(8)

    def receiver(**kwargs):
        pre_delete.disconnect(receiver)
        thread = threading.Thread(target=edit)
        thread.start()
        thread.join(30)

    box = inbox()
    box.handle([deliver(7)])
    FailedEvent.objects.all().retry_now()
    pre_delete.connect(receiver, weak=False)
    try:
        box.retry(timezone.now())
    finally:
        pre_delete.disconnect(receiver)
    FailedEvent.objects.all().retry_now()
    box.retry(timezone.now())
    assert got == ([7, 7, 8] if saved else [7, 7])


class TestInHand:
    """A retry that is being made is left alone by people, and by workers that they wake."""

    def retry(self, meanwhile):
        """Retry an event of a listener without keys, and do something while its handler runs; return the numbers."""
        calls, ends = [], []

        @listens_to("shop.order_placed", idempotent=False)
        def handler(event, number):
            calls.append(number)
            if len(calls) == 2:
                meanwhile()  # an AssertionError would be the handler's failure
                ends.append(number)
            if len(calls) < 4:
                raise ValueError

        box = inbox()
        box.handle([deliver(1)])
        FailedEvent.objects.all().retry_now()
        assert box.retry(timezone.now())
        assert ends == [1]
        return calls

    def test_requests_leave_it_out_until_the_attempt_has_ended(self):
        def ask():
            failed = FailedEvent.objects.get()
            assert failed.is_in_hand(timezone.now())
            assert FailedEvent.objects.all().retry_now() == 0
            assert FailedEvent.objects.all().request_retry(new_retry_request("default", "ada")) == 0
            with pytest.raises(EventChanged):
                edit_and_retry(failed, with_payload(failed, {"number": 9}).fields, "default", "ada")

        assert self.retry(ask) == [1, 1]
        failed = FailedEvent.objects.get()
        assert failed.attempts == 1
        assert not failed.is_in_hand(timezone.now())
        assert FailedEvent.objects.all().request_retry(new_retry_request("default", "ada")) == 1

    def test_a_request_of_an_earlier_version_starts_no_attempt_beside_it(self):
        def ask():
            FailedEvent.objects.update(attempts=0, next_attempt_at=timezone.now())
            now = timezone.now()
            assert FailedEvent.objects.groups_due(["group"], now) == set()
            assert inbox().retry(now) is False

        assert self.retry(ask) == [1, 1]

    def test_the_claim_of_a_process_that_died_expires(self, lightbus):
        lightbus(ACKNOWLEDGEMENT_TIMEOUT=5, RETRY_BACKOFF=7)
        box = self.retry(lambda: None) and inbox()
        now = FailedEvent.objects.get().next_attempt_at
        assert box._retries._failures.claim_due(now)
        failed = FailedEvent.objects.get()
        assert failed.claimed_until == failed.next_attempt_at == now + timedelta(seconds=7)
        assert box.retry(now + timedelta(seconds=6)) is False
        assert box.retry(now + timedelta(seconds=7)) is True

    def test_a_claim_that_is_given_back_is_none(self):
        box = self.retry(lambda: None) and inbox()
        failed = box._retries._failures.claim_due(FailedEvent.objects.get().next_attempt_at)
        box._retries._failures.release(failed, timedelta(0))
        assert FailedEvent.objects.get().claimed_until is None
        assert FailedEvent.objects.all().retry_now() == 1
