"""What the announcer notes while events are handled, and for which of them it sends signals."""

import pytest
from django.db import connection
from model_bakery import baker

from lightbus_django import listens_to, signals
from lightbus_django.listening.announcer import Announcer
from lightbus_django.listening.registry import registry
from lightbus_django.models import FailedEvent, ProcessedEvent
from tests.app.models import Effect
from tests.conftest import drain
from tests.listening.handling import deliver, effects, fire_orders, inbox

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("listeners")]


@pytest.fixture
def sent():
    found = []

    def handled(event_id, **arguments):
        found.append(("handled", event_id))

    def failed(event_id, **arguments):
        found.append(("failed", event_id))

    signals.event_handled.connect(handled)
    signals.event_failed.connect(failed)
    yield found
    signals.event_handled.disconnect(handled)
    signals.event_failed.disconnect(failed)


@pytest.fixture
def announcer(record):
    (listener,) = registry
    return Announcer(listener, "group")


def failed_event(delivery):
    return baker.prepare(FailedEvent, event_id=delivery.key, history=[{"seconds": 0.5}])


def test_signals_are_in_the_order_of_the_events(announcer, sent):
    deliveries = [deliver(number) for number in range(3)]
    announcer.note_failure(failed_event(deliveries[1]), ValueError())
    assert announcer.handled_of(deliveries) == [deliveries[0], deliveries[2]]
    announcer.settled(deliveries)
    keys = [each.key for each in deliveries]
    assert sent == [("handled", keys[0]), ("failed", keys[1]), ("handled", keys[2])]


def test_what_was_handled_before_has_no_signal(announcer, sent):
    deliveries = [deliver(number) for number in range(2)]
    announcer.note_found(deliveries[0].key)
    announcer.settled(deliveries)
    assert sent == [("handled", deliveries[1].key)]


def test_notes_do_not_outlive_what_the_database_has_lost(announcer, sent):
    delivery = deliver()
    announcer.note_failure(failed_event(delivery), ValueError())
    announcer.forget()
    announcer.settled([delivery])
    assert sent == [("handled", delivery.key)]


def test_notes_do_not_outlive_their_events(announcer, sent):
    one, two = deliver(1), deliver(2)
    announcer.note_found(two.key)
    announcer.settled([one])
    announcer.settled([two])
    assert sent == [("handled", one.key), ("handled", two.key)]


@pytest.mark.parametrize("batch", [False, True])
def test_an_event_that_another_process_has_handled_has_no_signal(listeners, consume, r, sent, batch):
    @listens_to("shop.order_placed", start="beginning", batch=batch)
    def record(events): ...

    consumer = consume()
    drain(consumer)
    fire_orders(2)
    first = r.xrange("shop.*:stream")[0][1]["id"]
    baker.make(ProcessedEvent, event_id=first, consumer_group=consumer.group)
    drain(consumer)
    assert len(sent) == 1
    assert sent[0][1] != first
    assert consumer.inbox.tally.drain()["handled"] == 1


def test_a_retry_that_another_process_has_made_has_no_signal(listeners, sent):
    @listens_to("shop.order_placed")
    def record(event, number):
        Effect.objects.create(number=number)
        if event.attempt == 1:
            raise ValueError

    def delete_twice(execute, sql, *arguments):
        """As if another process had deleted the row with its handler's writes."""
        if sql.startswith("DELETE"):
            execute(sql, *arguments)
        return execute(sql, *arguments)

    box = inbox()
    box.handle([deliver(1)])
    with connection.execute_wrapper(delete_twice):
        assert box.retry(FailedEvent.objects.get().next_attempt_at) is True
    assert effects() == []
    assert sent == []
    assert box.tally.drain()["handled"] == 0


def test_failures_are_not_counted_as_handled(listeners, consume, sent):
    @listens_to("shop.order_placed", start="beginning")
    def record(event, number):
        if number == 1:
            raise ValueError

    fire_orders(3)
    consumer = consume()
    drain(consumer)
    counts = consumer.inbox.tally.drain()
    assert (counts["handled"], counts["failed"]) == (2, 1)


def test_the_log_record_of_a_failure_names_its_event(listeners, caplog):
    @listens_to("shop.order_placed")
    def record(event, number):
        raise ValueError

    delivery = deliver(1)
    inbox().handle([delivery])
    (line,) = [each for each in caplog.records if "failed, attempt" in each.getMessage()]
    assert line.failed_event_id == delivery.key
