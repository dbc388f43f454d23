"""The relay: what it publishes, and what it leaves alone."""

import json

import pytest
from django.db import OperationalError, connection, connections, transaction
from django.utils import timezone

from lightbus_django import on_commit, on_commit_many
from lightbus_django.events.ids import uuid7
from lightbus_django.firing import publisher
from lightbus_django.firing.relay import GRACE
from lightbus_django.models import OutboxEvent
from tests.firing.helpers import KEY, NOWHERE, make_due, numbers, relay_in_threads, waiting

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])


def write_row(*, number):
    OutboxEvent.objects.create(
        id=uuid7(), event_name="shop.order_placed", payload=json.dumps({"number": number}), due_at=timezone.now()
    )


@pytest.fixture
def left_behind(lightbus, lightbus_url):
    """Commit events while Redis is away; they are due."""

    def leave(count=1):
        lightbus(URL=NOWHERE)
        on_commit_many(("shop.order_placed", {"number": number}) for number in range(count))
        lightbus(URL=lightbus_url)
        assert waiting() == count
        make_due()

    return leave


def test_publishes_what_was_committed_while_redis_was_away(r, left_behind, housekeeping):
    left_behind(2500)
    keeper = housekeeping()
    while keeper.step():
        pass
    assert numbers(r) == list(range(2500))
    assert waiting() == 0


def test_leaves_to_the_committing_process_what_is_fresh(r, left_behind, housekeeping):
    left_behind()
    OutboxEvent.objects.update(due_at=timezone.now() + GRACE)
    assert housekeeping().relay() is False
    assert waiting() == 1


def test_what_one_relay_has_claimed_is_not_anothers(r, left_behind, housekeeping):
    left_behind()
    keeper = housekeeping()
    r.set(KEY, "in the way")
    assert keeper.relay() is True
    assert keeper.relay() is False


def test_any_number_of_them_publish_every_event_once(r, left_behind, housekeeping):
    left_behind(5000)
    relay_in_threads(housekeeping)
    assert numbers(r) == list(range(5000))


def test_the_claim_lasts_until_all_rows_are_marked(r, left_behind, housekeeping, monkeypatch):
    monkeypatch.setattr(publisher, "LIMIT", 2)
    left_behind(5)
    seen = []

    def watch(execute, sql, *arguments):
        result = execute(sql, *arguments)
        if sql.startswith("UPDATE") and "published_at" in sql:
            claimed = OutboxEvent.objects.claimed(timezone.now())
            seen.append((OutboxEvent.objects.unpublished().count(), claimed.count()))
        return result

    with connection.execute_wrapper(watch):
        assert housekeeping().relay() is True
    assert seen == [(3, 1), (1, 1), (0, 0)]


def test_leaves_alone_what_a_process_publishes_after_a_long_transaction(r, left_behind, housekeeping, monkeypatch):
    """The rows are due when they are committed. Either the process or a relay publishes them, not both."""
    relayed = []

    def commit(relay_first):
        with transaction.atomic():
            on_commit("shop.order_placed", number=1)
            OutboxEvent.objects.update(due_at=timezone.now() - GRACE)
            hooks = connections["default"].run_on_commit
            events = hooks[0][1].__self__.transaction_events
            events.due_at = OutboxEvent.objects.get().due_at
            if relay_first:
                hooks.insert(0, (hooks[0][0], lambda: relayed.append(housekeeping().relay()), False))

    commit(relay_first=True)
    assert relayed == [True]
    assert numbers(r) == [1]
    OutboxEvent.objects.all().delete()
    commit(relay_first=False)
    assert numbers(r) == [1, 1]
    assert housekeeping().relay() is False
    assert waiting() == 0


@pytest.mark.parametrize(("name", "payload"), [("nonsense", "{}"), ("shop.order_placed", "no JSON")])
def test_a_row_that_cannot_be_read_does_not_hold_up_others(r, housekeeping, name, payload):
    bad = OutboxEvent.objects.create(event_name=name, payload=payload, due_at=timezone.now())
    write_row(number=7)
    assert housekeeping().relay() is True
    assert numbers(r) == [7]
    bad.refresh_from_db()
    assert bad.error
    assert bad.due_at > timezone.now()


def test_an_event_that_is_refused_keeps_its_error_and_does_not_hold_up_others(r, left_behind, housekeeping):
    r.set("bad.*:stream", "in the way")
    on_commit("bad.thing_happened")
    write_row(number=7)
    assert housekeeping().relay() is True
    bad = OutboxEvent.objects.get(event_name="bad.thing_happened")
    assert "other than a stream" in bad.error
    assert bad.published_at is None
    assert bad.due_at > timezone.now()
    assert numbers(r) == [7]


def test_what_is_refused_is_not_marked_with_the_rest(r, housekeeping):
    r.set("bad.*:stream", "in the way")
    write_row(number=1)
    bad = OutboxEvent.objects.create(id=uuid7(), event_name="bad.thing", payload="{}", due_at=timezone.now())
    write_row(number=2)
    assert housekeeping().relay() is True
    assert numbers(r) == [1, 2]
    bad.refresh_from_db()
    assert "other than a stream" in bad.error
    assert bad.published_at is None
    assert list(OutboxEvent.objects.exclude(due_at=None)) == [bad]


def test_a_database_that_does_not_answer_keeps_no_other_from_being_relayed(
    r, left_behind, housekeeping, monkeypatch, caplog
):
    def refuse(*args, **kwargs):
        raise OperationalError("away")

    left_behind()
    monkeypatch.setattr(connections["other"].introspection, "table_names", refuse)
    housekeeping().step()
    assert numbers(r) == [0]
    assert "in 'other': interrupted, retrying: database 'other': OperationalError: away" in caplog.text


def test_goes_on_while_redis_is_away(r, left_behind, housekeeping, caplog):
    left_behind()
    keeper = housekeeping()
    keeper.redis._client.servers.redis_py.connection_pool.connection_kwargs["port"] = 1
    keeper.redis._client.servers.redis_py.connection_pool.disconnect()
    assert keeper.step(now=1.0) is False
    assert "relay of 'default': interrupted, retrying: Redis" in caplog.text
    assert waiting() == 1
