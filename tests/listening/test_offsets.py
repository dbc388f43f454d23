"""Where a group starts, where it goes on after Redis has lost it, and what was trimmed before it was read."""

from contextlib import suppress

import pytest
from django.db import OperationalError, connection

from lightbus_django import fire, listens_to
from lightbus_django.exceptions import DatabaseUnavailable
from lightbus_django.listening.registry import registry
from lightbus_django.models import ProcessedEvent
from tests.app.models import Effect
from tests.conftest import drain, eventually
from tests.listening.streams import GROUP, KEY, effects
from tests.servers import LOOPBACK, Server, redis_server
from tests.workers import running_worker

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("listeners")]


def test_a_new_group_gets_what_is_new(r, record, consume):
    fire("shop.order_placed", number=1)
    consumer = consume()
    fire("shop.order_placed", number=2)
    drain(consumer)
    assert effects() == [2]


def test_what_is_new_is_so_from_the_first_try_on(r, record, consume):
    """The inbox has to say that the listener is new, and the database may be away when the process starts."""

    def refuse(*args):
        raise OperationalError("away")

    fire("shop.order_placed", number=1)
    consumer = consume(join=False)
    with connection.execute_wrapper(refuse), suppress(DatabaseUnavailable, OperationalError):
        consumer.step(block=0)
    assert r.xinfo_groups(KEY) == []
    fire("shop.order_placed", number=2)
    drain(consumer)
    assert effects() == [2]


def test_a_new_group_can_start_at_the_beginning_and_an_old_one_goes_on(r, listeners, consume, caplog):
    @listens_to("shop.order_placed", start="beginning")
    def record(event, number):
        Effect.objects.create(number=number)

    caplog.set_level("INFO")
    fire("shop.order_placed", number=1)
    drain(consume())
    assert "created a new consumer group on shop.*:stream, which starts after 0" in caplog.text
    drain(consume())
    assert effects() == [1]
    assert caplog.text.count("new consumer group") == 1


def test_a_new_group_can_start_at_a_time_or_behind_an_entry(r, listeners, consume):
    first = fire("shop.order_placed", number=1)

    @listens_to("shop.order_placed", start=first.published_at)
    def from_then_on(event, number):
        Effect.objects.create(name="time", number=number)

    @listens_to("shop.order_placed", start=first.stream_id)
    def behind(event, number):
        Effect.objects.create(name="id", number=number)

    fire("shop.order_placed", number=2)
    for listener in registry:
        drain(consume(listener))
    assert set(Effect.objects.values_list("name", "number")) == {("time", 1), ("time", 2), ("id", 2)}


def test_a_group_that_vanished_comes_back_where_it_was(r, record, consume, caplog):
    fire("shop.order_placed", number=0)  # before the group: not for it
    consumer = consume()
    fire("shop.order_placed", number=1)
    drain(consumer)
    fire("shop.order_placed", number=2)
    r.xgroup_destroy(KEY, GROUP)
    fire("shop.order_placed", number=3)
    drain(consumer)
    assert effects() == [1, 2, 3]
    assert "creating it again after" in caplog.text


def test_a_stream_that_vanished_comes_back(r, record, consume):
    consumer = consume()
    fire("shop.order_placed", number=1)
    drain(consumer)
    r.flushdb()
    fire("shop.order_placed", number=2)
    drain(consumer)
    assert effects() == [1, 2]


def test_a_stream_that_comes_back_with_its_clock_behind_is_read_from_its_beginning(r, record, consume):
    consumer = consume()
    fire("shop.order_placed", number=1)
    drain(consumer)
    ((_, fields),) = r.xrange(KEY)
    r.flushdb()
    r.xadd(KEY, {**fields, "id": "another", ":number": "2"}, id="5-1")
    drain(consumer)
    assert effects() == [1, 2]


