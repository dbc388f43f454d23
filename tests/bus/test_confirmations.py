"""Publishing after a commit leaves confirmations, and a relay marks the rows. No event comes twice or gets lost."""

from contextlib import suppress
from datetime import timedelta

import pytest
from django.db import DatabaseError, OperationalError, connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from redis.crc import key_slot

from lightbus_django import on_commit
from lightbus_django.bus import confirmations
from lightbus_django.firing import after_commit, publisher, relay, rows
from lightbus_django.firing.publisher import GRACE
from lightbus_django.models import OutboxEvent
from tests.app.models import Effect
from tests.firing.helpers import KEY, NOWHERE, numbers, relay_in_threads, waiting
from tests.servers import Server

CONFIRMED = f"{{{KEY}}}:published:price-monitor:default"
LOOK = ["SELECT"] if connection.vendor == "mysql" else []
"""How `on_commit` asks after the commit whether the rows exist, if a stored procedure may have rolled back."""

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])


@pytest.fixture
def keeper(r, housekeeping):
    return housekeeping()


def place_orders(*given):
    with transaction.atomic():
        for number in given:
            on_commit("shop.order_placed", number=number)


def grow_old():
    OutboxEvent.objects.exclude(due_at=None).update(due_at=timezone.now() - GRACE)


def queries_of(work):
    """Return the first words of the queries that `work` makes, without those that begin and end transactions."""
    with CaptureQueriesContext(connection) as captured:
        work()
    words = [query["sql"].split()[0] for query in captured.captured_queries]
    return [word for word in words if word not in {"BEGIN", "COMMIT", "SAVEPOINT", "RELEASE", "ROLLBACK"}]


class TestTheRequest:
    def test_writes_the_rows_and_nothing_else(self, r):
        assert queries_of(lambda: place_orders(0, 1, 2)) == ["INSERT", "INSERT", "INSERT", *LOOK]
        assert queries_of(lambda: on_commit("shop.order_placed", number=3)) == ["INSERT"]
        assert numbers(r) == [0, 1, 2, 3]

    def test_checks_the_rows_after_an_error_that_was_caught(self, r):
        def catch_an_error():
            with transaction.atomic():
                on_commit("shop.order_placed", number=0)
                with suppress(DatabaseError), transaction.atomic(), connection.cursor() as cursor:
                    cursor.execute("UPDATE nothing")

        assert queries_of(catch_an_error)[-1] == "SELECT"
        assert queries_of(lambda: place_orders(1)) == ["INSERT", *LOOK]
        assert numbers(r) == [0, 1]

    def test_confirms_each_event_that_is_in_the_stream(self, r):
        place_orders(1, 2)
        assert waiting() == 2
        assert r.scard(CONFIRMED) == 2

    def test_marks_rows_itself_now_and_then_if_no_relay_runs(self, r, monkeypatch):
        monkeypatch.setattr(publisher, "MARK_EVERY", 3)
        place_orders(1, 2)
        assert waiting() == 2
        place_orders(3, 4)
        assert waiting() == 0
        assert not r.exists(CONFIRMED)
        assert queries_of(lambda: place_orders(5)) == ["INSERT", *LOOK]
        assert waiting() == 1

    def test_goes_on_if_it_can_t_mark_rows(self, r, monkeypatch, caplog):
        monkeypatch.setattr(publisher, "MARK_EVERY", 1)

        def refuse(execute, sql, *arguments):
            if sql.startswith("UPDATE"):
                raise OperationalError("away")
            return execute(sql, *arguments)

        with connection.execute_wrapper(refuse):
            place_orders(1)
        assert "outbox: 1 events wait for the relay: away" in caplog.text
        assert r.scard(CONFIRMED) == 1

    def test_can_have_more_fields_than_a_script_takes(self, r):
        payload = {f"field_{number}": number for number in range(confirmations.MAX_FIELDS)}
        with transaction.atomic():
            on_commit("shop.order_placed", number=1, **payload)
            on_commit("shop.order_placed", number=2)
        assert numbers(r) == [1, 2]
        assert waiting() == 0

    def test_can_have_as_many_fields_as_a_script_takes(self, r):
        payload = {f"field_{number}": number for number in range(confirmations.MAX_FIELDS - 5)}
        on_commit("shop.order_placed", number=1, **payload)
        assert r.scard(CONFIRMED) == 1


