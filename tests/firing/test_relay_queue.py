"""The relay's queue: which events come first, who may take them, and what is read to find them."""

import threading
from contextlib import contextmanager
from datetime import timedelta

import pytest
from django.db import connection, connections, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from lightbus_django import on_commit
from lightbus_django.conf import get_settings
from lightbus_django.events.ids import uuid7
from lightbus_django.firing import after_commit, rows
from lightbus_django.firing import relay as relay_module
from lightbus_django.firing.relay import GRACE, Relay
from lightbus_django.models import FailedEvent, OutboxEvent
from tests.firing.helpers import KEY, NOWHERE, numbers, waiting

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])


@pytest.fixture
def leave(lightbus, lightbus_url):
    """Commit events while Redis is away; they are due."""

    def leave(*given, due_at=None):
        lightbus(URL=NOWHERE)
        with transaction.atomic():
            events = [on_commit("shop.order_placed", number=number) for number in given]
        rows = OutboxEvent.objects.filter(pk__in=[event.id for event in events])
        rows.update(due_at=due_at or timezone.now() - GRACE)
        lightbus(URL=lightbus_url)
        return [event.id for event in events]

    return leave


@pytest.fixture
def relay(redis_client):
    """Make a relay of the default database."""
    return lambda: Relay("default", redis_client, get_settings())


def claim(*ids, seconds=10):
    now = timezone.now()
    assert OutboxEvent.objects.filter(pk__in=ids).claim(now, now + timedelta(seconds=seconds)) == len(ids)


@contextmanager
def interrupting(word, work):
    """Do some work in another thread right after the first query that contains this word."""
    done = []

    def execute(execute, sql, *arguments):
        result = execute(sql, *arguments)
        if word in sql and not done:
            done.append(True)
            thread = threading.Thread(target=lambda: (work(), connections.close_all()))
            thread.start()
            thread.join()
        return result

    with connection.execute_wrapper(execute):
        yield
    assert done


class TestOneAtATime:
    """While one relay publishes the first rows of a transaction, no other relay takes the next ones."""

    def test_takes_nothing_while_another_has_claimed_the_first_row(self, r, leave, relay):
        first, *_ = leave(*range(5))
        claim(first)
        with CaptureQueriesContext(connection) as captured:
            assert relay().step(timezone.now()) == 0
        assert not r.exists(KEY)
        claimed_until = OutboxEvent.objects.get(pk=first).claimed_until
        OutboxEvent.objects.update(claimed_until=None)
        assert relay().step(timezone.now()) == 5
        assert numbers(r) == list(range(5))
        assert claimed_until and len(captured) < 8

    def test_goes_on_where_one_died(self, r, leave, relay, monkeypatch):
        monkeypatch.setattr(relay_module, "RELAY_SIZE", 2)
        first, *_ = leave(*range(5))
        claim(first, seconds=0)
        one, another = relay(), relay()
        while one.step(timezone.now()) or another.step(timezone.now()):
            pass
        assert numbers(r) == list(range(5))

    def test_comes_second_by_a_hair(self, r, leave, relay):
        first, *_ = leave(*range(5))
        with interrupting("LENGTH(", lambda: claim(first)):
            assert relay().step(timezone.now()) == 0
        assert not r.exists(KEY)
        assert waiting() == 5

    def test_finds_the_queue_taken_from_an_earlier_row_on(self, r, leave, relay):
        """A late row was committed before the first one, and another relay claimed it, and with it the queue."""
        leave(*range(3))

        def another():
            row = OutboxEvent.objects.create(
                id=uuid7(), event_name="shop.order_placed", payload="{}", due_at=timezone.now() - 2 * GRACE
            )
            claim(row.pk)

        with interrupting("LENGTH(", another):
            assert relay().step(timezone.now()) == 0
        assert not r.exists(KEY)
        assert OutboxEvent.objects.claimed(timezone.now()).count() == 1

    def test_stops_before_a_row_that_is_claimed(self, r, leave, relay):
        """The process that committed it may be publishing it, after a long transaction."""
        ids = leave(*range(5))
        with interrupting("LENGTH(", lambda: claim(ids[3])):
            assert relay().step(timezone.now()) == 3
        assert numbers(r) == [0, 1, 2]
        assert relay().step(timezone.now()) == 0

    def test_ends_its_claim_when_redis_is_away(self, r, leave, relay):
        leave(0)
        r.config_set("maxmemory", 1)
        try:
            with pytest.raises(Exception, match="maxmemory"):
                relay().step(timezone.now())
        finally:
            r.config_set("maxmemory", 0)
        assert relay().step(timezone.now()) == 1
        assert numbers(r) == [0]


class TestAfterALongTransaction:
    """The process that committed the events publishes them, unless a relay does."""

    def late(self, monkeypatch, before_publishing):
        monkeypatch.setattr(
            after_commit, "MARGIN", GRACE + timedelta(seconds=1)
        )  # as if the transaction had taken that long
        with transaction.atomic():
            event = on_commit("shop.order_placed", number=7)
            connection.run_on_commit.insert(0, (set(), before_publishing, False))
        return event.id

    def test_the_process_claims_its_rows(self, r, monkeypatch):
        key = self.late(monkeypatch, lambda: None)
        assert numbers(r) == [7]
        assert OutboxEvent.objects.get(pk=key).claimed_until > timezone.now()

    def test_its_own_claims_are_not_in_its_way(self, r, monkeypatch):
        monkeypatch.setattr(rows, "PIPELINE_SIZE", 2)
        monkeypatch.setattr(after_commit, "MARGIN", GRACE + timedelta(seconds=1))
        with transaction.atomic():
            for number in range(5):
                on_commit("shop.order_placed", number=number)
        assert numbers(r) == list(range(5))

    def test_leaves_them_to_a_relay_that_is_at_work(self, r, leave, monkeypatch):
        first, *_ = leave(0)
        key = self.late(monkeypatch, lambda: claim(first))
        assert not r.exists(KEY)
        assert OutboxEvent.objects.get(pk=key).claimed_until is None

    def test_goes_on_beside_rows_that_nobody_has_claimed(self, r, leave, monkeypatch):
        leave(0)
        self.late(monkeypatch, lambda: None)
        assert numbers(r) == [7]


