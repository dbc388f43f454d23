"""Consuming with idempotency keys, as one would write it by hand: the references of our inbox."""

from collections.abc import Callable, Iterable

from django.db import transaction

from benchmarks.models import Price
from lightbus_django.models import ProcessedEvent

from .bare import GROUP, Arguments, batches, filled
from .events import EVENT
from .stopwatch import Stopwatch
from .tally import Tally, check_stream, check_tables

Sample = dict[str, float]
Batch = list[tuple[str, Arguments]]


def transaction_an_event(events: int) -> Sample:
    """Key and row of each event in a transaction of their own."""

    def handle(tally: Tally, batch: Batch) -> None:
        for event_id, arguments in batch:
            with transaction.atomic():
                key(event_id).save(force_insert=True)
                tally.insert(event_id, **arguments)

    return _measure(handle, events)


def transaction_a_batch(events: int) -> Sample:
    """The keys of a batch in bulk and its rows one by one, in one transaction; no savepoints."""

    def handle(tally: Tally, batch: Batch) -> None:
        with transaction.atomic():
            insert_keys(event_id for event_id, _ in batch)
            for event_id, arguments in batch:
                tally.insert(event_id, **arguments)

    return _measure(handle, events)


def bulk(events: int) -> Sample:
    """The keys of a batch in bulk, and its rows too, in one transaction."""

    def handle(tally: Tally, batch: Batch) -> None:
        with transaction.atomic():
            insert_keys(event_id for event_id, _ in batch)
            Price.objects.bulk_create([Price(**arguments) for _, arguments in batch])
        tally.count += len(batch)
        tally.sum += sum(arguments["number"] for _, arguments in batch)

    return _measure(handle, events)


def key(event_id: str) -> ProcessedEvent:
    return ProcessedEvent(event_id=event_id, consumer_group=GROUP, event_name=EVENT)


def insert_keys(event_ids: Iterable[str]) -> None:
    ProcessedEvent.objects.bulk_create([key(event_id) for event_id in event_ids])


def _measure(handle: Callable[[Tally, Batch], None], events: int) -> Sample:
    tally, client = Tally(), filled(events)
    with Stopwatch() as stopwatch:
        for batch in batches(client):
            handle(tally, batch)
    tally.check(events)
    check_stream(client, events)
    check_tables(prices=events, keys=events)
    return stopwatch.sample(events)
