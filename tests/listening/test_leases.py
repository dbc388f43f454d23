"""Leases are renewed while events wait, and released while a database hangs without closing its connections."""

import contextlib
import threading

import pytest
from django.db import connection, transaction

from lightbus_django import fire, listens_to
from lightbus_django.bus.group_reads import Entry
from lightbus_django.listening.delivery import Delivery
from lightbus_django.listening.state import State
from lightbus_django.models import ProcessedEvent
from tests.app.models import Effect
from tests.conftest import drain, eventually
from tests.listening.streams import GROUP, KEY, age, fetch
from tests.proxies import Proxy

FRAGILE = "price-monitor-fragile"

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])

of_postgresql = pytest.mark.skipif(connection.vendor != "postgresql", reason="needs locks of rows")


@pytest.fixture
def proxy(postgresql):
    for table in ("tests_effect", "lightbus_django_processedevent", "lightbus_django_failedevent"):
        postgresql.query(f"DELETE FROM {table} RETURNING 1")
    with Proxy(postgresql.url) as proxy:
        yield proxy


@pytest.fixture
def work(postgresql, manage):
    """Start a worker process, whose database is there or behind a port."""

    def start(name, port=None, **environment):
        url = f"postgres://postgres@127.0.0.1:{port or postgresql.port}/postgres"
        return manage(
            "lightbus_listen",
            "--listener=fragile",
            f"--process-name={name}",
            DATABASE_URL=url,
            OTHER_DATABASE_URL=url,
            LIGHTBUS_ACKNOWLEDGEMENT_TIMEOUT="2",
            LIGHTBUS_RECLAIM_INTERVAL="0.1",
            **environment,
        )

    return start


def handled(postgresql):
    return sorted(number for (number,) in postgresql.query("SELECT number FROM tests_effect"))


def fragile_pending(r):
    return r.xpending_range(KEY, FRAGILE, "-", "+", 100)


def says(process, text):
    """Wait until the process has logged the text; return the line."""
    return next(line for line in process.stdout if text in line)


def test_in_a_commit_others_get_what_waits_and_the_event_follows_once_its_transaction_has_ended(
    postgresql, proxy, work, r, tmp_path
):
    started = tmp_path / "started"
    fire("shop.parcel_delivered", number=0, sleep=1, once=str(started))
    for number in range(1, 5):
        fire("shop.parcel_delivered", number=number)
    stuck = work("stuck", proxy.port)
    eventually(started.exists)
    healthy = work("healthy")
    proxy.silence(new=True)
    line = says(stuck, "the database has not answered for")
    assert "ending a transaction" in line
    eventually(lambda: handled(postgresql) == [1, 2, 3, 4])
    assert says(healthy, "is set aside for 1 s")
    eventually(lambda: len(fragile_pending(r)) == 1)
    assert postgresql.query("SELECT count(*) FROM lightbus_django_failedevent") == [(0,)]
    proxy.drop()  # as the server's own keepalives would end the session
    eventually(lambda: handled(postgresql) == [0, 1, 2, 3, 4])
    eventually(lambda: not fragile_pending(r))


def test_before_the_handler_nothing_counts(postgresql, proxy, work, r):
    stuck = work("stuck", proxy.port)
    fire("shop.parcel_delivered", number=0)
    eventually(lambda: handled(postgresql) == [0])
    proxy.silence(new=True)
    for number in range(1, 5):
        fire("shop.parcel_delivered", number=number)
    says(stuck, "the database has not answered for")  # as it connects, or with its key
    eventually(lambda: {row["times_delivered"] for row in fragile_pending(r)} == {0})
    work("healthy")
    eventually(lambda: handled(postgresql) == [0, 1, 2, 3, 4])
    eventually(lambda: not fragile_pending(r))


def test_while_a_consumer_joins(postgresql, proxy, work, r):
    proxy.silence(new=True)
    stuck = work("stuck", proxy.port)
    assert "loading or saving the offsets of its group" in says(stuck, "the database has not answered for")


def test_in_a_statement_of_a_handler_those_behind_it_are_let_go(postgresql, proxy, work, r, tmp_path):
    """The event in hand is not renewed either, but counts: its handler may be slow by itself."""
    started = tmp_path / "started"
    fire("shop.parcel_delivered", number=0, sleep=1, once=str(started), reads=True)
    for number in range(1, 5):
        fire("shop.parcel_delivered", number=number)
    stuck = work("stuck", proxy.port)
    eventually(started.exists)
    proxy.silence(new=True)
    says(stuck, "exceeds ACKNOWLEDGEMENT_TIMEOUT")
    work("healthy")
    eventually(lambda: handled(postgresql) == [1, 2, 3, 4])


# --- In this process ----------------------------------------------------------------------------


@contextlib.contextmanager
def stepping(consumer):
    """Let another thread step the consumer until the block ends and it returns."""
    done = threading.Event()

    def run():
        try:
            while not done.is_set():
                consumer.step(block=0)
        finally:
            connection.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(30)
        assert not thread.is_alive()


def is_blocked():
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1 FROM pg_locks WHERE NOT granted")
        return cursor.fetchone()