class TestTheRelay:
    def test_marks_confirmed_rows(self, r, keeper):
        place_orders(1, 2)
        OutboxEvent.objects.update(error="once refused")
        assert keeper.relay() is False
        assert waiting() == 0
        assert [row.error for row in OutboxEvent.objects.all()] == ["", ""]
        for row in OutboxEvent.objects.all():
            assert row.created_at <= row.published_at <= timezone.now()
        assert numbers(r) == [1, 2]
        assert not r.exists(CONFIRMED)

    def test_marks_more_rows_than_it_reads_at_once(self, r, keeper, monkeypatch):
        monkeypatch.setattr(confirmations, "CONFIRMATIONS_SIZE", 2)
        monkeypatch.setattr(publisher, "CONFIRMATIONS_SIZE", 2)
        place_orders(*range(5))
        keeper.relay()
        assert waiting() == 0
        assert not r.exists(CONFIRMED)

    def test_publishes_no_confirmed_event_after_a_long_absence(self, r, keeper):
        place_orders(1, 2)
        grow_old()
        keeper.relay()
        assert numbers(r) == [1, 2]
        assert waiting() == 0

    def test_marks_rows_of_every_database_and_stream(self, r, keeper, lightbus):
        on_commit("shop.order_placed", number=1)
        on_commit("billing.invoice_sent", number=2)
        on_commit.using("other")("shop.order_placed", number=3)
        for alias in ("default", "other"):
            OutboxEvent.objects.using(alias).update(due_at=timezone.now() - GRACE)
        keeper.relay()
        assert numbers(r) == [1, 3]
        assert numbers(r, "billing.*:stream") == [2]
        for alias in ("default", "other"):
            assert not OutboxEvent.objects.using(alias).exclude(due_at=None).exists()
        assert r.keys("*:published:*") == []

    def test_marks_new_rows_while_another_relay_publishes(self, r, keeper):
        """Another relay is at work on older rows, or a process published its own rows late."""
        now = timezone.now()
        OutboxEvent.objects.create(event_name="shop.order_placed", payload="{}", due_at=now, claimed_until=now + GRACE)
        on_commit("billing.invoice_sent", number=1)
        assert keeper.relay() is False
        assert not r.exists(KEY)
        assert OutboxEvent.objects.get(event_name="billing.invoice_sent").published_at

    def test_leaves_the_confirmations_of_other_services_alone(self, r, keeper, lightbus):
        lightbus(SERVICE_NAME="another")
        place_orders(1)
        lightbus(SERVICE_NAME="price-monitor")
        place_orders(2)
        keeper.relay()
        assert r.keys("*:published:*:default") == [CONFIRMED.replace("price-monitor", "another")]

    def test_publishes_events_that_redis_lost(self, r, keeper):
        place_orders(1, 2)
        r.flushdb()
        grow_old()
        assert keeper.relay() is True
        assert numbers(r) == [1, 2]
        assert waiting() == 0

    def test_publishes_again_in_spite_of_an_old_confirmation(self, r, keeper):
        place_orders(1)
        keeper.relay()
        r.sadd(CONFIRMED, OutboxEvent.objects.get().id.bytes)  # as if a relay died before it removed the confirmation
        OutboxEvent.objects.publish_again()
        assert keeper.relay() is True
        assert numbers(r) == [1, 1]
        assert waiting() == 0

    def test_any_number_of_relays_can_run(self, r, housekeeping, lightbus, lightbus_url):
        for first in range(0, 1500, 50):
            lightbus(URL=NOWHERE if first % 100 else lightbus_url)
            place_orders(*range(first, first + 50))
        lightbus(URL=lightbus_url)
        grow_old()
        relay_in_threads(housekeeping)
        assert sorted(numbers(r)) == list(range(1500))

    def test_limits_the_bytes_that_are_published_at_once(self, r, keeper, lightbus, lightbus_url, monkeypatch):
        monkeypatch.setattr(rows, "PIPELINE_BYTES", 1000)
        lightbus(URL=NOWHERE)
        for number, size in enumerate([400, 400, 400, 2000, 10]):
            on_commit("shop.order_placed", number=number, text="x" * size)
        lightbus(URL=lightbus_url)
        grow_old()
        lengths = [0]
        while keeper.relay():
            lengths.append(r.xlen(KEY))
        assert lengths == [0, 2, 3, 4, 5]
        assert numbers(r) == [0, 1, 2, 3, 4]


class TestWhatIsRefused:
    def test_leaves_no_confirmation(self, r, keeper):
        r.set("bad.*:stream", "in the way")
        with transaction.atomic():
            on_commit("shop.order_placed", number=1)
            on_commit("bad.thing_happened", number=2)
            on_commit("shop.order_placed", number=3)
        assert numbers(r) == [1, 3]
        assert set(r.keys("*:published:*")) == {CONFIRMED, f"{CONFIRMED}:times"}
        bad = OutboxEvent.objects.get(event_name="bad.thing_happened")
        assert "other than a stream" in bad.error
        assert bad.due_at > timezone.now() + GRACE
        keeper.relay()
        assert list(OutboxEvent.objects.exclude(due_at=None)) == [bad]

        r.delete("bad.*:stream")
        grow_old()
        keeper.relay()
        assert numbers(r, "bad.*:stream") == [2]
        assert waiting() == 0

    def test_is_left_to_the_relay_if_it_can_t_be_confirmed(self, r, keeper, caplog):
        r.set(CONFIRMED, "in the way")
        place_orders(1)
        assert not r.exists(KEY)
        assert CONFIRMED in OutboxEvent.objects.get().error
        grow_old()
        keeper.step(now=0.0)
        assert numbers(r) == [1]
        assert waiting() == 0

    def test_leaves_no_confirmation_in_a_full_redis(self, lightbus):
        with Server("maxmemory 1") as server, server.client() as client:
            lightbus(URL=server.url, REDIS_TIMEOUT=5)
            place_orders(1)
            assert client.keys() == []
        assert OutboxEvent.objects.get().error == ""  # the relay publishes it when it is due


