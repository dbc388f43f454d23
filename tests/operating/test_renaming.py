"""A renamed listener goes on where it was under its old name: `lightbus_retire OLD --move-to NEW`."""

import time

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone
from model_bakery import baker

from lightbus_django import fire, listens_to
from lightbus_django.bus import streams
from lightbus_django.listening.registry import registry
from lightbus_django.models import ConsumerGroup, FailedEvent, ProcessedEvent, new_retry_request
from lightbus_django.operating.renaming import move_records
from lightbus_django.operating.retrying import read_outcomes
from tests.conftest import drain

KEY = "shop.*:stream"
OLD, NEW = "price-monitor-record", "price-monitor-store"

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def without_waiting(monkeypatch):
    monkeypatch.setattr(streams, "RETIRE_AFTER", 0)


@pytest.fixture
def handled(lightbus, r, listeners):
    """The numbers of the events that were handled, under either name."""
    lightbus(BATCH_SIZE=2)
    return []


def declare(name, handled):
    for listener in list(registry):
        registry.remove(listener)

    @listens_to("shop.order_placed", listener_name=name, start="beginning")
    def handler(event, number):
        if number == 1 and name == "record":
            raise ValueError("it fails under its old name")
        handled.append(number)


def move(*options):
    call_command("lightbus_retire", OLD, "--move-to", "store", "--no-input", "--idle", "0", *options)


def test_what_was_handled_is_not_handled_again_and_nothing_is_left_out(consume, handled, r):
    declare("record", handled)
    for number in range(6):
        fire("shop.order_placed", number=number)
    consumer = consume()  # it handles two events as it joins; the second one fails
    consumer.step(block=0)
    consumer.reader.flush()
    consumer.reader.read(block=0)  # two more are pending, and the process dies
    assert handled == [0, 2, 3]

    declare("store", handled)
    move()
    assert {group["name"] for group in r.xinfo_groups(KEY)} == {NEW}
    assert r.xpending(KEY, NEW)["pending"] == 2
    assert ConsumerGroup.objects.get().consumer_group == NEW
    assert FailedEvent.objects.get().consumer_group == NEW
    assert set(ProcessedEvent.objects.values_list("consumer_group", flat=True)) == {NEW}

    renamed = consume(process_name="renamed")
    FailedEvent.objects.all().retry_now()
    renamed.retries_due.set()
    renamed.reader.timeout = 0
    while renamed.step(time.monotonic() + 60, block=0):  # when it looks again for what others left
        pass
    drain(renamed)
    assert sorted(handled) == [0, 1, 2, 3, 4, 5]


def test_keys_that_the_new_group_has_as_well_stay_its_own(consume, handled):
    declare("store", handled)
    event = fire("shop.order_placed", number=1)
    for group in (OLD, NEW):
        baker.make(ProcessedEvent, event_id=event.id, consumer_group=group, processed_at=timezone.now())
    move()
    assert ProcessedEvent.objects.get().consumer_group == NEW


def test_a_group_in_use_is_not_moved(consume, handled, r, monkeypatch):
    monkeypatch.setattr(streams, "RETIRE_AFTER", 60)
    declare("record", handled)
    fire("shop.order_placed", number=0)
    drain(consume())
    declare("store", handled)
    with pytest.raises(CommandError, match="is in use"):
        move()
    assert {group["name"] for group in r.xinfo_groups(KEY)} == {OLD}
    assert ProcessedEvent.objects.get().consumer_group == OLD


@pytest.mark.parametrize(
    ("groups", "listener", "message"),
    [
        ([OLD, "another"], "store", "takes the name of one group"),
        ([NEW], "store", "is the group of this listener already"),
        ([OLD], "unknown", "has no listener 'unknown'"),
    ],
)
def test_what_can_not_be_moved_is_refused(handled, groups, listener, message):
    declare("store", handled)
    with pytest.raises(CommandError, match=message):
        call_command("lightbus_retire", *groups, "--move-to", listener, "--no-input")


def test_failed_events_that_both_groups_have_are_not_counted_as_done(listeners):
    @listens_to("shop.order_placed", listener_name="store")
    def store(event): ...

    (listener,) = listeners
    new = listener.group("price-monitor")
    for group in (OLD, new):
        baker.make(FailedEvent, event_id="1", event_name="shop.order_placed", consumer_group=group)
    request = new_retry_request("default", "ada")
    FailedEvent.objects.filter(consumer_group=OLD).request_retry(request)
    assert sum(move_records(OLD, new, listener)) == 1
    (outcome,) = read_outcomes("default", [request.pk])
    assert (outcome.done, outcome.withdrawn) == (0, 1)
