"""One listener's loop, stepped by hand on a real server."""

import threading
import time
from contextlib import suppress

import pytest
from django.db import OperationalError, connection

from lightbus_django import BusError, BusUnavailable, fire, fire_many, listens_to
from lightbus_django.bus.consumer_group import Entry, GroupConsumer
from lightbus_django.exceptions import DatabaseUnavailable
from lightbus_django.listening.delivery import Delivery
from lightbus_django.listening.registry import registry
from lightbus_django.models import FailedEvent, ProcessedEvent
from tests.app.models import Child, Effect
from tests.conftest import drain, eventually

KEY = "shop.*:stream"
GROUP = "price-monitor-record"

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("listeners")]


@pytest.fixture
def record(listeners):
    """A listener that writes down the numbers of events."""

    @listens_to("shop.order_placed")
    def record(event, number: int, **kwargs):
        Effect.objects.create(number=number)

    return record


def effects():
    return list(Effect.objects.order_by("id").values_list("number", flat=True))


def pending(r, group=GROUP, key=KEY):
    return r.xpending(key, group)["pending"]


def fetch(r, consumer, count=100, group=GROUP, key=KEY):
    """Read as a process does that dies before it handles anything; return the stream ids."""
    ((_, entries),) = r.xreadgroup(group, consumer, {key: ">"}, count=count)
    return [stream_id for stream_id, _ in entries]


def age(r, stream_ids, consumer, seconds=3600, group=GROUP, key=KEY):
    r.xclaim(key, group, consumer, 0, stream_ids, idle=seconds * 1000, justid=True)


def delivered(r):
    """Return how often each pending event was delivered."""
    return [row["times_delivered"] for row in r.xpending_range(KEY, GROUP, "-", "+", 100)]


def test_events_are_handled_in_order_and_acknowledged_with_the_next_read(r, record, consume):
    consumer = consume()
    for number in range(5):
        fire("shop.order_placed", number=number)
    assert consumer.step(block=0) is True
    assert effects() == [0, 1, 2, 3, 4]
    assert pending(r) == 5
    assert consumer.step(block=0) is False
    assert pending(r) == 0


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
    assert "new consumer group of shop.*:stream, which begins after 0" in caplog.text
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


def test_every_listener_gets_every_event_and_processes_share_them(r, listeners, consume):
    @listens_to("shop.order_placed")
    def one(event, number):
        Effect.objects.create(name="one", number=number)

    @listens_to("shop.order_placed")
    def two(event, number):
        Effect.objects.create(name="two", number=number)

    consumers = [consume(listener, process_name=name) for listener in registry for name in ("p1", "p2")]
    for number in range(20):
        fire("shop.order_placed", number=number)
    for consumer in consumers:
        drain(consumer)
    for name in ("one", "two"):
        assert sorted(Effect.objects.filter(name=name).values_list("number", flat=True)) == list(range(20))


def test_events_of_others_in_the_stream_are_passed_over(r, record, consume):
    consumer = consume()
    fire("shop.parcel_delivered", number=1)
    fire("shop.order_placed", number=2)
    drain(consumer)
    assert effects() == [2]
    assert ProcessedEvent.objects.count() == 1
    assert pending(r) == 0


def test_one_listener_can_have_events_of_several_streams(r, listeners, consume):
    @listens_to(["shop.order_placed", "stock.article_ran_out"])
    def record(event, number):
        Effect.objects.create(name=event.name, number=number)

    consumer = consume()
    fire("shop.order_placed", number=1)
    fire("stock.article_ran_out", number=2)
    drain(consumer)
    assert set(Effect.objects.values_list("name", "number")) == {
        ("shop.order_placed", 1),
        ("stock.article_ran_out", 2),
    }
    assert pending(r) == pending(r, key="stock.*:stream") == 0


