"""What came of a request to retry failed events, as real consumers and people change it."""

import threading
from contextlib import closing
from datetime import timedelta

import pytest
from django.db import connections, transaction
from django.utils import timezone

from lightbus_django import fire, listens_to
from lightbus_django.models import FailedEvent, RetryRequest, new_retry_request
from lightbus_django.operating.editing import EventChanged, edit_and_retry, with_payload
from lightbus_django.operating.retrying import SHOWN_FOR, latest_outcomes, read_outcomes
from lightbus_django.running.pruning import Cutoffs, prune
from tests.conftest import drain
from tests.listening.handling import of_servers

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
    pytest.mark.usefixtures("listeners", "r"),
]

BROKEN = {1, 2, 3}


@pytest.fixture
def broken():
    """The numbers that the handler fails for."""
    return set(BROKEN)


@pytest.fixture(params=[True, False], ids=["idempotent", "not idempotent"])
def consumer(request, consume, broken, listeners):
    """A consumer that has failed to handle three events."""

    @listens_to("shop.order_placed", start="beginning", idempotent=request.param)
    def record(event, number):
        if number in broken:
            raise ValueError(number)

    consumer = consume()
    for number in BROKEN:
        fire("shop.order_placed", number=number)
    drain(consumer)
    assert FailedEvent.objects.count() == 3
    return consumer


def request_retry(events=None):
    request = new_retry_request("default", "ada")
    (FailedEvent.objects.all() if events is None else events).request_retry(request)
    return request


def retry(consumer):
    consumer.retries_due.set()
    drain(consumer)


def numbers(request):
    (found,) = read_outcomes("default", [request.pk])
    return found.total, found.done, found.failed_again, found.to_come, found.withdrawn


def test_to_come_then_done_or_failed_again(consumer, broken):
    request = request_retry()
    assert numbers(request) == (3, 0, 0, 3, 0)
    broken -= {1, 2}
    retry(consumer)
    assert numbers(request) == (3, 2, 1, 0, 0)
    (outcome,) = latest_outcomes("default")
    assert (outcome.text, outcome.by, outcome.is_settled) == ("3 retried: 2 done, 1 failed again", "ada", True)
    assert abs(outcome.at - timezone.now()) < timedelta(minutes=1)


def test_what_succeeds_in_a_later_attempt_is_done(consumer, broken):
    request = request_retry()
    retry(consumer)
    assert numbers(request) == (3, 0, 3, 0, 0)
    broken.clear()
    FailedEvent.objects.update(next_attempt_at=timezone.now())
    retry(consumer)
    assert numbers(request) == (3, 3, 0, 0, 0)


def test_a_later_request_leaves_the_outcome_of_the_one_before(consumer, broken):
    first = request_retry()
    broken -= {1}
    retry(consumer)
    second = request_retry()
    assert numbers(first) == (3, 1, 2, 0, 0)
    broken.clear()
    retry(consumer)
    assert numbers(first) == (3, 1, 2, 0, 0)
    assert numbers(second) == (2, 2, 0, 0, 0)


def test_a_later_request_takes_what_has_not_been_retried(consumer):
    first = request_retry()
    second = request_retry(FailedEvent.objects.filter(pk=FailedEvent.objects.latest("pk").pk))
    assert numbers(first) == (3, 0, 0, 2, 1)
    assert numbers(second) == (1, 0, 0, 1, 0)
    assert "2 still to come, 1 withdrawn before their retry" in read_outcomes("default", [first.pk])[0].text


def test_what_is_discarded_is_not_done(consumer, broken):
    request = request_retry()
    FailedEvent.objects.filter(pk=FailedEvent.objects.latest("pk").pk).discard()
    assert numbers(request) == (3, 0, 0, 2, 1)
    retry(consumer)
    FailedEvent.objects.all().discard()
    assert numbers(request) == (3, 0, 2, 0, 1)


def test_retries_of_a_retired_listener_are_not_to_come(consumer):
    request = request_retry()
    FailedEvent.objects.update(next_attempt_at=None)
    assert numbers(request) == (3, 0, 0, 0, 3)


def test_old_requests_are_pruned_and_not_shown(consumer):
    request = request_retry()
    old = timezone.now() - SHOWN_FOR - timedelta(seconds=1)
    RetryRequest.objects.update(requested_at=old)
    assert latest_outcomes("default") == []
    list(prune("default", Cutoffs(inbox=old, outbox=old, failed=old)))
    assert numbers(request)[0] == 3
    list(prune("default", Cutoffs(inbox=old, outbox=old, failed=timezone.now() - timedelta(hours=1))))
    assert not RetryRequest.objects.exists()
    assert FailedEvent.objects.filter(retry_request=None).count() == 3


def test_pruned_dead_letters_are_not_done(consumer):
    request = request_retry()
    retry(consumer)
    old = timezone.now() - timedelta(days=1)
    FailedEvent.objects.update(next_attempt_at=None, failed_at=old)
    list(prune("default", Cutoffs(inbox=old, outbox=old, failed=old + timedelta(hours=1))))
    assert not FailedEvent.objects.exists()
    assert numbers(request) == (3, 0, 3, 0, 0)


def test_the_latest_requests_first_and_none_without_events(consumer, django_assert_num_queries):
    keys = [request_retry().pk for _ in range(4)]
    request_retry(FailedEvent.objects.none())
    with django_assert_num_queries(2):
        found = latest_outcomes("default", limit=3)
    assert [outcome.total for outcome in found] == [3, 3, 3]
    assert RetryRequest.objects.latest_since(timezone.now() - SHOWN_FOR, 3) == keys[:0:-1]


def test_a_database_of_its_own(consume, listeners):
    @listens_to("shop.order_placed", start="beginning", using="other")
    def record(event, number):
        raise ValueError

    consumer = consume()
    fire("shop.order_placed", number=1)
    drain(consumer)
    request = new_retry_request("other", "ada")
    FailedEvent.objects.using("other").all().request_retry(request)
    assert [outcome.to_come for outcome in latest_outcomes("other")] == [1]
    assert latest_outcomes("default") == []
    FailedEvent.objects.using("other").all().discard()
    assert [outcome.withdrawn for outcome in latest_outcomes("other")] == [1]


@of_servers
def test_what_is_being_retried_at_this_moment_is_left_out_and_nobody_waits(consumer):
    running, others = FailedEvent.objects.earliest("pk"), FailedEvent.objects.all()
    held, is_over = threading.Event(), threading.Event()

    def hold():
        with closing(connections["default"]), transaction.atomic():
            FailedEvent.objects.filter(pk=running.pk).delete()
            held.set()
            is_over.wait(30)
            transaction.set_rollback(True)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert held.wait(30)
        assert numbers(request_retry(others)) == (2, 0, 0, 2, 0)
        with pytest.raises(EventChanged):
            edit_and_retry(running, with_payload(running, {"number": 9}).fields, "default", "ada")
    finally:
        is_over.set()
        thread.join(30)
    assert latest_outcomes("default")[0].total == 2
