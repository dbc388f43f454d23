"""Database routers: with a read replica, writes go to the primary, and so do the reads that they depend on."""

import json

import pytest
from django.core.management import CommandError, call_command
from django.db import connections, transaction
from django.urls import reverse
from django.utils import timezone
from model_bakery import baker

from lightbus_django import (
    ConfigurationError,
    aon_commit,
    aon_commit_many,
    fire,
    listens_to,
    on_commit,
    on_commit_many,
)
from lightbus_django.events.codec import dump_fields
from lightbus_django.firing.databases import _PLACE, databases_with_tables, distinct_databases, may_have_outbox
from lightbus_django.models import FailedEvent, OutboxEvent, ProcessedEvent
from lightbus_django.operating.status import read_status
from lightbus_django.operating.story import tell
from tests.conftest import drain

KEY = "shop.*:stream"

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])


class Router:
    """The router from Django's documentation: "other" is a replica of "default"."""

    def db_for_read(self, model, **hints):
        return "other" if model._meta.app_label == "lightbus_django" else None

    def db_for_write(self, model, **hints):
        return "default"

    def allow_relation(self, one, two, **hints):
        return True

    def allow_migrate(self, db, app_label, **hints):
        return True


class Sharding(Router):
    """Writes rows to the database that they came from, and new rows to "other"."""

    def db_for_write(self, model, instance=None, **hints):
        is_ours = model._meta.app_label == "lightbus_django"
        return instance._state.db if instance is not None and instance._state.db else ("other" if is_ours else None)


@pytest.fixture
def replica(settings):
    """A replica that accepts no writes."""
    settings.DATABASE_ROUTERS = [Router()]
    refused = []

    def refuse(execute, sql, params, many, context):
        if sql.lstrip().upper().startswith(("INSERT", "UPDATE", "DELETE")):
            refused.append(sql)
        return execute(sql, params, many, context)

    with connections["other"].execute_wrapper(refuse):
        yield "other"
    assert not refused


def failed(**values):
    """Make a failed event in both databases."""
    content = dump_fields({b"id": b"1", b"api_name": b"shop", b"event_name": b"order_placed", b"version": b"1"})
    values = {"event_id": "1", "consumer_group": "price-monitor-book", "fields": content, "attempts": 5, **values}
    row = baker.prepare(FailedEvent, event_name="shop.order_placed", pk=1, **values)
    for alias in ("default", "other"):
        connections[alias].execute_wrappers, watching = [], connections[alias].execute_wrappers
        FailedEvent.objects.using(alias).bulk_create([row])
        connections[alias].execute_wrappers = watching
    return FailedEvent.objects.get(pk=1)


def test_a_failed_event_is_retried_and_discarded_on_the_primary(replica):
    event = failed(next_attempt_at=None)
    assert event._state.db == "other"
    event.retry_now()
    assert FailedEvent.objects.using("default").get().next_attempt_at is not None
    event.discard()
    assert not FailedEvent.objects.using("default").exists()
    assert ProcessedEvent.objects.using("default").get().discarded


def test_so_are_many(replica):
    failed(next_attempt_at=None)
    assert FailedEvent.objects.filter(attempts=5).retry_now() == 1
    assert FailedEvent.objects.using("default").get().attempts == 0
    now = timezone.now()
    assert FailedEvent.objects.claim_due("price-monitor-book", now, now).attempts == 1
    assert FailedEvent.objects.using("default").get().attempts == 1


def test_where_they_are_may_be_told():
    row = baker.make(FailedEvent, _using="other", event_id="1", next_attempt_at=None, attempts=5)
    row.retry_now(using="default")
    row.discard(using="default")
    assert FailedEvent.objects.using("other").get().attempts == 5
    row.retry_now()
    row.discard(using="other")
    assert ProcessedEvent.objects.using("other").get().discarded


