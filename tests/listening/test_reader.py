"""A read acknowledges what is settled, and nothing is lost with the answer to it."""

import signal
import time
from contextlib import suppress

import pytest

from lightbus_django import BusUnavailable, fire, fire_many, listens_to
from lightbus_django.bus.client import RedisClient
from lightbus_django.bus.consumer_group import GroupConsumer
from tests.app.models import Effect
from tests.conftest import drain, eventually
from tests.listening.streams import GROUP, KEY, pending

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


def test_an_answer_that_never_comes_costs_no_event_and_no_acknowledgement(r, seen, consume):
    consumer = consume()
    fire_numbers(40)
    consumer.step(block=0)
    r.client_kill_filter(_type="normal", skipme=True)
    while len(seen) < 40:
        with suppress(BusUnavailable):
            drain(consumer)
    drain(consumer)
    assert [number for number, _ in seen] == list(range(40))
    assert pending(r) == 0


def test_acknowledgements_that_may_be_lost_are_sent_again(r, seen, consume):
    consumer = consume()
    reading = consumer.reader
    fire("shop.order_placed", number=1)
    consumer.in_flight.skip(reading.read(block=0))
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
    while not consumer.in_flight.settled:
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


def test_replies_that_are_read_later_are_not_taken_for_that_to_redis_pys_ping(r, seen, lightbus_url, listeners):
    """Which it sends before a command where the URL asks for health checks."""
    redis_client = RedisClient(f"{lightbus_url}?health_check_interval=1", timeout=5, retries=0)
    group_consumer = GroupConsumer(redis_client, GROUP, "worker")
    group_consumer.join(KEY, "0")
    fire_numbers(2)
    assert len(group_consumer.read([KEY], count=2, block=0, acknowledge={})) == 2
    for entry in group_consumer.claim_own(KEY, 2):
        group_consumer.count_delivery(entry)
        time.sleep(1.1)  # longer than the interval
    eventually(lambda: [row["times_delivered"] for row in r.xpending_range(KEY, GROUP, "-", "+", 2)] == [2, 2])
    redis_client.close()


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
