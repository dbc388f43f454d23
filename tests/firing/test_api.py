"""`fire` and `on_commit`, the outbox behind it, and its relay."""

import asyncio
import json
import socket
import sys
import threading
import time
from contextlib import closing, suppress
from datetime import timedelta
from decimal import Decimal

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.models import Group
from django.db import OperationalError, connections, transaction
from django.utils import timezone

from lightbus_django import (
    BusError,
    BusUnavailable,
    InvalidEventName,
    InvalidPayload,
    afire,
    afire_many,
    aon_commit,
    fire,
    fire_many,
    on_commit,
)
from lightbus_django.bus.client import PAUSE, RedisClient, get_client
from lightbus_django.bus.wire import exchange
from lightbus_django.conf import get_settings
from lightbus_django.events.ids import uuid7
from lightbus_django.firing.relay import GRACE
from lightbus_django.models import OutboxEvent
from tests.app.models import Effect

KEY = "shop.*:stream"
NOWHERE = "redis://:secret@127.0.0.1:1/0"

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])


def numbers(r, key=KEY):
    """The `number` of each event on the bus."""
    return [json.loads(fields[":number"]) for _, fields in r.xrange(key)]


def waiting():
    return OutboxEvent.objects.filter(due_at__isnull=False).count()


def relay_in_threads(housekeeping):
    """Relay in several threads at a time, until nothing waits."""

    def work():
        keeper = housekeeping()
        try:
            while waiting():
                with suppress(OperationalError):  # SQLite may be locked for the others
                    keeper.relay()
        finally:
            connections.close_all()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class TestFire:
    def test_publishes_now(self, r):
        message = fire("shop.order_placed", number=5, price=Decimal("9.99"))
        assert r.xrange(KEY) == [
            (
                message.stream_id,
                {
                    "id": message.id,
                    "api_name": "shop",
                    "event_name": "order_placed",
                    "version": "1",
                    ":number": "5",
                    ":price": '"9.99"',
                },
            )
        ]
        assert message.payload == {"number": 5, "price": Decimal("9.99")}
        assert abs(message.published_at - timezone.now()) < timedelta(minutes=1)

    def test_stream_per_event(self, r, lightbus):
        lightbus(STREAM_USE="per_event")
        fire("shop.order_placed", number=1)
        assert numbers(r, "shop.order_placed:stream") == [1]

    def test_takes_any_payload_key(self, r):
        fire("shop.order_placed", name=1, payload=2, self=3, using=4, event=5)
        ((_, fields),) = r.xrange(KEY)
        assert fields.keys() >= {":name", ":payload", ":self", ":using", ":event"}

    def test_from_async_code(self, r):
        message = asyncio.run(afire("shop.order_placed", number=1))
        assert message.stream_id
        assert numbers(r) == [1]

    def test_a_payload_that_is_too_large_is_refused_with_its_size(self, r, lightbus):
        lightbus(MAX_PAYLOAD_SIZE=1000)
        fire("shop.order_placed", text="x" * 998)
        with pytest.raises(InvalidPayload, match="the payload has 1001 bytes, and MAX_PAYLOAD_SIZE allows 1000"):
            fire("shop.order_placed", text="x" * 998, n=1)
        with pytest.raises(InvalidPayload, match="MAX_PAYLOAD_SIZE"):
            on_commit("shop.order_placed", text="x" * 999)
        assert OutboxEvent.objects.count() == 0

    def test_what_cannot_be_fired_is_not(self, r):
        with pytest.raises(InvalidEventName):
            fire("order_placed")
        with pytest.raises(InvalidPayload, match="'number': a value of type object"):
            fire("shop.order_placed", fine=1, number=object())
        assert not r.exists(KEY)

    def test_redis_out_of_reach_is_one_clear_error_without_password_within_2_seconds(self, lightbus):
        lightbus(URL=NOWHERE)
        started = time.monotonic()
        with pytest.raises(BusUnavailable, match=r"127\.0\.0\.1:1") as caught:
            fire("shop.order_placed")
        assert time.monotonic() - started < 2
        assert "secret" not in str(caught.value)
        assert caught.value.__cause__ is None

    def test_a_key_that_is_no_stream_is_named(self, r):
        r.set(KEY, "a string")
        with pytest.raises(BusError, match=r"'shop\.\*:stream' holds something other than a stream"):
            fire("shop.order_placed")


