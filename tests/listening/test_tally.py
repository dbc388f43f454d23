"""What a listener does is counted once: events that are handled, failed attempts, latencies."""

import time

import pytest

from lightbus_django import fire, listens_to
from lightbus_django.bus.figures import FAILED, HANDLED, bucket
from lightbus_django.bus.group_reads import Entry
from lightbus_django.listening.delivery import Delivery
from lightbus_django.listening.tally import SAMPLE, Tally
from lightbus_django.models import FailedEvent
from tests.conftest import drain


def published(*seconds_ago):
    now = time.time()
    return [
        Delivery.of(Entry("shop.*:stream", f"{round((now - ago) * 1000)}-{number}", {b"id": b"1"}, 1))
        for number, ago in enumerate(seconds_ago)
    ]


def latencies(counts):
    return {name: count for name, count in counts.items() if isinstance(name, int)}


def test_each_event_is_counted_with_its_latency():
    tally = Tally()
    tally.handled(published(1, 1, 100))
    counts = tally.drain()
    assert counts[HANDLED] == 3
    assert sorted(latencies(counts).values()) == [1, 2]
    assert max(latencies(counts)) in range(bucket(100_000), bucket(101_000) + 1)
    assert not tally.drain()


@pytest.mark.parametrize("count", [1, SAMPLE - 1, SAMPLE, 100, 1001])
def test_of_a_large_batch_a_sample_stands_for_all(count):
    tally = Tally()
    tally.handled(published(*[1] * count))
    assert sum(latencies(tally.drain()).values()) == count


def test_an_id_ahead_of_the_clock_has_no_latency():
    tally = Tally()
    tally.handled(published(-1000))
    assert latencies(tally.drain()) == {0: 1}


def test_what_could_not_be_written_is_counted_later():
    tally = Tally()
    tally.handled(published(1))
    counts = tally.drain()
    tally.handled(published(1))
    tally.put_back(counts)
    assert tally.drain()[HANDLED] == 2


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("batch", [False, True])
def test_failed_attempts_are_not_handled_until_a_retry_succeeds(r, listeners, consume, batch):
    broken = {3, 4}

    def handle(*numbers):
        if broken.intersection(numbers):
            raise ValueError("broken")

    if batch:

        @listens_to("shop.order_placed", batch=True)
        def record(events):
            handle(*[event.payload["number"] for event in events])
    else:

        @listens_to("shop.order_placed")
        def record(event, number):
            handle(number)

    consumer = consume()
    for number in range(10):
        fire("shop.order_placed", number=number)
    drain(consumer)
    counts = consumer.inbox.tally.drain()
    assert (counts[HANDLED], counts[FAILED]) == (8, 2)

    broken.remove(4)
    FailedEvent.objects.retry_now()
    consumer.retries_due.set()
    drain(consumer)
    counts = consumer.inbox.tally.drain()
    assert (counts[HANDLED], counts[FAILED]) == (1, 1)
    fire("shop.order_placed", number=20)
    drain(consumer)
    assert consumer.inbox.tally.drain()[HANDLED] == 1


@pytest.mark.django_db(transaction=True)
def test_events_that_are_not_for_the_listener_are_not_counted(r, record, consume):
    consumer = consume()
    fire("shop.parcel_delivered", number=1)
    drain(consumer)
    assert not consumer.inbox.tally.drain()