class TestAnyBytes:
    """What stands in a stream that anybody may write to."""

    def add(self, r, **fields):
        r.xadd(KEY, fields)

    @pytest.fixture
    def consumer(self, r, record, consume):
        return consume()

    def test_what_cannot_be_read_is_a_dead_letter_and_the_rest_is_handled(self, r, consumer, lightbus_url):
        good = {"id": "1", "api_name": "shop", "event_name": "order_placed", "version": "1", ":number": "1"}
        fire("shop.order_placed", number=1)
        for change in [{"version": "2.0"}, {":number": "{"}, {"id": ""}, {":number": '"much"'}]:
            r.xadd(KEY, {**good, **change})
        r.xadd(KEY, {":number": b'"\xff\xfe"', **{k: v for k, v in good.items() if k != ":number"}})
        for name in ("id", "api_name", "event_name", "version", ":number"):
            r.xadd(KEY, {key: value for key, value in good.items() if key != name})
        r.xadd(KEY, {"": "x"})
        r.xadd(KEY, {b"\xff": b"\x00"})
        fire("shop.order_placed", number=2)
        drain(consumer)
        assert effects() == [1, 2]
        # The two whose metadata is good, and the id the same, are one event that failed once.
        assert FailedEvent.objects.count() == 11
        assert all(failed.is_dead_letter for failed in FailedEvent.objects.all())
        assert pending(r) == 0

    def test_what_is_too_large_for_a_row_is_a_dead_letter_without_it(self, r, consumer):
        """MariaDB would refuse it each time."""
        r.xadd(KEY, {"api_name": "shop", "event_name": "order_placed", "junk": b"\xff" * 2_000_000})
        fire("shop.order_placed", number=1)
        drain(consumer)
        assert effects() == [1]
        failed = FailedEvent.objects.get()
        assert failed.is_dead_letter
        assert "too many to keep" in failed.error
        assert len(failed.fields) < 1000

    def test_noop_entries_are_acknowledged_silently(self, r, consumer, caplog):
        r.xadd(KEY, {"": ""})
        drain(consumer)
        assert pending(r) == 0
        assert not FailedEvent.objects.exists()
        assert not caplog.records

    def test_an_entry_that_was_trimmed_is_a_loss_said_loudly(self, r, consumer, caplog):
        fire("shop.order_placed", number=1)
        (stream_id,) = fetch(r, "worker")
        r.xtrim(KEY, maxlen=0, approximate=False)
        consumer._look_back = True
        drain(consumer)
        assert f"lost {stream_id}" in caplog.text
        assert pending(r) == 0


class TestOutstanding:
    def test_what_a_process_left_comes_before_anything_new(self, r, record, consume):
        consume()
        fire("shop.order_placed", number=1)
        fire("shop.order_placed", number=2)
        fetch(r, "worker")
        fire("shop.order_placed", number=3)
        drain(consume())
        assert effects() == [1, 2, 3]
        assert pending(r) == 0

    def test_a_delivery_is_counted_when_the_turn_of_its_event_comes(self, r, listeners, consume):
        counts = []

        @listens_to("shop.order_placed", listener_name="record")
        def handler(event, number):
            expected = [2] * (number + 1) + [1] * (2 - number)
            counts.append(eventually(lambda: delivered(r) == expected))

        consume()
        fire_many([("shop.order_placed", {"number": number}) for number in range(3)])
        fetch(r, "worker")
        drain(consume())
        assert counts == [True, True, True]

    def test_an_event_that_killed_each_of_its_processes_is_set_aside_and_only_that_one(
        self, r, record, consume, lightbus
    ):
        lightbus(MAX_ATTEMPTS=3)
        consume()
        for number in range(3):
            fire("shop.order_placed", number=number)
        _, poison, _ = fetch(r, "worker")
        for _ in range(2):  # died twice more with it in hand
            r.xclaim(KEY, GROUP, "worker", 0, [poison])
        drain(consume())
        assert effects() == [0, 2]
        failed = FailedEvent.objects.get()
        assert failed.is_dead_letter
        assert "its process died 3 times while handling it" in failed.error
        assert pending(r) == 0

    def test_a_lost_answer_of_redis_does_not_lose_its_events(self, r, record, consume):
        consumer = consume()
        drain(consumer)

        def break_the_connection():
            (client,) = eventually(lambda: [row for row in r.client_list() if "b" in row["flags"]])
            r.client_kill_filter(_id=client["id"])

        thread = threading.Thread(target=break_the_connection)
        thread.start()
        with pytest.raises(BusUnavailable):
            consumer.step(block=30)
        thread.join()
        fire("shop.order_placed", number=1)
        fetch(r, "worker")  # as if it had been in the answer that was lost
        drain(consumer)
        assert effects() == [1]

    def test_what_was_handled_is_not_set_aside_however_often_it_was_delivered(self, r, record, consume, lightbus):
        lightbus(MAX_ATTEMPTS=2)
        consumer = consume()
        fire("shop.order_placed", number=1)
        consumer.step(block=0)  # handled, and never acknowledged
        ((stream_id, _),) = r.xrange(KEY)
        for _ in range(5):
            r.xclaim(KEY, GROUP, "worker", 0, [stream_id])
        drain(consume())
        assert effects() == [1]
        assert not FailedEvent.objects.exists()
        assert pending(r) == 0


