"""What is new is asked for while what came before is being handled."""

import signal
import time
from contextlib import suppress

import pytest

from lightbus_django import BusUnavailable, fire, fire_many, listens_to
from lightbus_django.bus.client import RedisClient
from lightbus_django.bus.consumer_group import GroupConsumer
from lightbus_django.listening import consumer
from lightbus_django.listening.reader import StreamReader
from tests.app.models import Effect
from tests.conftest import drain, eventually
from tests.listening.test_consumer import GROUP, KEY, age, pending

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("listeners")]


@pytest.fixture
def seen(r, listeners, lightbus):
    """The numbers that were handled, and how many events were pending then."""
    lightbus(BATCH_SIZE=10)
    seen = []

    @listens_to("shop.order_placed")
    def record(event, number: int, **kwargs):
        seen.append((number, pending(r)))

    return seen


def fire_numbers(count):
    fire_many([("shop.order_placed", {"number": number}) for number in range(count)])


@pytest.fixture
def reading(seen, consume):
    """The reads of a consumer, told that any time is too long."""
    consumer = consume()
    return StreamReader(consumer.group_consumer, consumer.streams, count=10, timeout=0)


def test_fast_handlers_of_a_backlog_are_read_ahead(r, seen, consume):
    consumer = consume()
    fire_numbers(35)
    drain(consumer)
    assert [number for number, _ in seen] == list(range(35))
    # The first batch shows that they are fast; what is not full is the last one.
    assert [count for _, count in seen[::10]] == [10, 20, 15, 15]
    assert pending(r) == 0


def test_slow_handlers_leave_the_next_batch_to_other_processes(monkeypatch, r, seen, consume):
    monkeypatch.setattr(consumer, "WINDOW", 0)
    slow = consume()
    fire_numbers(35)
    drain(slow)
    assert max(count for _, count in seen) == 10


def test_of_a_backlog_retries_and_the_timeout_of_others_have_their_turn(r, seen, consume):
    consumer = consume()
    fire_numbers(60)
    consumer.step(block=0)
    consumer.step(block=0)
    assert consumer.reader.is_asked
    consumer.retries_due.set()
    consumer.step(block=0)
    assert not consumer.reader.is_asked
    consumer.step(block=0)
    assert consumer.reader.is_asked
    consumer.step(now=time.monotonic() + 3600, block=0)
    assert not consumer.reader.is_asked


def test_what_waited_too_long_for_its_turn_is_handled_by_one_process(r, reading):
    fire_numbers(3)
    reading.ask()
    first, second, third = (entry["message_id"] for entry in r.xpending_range(KEY, GROUP, "-", "+", 10))
    r.xclaim(KEY, GROUP, "another", 0, [second])
    age(r, [first], "worker", seconds=50)
    assert [entry.stream_id for entry in reading.receive()] == [first, third]
    assert r.xpending_range(KEY, GROUP, first, first, 1)[0]["time_since_delivered"] < 50_000


def test_what_was_asked_for_is_handed_back_at_a_stop(r, seen, consume):
    first, second = consume(process_name="first"), consume(process_name="second")
    fire_numbers(30)
    first.step(block=0)
    first.step(block=0)
    assert first.reader.is_asked
    first.stop()
    assert pending(r) == 10
    second.step(now=time.monotonic() + 3600, block=0)
    drain(second)
    assert [number for number, _ in seen] == list(range(30))
    assert not r.xpending(KEY, GROUP)["pending"]


def test_an_answer_that_never_comes_costs_no_event_and_no_acknowledgement(r, seen, consume):
    consumer = consume()
    fire_numbers(40)
    consumer.step(block=0)
    consumer.step(block=0)
    assert consumer.reader.is_asked
    r.client_kill_filter(_type="normal", skipme=True)
    with suppress(BusUnavailable):
        drain(consumer)
    while len(seen) < 40:
        with suppress(BusUnavailable):
            drain(consumer)
    drain(consumer)
    assert [number for number, _ in seen] == list(range(40))
    assert pending(r) == 0


def test_acknowledgements_that_may_be_lost_are_sent_again(r, reading):
    fire("shop.order_placed", number=1)
    (entry,) = reading.read(block=0)
    reading.settle(entry)
    r.client_kill_filter(_type="normal", skipme=True)
    with pytest.raises(BusUnavailable):  # with the one or with the other, as the socket has noticed
        reading.read(block=0)
    assert pending(r) == 1
    reading.flush()
    assert pending(r) == 0


def test_an_interrupted_read_leaves_a_consumer_that_goes_on(r, listeners, consume):
    @listens_to("shop.order_placed")
    def handler(event, number):
        Effect.objects.create(number=number)

    consumer = consume()
    fire("shop.order_placed", number=1)
    while not consumer.reader._settled:
        consumer.step(block=0)

    def interrupt(signum, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        with pytest.raises(KeyboardInterrupt):
            consumer.step(block=20)
    finally:
        signal.signal(signal.SIGALRM, before)
    fire("shop.order_placed", number=2)
    drain(consumer)
    assert Effect.objects.count() == 2
    assert pending(r, "price-monitor-handler") == 0


def test_that_nothing_can_be_asked_for_ahead_costs_the_batch_in_hand_no_attempt(r, seen, consume, monkeypatch):
    consumer = consume()
    fire_numbers(30)
    consumer.step(block=0)
    deliveries, handle = [], consumer.inbox.handle

    def count(held, **options):
        deliveries.extend(delivery.entry.deliveries for delivery in held)
        return handle(held, **options)

    def ask(*args, **options):
        monkeypatch.undo()
        raise BusUnavailable("away")

    consumer.inbox.handle = count
    consumer.step(block=0)
    monkeypatch.setattr(GroupConsumer, "start_read", ask)
    with pytest.raises(BusUnavailable):
        consumer.step(block=0)
    drain(consumer)
    assert deliveries == [1] * 20


def test_replies_that_are_read_later_are_not_taken_for_that_to_redis_pys_ping(r, seen, lightbus_url, listeners):
    """Which it sends before a command where the URL asks for health checks."""
    redis_client = RedisClient(f"{lightbus_url}?health_check_interval=1", timeout=5, retries=0)
    group_consumer = GroupConsumer(redis_client, GROUP, "worker")
    group_consumer.join(KEY, "0")
    fire_numbers(2)
    group_consumer.start_read([KEY], count=2, block=0, acknowledge={})
    assert len(group_consumer.finish_read()) == 2
    for entry in group_consumer.claim_own(KEY, 2):
        group_consumer.count_delivery(entry, acknowledge={})
        time.sleep(1.1)  # longer than the interval
    eventually(lambda: [row["times_delivered"] for row in r.xpending_range(KEY, GROUP, "-", "+", 2)] == [2, 2])
    redis_client.close()