def test_after_a_restore_of_the_database_a_group_can_be_set_back(r, record, consume, caplog):
    consumer = consume()
    events = [fire("shop.order_placed", number=number) for number in range(3)]
    drain(consumer)
    Effect.objects.exclude(number=0).delete()
    ProcessedEvent.objects.exclude(event_id=events[0].id).delete()
    r.xgroup_setid(KEY, GROUP, "0")
    drain(consume())
    assert effects() == [0, 1, 2]
    assert "lost" not in caplog.text


class TestLosses:
    """Somebody else's trimming, such as Lightbus's own, takes events that nobody was given yet."""

    def test_are_counted_when_the_process_starts(self, r, record, consume, caplog):
        drain(consume())
        fire("shop.order_placed", number=0)
        drain(consume())
        for number in range(1, 6):
            fire("shop.order_placed", number=number)
        r.xtrim(KEY, maxlen=2, approximate=False)
        caplog.clear()
        consumer = consume()
        assert consumer.offsets.lost == 3
        assert "lost 3 events of shop.*:stream: they were trimmed unread" in caplog.text
        drain(consumer)
        assert effects() == [0, 4, 5]

    def test_are_counted_once_while_it_runs(self, r, record, consume, lightbus, caplog):
        lightbus(RECLAIM_INTERVAL=5)
        consumer = consume()
        fire("shop.order_placed", number=0)
        drain(consumer)
        for turn in range(1, 4):
            for number in range(5):
                fire("shop.order_placed", number=10 * turn + number)
            r.xtrim(KEY, maxlen=2, approximate=False)
            consumer.step(now=1e6 * turn, block=0)
            drain(consumer)
            consumer.step(now=1e6 * turn + 1e5, block=0)
        assert consumer.offsets.lost == 9
        assert effects() == [0, 13, 14, 23, 24, 33, 34]

    @pytest.mark.parametrize("after", ["an event", "a pause"])
    def test_are_looked_for_soon(self, after, r, record, consume, lightbus):
        """A listener that has nothing to do looks less often."""
        lightbus(RECLAIM_INTERVAL=5)
        consumer = consume()
        fire("shop.order_placed", number=0)
        drain(consumer)
        consumer.step(now=1e6, block=0)
        if after == "a pause":
            consumer.pause.begin("ada")
            consumer.step(now=1e6 + 1, block=0)
            consumer.pause.end()
        else:
            fire("shop.order_placed", number=1)
            consumer.step(now=1e6 + 1, block=0)
        for number in range(2, 7):
            fire("shop.order_placed", number=number)
        r.xtrim(KEY, maxlen=2, approximate=False)
        consumer.step(now=1e6 + 6, block=0)
        assert consumer.offsets.lost == 3

    def test_what_is_trimmed_after_it_was_handled_is_none(self, r, record, consume, caplog):
        consumer = consume()
        for number in range(5):
            fire("shop.order_placed", number=number)
        drain(consumer)
        r.xtrim(KEY, maxlen=0, approximate=False)
        consumer.step(now=1e6, block=0)
        fire("shop.order_placed", number=5)
        consumer.step(now=2e6, block=0)
        consumer = consume(process_name="another")
        assert consumer.offsets.lost == 0
        assert "lost" not in caplog.text

    def test_a_failover_is_none(self, r, record, lightbus, caplog):
        """A replica of Redis 7.0 has an old number of what a group has read."""

        def handle(server: Server, numbers: range) -> None:
            lightbus(URL=server.url)
            with running_worker(is_joined=True):
                for number in numbers:
                    fire("shop.order_placed", number=number)
                eventually(lambda: effects() == list(range(numbers.stop)))

        with Server(binary=redis_server()) as old, Server(binary=redis_server()) as new, new.client() as replica:
            handle(old, range(5))
            replica.replicaof(LOOPBACK, old.port)
            eventually(lambda: replica.info("replication")["master_link_status"] == "up")
            handle(old, range(5, 10))
            with old.client() as master:
                eventually(lambda: replica.xinfo_stream(KEY) == master.xinfo_stream(KEY))
            replica.replicaof("NO", "ONE")
            handle(new, range(10, 15))
        assert "trimmed unread" not in caplog.text