class TestOrder:
    def test_is_that_of_the_ids_where_rows_are_due_at_the_same_time(self, r, leave, relay, monkeypatch):
        monkeypatch.setattr(relay_module, "RELAY_SIZE", 3)
        leave(*range(8))
        one = relay()
        while one.step(timezone.now()):
            pass
        assert numbers(r) == list(range(8))

    def test_a_transaction_keeps_its_order_when_its_relay_dies_in_the_middle(self, r, leave, relay, monkeypatch):
        monkeypatch.setattr(relay_module, "RELAY_SIZE", 2)
        ids = leave(*range(6))
        assert relay().step(timezone.now()) == 2
        claim(ids[2], seconds=0)
        while relay().step(timezone.now()):
            pass
        assert numbers(r) == list(range(6))


class TestLateRows:
    """A long transaction commits rows that are due before others."""

    def test_are_found_at_once_up_to_a_limit(self, r, leave, relay):
        one = relay()
        assert one.step(timezone.now()) == 0
        leave(1)
        assert one.step(timezone.now()) == 1

    def test_are_found_after_a_while_in_any_case(self, r, leave, relay, monkeypatch):
        one = relay()
        assert one.step(timezone.now()) == 0
        leave(1, due_at=timezone.now() - timedelta(hours=1))
        assert one.step(timezone.now()) == 0
        one._full_look_at = 0.0
        assert one.step(timezone.now()) == 1


def buffers_of(captured):
    """Return how many pages PostgreSQL reads for each query."""
    with connection.cursor() as cursor:
        for query in captured.captured_queries:
            cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {query['sql']}")
            (plan,) = cursor.fetchone()[0]
            yield plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"]


class TestWhatIsRead:
    """A look at the queue reads few pages, however many published rows or their remains the database has."""

    QUEUE = {"lightbus_outbox_waiting": ["due_at", "id"], "lightbus_outbox_claimed": ["claimed_until"]}

    def test_the_indexes_have_but_the_rows_that_wait(self):
        with connection.cursor() as cursor:
            constraints = connection.introspection.get_constraints(cursor, OutboxEvent._meta.db_table)
        assert {name: constraints[name]["columns"] for name in self.QUEUE} == self.QUEUE
        if connection.vendor == "sqlite":
            with connection.cursor() as cursor:
                cursor.execute("SELECT sql FROM sqlite_master WHERE name IN (%s, %s)", list(self.QUEUE))
                assert all("IS NOT NULL" in sql for (sql,) in cursor.fetchall())

    def test_no_database_is_warned_of_them(self):
        assert OutboxEvent.check(databases=["default"]) == []

    def test_old_snapshots_do_not_make_it_read_more(self, r, relay):
        if connection.vendor != "postgresql":
            pytest.skip("PostgreSQL keeps what an old snapshot may need in the index")
        snapshot = connection.copy()
        try:
            with snapshot.cursor() as cursor:
                cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
                cursor.execute("SELECT FROM lightbus_django_outboxevent")
            now = timezone.now()
            published = [
                OutboxEvent(event_name="shop.order_placed", payload="{}", due_at=now - timedelta(seconds=number / 10))
                for number in range(10_000)
            ]
            OutboxEvent.objects.bulk_create(published)
            OutboxEvent.objects.update(due_at=None, published_at=now)
            with connection.cursor() as cursor:
                cursor.execute("ANALYZE lightbus_django_outboxevent")
            one = relay()
            assert one.step(timezone.now()) == 0
            with CaptureQueriesContext(connection) as captured:
                assert one.step(timezone.now()) == 0
            assert max(buffers_of(captured)) < 100
        finally:
            snapshot.close()

    def test_retries_of_one_listener_are_not_read_for_another(self):
        now = timezone.now()
        failed = {"event_name": "shop.order_placed", "stream": KEY, "stream_id": "1-0", "fields": "{}", "error": "x"}
        FailedEvent.objects.bulk_create(
            FailedEvent(consumer_group="shop-one", event_id=str(number), next_attempt_at=now, **failed)
            for number in range(5000)
        )
        if connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                cursor.execute("ANALYZE lightbus_django_failedevent")
        with CaptureQueriesContext(connection) as captured:
            assert FailedEvent.objects.groups_due(["shop-one", "shop-another"], now) == {"shop-one"}
        if connection.vendor == "postgresql":
            assert max(buffers_of(captured)) < 50
        assert FailedEvent.objects.claim_due("shop-another", now, now) is None
        assert FailedEvent.objects.claim_due("shop-one", now, now).attempts == 2

    def test_a_backlog_is_read_once(self, r, leave, relay, monkeypatch):
        """The next look does not read past the rows that are already published."""
        monkeypatch.setattr(relay_module, "RELAY_SIZE", 3)
        leave(*range(8))
        one = relay()
        one.step(timezone.now())
        assert one.step(timezone.now()) == 3
        last_of_the_first = OutboxEvent.objects.order_by("pk")[2]
        assert one._head.id > last_of_the_first.pk