@of_postgresql
class TestReleased:
    @pytest.fixture
    def consumer(self, r, listeners, consume, caplog):
        @listens_to("shop.order_placed", start="beginning")
        def record(event, number: int):
            handled_here.append(number)
            Effect.objects.create(number=number)
            if number == 1 and handled_here.count(1) == 1:
                waits.set()
                assert goes_on.wait(30)

        handled_here, waits, goes_on = [], threading.Event(), threading.Event()
        consumer = consume()
        consumer.waits, consumer.goes_on = waits, goes_on
        return consumer

    def fire(self, count):
        return [fire("shop.order_placed", number=number) for number in range(count)]

    def test_in_the_proof_that_commits_are_durable(self, r, consumer, caplog):
        self.fire(2)
        with stepping(consumer):
            assert consumer.waits.wait(20)
            with transaction.atomic():
                ProcessedEvent.objects.select_for_update().get()
                consumer.goes_on.set()
                eventually(is_blocked)
                consumer.renew(now=1e9)
                rows = r.xpending_range(KEY, consumer.group, "-", "+", 10)
                assert [(row["times_delivered"], row["time_since_delivered"] > 60_000) for row in rows] == [
                    (0, True),
                    (0, True),
                ]
            eventually(lambda: not r.xpending_range(KEY, consumer.group, "-", "+", 10))
        assert "the database has not answered" in caplog.text
        assert "making commits durable" in caplog.text
        assert Effect.objects.count() == 2

    def test_when_it_answers_again_what_nobody_took_is_handled_once(self, r, consumer, caplog):
        """And what somebody took is left to them."""
        messages = self.fire(5)
        with stepping(consumer):
            assert consumer.waits.wait(20)
            with transaction.atomic():
                ProcessedEvent.objects.create(event_id=messages[2].id, consumer_group=consumer.group)
                consumer.goes_on.set()
                eventually(is_blocked)
                consumer.renew(now=1e9)
                assert "ending a transaction" in caplog.text
                last = messages[4].stream_id
                r.xclaim(KEY, consumer.group, "other", 0, [last])
                transaction.set_rollback(True)
            eventually(lambda: len(r.xpending_range(KEY, consumer.group, "-", "+", 10)) == 1)
        assert sorted(Effect.objects.values_list("number", flat=True)) == [0, 1, 2, 3]


@pytest.mark.usefixtures("listeners")
class TestRenewing:
    def test_the_clock_of_waiting_events_and_of_the_one_in_hand_is_reset(self, r, listeners, consume):
        seen = []

        @listens_to("shop.order_placed")
        def record(event, number):
            if number == 0:
                age(r, [row["message_id"] for row in r.xpending_range(KEY, GROUP, "-", "+", 10)], "worker")
                consumer.renew()
                seen.extend(row["time_since_delivered"] < 60_000 for row in r.xpending_range(KEY, GROUP, "-", "+", 10))

        consumer = consume()
        for number in range(3):
            fire("shop.order_placed", number=number)
        drain(consumer)
        assert seen == [True, True, True]

    def test_an_event_that_exceeds_the_timeout_is_not_renewed_but_those_behind_it_are(
        self, r, listeners, consume, caplog
    ):
        seen = []

        @listens_to("shop.order_placed")
        def record(event, number):
            if number == 0:
                age(r, [row["message_id"] for row in r.xpending_range(KEY, GROUP, "-", "+", 10)], "worker")
                consumer.renew(now=1e9)
                consumer.renew(now=1e9)
                seen.extend(row["time_since_delivered"] < 60_000 for row in r.xpending_range(KEY, GROUP, "-", "+", 10))

        consumer = consume()
        for number in range(3):
            fire("shop.order_placed", number=number)
        drain(consumer)
        assert seen == [False, True, True]
        (warning,) = [r.getMessage() for r in caplog.records if "exceeds ACKNOWLEDGEMENT_TIMEOUT" in r.getMessage()]
        assert "in record\n" in warning  # where its thread is
        assert "consumer.renew(now=1e9)" in warning

    def test_a_trimmed_event_is_not_renewed_away_but_reported(self, r, record, consume, caplog):
        consumer = consume()
        fire("shop.order_placed", number=1)
        (stream_id,) = fetch(r, "worker")
        r.xtrim(KEY, maxlen=0, approximate=False)
        consumer.in_flight.add([Delivery.of(Entry(KEY, stream_id, {}))])
        consumer.renew()
        consumer.in_flight.drop_unhandled()
        consumer.state = State.OWN_PENDING
        drain(consumer)
        assert f"lost {stream_id}" in caplog.text

    def test_a_lease_that_another_process_has_by_now_is_left_to_it(self, r, record, consume):
        consumer = consume()
        fire("shop.order_placed", number=1)
        (stream_id,) = fetch(r, "other")
        entry = Entry(KEY, stream_id, {}, deliveries=7)
        consumer.in_flight.add([Delivery.of(entry)])
        consumer.renew()
        consumer.group_consumer.count_delivery(entry)
        consumer.in_flight.drop_unhandled()
        assert consumer.reader.own_pending() == []
        ((_, owner, _, deliveries),) = [tuple(row.values()) for row in r.xpending_range(KEY, GROUP, "-", "+", 1)]
        assert (owner, deliveries) == ("other", 1)

    def test_after_the_end_nothing_is_renewed(self, r, record, consume):
        consumer = consume()
        fire("shop.order_placed", number=1)
        stream_ids = fetch(r, "worker")
        consumer.in_flight.add([Delivery.of(Entry(KEY, stream_ids[0], {}))])
        age(r, stream_ids, "worker")
        consumer.leases.end()
        consumer.renew()
        assert r.xpending_range(KEY, GROUP, "-", "+", 1)[0]["time_since_delivered"] > 60_000
