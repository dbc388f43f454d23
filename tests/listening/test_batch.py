"""Batch handlers: many events in one call, and still each of them once."""

import pytest
from django.db import transaction

from lightbus_django import ConfigurationError, fire, listens_to
from lightbus_django.conf import get_settings
from lightbus_django.listening.registry import registry
from lightbus_django.models import FailedEvent, ProcessedEvent
from lightbus_django.running.worker import Worker
from tests.app.models import Effect
from tests.conftest import drain

KEY = "shop.*:stream"
GROUP = "price-monitor-record"

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
    pytest.mark.usefixtures("listeners"),
]

with_and_without_keys = pytest.mark.parametrize("idempotent", [True, False])


def listen(idempotent=True, before=lambda numbers: None):
    """A listener that writes down the numbers of its events; its calls are counted in the list that is returned."""
    calls = []

    @listens_to("shop.order_placed", batch=True, idempotent=idempotent)
    def record(events):
        numbers = [event.payload["number"] for event in events]
        calls.append(numbers)
        with transaction.atomic():
            Effect.objects.bulk_create([Effect(number=number) for number in numbers])
            before(numbers)

    return calls


def fire_some(count):
    for number in range(count):
        fire("shop.order_placed", number=number)


def handled():
    return list(Effect.objects.order_by("id").values_list("number", flat=True))


@with_and_without_keys
def test_a_batch_is_handled_in_one_call(r, consume, lightbus, idempotent):
    lightbus(BATCH_SIZE=4)
    calls = listen(idempotent)
    consumer = consume()
    fire_some(10)
    drain(consumer)
    assert calls == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert handled() == list(range(10))
    assert ProcessedEvent.objects.count() == (10 if idempotent else 0)
    assert r.xpending(KEY, GROUP)["pending"] == 0


def test_what_was_handled_before_is_not_in_the_next_batch(r, consume):
    calls = listen()
    consumer = consume()
    fire_some(5)
    drain(consumer)
    first, third = (r.xrange(KEY)[number][1] for number in (0, 2))
    for fields in (first, third):
        r.xadd(KEY, fields)
    fire("shop.order_placed", number=5)
    drain(consumer)
    assert calls == [[0, 1, 2, 3, 4], [5]]


@with_and_without_keys
@pytest.mark.parametrize("bad", [0, 6, 9])
def test_if_it_raises_the_batch_is_split_until_the_event_is_found(r, consume, idempotent, bad):
    def refuse(numbers):
        if bad in numbers:
            raise ValueError("no")

    calls = listen(idempotent, refuse)
    consumer = consume()
    fire_some(10)
    drain(consumer)
    assert handled() == [number for number in range(10) if number != bad]
    failed = FailedEvent.objects.get()
    assert (failed.attempts, failed.error) == (1, "ValueError: no")
    assert calls[0] == list(range(10))
    assert [bad] in calls
    assert r.xpending(KEY, GROUP)["pending"] == 0


def test_a_retry_is_a_batch_of_one(r, consume):
    tried = []

    def refuse_once(numbers):
        tried.append(numbers)
        if len(tried) < 2:
            raise ValueError("no")

    listen(before=refuse_once)
    consumer = consume()
    fire_some(1)
    drain(consumer)
    FailedEvent.objects.retry_now()
    consumer.retries_due.set()
    drain(consumer)
    assert tried == [[0], [0]]
    assert handled() == [0]
    assert not FailedEvent.objects.exists()


@with_and_without_keys
def test_what_cannot_be_read_is_no_part_of_it(r, consume, idempotent):
    calls = listen(idempotent)
    consumer = consume()
    fire_some(1)
    r.xadd(KEY, {"api_name": "shop", "event_name": "order_placed", "version": "1", ":number": "1"})
    fire_some(2)
    drain(consumer)
    assert calls == [[0, 0, 1]]
    assert "'id' is missing" in FailedEvent.objects.get().error


def test_all_of_it_is_in_hand(r, consume):
    """Of a batch that exceeds the timeout nothing is renewed."""
    idle = []

    def look(numbers):
        ids = [row["message_id"] for row in r.xpending_range(KEY, GROUP, "-", "+", 10)]
        r.xclaim(KEY, GROUP, "worker", 0, ids, idle=3_600_000, justid=True)
        consumer.renew(now=1e9)
        idle.extend(row["time_since_delivered"] for row in r.xpending_range(KEY, GROUP, "-", "+", 10))

    listen(before=look)
    consumer = consume()
    fire_some(3)
    drain(consumer)
    assert len(idle) == 3
    assert min(idle) >= 3_600_000


def test_a_commit_that_is_refused_is_somebodys_fault(r, consume):
    from tests.app.models import Child

    @listens_to("shop.order_placed", batch=True)
    def record(events):
        for event in events:
            if event.payload["number"] == 2:
                Child.objects.create(parent_id=999)
            Effect.objects.create(number=event.payload["number"])

    consumer = consume()
    fire_some(4)
    drain(consumer)
    assert handled() == [0, 1, 3]
    assert FailedEvent.objects.count() == 1


def test_it_takes_one_argument(listeners):
    @listens_to("shop.order_placed", batch=True)
    def record(events, number): ...

    with pytest.raises(ConfigurationError, match="must take one argument, the list of events"):
        registry.select()


def test_in_a_burst(r):
    calls = listen()
    (listener,) = registry
    worker = Worker([listener], service_name="price-monitor", process_name="worker", settings=get_settings())
    worker.run_burst()
    fire_some(3)
    worker.run_burst()
    worker.client.close()
    assert calls == [[0, 1, 2]]