class TestFireMany:
    def test_publishes_in_order_under_ids_of_their_own(self, r):
        events = fire_many(("shop.order_placed", {"number": number}) for number in range(2500))
        assert numbers(r) == list(range(2500))
        assert [event.stream_id for event in events] == [stream_id for stream_id, _ in r.xrange(KEY)]
        assert len({event.id for event in events}) == 2500
        assert events[7].payload == {"number": 7}
        assert fire_many([]) == []

    def test_all_or_nothing_where_one_cannot_be(self, r):
        with pytest.raises(InvalidPayload):
            fire_many([("shop.order_placed", {"number": 1}), ("shop.order_placed", {"number": object()})])
        assert not r.exists(KEY)

    def test_says_that_redis_refused_one(self, r):
        r.set("bad.*:stream", "in the way")
        with pytest.raises(BusError, match="something other than a stream"):
            fire_many([("shop.order_placed", {"number": 1}), ("bad.thing", {})])

    def test_from_async_code(self, r):
        async def work():
            return await afire_many([("shop.order_placed", {"number": 1})])

        (event,) = asyncio.run(work())
        assert r.xrange(KEY)[0][0] == event.stream_id


class TestOnCommit:
    def test_nothing_is_published_before_the_commit_and_all_in_order_after_it(self, r, housekeeping):
        with transaction.atomic():
            messages = [on_commit("shop.order_placed", number=number) for number in range(5)]
            assert not r.exists(KEY)
            assert waiting() == 5
        assert numbers(r) == [0, 1, 2, 3, 4]
        assert [fields["id"] for _, fields in r.xrange(KEY)] == [message.id for message in messages]
        housekeeping().relay()
        assert waiting() == 0
        assert OutboxEvent.objects.exclude(published_at=None).count() == 5

    def test_all_events_of_a_transaction_go_in_one_pipeline(self, r, redis_client):
        # Redis says how often it read from a socket; an older one does not.
        reads = [r.info("stats").get("total_reads_processed", 0)]
        with transaction.atomic():
            for number in range(50):
                on_commit("shop.order_placed", number=number)
            assert not r.exists(KEY)
        reads.append(r.info("stats").get("total_reads_processed", 0))
        assert numbers(r) == list(range(50))
        assert reads[1] - reads[0] < 20

    def test_a_rollback_takes_the_events_with_it(self, r):
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            on_commit("shop.order_placed", number=1)
            raise ZeroDivisionError
        assert not r.exists(KEY)
        assert not OutboxEvent.objects.exists()
        with transaction.atomic():
            on_commit("shop.order_placed", number=2)
        assert numbers(r) == [2]

    def test_a_savepoint_that_is_rolled_back_takes_its_events_with_it(self, r, housekeeping):
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

    def test_the_first_of_the_hooks_may_be_rolled_back(self, r):
        with transaction.atomic():
            with pytest.raises(ZeroDivisionError), transaction.atomic():
                on_commit("shop.order_placed", number=1)
                raise ZeroDivisionError
            on_commit("shop.order_placed", number=2)
        assert numbers(r) == [2]

    def test_a_savepoint_of_ones_own_that_is_rolled_back_takes_its_events_with_it(self, r):
        with transaction.atomic():
            on_commit("shop.order_placed", number=1)
            create = (
                getattr(transaction, "savepoint_create", None) or transaction.savepoint
            )  # the name before Django 6.1
            savepoint = create()
            on_commit("shop.order_placed", number=2)
            transaction.savepoint_rollback(savepoint)
        assert numbers(r) == [1]

    def test_in_autocommit_mode_at_once(self, r):
        message = on_commit("shop.order_placed", number=1)
        assert numbers(r) == [1]
        assert str(OutboxEvent.objects.get().id) == message.id

    def test_an_event_that_cannot_be_leaves_the_transaction_alone(self, r):
        with transaction.atomic():
            Effect.objects.create(name="before")
            for name, payload in [("nodot", {}), ("shop.order_placed", {"number": object()}), ("a.b", {"": 1})]:
                with pytest.raises((InvalidEventName, InvalidPayload)):
                    on_commit(name, **payload)
            on_commit("shop.order_placed", number=1)
        assert numbers(r) == [1]
        assert Effect.objects.count() == OutboxEvent.objects.count() == 1

    def test_takes_any_payload_key(self, r):
        on_commit("shop.order_placed", name=1, using=2, self=3, alias=4)
        ((_, fields),) = r.xrange(KEY)
        assert fields[":using"] == "2"

    def test_from_async_code(self, r):
        message = async_to_sync(aon_commit)("shop.order_placed", number=1)
        assert numbers(r) == [1]
        assert message.id

    def test_the_database_of_the_open_transaction_is_taken(self, r):
        with transaction.atomic(using="other"):
            on_commit("shop.order_placed", number=1)
            assert OutboxEvent.objects.using("other").count() == 1
        assert OutboxEvent.objects.count() == 0
        assert numbers(r) == [1]

    def test_the_database_can_be_named(self, r):
        with transaction.atomic(), pytest.raises(ZeroDivisionError), transaction.atomic(using="other"):
            on_commit("shop.order_placed", number=1)
            on_commit.using("other")("shop.order_placed", number=2)
            raise ZeroDivisionError
        async_to_sync(aon_commit.using("other"))("shop.order_placed", number=3)
        assert numbers(r) == [1, 3]

    def test_raising_hooks_of_others_take_nothing_away(self, r):
        def fail():
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError), transaction.atomic():
            transaction.on_commit(fail)
            on_commit("shop.order_placed", number=1)
        assert waiting() == 1  # for the relay

    def test_in_a_test_case_the_hooks_can_be_captured(self, r, django_capture_on_commit_callbacks):
        with django_capture_on_commit_callbacks(execute=True):
            on_commit("shop.order_placed", number=1)
        assert numbers(r) == [1]