@pytest.mark.parametrize("action", ["retry", "discard"])
def test_the_admin_acts_on_the_primary(action, replica, listeners, admin_client):
    @listens_to("shop.order_placed", listener_name="book")
    def book(event, **payload): ...

    failed(next_attempt_at=None)
    url = reverse("admin:lightbus_django_failedevent_changelist")
    assert b"shop.order_placed" in admin_client.get(url).content
    admin_client.post(url, {"action": action, "_selected_action": [1], "confirmed": "1"})
    rows = FailedEvent.objects.using("default").filter(next_attempt_at=None)
    assert not rows.exists()


def test_the_admin_decides_by_the_primary(replica, admin_client):
    """The replica may still show what is already done."""
    failed(next_attempt_at=None)
    FailedEvent.objects.using("default").update(next_attempt_at=timezone.now(), attempts=1)
    url = reverse("admin:lightbus_django_failedevent_changelist")
    admin_client.post(f"{url}?state=dead", {"action": "discard", "select_across": "1", "_selected_action": [1]})
    assert FailedEvent.objects.using("default").count() == 1


def test_the_admin_publishes_again_on_the_primary(replica, admin_client):
    event = baker.make(OutboxEvent, due_at=None, published_at=timezone.now())
    url = reverse("admin:lightbus_django_outboxevent_changelist")
    admin_client.post(url, {"action": "publish_again", "_selected_action": [str(event.pk)]})
    assert OutboxEvent.objects.using("default").get().due_at is not None


def test_on_commit_goes_to_the_primary_whatever_is_open(replica, r):
    with transaction.atomic(using="other"):
        on_commit("shop.order_placed", number=1)
        assert r.xlen(KEY) == 1  # because no transaction of the primary is open
    with transaction.atomic(), transaction.atomic(using="other"):
        on_commit("shop.order_placed", number=2)
        assert r.xlen(KEY) == 1
    assert r.xlen(KEY) == 2
    assert OutboxEvent.objects.using("default").count() == 2


@pytest.mark.parametrize("way", [on_commit, aon_commit, on_commit_many, aon_commit_many])
def test_a_replica_can_not_be_named(way, replica):
    with pytest.raises(ConfigurationError, match="router does not write OutboxEvent to 'other'"):
        way.using("other")


def test_a_database_that_a_listener_names_counts_whatever_the_router_says(listeners, settings, r, consume):
    settings.DATABASE_ROUTERS = [Router()]
    assert not may_have_outbox("other")

    @listens_to("shop.order_placed", using="other")
    def forward(event):
        on_commit("shop.order_forwarded")

    assert may_have_outbox("other")
    consumer = consume()
    fire("shop.order_placed")
    drain(consumer)
    assert OutboxEvent.objects.using("other").count() == 1


def test_a_router_that_knows_where_a_row_is_may_write_to_several(settings, r):
    settings.DATABASE_ROUTERS = [Sharding()]
    assert may_have_outbox("default")
    assert may_have_outbox("other")
    on_commit("shop.order_placed")
    assert OutboxEvent.objects.using("other").count() == 1
    with transaction.atomic():
        on_commit("shop.order_placed")
    assert OutboxEvent.objects.using("default").count() == 1


def test_a_database_without_the_table_does_not_count(settings, r):
    class Elsewhere(Router):
        def db_for_write(self, model, **hints):
            return None

        def allow_migrate(self, db, app_label, **hints):
            return db == "default"

    settings.DATABASE_ROUTERS = [Elsewhere()]
    with transaction.atomic(using="other"):
        on_commit("shop.order_placed")
    assert OutboxEvent.objects.using("default").count() == 1


def test_a_worker_writes_to_the_primary_alone(replica, listeners, r, consume, housekeeping):
    fails = [True]

    @listens_to("shop.order_placed", start="beginning")
    def book(event):
        if fails:
            raise ValueError

    with transaction.atomic():
        on_commit("shop.order_placed")
    consumer = consume()
    drain(consumer)
    keeper = housekeeping(consumer)
    while keeper.step(now=1e9):
        pass
    fails.clear()
    FailedEvent.objects.all().retry_now()
    assert keeper.flag_due_retries()
    drain(consumer)
    assert not FailedEvent.objects.using("default").exists()
    assert ProcessedEvent.objects.using("default").count() == 1
    assert OutboxEvent.objects.using("default").get().due_at is None