class TestReclaim:
    def test_events_of_a_process_that_exceeded_the_timeout_go_to_another(self, r, record, consume):
        consumer = consume()
        fire("shop.order_placed", number=1)
        fire("shop.order_placed", number=2)
        one, _ = fetch(r, "dead")
        age(r, [one], "dead", seconds=61)
        drain(consumer)
        assert effects() == []
        while consumer.step(now=1e9, block=0):
            pass
        assert effects() == [1]
        assert pending(r) == 1

    def test_what_was_trimmed_meanwhile_is_a_loss_said_loudly(self, r, record, consume, caplog):
        consumer = consume()
        fire("shop.order_placed", number=1)
        (stream_id,) = fetch(r, "dead")
        age(r, [stream_id], "dead")
        r.xtrim(KEY, maxlen=0, approximate=False)
        while consumer.step(now=1e9, block=0):
            pass
        assert f"lost {stream_id}" in caplog.text
        assert pending(r) == 0

    def test_is_looked_for_each_reclaim_interval(self, r, record, consume, lightbus):
        lightbus(RECLAIM_INTERVAL=7)
        consumer = consume()
        consumer.step(now=1e9, block=0)
        fire("shop.order_placed", number=1)
        age(r, fetch(r, "dead"), "dead")
        assert consumer.step(now=1e9 + 6.9, block=0) is False
        while consumer.step(now=1e9 + 7, block=0):
            pass
        assert effects() == [1]

    def test_more_than_a_batch_is_reclaimed(self, r, record, consume, lightbus):
        lightbus(BATCH_SIZE=10)
        consumer = consume()
        for number in range(35):
            fire("shop.order_placed", number=number)
        age(r, fetch(r, "dead"), "dead")
        while consumer.step(now=1e9, block=0):
            pass
        assert effects() == list(range(35))
        assert pending(r) == 0

    def test_what_was_handled_and_not_acknowledged_is_not_handled_again(self, r, record, consume):
        consumer = consume()
        fire("shop.order_placed", number=1)
        consumer.step(block=0)
        ((stream_id, _),) = r.xrange(KEY)
        age(r, [stream_id], "worker")
        while consumer.step(now=1e9, block=0):
            pass
        assert effects() == [1]


class TestLeases:
    def test_the_clock_of_waiting_events_and_of_the_one_in_hand_starts_anew(self, r, listeners, consume):
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
        consumer.leases.hold([Delivery.of(Entry(KEY, stream_id, {}))])
        consumer.renew()
        consumer._look_back = True
        drain(consumer)
        assert f"lost {stream_id}" in caplog.text

    def test_a_lease_that_another_process_has_by_now_is_left_to_it(self, r, record, consume):
        consumer = consume()
        fire("shop.order_placed", number=1)
        (stream_id,) = fetch(r, "other")
        entry = Entry(KEY, stream_id, {}, deliveries=7)
        consumer.leases.hold([Delivery.of(entry)])
        consumer.renew()
        consumer.reader.count_delivery(entry)
        assert consumer.reader.look_back(()) == []
        ((_, owner, _, deliveries),) = [tuple(row.values()) for row in r.xpending_range(KEY, GROUP, "-", "+", 1)]
        assert (owner, deliveries) == ("other", 1)


