"""Events that a process left behind when it died or exceeded the timeout."""

import threading

import pytest

from lightbus_django import BusUnavailable, fire, fire_many, listens_to
from lightbus_django.bus.consumer_group import GroupConsumer
from lightbus_django.models import FailedEvent
from tests.app.models import Effect
from tests.conftest import drain, eventually
from tests.listening.streams import GROUP, KEY, age, delivered, effects, fetch, pending

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("listeners")]


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
        assert "its process died, or exceeded the timeout, 3 times while handling it" in failed.error
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


def test_a_neighbour_of_a_batch_that_killed_its_process_is_no_dead_letter(r, listeners, consume, lightbus):
    """Also with MAX_ATTEMPTS 1: it may not even have been started."""
    lightbus(MAX_ATTEMPTS=1)

    @listens_to("shop.order_placed")
    def handler(event, number):
        Effect.objects.create(number=number)

    consumer = consume()
    for number in range(3):
        fire("shop.order_placed", number=number)
    consumer.reader.read(block=0)  # it dies
    drain(consume())
    assert not FailedEvent.objects.exists()


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
