"""A database that stops to answer and closes nothing, as behind a firewall that drops packets."""

import contextlib
import threading

import pytest
from django.db import connection, transaction

from lightbus_django import fire, listens_to
from lightbus_django.models import ProcessedEvent
from tests.app.models import Effect
from tests.conftest import eventually
from tests.proxies import Proxy

KEY = "shop.*:stream"
GROUP = "price-monitor-fragile"

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


def pending(r):
    return r.xpending_range(KEY, GROUP, "-", "+", 100)


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
    eventually(lambda: len(pending(r)) == 1)
    assert postgresql.query("SELECT count(*) FROM lightbus_django_failedevent") == [(0,)]
    proxy.drop()  # as the server's own keepalives would end the session
    eventually(lambda: handled(postgresql) == [0, 1, 2, 3, 4])
    eventually(lambda: not pending(r))


def test_before_the_handler_nothing_counts(postgresql, proxy, work, r):
    stuck = work("stuck", proxy.port)
    fire("shop.parcel_delivered", number=0)
    eventually(lambda: handled(postgresql) == [0])
    proxy.silence(new=True)
    for number in range(1, 5):
        fire("shop.parcel_delivered", number=number)
    says(stuck, "the database has not answered for")  # as it connects, or with its key
    eventually(lambda: {row["times_delivered"] for row in pending(r)} == {0})
    work("healthy")
    eventually(lambda: handled(postgresql) == [0, 1, 2, 3, 4])
    eventually(lambda: not pending(r))


def test_while_a_consumer_joins(postgresql, proxy, work, r):
    proxy.silence(new=True)
    stuck = work("stuck", proxy.port)
    assert "reading or writing where its group is" in says(stuck, "the database has not answered for")


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