class TestStop:
    def test_what_is_settled_is_acknowledged_and_the_rest_is_another_process_at_once(self, r, listeners, consume):
        @listens_to("shop.order_placed")
        def record(event, number):
            Effect.objects.create(number=number)
            consumer.stopping.set()

        consumer = consume(process_name="first")
        second = consume(process_name="second")
        for number in range(5):
            fire("shop.order_placed", number=number)
        consumer.step(block=0)
        consumer.stop()
        assert effects() == [0]
        assert pending(r) == 4
        while second.step(now=1e9, block=0):
            pass
        assert effects() == [0, 1, 2, 3, 4]
        assert pending(r) == 1 or second.reader.flush() is None

    def test_what_is_left_is_handed_back_though_redis_gave_up_the_connection_during_the_handler(
        self, r, listeners, consume
    ):
        @listens_to("shop.order_placed")
        def record(event, number):
            r.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            consumer.stopping.set()

        consumer = consume()
        for number in range(2):
            fire("shop.order_placed", number=number)
        consumer.step(block=0)
        consumer.stop()
        assert [row["times_delivered"] for row in r.xpending_range(KEY, GROUP, "-", "+", 10)] == [0]

    def test_what_is_left_is_handed_back_though_the_database_is_away(self, r, record, consume, monkeypatch):
        def refuse():
            raise DatabaseUnavailable("away")

        consumer = consume()
        fire("shop.order_placed", number=0)
        consumer.step(block=0)
        monkeypatch.setattr(consumer.inbox, "give_back", refuse)
        with pytest.raises(DatabaseUnavailable):
            consumer.stop()
        assert pending(r) == 0

    def test_what_is_handed_back_untouched_was_never_delivered(self, r, record, consume, monkeypatch):
        consumer = consume()
        for number in range(2):
            fire("shop.order_placed", number=number)
        consumer.inbox.handle = lambda *args, **kwargs: 1
        consumer.step(block=0)
        consumer.stop()
        assert [row["times_delivered"] for row in r.xpending_range(KEY, GROUP, "-", "+", 10)] == [0]

    def test_under_a_name_that_does_not_come_back_nothing_is_left_behind(self, r, listeners, consume):
        @listens_to("shop.order_placed")
        def record(event, number):
            Effect.objects.create(number=number)
            if number == 1:
                consumer.stopping.set()

        def consumers():
            return {row["name"]: row["pending"] for row in r.xinfo_consumers(KEY, GROUP)}

        consumer = consume(process_name="k3f9", leave=True)
        for number in range(4):
            fire("shop.order_placed", number=number)
        consumer.step(block=0)
        consumer.stop()
        assert effects() == [0, 1]
        # A group keeps a consumer, for Lightbus destroys groups that have none.
        assert consumers() == {"nobody": 2}

        other = consume(process_name="x2c7", leave=True)
        drain(other)
        other.stop()
        assert effects() == [0, 1, 2, 3]
        assert consumers() == {"nobody": 0}
        assert r.xinfo_groups(KEY)[0]["pending"] == 0

    def test_what_is_in_hand_keeps_its_name(self, r, record, consume):
        consumer = consume(process_name="k3f9", leave=True)
        fire("shop.order_placed", number=1)
        fetch(r, "k3f9")
        consumer.stop()
        assert [row["name"] for row in r.xinfo_consumers(KEY, GROUP)] == ["k3f9"]


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