class TestRedisIsDown:
    """A request pays for it with one timeout at most, and while it is known, with none."""

    @pytest.fixture
    def frozen(self, lightbus):
        """A server that takes connections and never answers; the connections that it took."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            lightbus(URL=f"redis://127.0.0.1:{server.getsockname()[1]}/0", REDIS_TIMEOUT=0.2)
            server.setblocking(False)
            taken = []

            def connections_taken():
                with suppress(BlockingIOError):
                    while True:
                        taken.append(server.accept())
                return len(taken)

            yield connections_taken
            for connection, _ in taken:
                connection.close()

    def test_only_the_first_commit_asks(self, frozen):
        for number in range(5):
            with transaction.atomic():
                on_commit("shop.order_placed", number=number)
        assert frozen() == 1
        assert waiting() == 5

    def test_one_commit_asks_after_each_pause(self, frozen):
        settings = get_settings()
        redis_client = get_client(settings.url, settings.redis_timeout)
        on_commit("shop.order_placed", number=0)
        assert frozen() == 1
        soon = time.monotonic() + 1
        assert not redis_client.is_worth_trying(soon)
        assert redis_client.is_worth_trying(soon + PAUSE)
        assert not redis_client.is_worth_trying(soon + PAUSE)  # the other one is at it
        for _ in range(10):
            with pytest.raises(BusUnavailable):
                fire("shop.order_placed", number=1)  # who fires gets an answer, whatever is known
        # However often it failed, somebody asks within five seconds.
        assert redis_client.is_worth_trying(time.monotonic() + 5 - get_settings().redis_timeout)

    def test_an_answer_ends_the_pause(self, r, lightbus_url):
        with closing(RedisClient(lightbus_url, timeout=1)) as redis_client:
            redis_client._try_at = time.monotonic() + PAUSE
            assert redis_client.is_down
            assert not redis_client.is_worth_trying()
            redis_client.publish(KEY, {"a": "b"})
            assert redis_client.is_worth_trying()


class TestRelay:
    def stage(self, lightbus, lightbus_url, count=1):
        """Commit events while Redis is away."""
        lightbus(URL=NOWHERE)
        with transaction.atomic():
            for number in range(count):
                on_commit("shop.order_placed", number=number)
        lightbus(URL=lightbus_url)
        assert waiting() == count

    def grow_old(self):
        OutboxEvent.objects.exclude(due_at=None).update(due_at=timezone.now() - GRACE)

    def test_publishes_what_was_committed_while_redis_was_away(self, r, lightbus, lightbus_url, housekeeping):
        self.stage(lightbus, lightbus_url, 2500)
        self.grow_old()
        keeper = housekeeping()
        while keeper.step():
            pass
        assert numbers(r) == list(range(2500))
        assert waiting() == 0

    def test_leaves_to_the_committing_process_what_is_fresh(self, r, lightbus, lightbus_url, housekeeping):
        self.stage(lightbus, lightbus_url)
        OutboxEvent.objects.update(due_at=timezone.now() + GRACE)
        assert housekeeping().relay() is False
        assert waiting() == 1

    def test_what_one_relay_has_claimed_is_not_anothers(self, r, lightbus, lightbus_url, housekeeping):
        self.stage(lightbus, lightbus_url)
        self.grow_old()
        keeper = housekeeping()
        r.set(KEY, "in the way")
        assert keeper.relay() is True
        assert keeper.relay() is False

    def test_any_number_of_them_publish_every_event_once(self, r, lightbus, lightbus_url, housekeeping):
        self.stage(lightbus, lightbus_url, 5000)
        self.grow_old()
        relay_in_threads(housekeeping)
        assert numbers(r) == list(range(5000))

    def test_leaves_alone_what_a_process_publishes_after_a_long_transaction(
        self, r, lightbus, lightbus_url, housekeeping, monkeypatch
    ):
        """The rows are due when they are committed; either of them takes them, not both."""
        relayed = []

        def commit(relay_first):
            with transaction.atomic():
                on_commit("shop.order_placed", number=1)
                OutboxEvent.objects.update(due_at=timezone.now() - GRACE)
                hooks = connections["default"].run_on_commit
                batch = hooks[0][1].__self__.batch
                batch.due_at = OutboxEvent.objects.get().due_at
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
    def test_a_row_that_cannot_be_read_holds_nobody_up(self, r, housekeeping, name, payload):
        bad = OutboxEvent.objects.create(event_name=name, payload=payload, due_at=timezone.now())
        self.stage_row(number=7)
        assert housekeeping().relay() is True
        assert numbers(r) == [7]
        bad.refresh_from_db()
        assert bad.error
        assert bad.due_at > timezone.now()

    def test_an_event_that_is_refused_keeps_its_error_and_holds_nobody_up(
        self, r, lightbus, lightbus_url, housekeeping
    ):
        r.set("bad.*:stream", "in the way")
        on_commit("bad.thing_happened")
        self.stage_row(number=7)
        assert housekeeping().relay() is True
        bad = OutboxEvent.objects.get(event_name="bad.thing_happened")
        assert "other than a stream" in bad.error
        assert bad.published_at is None
        assert bad.due_at > timezone.now()
        assert numbers(r) == [7]

    def test_what_is_refused_is_not_marked_with_the_rest(self, r, housekeeping):
        r.set("bad.*:stream", "in the way")
        self.stage_row(number=1)
        bad = OutboxEvent.objects.create(id=uuid7(), event_name="bad.thing", payload="{}", due_at=timezone.now())
        self.stage_row(number=2)
        assert housekeeping().relay() is True
        assert numbers(r) == [1, 2]
        bad.refresh_from_db()
        assert "other than a stream" in bad.error
        assert bad.published_at is None
        assert list(OutboxEvent.objects.exclude(due_at=None)) == [bad]

    def stage_row(self, *, number):
        OutboxEvent.objects.create(
            id=uuid7(), event_name="shop.order_placed", payload=json.dumps({"number": number}), due_at=timezone.now()
        )

    def test_a_database_that_does_not_answer_keeps_no_other_from_being_relayed(
        self, r, lightbus, lightbus_url, housekeeping, monkeypatch, caplog
    ):
        def refuse(*args, **kwargs):
            raise OperationalError("away")

        self.stage(lightbus, lightbus_url)
        self.grow_old()
        monkeypatch.setattr(connections["other"].introspection, "table_names", refuse)
        housekeeping().step()
        assert numbers(r) == [0]
        assert "in 'other': interrupted, retrying: database 'other': OperationalError: away" in caplog.text

    def test_goes_on_while_redis_is_away(self, r, lightbus, lightbus_url, housekeeping, caplog):
        self.stage(lightbus, lightbus_url)
        self.grow_old()
        keeper = housekeeping()
        keeper.client.redis_py.connection_pool.connection_kwargs["port"] = 1
        keeper.client.redis_py.connection_pool.disconnect()
        assert keeper.step(now=1.0) is False
        assert "relay of 'default': interrupted, retrying: Redis" in caplog.text
        assert waiting() == 1


def test_no_transaction_is_open_while_redis_is_waited_for(r, monkeypatch):
    seen = []
    send = RedisClient.send

    def watch(self, commands):
        seen.append([connection.in_atomic_block for connection in connections.all(initialized_only=True)])
        return send(self, commands)

    monkeypatch.setattr(RedisClient, "send", watch)
    with transaction.atomic():
        Group.objects.create(name="x")
        on_commit("shop.order_placed", number=1)
    assert len(seen) == 1
    assert not any(seen[0])


def test_replies_of_an_interrupted_send_are_not_taken_for_others(r, lightbus_url):
    """As Ctrl-C, or Celery's soft time limit, may come between two calls of redis-py."""
    redis_client = RedisClient(lightbus_url, timeout=10)
    redis_client.send([(b"PING",)])

    def trace(frame, event, arg):
        if frame.f_code is exchange.__code__:
            if event == "line" and "replies" in frame.f_locals:
                sys.settrace(None)
                raise KeyboardInterrupt
            return trace
        return None

    r.client_pause(500)
    sys.settrace(trace)
    try:
        with pytest.raises(KeyboardInterrupt):
            redis_client.send([(b"ECHO", b"one")])
    finally:
        sys.settrace(None)
    assert redis_client.send([(b"ECHO", b"two")]) == [b"two"]
    redis_client.close()