def test_a_row_is_the_same_as_the_model_would_write(r):
    class Odd(Exception):
        pass

    with suppress(Odd), transaction.atomic():
        event = on_commit("shop.order_placed", text="ä\U0001f600'\"%s", number=1)
        row = OutboxEvent.objects.get()
        assert str(row.id) == event.id
        assert (row.event_name, row.version, row.error, row.published_at) == ("shop.order_placed", 1, "", None)
        assert row.payload == r"""{"text":"\u00e4\ud83d\ude00'\"%s","number":1}"""  # as every database can hold it
        assert row.due_at - row.created_at == pytest.approx(GRACE, abs=timedelta(seconds=1))
        raise Odd
    assert not OutboxEvent.objects.exists()


def test_a_row_that_can_t_be_written_breaks_the_transaction(r, monkeypatch):
    """As an error of the ORM does, so that earlier writes can't be committed by mistake."""
    existing = OutboxEvent.objects.create(event_name="shop.order_placed", payload="{}", due_at=None)
    monkeypatch.setattr("lightbus_django.events.message.uuid7", lambda: existing.id)
    with transaction.atomic():
        Effect.objects.create(name="before")
        with suppress(Exception):
            on_commit("shop.order_placed")
        assert transaction.get_rollback()
    assert not Effect.objects.exists()
    assert not r.exists(KEY)


def test_in_a_cluster_confirmations_are_in_the_slot_of_the_stream(r):
    place_orders(1)
    assert r.dbsize() == 3
    assert len({key_slot(key.encode()) for key in r.scan_iter()}) == 1


class TestARelayIsNotHeldUp:
    def test_by_processes_that_publish_late(self, r, housekeeping, lightbus, lightbus_url, monkeypatch):
        """Rows of long transactions look like another relay's claim until they are marked."""
        keeper = housekeeping()
        lightbus(URL=NOWHERE)
        on_commit("shop.order_placed", number=1)
        lightbus(URL=lightbus_url)
        OutboxEvent.objects.update(due_at=timezone.now() - GRACE)
        monkeypatch.setattr(
            after_commit, "MARGIN", GRACE + timedelta(seconds=1)
        )  # as if each took more than five seconds
        for number in range(20):  # one a second
            with transaction.atomic():
                on_commit("billing.invoice_sent", number=number)
            keeper.relay()
        assert numbers(r) == [1]

    def test_by_confirmations_that_can_t_be_read(self, r, housekeeping, lightbus, lightbus_url, monkeypatch):
        """As with the permissions of the previous version. It would publish only 1000 rows in five seconds."""
        keeper = housekeeping()
        lightbus(URL=NOWHERE)
        for number in range(3):
            on_commit("shop.order_placed", number=number)
        lightbus(URL=lightbus_url)
        OutboxEvent.objects.update(due_at=timezone.now() - GRACE)
        r.set(CONFIRMED, "in the way")
        monkeypatch.setattr(relay, "RELAY_SIZE", 1)
        for second in range(5):
            keeper.step(now=float(second))
        assert numbers(r) == [0, 1, 2]

    def test_by_values_that_are_no_confirmations(self, r, housekeeping, lightbus, lightbus_url):
        keeper = housekeeping()
        lightbus(URL=NOWHERE)
        on_commit("shop.order_placed", number=1)
        lightbus(URL=lightbus_url)
        OutboxEvent.objects.update(due_at=timezone.now() - GRACE)
        r.sadd(CONFIRMED, "nonsense")
        with suppress(ValueError):
            keeper.relay()
        assert numbers(r) == [1]

    def test_even_months_later_and_knows_when_an_event_was_published(self, r, housekeeping):
        """Republishing and pruning depend on `published_at`: a row can be published again until OUTBOX_RETENTION after
        it, and the keys of the inbox are kept from the first publication on."""
        on_commit("shop.order_placed", number=1)
        long_ago = timezone.now() - timedelta(days=60)  # no relay ran for two months
        OutboxEvent.objects.update(created_at=long_ago, due_at=long_ago + GRACE)
        r.delete(f"{CONFIRMED}:times")  # a stream id would tell the time
        housekeeping().relay()
        assert OutboxEvent.objects.get().published_at < timezone.now() - timedelta(days=59)