class TestInfrastructure:
    def test_a_group_that_vanished_comes_back_where_it_was(self, r, record, consume, caplog):
        fire("shop.order_placed", number=0)  # before the group: not for it
        consumer = consume()
        fire("shop.order_placed", number=1)
        drain(consumer)
        fire("shop.order_placed", number=2)
        r.xgroup_destroy(KEY, GROUP)
        fire("shop.order_placed", number=3)
        drain(consumer)
        assert effects() == [1, 2, 3]
        assert "made anew" in caplog.text

    def test_a_stream_that_vanished_comes_back(self, r, record, consume):
        consumer = consume()
        fire("shop.order_placed", number=1)
        drain(consumer)
        r.flushdb()
        fire("shop.order_placed", number=2)
        drain(consumer)
        assert effects() == [1, 2]

    def test_a_stream_that_comes_back_with_its_clock_behind_is_read_from_its_beginning(self, r, record, consume):
        consumer = consume()
        fire("shop.order_placed", number=1)
        drain(consumer)
        ((_, fields),) = r.xrange(KEY)
        r.flushdb()
        r.xadd(KEY, {**fields, "id": "another", ":number": "2"}, id="5-1")
        drain(consumer)
        assert effects() == [1, 2]

    def test_what_is_settled_is_acknowledged_before_retries_and_what_is_left_of_a_batch(
        self, r, listeners, consume, monkeypatch
    ):
        monkeypatch.setattr("lightbus_django.listening.commit_gate.WINDOW", -1)
        seen = []

        @listens_to("shop.order_placed")
        def record(event, number):
            seen.append(pending(r))

        consumer = consume()
        for number in range(3):
            fire("shop.order_placed", number=number)
        drain(consumer)
        assert seen == [3, 2, 1]

    def test_retries_and_new_events_take_turns(self, r, listeners, consume):
        order = []

        @listens_to("shop.order_placed")
        def record(event, number):
            order.append(number)
            if number < 3 and order.count(number) == 1:
                raise ValueError

        consumer = consume()
        for number in range(3):
            fire("shop.order_placed", number=number)
        drain(consumer)
        FailedEvent.objects.retry_now()
        fire("shop.order_placed", number=9)
        consumer.retries_due.set()
        drain(consumer)
        assert sorted(order[3:]) == [0, 1, 2, 9]
        assert order[4] == 9

    def test_a_key_that_is_no_stream_is_named_and_done_with_when_it_is_gone(self, r, record, consume):
        r.set(KEY, "a string")
        consumer = consume(join=False)
        with pytest.raises(BusError, match="holds something other than a stream"):
            consumer.step(block=0)
        r.delete(KEY)
        consumer.step(block=0)
        fire("shop.order_placed", number=1)
        drain(consumer)
        assert effects() == [1]

    def test_trouble_is_nobodys_fault_and_costs_no_delivery(self, r, listeners, consume):
        trouble = [BusUnavailable("away")] * 3

        @listens_to("shop.order_placed")
        def record(event, number):
            if number == 1 and trouble:
                raise trouble.pop()
            Effect.objects.create(number=number)

        consumer = consume()
        for number in range(3):
            fire("shop.order_placed", number=number)
        for _ in range(2):  # behind another one it is met again first
            with pytest.raises(BusUnavailable):
                while True:
                    consumer.step(block=0)
        assert effects() == [0]
        drain(consumer)
        assert effects() == [0, 1, 2]
        assert not FailedEvent.objects.exists()

    def test_of_a_batch_whose_commit_is_refused_one_event_fails(self, r, listeners, consume):
        @listens_to("shop.order_placed")
        def record(event, number):
            Effect.objects.create(number=number)
            if number == 1:
                Child.objects.create(parent_id=4711)

        consumer = consume()
        for number in range(3):
            fire("shop.order_placed", number=number)
        drain(consumer)
        assert effects() == [0, 2]
        assert "IntegrityError" in FailedEvent.objects.get().error

    def test_retries_that_are_due_are_made_in_the_consumers_own_thread(self, r, listeners, consume, housekeeping):
        threads = []

        @listens_to("shop.order_placed")
        def record(event, number):
            threads.append(threading.get_ident())
            if event.attempt == 1:
                raise ValueError

        consumer = consume()
        fire("shop.order_placed", number=1)
        drain(consumer)
        FailedEvent.objects.retry_now()
        keeper = housekeeping(consumer)

        def flag():
            keeper.flag_due_retries()
            connection.close()

        thread = threading.Thread(target=flag)
        thread.start()
        thread.join()
        drain(consumer)
        # "Retry now" counts from the start, so this was attempt 1 once more.
        assert threads == [threading.get_ident()] * 2