def test_what_only_the_replica_has_is_neither_relayed_nor_pruned(settings, r, housekeeping, lightbus):
    """The replica lags behind."""
    old = timezone.datetime(2020, 1, 1, tzinfo=timezone.get_default_timezone())
    baker.make(OutboxEvent, _using="other", event_name="shop.order_placed", payload="{}", due_at=old)
    baker.make(ProcessedEvent, _using="other", processed_at=old)
    settings.DATABASE_ROUTERS = [Router()]
    keeper = housekeeping()
    while keeper.step(now=1e9):
        pass
    assert not r.exists(KEY)
    assert ProcessedEvent.objects.using("other").exists()


@pytest.mark.parametrize("command", [["lightbus_prune"], ["lightbus_republish", "--since", "1d"]])
def test_the_commands_use_the_primary(command, replica, r):
    call_command(*command)
    with pytest.raises(CommandError, match=r"router doesn.t write to 'other'"):
        call_command(*command, "--database", "other")


@pytest.mark.parametrize("command", [["lightbus_prune"], ["lightbus_republish", "--since", "1d"]])
def test_the_primary_may_have_another_name(command, settings, r, capsys):
    settings.DATABASE_ROUTERS = [Sharding()]
    on_commit("shop.order_placed")
    OutboxEvent.objects.using("other").update(due_at=None, published_at=timezone.now())
    ProcessedEvent.objects.using("other").create(event_id="1", processed_at="2020-01-01T00:00Z")
    call_command(*command)
    out = capsys.readouterr().out
    assert "1 processed events" in out or "1 events published again" in out


class TestAnotherNameOfADatabase:
    @pytest.fixture(autouse=True)
    def another_name(self, monkeypatch):
        """ "other" is another name of "default", as in tests with a mirror."""
        connections["other"].close()
        for key in _PLACE:
            monkeypatch.setitem(connections["other"].settings_dict, key, connections["default"].settings_dict[key])
        yield
        connections["other"].close()

    def test_is_looked_at_once(self, r, listeners, consume, housekeeping, capsys):
        @listens_to("shop.order_placed")
        def record(event, number): ...

        consumer = consume()
        event = on_commit("shop.order_placed", number=1)
        drain(consumer)
        assert list(databases_with_tables()) == ["default"]
        assert [outbox.database for outbox in read_status().outboxes] == ["default"]
        assert [outcome.database for outcome in tell(event.id).outcomes] == ["default"]
        call_command("lightbus_verify", "--since", "1h", "--json")
        (found,) = json.loads(capsys.readouterr().out)
        assert (found["fired"], found["handled"]) == (1, 1)

    def test_but_what_is_fired_through_it_is_published_once(self, r, housekeeping):
        """Its confirmations are under its own name, so a relay looks at each alias."""
        with transaction.atomic(using="other"):
            on_commit("shop.order_placed", number=1)
        housekeeping().relay()
        OutboxEvent.objects.unpublished().update(due_at=timezone.now())
        housekeeping().relay()
        assert r.xlen(KEY) == 1

    def test_and_as_its_own_if_a_listener_names_it(self, r, listeners, consume, housekeeping, capsys):
        @listens_to("shop.order_placed", using="other")
        def record(event, number): ...

        consumer = consume()
        event = on_commit("shop.order_placed", number=1)
        drain(consumer)
        assert list(distinct_databases()) == ["default", "other"]
        assert [jobs.alias for jobs in housekeeping(consumer).databases] == ["default", "other"]
        (outcome,) = tell(event.id).outcomes
        assert (outcome.state, outcome.database) == ("handled", "other")
        call_command("lightbus_verify", "--since", "1h", "--json")
        (found,) = json.loads(capsys.readouterr().out)
        assert (found["fired"], found["handled"]) == (1, 1)

    @pytest.mark.parametrize(("key", "value"), [("USER", "x"), ("OPTIONS", {"options": "-c search_path=a"})])
    def test_but_not_if_it_may_lead_to_other_tables(self, key, value, monkeypatch):
        monkeypatch.setitem(connections["other"].settings_dict, key, value)
        assert list(distinct_databases()) == ["default", "other"]
