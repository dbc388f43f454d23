"""`on_commit`: events are published if, and when, their transaction commits."""

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.models import Group
from django.db import connections, transaction

from lightbus_django import InvalidEventName, InvalidPayload, aon_commit, on_commit
from lightbus_django.bus.client import RedisClient
from lightbus_django.models import OutboxEvent
from tests.app.models import Effect
from tests.firing.helpers import KEY, numbers, waiting

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])


def test_nothing_is_published_before_the_commit_and_all_in_order_after_it(r, housekeeping):
    with transaction.atomic():
        messages = [on_commit("shop.order_placed", number=number) for number in range(5)]
        assert not r.exists(KEY)
        assert waiting() == 5
    assert numbers(r) == [0, 1, 2, 3, 4]
    assert [fields["id"] for _, fields in r.xrange(KEY)] == [message.id for message in messages]
    housekeeping().relay()
    assert waiting() == 0
    assert OutboxEvent.objects.exclude(published_at=None).count() == 5


def test_all_events_of_a_transaction_go_in_one_pipeline(r, redis_client):
    # Redis counts its reads from sockets; old versions do not.
    reads = [r.info("stats").get("total_reads_processed", 0)]
    with transaction.atomic():
        for number in range(50):
            on_commit("shop.order_placed", number=number)
        assert not r.exists(KEY)
    reads.append(r.info("stats").get("total_reads_processed", 0))
    assert numbers(r) == list(range(50))
    assert reads[1] - reads[0] < 20


def test_a_rollback_takes_the_events_with_it(r):
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        on_commit("shop.order_placed", number=1)
        raise ZeroDivisionError
    assert not r.exists(KEY)
    assert not OutboxEvent.objects.exists()
    with transaction.atomic():
        on_commit("shop.order_placed", number=2)
    assert numbers(r) == [2]


def test_a_savepoint_that_is_rolled_back_takes_its_events_with_it(r, housekeeping):
    with transaction.atomic():
        on_commit("shop.order_placed", number=1)
        with transaction.atomic():
            on_commit("shop.order_placed", number=2)
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            on_commit("shop.order_placed", number=3)
            with transaction.atomic():
                on_commit("shop.order_placed", number=4)
            raise ZeroDivisionError
        transaction.on_commit(lambda: None)
    assert numbers(r) == [1, 2]
    housekeeping().relay()
    assert waiting() == 0


def test_the_first_of_the_hooks_may_be_rolled_back(r):
    with transaction.atomic():
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            on_commit("shop.order_placed", number=1)
            raise ZeroDivisionError
        on_commit("shop.order_placed", number=2)
    assert numbers(r) == [2]


def test_a_savepoint_of_ones_own_that_is_rolled_back_takes_its_events_with_it(r):
    with transaction.atomic():
        on_commit("shop.order_placed", number=1)
        create = getattr(transaction, "savepoint_create", None) or transaction.savepoint  # the name before Django 6.1
        savepoint = create()
        on_commit("shop.order_placed", number=2)
        transaction.savepoint_rollback(savepoint)
    assert numbers(r) == [1]


def test_in_autocommit_mode_at_once(r):
    message = on_commit("shop.order_placed", number=1)
    assert numbers(r) == [1]
    assert str(OutboxEvent.objects.get().id) == message.id


def test_an_event_that_cannot_be_leaves_the_transaction_alone(r):
    with transaction.atomic():
        Effect.objects.create(name="before")
        for name, payload in [("nodot", {}), ("shop.order_placed", {"number": object()}), ("a.b", {"": 1})]:
            with pytest.raises((InvalidEventName, InvalidPayload)):
                on_commit(name, **payload)
        on_commit("shop.order_placed", number=1)
    assert numbers(r) == [1]
    assert Effect.objects.count() == OutboxEvent.objects.count() == 1


def test_takes_any_payload_key(r):
    on_commit("shop.order_placed", name=1, using=2, self=3, alias=4)
    ((_, fields),) = r.xrange(KEY)
    assert fields[":using"] == "2"


def test_from_async_code(r):
    message = async_to_sync(aon_commit)("shop.order_placed", number=1)
    assert numbers(r) == [1]
    assert message.id


def test_the_database_of_the_open_transaction_is_taken(r):
    with transaction.atomic(using="other"):
        on_commit("shop.order_placed", number=1)
        assert OutboxEvent.objects.using("other").count() == 1
    assert OutboxEvent.objects.count() == 0
    assert numbers(r) == [1]


def test_the_database_can_be_named(r):
    with transaction.atomic(), pytest.raises(ZeroDivisionError), transaction.atomic(using="other"):
        on_commit("shop.order_placed", number=1)
        on_commit.using("other")("shop.order_placed", number=2)
        raise ZeroDivisionError
    async_to_sync(aon_commit.using("other"))("shop.order_placed", number=3)
    assert numbers(r) == [1, 3]


def test_raising_hooks_of_others_take_nothing_away(r):
    def fail():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), transaction.atomic():
        transaction.on_commit(fail)
        on_commit("shop.order_placed", number=1)
    assert waiting() == 1  # for the relay


def test_in_a_test_case_the_hooks_can_be_captured(r, django_capture_on_commit_callbacks):
    with django_capture_on_commit_callbacks(execute=True):
        on_commit("shop.order_placed", number=1)
    assert numbers(r) == [1]


def test_no_transaction_is_open_while_redis_is_waited_for(r, monkeypatch):
    seen = []
    send = RedisClient.send

    def watch(self, commands, **options):
        seen.append([connection.in_atomic_block for connection in connections.all(initialized_only=True)])
        return send(self, commands, **options)

    monkeypatch.setattr(RedisClient, "send", watch)
    with transaction.atomic():
        Group.objects.create(name="x")
        on_commit("shop.order_placed", number=1)
    assert len(seen) == 1
    assert not any(seen[0])