def test_consumers_long_gone_are_deleted_only_with_nothing_pending(r, record, consume, housekeeping, lightbus):
    lightbus(CONSUMER_TTL=1e-9)
    consumer = consume()
    r.xgroup_createconsumer(KEY, GROUP, "gone")
    r.xgroup_createconsumer(KEY, GROUP, "owes")
    fire("shop.order_placed", number=1)
    fetch(r, "owes")
    time.sleep(0.002)  # Redis counts in milliseconds
    fire("shop.order_placed", number=2)
    drain(consumer)
    housekeeping(consumer).redis.delete_old_consumers()
    names = {row["name"] for row in r.xinfo_consumers(KEY, GROUP)}
    assert "owes" in names
    assert "gone" not in names


def test_a_group_keeps_its_last_consumer(r, record, consume, housekeeping, lightbus):
    """A Lightbus service that starts destroys groups that have none."""
    lightbus(CONSUMER_TTL=1e-9)
    housekeeping(consume()).redis.delete_old_consumers()
    assert [row["name"] for row in r.xinfo_consumers(KEY, GROUP)] == ["worker"]


def test_a_group_of_somebody_elses_may_have_any_name(r, record, consume):
    r.xgroup_create(KEY, b"a\xff", "0", mkstream=True)
    consumer = consume()
    fire("shop.order_placed", number=1)
    drain(consumer)
    assert effects() == [1]


def test_slow_events_without_keys_are_acknowledged_as_they_are_handled(r, listeners, consume, monkeypatch):
    monkeypatch.setattr("lightbus_django.listening.commit_gate.WINDOW", 0.1)

    @listens_to("shop.order_placed", listener_name="record", idempotent=False)
    def record(event, number):
        seen.append(pending(r))
        time.sleep(0.15)

    seen: list[int] = []
    consumer = consume()
    for number in range(3):
        fire("shop.order_placed", number=number)
    drain(consumer)
    assert seen == [3, 2, 1]


def test_of_a_groups_consumers_the_one_seen_last_is_kept(r, record, consume, housekeeping, lightbus):
    lightbus(CONSUMER_TTL=1e-9)
    r.xgroup_create(KEY, GROUP, mkstream=True)
    for name in ("a", "z"):
        r.xgroup_createconsumer(KEY, GROUP, name)
    eventually(lambda: min(row["idle"] for row in r.xinfo_consumers(KEY, GROUP)) > 20)
    housekeeping(consume()).redis.delete_old_consumers()
    assert [row["name"] for row in r.xinfo_consumers(KEY, GROUP)] == ["worker"]


def test_a_neighbour_of_a_batch_that_killed_its_process_is_no_dead_letter(r, listeners, consume, lightbus):
    """Also with MAX_ATTEMPTS 1: it may not even have been started."""
    lightbus(MAX_ATTEMPTS=1)

    @listens_to("shop.order_placed")
    def handler(event, number):
        Effect.objects.create(number=number)

    consumer = consume()
    for number in range(3):
        fire("shop.order_placed", number=number)
    consumer.reader.ask()
    consumer.reader.receive()  # it dies
    drain(consume())
    assert not FailedEvent.objects.exists()


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


class TestWhatOthersLeft:
    """A batch of it is taken at a time, and of each event a delivery is counted when its turn comes."""

    @pytest.fixture
    def counts(self, r, listeners):
        """How often the pending events were delivered, at each call of the handler."""
        counts = []

        @listens_to("shop.order_placed", listener_name="record", idempotent=False)
        def handler(event, number):
            counts.append(eventually(lambda: delivered(r)))

        return counts

    @pytest.fixture
    def leave(self, r, consume):
        """Let a process die with so many events in hand."""

        def leave(count, **claim):
            consume()
            fire_many([("shop.order_placed", {"number": number}) for number in range(count)])
            stream_ids = fetch(r, "dead", count=count)
            r.xclaim(KEY, GROUP, "dead", 0, stream_ids, idle=3_600_000, justid=True, **claim)
            return stream_ids

        return leave

    @pytest.mark.parametrize("options", [{}, {"idempotent": False}, {"batch": True}])
    def test_no_delivery_is_counted_before_its_turn(self, r, listeners, leave, consume, options):
        counts = []

        @listens_to("shop.order_placed", listener_name="record", **options)
        def handler(*args, **kwargs):
            counts.append(eventually(lambda: 2 in (found := delivered(r)) and found))

        leave(3)
        drain(consume())
        assert counts[0] == [2, 1, 1]
        assert len(counts) == 3
        assert pending(r) == 0

    def test_without_keys_each_is_acknowledged_before_the_next_is_counted(self, r, listeners, leave, consume):
        counts = []

        @listens_to("shop.order_placed", listener_name="record", idempotent=False)
        def handler(event, number):
            expected = [2] + [1] * (2 - number)
            counts.append(eventually(lambda: delivered(r) == expected))

        leave(3)
        drain(consume())
        assert counts == [True, True, True]

    @pytest.mark.parametrize("batch_size", [2, 100])
    @pytest.mark.parametrize("options", [{}, {"idempotent": False}, {"batch": True}])
    def test_one_that_kills_its_processes_is_set_aside_and_its_neighbours_are_handled(
        self, r, listeners, leave, consume, lightbus, batch_size, options
    ):
        lightbus(BATCH_SIZE=batch_size, MAX_ATTEMPTS=3)
        seen = []

        @listens_to("shop.order_placed", listener_name="record", **options)
        def handler(event, number=None):
            number = event[0].payload["number"] if number is None else number
            if number == 4:
                raise KeyboardInterrupt  # as if it were killed: nothing is recorded
            seen.append(number)

        stream_ids = leave(9)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                drain(consume())
            left = [row["message_id"] for row in r.xpending_range(KEY, GROUP, "-", "+", 10)]
            age(r, left, "worker")
        drain(consume())
        assert FailedEvent.objects.get().stream_id == stream_ids[4]
        assert set(seen) == {*range(9)} - {4}
        assert pending(r) == 0

    def test_no_delivery_is_counted_when_an_answer_is_lost(self, r, counts, leave, consume, monkeypatch):
        leave(3)
        reclaim, errors = GroupConsumer.reclaim, [BusUnavailable("lost"), None]

        def lose(group_consumer, *args, **kwargs):
            answer = reclaim(group_consumer, *args, **kwargs)
            if errors and (error := errors.pop(0)):
                raise error
            return answer

        monkeypatch.setattr(GroupConsumer, "reclaim", lose)
        consumer = consume(join=False)
        with pytest.raises(BusUnavailable):
            drain(consumer)
        assert delivered(r) == [1, 1, 1]
        drain(consumer)
        assert len(counts) == 3

    def test_what_another_process_has_by_now_is_left_to_it(self, r, leave, consume, record):
        stream_ids = leave(3)
        age(r, stream_ids[:2], "alive", seconds=0)
        assert [entry.stream_id for entry in consume(join=False).reader.reclaim()] == stream_ids[2:]

    def test_what_is_new_comes_after_it(self, counts, leave, consume, lightbus):
        lightbus(BATCH_SIZE=10)
        leave(20)
        fire_many([("shop.order_placed", {"number": number}) for number in range(5)])
        drain(consume())
        assert len(counts) == 25

    def test_a_stop_hands_it_back_without_a_count(self, r, counts, leave, consume):
        leave(3, retrycount=2)
        consumer = consume(join=False, leave=True)
        consumer.stopping.set()
        consumer.step(block=0)
        consumer.stop()
        rows = r.xpending_range(KEY, GROUP, "-", "+", 10)
        assert {(row["consumer"], row["times_delivered"]) for row in rows} == {("nobody", 2)}
        assert all(row["time_since_delivered"] > 60_000 for row in rows)

    def test_losses_are_told(self, r, counts, leave, consume, lightbus, caplog):
        lightbus(BATCH_SIZE=10)
        stream_ids = leave(35)
        r.xdel(KEY, stream_ids[22])
        drain(consume())
        assert f"lost {stream_ids[22]}" in caplog.text
        assert len(counts) == 34
        assert pending(r) == 0

    def test_all_are_found_among_those_that_processes_have_in_hand(self, r, counts, leave, consume, lightbus):
        """Redis looks at ten times as many as it is asked for."""
        lightbus(BATCH_SIZE=1)
        stream_ids = leave(35)
        age(r, stream_ids[1:34], "alive", seconds=0)
        drain(consume())
        assert len(counts) == 2
